"""The protocol of DESIGN.md section 2 over one mapped segment.

A segment is an opaque capsule, one a process. All parameters are positional. Roles: `open_client` makes a capsule the
client's, `open_worker` a worker's; a call in the wrong role, or after `forget`, is a `ValueError`. A number
that is negative or too large for its field (a row, a slot, 32 bits) is an `OverflowError`. `wait`, `claim` and
large `commit` and `complete` let other threads run meanwhile, and so may the user's code that `give`, `fill`, `claim`
and `run_items` call; every other call is one step for Python threads.
"""

from collections.abc import Callable, Iterator, Sized
from typing import Any, Final, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

from typing_extensions import Buffer

_Segment: TypeAlias = object
_Tally: TypeAlias = object
_Running: TypeAlias = tuple[int, int, int, int, int, int]
_T = TypeVar("_T", bound=tuple[Any, ...])

class Damaged(Exception):
    """A number read from the segment is impossible: something else wrote into shared memory. The pool cannot go on."""

# ---- states of a row

FREE: Final = 0
"""The row carries nothing."""
READY: Final = 1
"""Published; no worker has claimed it."""
RUNNING: Final = 2
"""A worker owns it: decodes the arguments, or runs."""
STORING: Final = 3
"""A worker waits for payload room or fills it; no deadline counts any more."""
DONE: Final = 4
"""The result is there; the client has not collected it."""
CONDEMNED: Final = 5
"""Its worker is to be killed; what that worker still does to the row is dropped."""

# ---- negative return values

FULL: Final = -2
"""No row is free: collect, then try again."""
NO_ROOM: Final = -3
"""No run of payload units is free now: collect, then try again."""
TOO_LARGE: Final = -4
"""It would not fit even if all others gave their room back. Arguments and functions may take half of the room each."""
LOST: Final = -5
"""The row was condemned: the worker drops everything and exits."""
STOP: Final = -6
"""The pool stops, or this worker is to leave: it exits."""

# ---- why a worker ended (the monitor's word in a death record)

DIED: Final = 0
"""By itself, or by a signal that was not ours."""
DEADLINE: Final = 1
"""Killed by the monitor: its task was over its deadline."""
KILLED: Final = 2
"""Killed because the client condemned its task."""
RECYCLED: Final = 3
"""It had done its share of tasks and left between two of them."""
MEMORY: Final = 4
"""Killed by the monitor: its task had added more memory than its limit."""
OOM: Final = 5
"""Killed by the kernel for want of memory."""
UNREADY: Final = 6
"""It ended by itself before it was ready."""
RESTARTED: Final = 7
"""It was retired, and left by itself."""
CHANGED: Final = 8
"""A task had left its process changed, and it left before the next one."""

# ---- phases of a worker, see `set_phase`

STARTING: Final = 0
"""Forked, not ready yet."""
IDLE: Final = 1
"""Ready, without a task."""
LEAVING: Final = 2
"""Claims nothing more."""

# ---- what a slot's worker is doing, see `slot_times`

REPLACED: Final = 0
"""Nobody lives there now."""
IS_STARTING: Final = 1
"""Forked, not ready yet."""
IS_IDLE: Final = 2
"""Ready, without a task."""
IS_BUSY: Final = 3
"""In a task."""
IS_WAITING: Final = 4
"""In a task whose result is being stored, or waits for room."""
IS_LEAVING: Final = 5
"""Claims nothing more."""

# ---- sizes and masks

PACKED: Final = 2
"""A flag: the arguments are pieces, each at a multiple of `ALIGN`."""
REPEATABLE: Final = 4
"""A flag: there may be another attempt, so this one gets a copy of packed arguments."""
CAPTURE: Final = 32
"""A flag: what the task prints is caught, so the monitor looks at it as often as at a memory limit."""
PACKED_KIND: Final = 0x80
"""A bit of a result's kind: it is made of pieces; who reads it may write to it."""
ALIGN: Final = 64
"""Pieces stand at multiples of so many bytes."""
MAX_ROWS: Final = 4096
"""Most rows of a segment."""
MAX_SLOTS: Final = 512
"""Most workers of a segment."""
MAX_ITEMS: Final = 4094
"""Most items of a chunk."""
INLINE: Final = 408
"""Bytes of arguments, and later of results, that a row holds itself; more takes payload units."""
UNIT_SIZE: Final = 65536
"""Bytes of a payload unit."""
GENERATION_MASK: Final = 65535
"""A row names the low 16 bits of its worker's generation; the death log and the slots name all 32."""
TALLIES: Final = 256
"""Functions that a tally tells apart: numbers below this."""
SLOWEST: Final = 5
"""How many of the slowest items a tally remembers."""
DEATHS: Final = 4
"""Deaths of one slot that may wait for `settled` before `may_fork` says no."""
FILL_RATE: Final = 10_000_000_000
"""Bytes a second: no task is expected to fill memory faster."""
LOOK_MS: Final = 50
"""The longest time, in milliseconds, between two looks at a task with a memory limit."""

# ---- segment

def size(rows: int, slots: int, units: int, /) -> int:
    """Bytes of a control segment for so many rows, workers and payload units; 0 if there is no such segment."""

def create(fd: int, rows: int, slots: int, units: int, cores: int, /) -> None:
    """Format the file `fd`, all of which is touched. OSError if it cannot be mapped, ValueError if it is too small.
    `cores` is how many processes may spin or run at the same time."""

def attach(control_fd: int, payload_fd: int, /) -> _Segment:
    """Map both files; they may be closed afterwards. OSError if that fails, Damaged if this is no segment."""

def forget(segment: _Segment, /) -> None:
    """For a forked child that does not have the mapping (`dont_fork`): never touch it again, not even to unmap."""

def dont_fork(segment: _Segment, /) -> None:
    """Children forked from now on do not see the control segment (they still see the payload). OSError."""

def counters(segment: _Segment, /) -> dict[str, int]:
    """rows, slots, ready (ring entries not yet spent), sleepers (workers), units (in use; of them functions, views,
    kept), created (monotonic ns); and in the client, 0 elsewhere: healed (by `idle_scan`, ever), in_flight (rows
    published and not yet given back), copied (large results that could not become views)."""

def slot_info(segment: _Segment, slot: int, /) -> dict[str, int]:
    """pid, generation, phase, of the worker that lives in the slot, or lived there last; tasks (items finished), parks
    (times asleep) of all that have lived there; reaped: all generations below it are dead. Hints, not read at one
    moment."""

def slot_times(segment: _Segment, slot: int, now: int, /) -> dict[str, int]:
    """Where the time of a slot has gone until `now` (monotonic ns), in ns: start_ns (nobody was ready), busy_ns (in
    tasks), wait_ns (a result waited for room). Then pid and tasks as in `slot_info`; doing (REPLACED and the
    following); used_ns and used_most: CPU time and most memory in bytes of the dead, see `book_usage`; since: monotonic
    ns of the last death of one that had been ready, or of the start. Hints; after damage they may be anything."""

def slot_spans(segment: _Segment, slot: int, now: int, /) -> tuple[int, list[int]]:
    """(ns of a span, [busy ns in each span since `created`]) until `now`: at most 180 spans, twice as long each time
    they are full."""

def book_usage(segment: _Segment, slot: int, cpu_ns: int, peak: int, /) -> None:
    """A worker was waited for, which has used so much CPU time and at its peak so many bytes of memory."""

def book_spent(segment: _Segment, slot: int, generation: int, user_ns: int, system_ns: int, resident: int, /) -> None:
    """Before `record_death`: the worker, which was waited for, has used so much CPU time in all, and so many bytes of
    memory at its peak. `settle` says what of that belongs to the item in which it died, and how long that ran."""

# ---- counting: in the memory of this process, see pool/tally.py

def tally(found: list[Any], /) -> _Tally:
    """A fresh tally. What is counted and is among the SLOWEST items so far is appended to `found` as (record, index in
    its chunk, ns, slot). MemoryError."""

def count(
    tally: _Tally,
    number: int,
    record: object,
    item: int,
    kind: int,
    ns: int,
    user_ns: int,
    system_ns: int,
    resident: int,
    /,
) -> None:
    """An item that had no row: it was run in this process, which plays slot 0. ``resident`` 0: nobody has looked."""

def counted(tally: _Tally, number: int, /) -> tuple[int, int, int, int, int, int, int, int, int]:
    """(items that came to an end, of them failed, ns together, median ns, 95th percentile, longest ns, and of those of
    1 ms or more: ns of user and of system CPU time, most memory that a worker had at their end)."""

def room(segment: _Segment, /) -> int:
    """Bytes of the payload."""

def forked() -> None:
    """To be called before each fork: runs that this process holds now are not given back while a child may look into
    them (a worker's: while it has children; a client's: never)."""

def retire(segment: _Segment, /) -> None:
    """The workers are gone: give all free memory back, and what is held as soon as it is not."""

def ring_client(segment: _Segment, /) -> None:
    """Wake the client, whether it sleeps or not."""

def set_wire(segment: _Segment, fd: int, /) -> None:
    """The socket through which this process wakes a client that listens (`listen`): one byte is sent. Nothing is sent
    if `fd` has become another file meanwhile. OSError."""

def wire(segment: _Segment, /) -> int:
    """What `set_wire` has set here, or in the process that we were forked from; -1: nothing."""

# ---- client

def open_client(segment: _Segment, /) -> None:
    """Take the client's role; once, on a fresh segment. MemoryError."""

def publish(
    segment: _Segment,
    tasks: list[_T | None],
    record: _T,
    fn: int,
    fn_generation: int,
    fn_unit: int,
    fn_len: int,
    args: Buffer | tuple[Buffer, ...],
    items: int,
    timeout_ms: int,
    flags: int,
    attempt: int,
    number: int = 0,
    memory_limit: int = 0,
    since: int = 0,
    /,
) -> int:
    """Publish a task (`items` 0) or a chunk, and set `tasks[row] = record`, in one step. The row, or FULL, NO_ROOM,
    TOO_LARGE. `fn` 0: the function is in `args`; `timeout_ms` and `memory_limit` (bytes) 0: none; `flags`: calling
    convention << 8. `number`: what its items are counted as, see `count_into`. `since`: from when it waits for a worker
    (monotonic ns), 0: from now on."""

def give(
    segment: _Segment,
    tasks: list[_T | None],
    queue: Sized,
    source: Iterator[Any],
    most: int,
    like: _T,
    fn: int,
    fn_generation: int,
    fn_unit: int,
    fn_len: int,
    number: int,
    memory_limit: int,
    watched: bool,
    given: list[int],
    /,
) -> int | tuple[Any]:
    """`publish` up to `most` items of `source`, each by itself, as calls with that item, while they are numbers, None,
    or short strings or bytes. Their records are as `like` (pool/task.py), whose position is that of the first item.
    0: so many; 1: `source` is exhausted; 2: if `watched`, the monitor has to be told to look; (item,): it was read, but
    it is nothing of that kind, or there is no row, or something is in `queue`, or the segment was closed.
    Raises what `source` raises. `given[0]` grows by how many were published, whatever happens."""

def close_client(segment: _Segment, /) -> None:
    """From now on nothing is published there: `publish` finds no row, `give` hands back the item that it has read."""

def count_into(segment: _Segment, tally: _Tally, /) -> None:
    """Count what `collect` and `settle` hand out from now on."""

def collect(
    segment: _Segment,
    tasks: list[_T | None],
    inbox: list[tuple[_T, int, Any, int, bytes]],
    most: int,
    sink: object,
    own: list[tuple[_T, int, Any, int, bytes]],
    values: list[Any] | None,
    /,
) -> int:
    """Append (record, kind, data, length, facts) for at most `most` rows that are done or offer items, and free the
    done ones: to `own` if record[0] is `sink`, else to `inbox`; how many. A task: kind and data of its result: bytes; a
    bytearray, if it is made of pieces; or, if it is large, its run for as long as somebody holds it. A chunk: how many
    of its items came before, and of the next ones [kind, data, ...], or their values in a tuple, where all are numbers,
    None, short strings or bytes. length: bytes of all this in the payload. facts: what it took, see pool/account.py; of
    a chunk, of its items together, and then, if one of them is no value, of each. What single calls of `sink` have
    returned goes to `values` instead, if that is a list, where it is a number, None, or a short string or bytes.
    Damaged; MemoryError, and then the row is found again by a later call. What is appended counts."""

def flush(segment: _Segment, /) -> int:
    """Pay the wakes that `publish` owes, before the client sleeps or goes back to user code; workers woken."""

def wait(segment: _Segment, spin_us: int, timeout_ms: int, /) -> bool:
    """Sleep until a row is done, a worker died, or, after FULL, a row may be free. False: the time is over. True: look
    again (also after a signal, whose Python handler has run then, and may have raised)."""

def listen(segment: _Segment, /) -> bool:
    """Instead of `wait`, for who sleeps where something else wakes it: from now on the wire is rung. True: look again,
    soon (there is something to do, or workers may have to be woken)."""

def heard(segment: _Segment, /) -> None:
    """The end of `listen`: the wire is rung no more. To be called before the next look, and before `wait`."""

def cancel(segment: _Segment, tasks: list[_T | None], row: int, /) -> bool:
    """Take a row back that no worker has claimed, and set `tasks[row] = None`. False: too late."""

def drained(segment: _Segment, row: int, /) -> int:
    """How many items of a chunk in flight have been collected, because it waited for room."""

def row_word(segment: _Segment, row: int, /) -> tuple[int, int, int, int, int]:
    """(state, slot, generation & GENERATION_MASK, item, word) of a row; `word` is for `condemn`."""

def condemn(segment: _Segment, row: int, word: int, /) -> bool:
    """RUNNING → CONDEMNED, if the row's word is still exactly `word`. False: it has changed, leave it alone."""

def next_dead(segment: _Segment, /) -> tuple[int, int] | None:
    """(slot, reaped) of a slot with deaths that are not settled, None if there is none."""

def settle(
    segment: _Segment,
    tasks: list[_T | None],
    slot: int,
    reaped: int,
    out: list[tuple[_T, int, int, int, int, list[Any], bytes]],
    /,
) -> None:
    """Free all rows that generations < `reaped` of the slot left unfinished; append (record, state, item, generation,
    n, [kind, bytes, ...] of items n+1..item-1, facts) to `out` for each: n items were collected before; facts: of the
    item in which it died, and then as for `collect`. DONE rows go to `collect`. Damaged, and then this row stays."""

def settled(segment: _Segment, slot: int, reaped: int, /) -> None:
    """After `settle` and every use of `death`: the monitor may overwrite the records of generations < `reaped`."""

def death(segment: _Segment, slot: int, generation: int, /) -> tuple[int, int, int, int] | None:
    """(pid, raw wait status, reason, peak) of that generation (all 32 bits of it); None if it is not in the log."""

def idle_scan(segment: _Segment, /) -> int:
    """For a bounded wait that ended empty: find what got lost, in two scans in a row or at once; how many healed.

    Raises Damaged if ring or rows are in a state that nobody would ever end."""

def trim(segment: _Segment, /) -> None:
    """With nothing in flight: give the memory of free payload units back to the kernel; otherwise nothing."""

def store_function(segment: _Segment, data: Buffer, /) -> int:
    """Put bytes into the payload for `publish(fn_unit, fn_len)`. The first unit, or NO_ROOM, TOO_LARGE."""

def free_function(segment: _Segment, unit: int, length: int, /) -> None:
    """Give the units of `store_function` back. No row that names them may be in flight."""

def monitor_must_look(segment: _Segment, /) -> bool:
    """After publishing a task with a deadline or a memory limit: whether the monitor has to be told, because it looks
    no more by itself, or because this one has to be looked at sooner than any before."""

# ---- worker

def open_worker(segment: _Segment, slot: int, generation: int, /) -> None:
    """Take the role of the worker of that slot and generation (all 32 bits of it). MemoryError."""

def set_phase(segment: _Segment, phase: int, /) -> None:
    """Tell the monitor and `slot_info`: STARTING, IDLE, LEAVING. Who leaves wakes others for what is ready."""

def claim(
    segment: _Segment,
    spin_us: int,
    timeout_ms: int,
    fn: Callable[..., Any] | None = None,
    id: int = 0,
    generation: int = 0,
    /,
) -> tuple[int, int, int, int, bytes | None, int] | tuple[Any] | BaseException | int | None:
    """Claim a row, waiting once: (fn, fn_generation, calling convention, items, args, flags). args None: ask
    `arguments`. None: the time is over, or a signal came; False: the pool stops, or this worker is to leave. Damaged,
    and then the row is claimed nevertheless.

    With `fn`, whose key is `id` and `generation`, tasks that call it with one number, None, or short string or bytes
    are run and completed right here, one after the other. True: so many, or for so long, that other threads should
    have their turn. What such a task returned that is none of these is returned as (value,), and what it raised as
    it is: complete it. A code: what `complete` returned."""

def arguments(segment: _Segment, /) -> Buffer:
    """Of the claimed row. A run in the payload for as long as somebody holds it: also after `complete`, which makes it
    this worker's then. Bytes if they are in the row; a copy, if another attempt may need them as they are."""

def kept(segment: _Segment, /) -> int:
    """Bytes of runs that tasks of this worker still hold, and of those that their children may look into."""

def claimed_function(segment: _Segment, /) -> bytes:
    """The bytes that `publish` named with `fn_unit` and `fn_len`. Damaged, also if the row has no function."""

def begin_items(segment: _Segment, /) -> int:
    """The chunk is decoded, item 1 runs from now on: 0 or LOST."""

def run_items(
    segment: _Segment,
    fn: Callable[..., Any],
    star: bool,
    batch: list[Any],
    decode: Callable[[Any], Any] | None,
    hand_back: bool,
    /,
) -> int | tuple[Any]:
    """From the running item of a chunk on: call `fn` with each of `batch`, through `decode` if there is one, as
    `fn(item)` or `fn(*item)`, and commit its value: 0 (all are committed), or what `commit` returned; LOST also in a
    child that an item has forked. A value that is no number, None, or short string or bytes, or with `hand_back` any,
    is returned as (value,): commit it, and call again. Raises what an item raises: commit that. The batch loses its
    items."""

def runs_item(_: None = None, /) -> bool:
    """Whether `run_items` or `claim` is calling the code of a task."""

def left_item(_: None = None, /) -> None:
    """In a process that a task has forked, and that becomes a worker of its own pool: what it runs is not that task."""

def fill(items: list[Any], source: Iterator[Any], most: int, /) -> int | tuple[Any]:
    """Append from `source` to `items` what nobody can change: numbers, strings, bytes, None, tuples of them. 0: there
    are `most`, or a millisecond has passed; 1: it is exhausted; (item,): this one, which was read too, could be
    changed. Raises what `source` raises."""

def commit(segment: _Segment, kind: int, data: Buffer | tuple[Buffer, ...], /) -> int:
    """The result of the running item of a chunk; the next one runs, or the row is done: 0, LOST, STOP, or TOO_LARGE,
    and then the item is still running: commit something smaller. May wait for room, and meanwhile offers what is
    committed to `collect`. `kind` < 256."""

def complete(segment: _Segment, kind: int, data: Buffer | tuple[Buffer, ...], /) -> int:
    """The result of a single task: 0, LOST, STOP, or TOO_LARGE, and then it is still running. May wait for room."""

def attempt(segment: _Segment, /) -> tuple[int, float | None]:
    """Which attempt the claimed row is, from 1 (0: nothing was claimed yet), and how many seconds are left until the
    deadline of the running item; None: it has none. Works in a child that a task has forked, too."""

def progress(segment: _Segment, number: SupportsFloat | SupportsIndex, /) -> None:
    """What the running item says of itself, for `busy`; until the next one starts. NaN: nothing. TypeError. Nothing
    happens in a child that a task has forked."""

def book(segment: _Segment, start: int, end: int, /) -> None:
    """This worker has run a task that had no row, in these monotonic ns."""

# ---- monitor

def may_fork(segment: _Segment, slot: int, generation: int, /) -> bool:
    """False: the death log of the slot is full of what the client has not settled; ask again later."""

def slot_begin(segment: _Segment, slot: int, generation: int, /) -> None:
    """Before the fork: that generation (from 0, all 32 bits of it) lives in the slot from now on."""

def slot_forked(segment: _Segment, slot: int, pid: int, /) -> None:
    """After the fork: its process id, for `slot_info`."""

def record_death(
    segment: _Segment, slot: int, generation: int, pid: int, status: int, reason: int, peak: int = 0, /
) -> None:
    """After the process was waited for: log its raw wait status, the reason, and with MEMORY the bytes that its task
    had added; wake the client and all workers."""

def running(segment: _Segment, slot: int, /) -> _Running | None:
    """(slot, generation, row, timeout_ms, word, started_ns) of the RUNNING or CONDEMNED row of the slot's present
    generation, else None. `started_ns`: CLOCK_MONOTONIC, 0 while the worker has not said."""

def busy(segment: _Segment, /) -> tuple[int, tuple[tuple[int, float], ...]]:
    """How many workers run something now, and (slot, number) for each of them that has told its `progress`."""

def deadlines(segment: _Segment, idle: bool, /) -> tuple[int, float | None, list[_Running]]:
    """(tasks with a deadline or a memory limit in flight; seconds until the next look, or None: until it is told to;
    what is over its deadline, at most 64 at once). `idle`: say first, for `monitor_must_look`, that the monitor looks
    no more by itself if nothing with a limit is in flight."""

def limited(segment: _Segment, /) -> list[tuple[int, int, int, int, int, int, int, int, int, int]]:
    """(slot, generation, row, word, limit, started_ns, anonymous, dirtied, faults, peak) of each RUNNING row with a
    memory limit. The last four are what its worker has noted of its memory at the start, in bytes and minor faults;
    `dirtied` is 2**64 - 1 if `anonymous` is too little against the limit. `started_ns` 0: it has not yet, the four mean
    nothing."""

def stop_workers(segment: _Segment, /) -> None:
    """No worker claims anything more; all are woken."""

def retire_worker(segment: _Segment, slot: int, generation: int, /) -> None:
    """Workers of the slot below that generation are to leave after their task, but one worker of the pool at a time."""

def leaver(segment: _Segment, /) -> tuple[int, int] | None:
    """(slot, generation & GENERATION_MASK) of the worker that has taken its turn to leave. From shared memory: may be
    any numbers."""

def next_leaver(segment: _Segment, /) -> None:
    """The next one may leave."""

def set_renewed(segment: _Segment, count: int, /) -> None:
    """So many restarts are complete; the client is woken."""

def renewed(segment: _Segment, /) -> int:
    """How many restarts are complete."""

# ---- the process

def memory(pid: int, /) -> tuple[int, int]:
    """(anonymous, shared): resident bytes of a process, 0: ourselves; `shared` are files and shared memory. Zeros if
    the kernel does not say: no such process, no file descriptor left."""

def dirtied(pid: int, /) -> int:
    """Resident bytes of private mappings that the process has written to and shares with nobody: without what it has
    inherited by a fork and only read. 0 if the kernel does not say. A third of a millisecond and more."""

def punch(fd: int, offset: int, length: int, /) -> None:
    """Give the memory, or the disk, of a part of a file back; it reads as zeros then. OSError."""

def flush_stdio() -> None:
    """Write what C code has printed through stdio."""

def die_with_parent(signal: int, /) -> None:
    """Get `signal` when the thread that forked us ends. Compare os.getppid() afterwards. OSError."""

def exit_with_parent(pid: int, /) -> None:
    """Until it is called with 0, this process leaves by itself as soon as its parent `pid` is dead, at once if it is
    dead already, whatever code runs here. Takes the signal SIGRTMAX - 2. OSError."""

def become_subreaper() -> None:
    """Orphans among our descendants become our children instead of init's. OSError."""
