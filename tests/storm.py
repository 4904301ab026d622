"""The kill storm: workers are killed all the time, and every task must end exactly once, with the right value or with
WorkerCrashed.

::

    tasks ──▶ submit · imap in chunks (some slow to decode) · imap one by one ──▶ outcomes ┐
    killer thread ──▶ SIGSTOP, look at the rows, SIGKILL ──▶ deaths, and what the dead did ├──▶ it must add up
    workers ──▶ O_APPEND lines, record locks ──▶ ledger ───────────────────────────────────┘

The ledger is the oracle: it knows nothing of the pool. Every execution takes a record lock on the byte of its task (the
kernel gives it back when the process has died), so two executions of one task at the same time show as a lock that
cannot be had; then it appends one line.

Run it: `python tests/storm.py [--tasks N] [--seconds S] [--seed S] [--long]`. Exit code 0: everything added up.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import fcntl
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import payloads
import processes
from tasks import SlowToDecode

from ipc import _core
from pool import Failure, Pool, retry
from pool.errors import WorkerCrashed
from pool.futures import Future
from pool.map_run import MapRun
from pool.task import Death, describe_args

WORKERS = 3
KILL_EVERY = 0.05
LARGE = 3 << 20  # bytes: storing it takes long enough to be met by a kill
MANY = 1000  # retries that nobody uses up
HANG = 60.0  # seconds without any outcome: then it hangs
NOTHING, SHORT, BUSY, BIG = "no-op", "0.5 ms", "5 ms", "large result"
_KINDS = (*[NOTHING] * 63, *[SHORT] * 28, *[BUSY] * 6, *[BIG] * 3)
DECODING_SECONDS = 0.003  # of one item of a chunk that is slow to decode: such a chunk is decoded longer than it runs
MORE_ROUNDS, MORE_TASKS = 20, 2_000  # at most, if no kill has met a worker in some state

# What a worker can be at when it dies.
STARTING, IDLE, CLAIMING = "starting", "idle", "without a task, some are ready"
DECODING, SINGLE, ITEM = "decoding a chunk", "running a single task", "running an item of a chunk"
STORING, STORED = "storing a result", "done, not collected"
STATES = (STARTING, IDLE, CLAIMING, DECODING, SINGLE, ITEM, STORING, STORED)
CHARGED = (SINGLE, ITEM, STORING)  # a death then costs a task one attempt


# ---- what workers run


class _Ledger:
    path = ""
    fd = -1


def open_ledger(path: str) -> None:
    """The workers' initializer."""
    _Ledger.path = path
    _Ledger.fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)


def kind_of(number: int) -> str:
    return random.Random(number).choice(_KINDS)


def value_of(number: int) -> object:
    """What task `number` must return."""
    return bytes((number % 251,)) * LARGE if kind_of(number) == BIG else number * 2654435761 % 4294967296


def execute(number: int) -> object:
    """One execution: first its record, then the work of its kind."""
    state = "run"
    try:
        fcntl.lockf(_Ledger.fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except BlockingIOError:
        state = "overlap"
    os.write(_Ledger.fd, b"%d %d %s\n" % (number, os.getpid(), state.encode()))
    kind = kind_of(number)
    if kind in (SHORT, BUSY):
        end = time.perf_counter() + (0.0005 if kind == SHORT else 0.005)
        while time.perf_counter() < end:
            pass
    value = value_of(number)
    fcntl.lockf(_Ledger.fd, fcntl.LOCK_UN, 1, number)
    return value


# ---- who kills


class Killer:
    """Kills a random worker every KILL_EVERY seconds, and notes what the dead was at.

    It is stopped first, so what its rows say is what they say at its death. A third of the kills (when `hunting`, all)
    waits for a worker in the state met least so far: storing takes so little time that chance alone would take minutes
    to hit it.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        self.dead: dict[int, str] = {}  # pid → one of STATES
        self.counts: Counter[str] = Counter()
        self.done_rows = 0
        self.hunting = False
        self._client = pool._client
        self._segment = pool._client.segment
        self._rows = _core.counters(self._segment)["rows"]
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="killer")

    def missed(self) -> list[str]:
        """The states that no kill has met."""
        return [state for state in STATES if not self.counts[state]]

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + KILL_EVERY, time.monotonic())
                slot = self._random.randrange(WORKERS)
                if self.hunting or self._random.random() < 1 / 3:
                    wanted = min(STATES, key=self.counts.__getitem__)
                    if wanted == STARTING:  # nobody starts unless somebody has just died
                        self._kill(slot)
                    slot = self._await(wanted, due, slot)
                self._kill(slot)
        except BaseException as error:
            self._error = error

    def _await(self, wanted: str, until: float, slot: int) -> int:
        """A slot whose worker is in the wanted state, or any."""
        while time.monotonic() < until and not self._stop.is_set():
            rows = self._look()
            for k in range(WORKERS):
                if self._state(k, rows) == wanted:
                    return k
            self._stop.wait(0.0002)  # lets the client's thread run
        return slot

    def _look(self) -> list[tuple[int, int, int, int, int]]:
        """(row, state, slot, generation, item) of all rows that a worker owns."""
        words = ((row, *_core.row_word(self._segment, row)[:4]) for row in range(self._rows))
        return [word for word in words if word[1] not in (_core.FREE, _core.READY)]

    def _state(self, slot: int, rows: list[tuple[int, int, int, int, int]]) -> str:
        info = _core.slot_info(self._segment, slot)
        if info["phase"] == _core.STARTING:
            return STARTING
        generation = info["generation"] & _core.GENERATION_MASK
        mine = {state: (row, item) for row, state, owner, g, item in rows if (owner, g) == (slot, generation)}
        if _core.RUNNING in mine:
            row, item = mine[_core.RUNNING]
            if item:
                return ITEM
            task = self._client.tasks[row]  # the word alone does not say whether this is a chunk
            return DECODING if task is not None and task.items else SINGLE
        if _core.STORING in mine:
            return STORING
        if _core.DONE in mine:
            return STORED
        return CLAIMING if _core.counters(self._segment)["ready"] else IDLE

    def _kill(self, slot: int) -> None:
        info = _core.slot_info(self._segment, slot)
        pid = info["pid"]
        if pid == 0:  # dead, and not yet replaced
            return
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            again = _core.slot_info(self._segment, slot)
            same = all(again[key] == info[key] for key in ("pid", "generation", "reaped"))
            if not same or info["reaped"] > info["generation"]:
                return  # it has died since; the number may be somebody else's
            signal.pidfd_send_signal(fd, signal.SIGSTOP)
            end = time.monotonic() + 5
            while not processes.is_stopped(pid) and processes.runs(pid) and time.monotonic() < end:
                pass
            rows = self._look()
            state = self._state(slot, rows)
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)
        self.dead[pid] = state
        self.counts[state] += 1
        self.done_rows += sum((state, owner) == (_core.DONE, slot) for _, state, owner, _, _ in rows)


# ---- who gives the tasks, and what came of them


class Book:
    """Outcomes and deaths as the client sees them; `check` compares them with the ledger."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ends: Counter[int] = Counter()
        self.values: set[int] = set()
        self.crashes: list[WorkerCrashed] = []  # of tasks that failed
        self.charged: list[tuple[int, int]] = []  # (task, pid): a death that cost an attempt, as settled
        self.uncharged: set[int] = set()  # pids that died while a chunk was decoded
        self.reported = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record every settled death, by looking over the client's shoulder."""
        originals = [(sink, sink.crashed) for sink in (Future, MapRun)]

        def listen(sink: Any, original: Any) -> Any:
            def crashed(run: Any, task: Any, drained: int, committed: list[Any], death: Death) -> None:
                if not death.condemned and isinstance(task.item, list) and death.item == 0:
                    self.uncharged.add(death.pid)
                elif not death.condemned:
                    self.charged.append((int(describe_args(task, death.item)), death.pid))
                original(run, task, drained, committed, death)

            return crashed

        for sink, original in originals:
            sink.crashed = listen(sink, original)  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for sink, original in originals:
                sink.crashed = original  # type: ignore[attr-defined]

    def take(self, number: int, outcome: object) -> None:
        """The end of a task: its value, or its error."""
        self.ends[number] += 1
        if isinstance(outcome, WorkerCrashed):
            assert outcome.signal == signal.SIGKILL, outcome
            assert outcome.args_repr == str(number), outcome
            self.crashes.append(outcome)
        elif isinstance(outcome, BaseException):
            raise AssertionError(f"task {number} ended with {outcome!r}") from outcome
        else:
            assert outcome == value_of(number), f"task {number} has a wrong value"
            self.values.add(number)

    def check(self, given: int, dead: dict[int, str]) -> dict[str, int]:
        """Everything must add up; the figures. `dead`: whom we have killed, and what they were at."""
        assert set(self.ends) == set(range(given)), "a task has no end, or one that was never given has"
        assert set(self.ends.values()) == {1}, [number for number, ends in self.ends.items() if ends > 1]
        with open(self.path) as file:
            lines = [line.split() for line in file]
        assert all(len(line) == 3 for line in lines), "a torn line in the ledger"
        assert not [line for line in lines if line[2] == "overlap"], "two executions of one task at the same time"
        runs = Counter((int(number), int(pid)) for number, pid, _ in lines)
        assert not runs or max(runs.values()) == 1, "a worker executed a task twice"
        charged = Counter(self.charged)
        assert not charged or max(charged.values()) == 1, "a death was charged twice"
        # Each death was settled as what the dead was at; and nobody died whom we did not kill.
        assert {pid for _, pid in charged} == {pid for pid, state in dead.items() if state in CHARGED}
        assert self.uncharged == {pid for pid, state in dead.items() if state == DECODING}
        # A run that no death was charged for has ended with a value. One too many here: it ran uncharged, or again.
        finished = Counter(number for number, pid in runs if (number, pid) not in charged)
        assert set(finished) == self.values, "values without an execution, or executions without an end"
        assert not finished or max(finished.values()) == 1, "a task was executed again after it had finished"
        early = [key for key in charged if key not in runs]
        attempts = len(self.values) + len(charged)
        assert attempts == len(lines) + len(early), "attempts counted and executions started differ"
        return {
            "tasks": given,
            "values": len(self.values),
            "WorkerCrashed": len(self.crashes),
            "attempts": attempts,
            "executions": len(lines),
            "killed between claim and first line": len(early),
        }


def through_submit(pool: Any, numbers: range, book: Book) -> None:
    window: collections.deque[tuple[int, Any]] = collections.deque()
    for number in numbers:
        window.append((number, pool.submit(execute, number)))
        if len(window) > 1500:  # more than there are rows
            _take(window, book)
    while window:
        _take(window, book)


def _take(window: collections.deque[tuple[int, Any]], book: Book) -> None:
    number, future = window.popleft()
    error = future.exception(HANG)
    book.take(number, future.result() if error is None else error)


def through_chunks(pool: Any, numbers: range, book: Book) -> None:
    for number, result in zip(numbers, pool.imap(execute, numbers, chunksize=8, on_error="return"), strict=True):
        book.take(number, result.error if isinstance(result, Failure) else result)


def through_slow_chunks(pool: Any, numbers: range, book: Book) -> None:
    function = SlowToDecode(execute, DECODING_SECONDS)  # each new worker decodes it, before its first item
    for number, result in zip(numbers, pool.imap(function, numbers, chunksize=4, on_error="return"), strict=True):
        book.take(number, result.error if isinstance(result, Failure) else result)


def through_imap(pool: Any, numbers: range, book: Book) -> None:
    for number, result in zip(numbers, pool.imap(execute, numbers, chunksize=1, on_error="return"), strict=True):
        book.take(number, result.error if isinstance(result, Failure) else result)


WAYS = {through_submit: 8, through_chunks: 8, through_imap: 8, through_slow_chunks: 1}  # and their shares of the tasks


def legs(first: int, tasks: int) -> Iterator[tuple[Any, int, range]]:
    """(way, retries, numbers): each way without retries and with more than enough."""
    share = tasks // (2 * sum(WAYS.values()))
    end = first + tasks
    for retries in (0, MANY):
        for way, times in WAYS.items():
            yield way, retries, range(first, first + share * times)
            first += share * times
    yield through_imap, MANY, range(first, end)  # what the division has left


def storm(tasks: int, seconds: float = 0.0, seed: int = 1, kill: bool = True) -> dict[str, Any]:
    """One storm: rounds of `tasks` tasks until `seconds` are over, at least one; then some small ones, if a state of
    workers was met by no kill. The figures.

    AssertionError if anything does not add up."""
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        book = Book(os.path.join(folder, "ledger"))
        began = time.monotonic()
        with processes.nothing_left(), book.listening(), no_poison():
            pool = Pool(WORKERS, initializer=open_ledger, initargs=(book.path,)).start()
            segment = pool._client.segment
            processes.wait_until(lambda: _ready(segment) == WORKERS, "the workers are ready")
            killer, given, more = Killer(pool, seed), 0, 0
            with pool, killer if kill else contextlib.nullcontext():
                while not given or time.monotonic() - began < seconds:
                    _round(pool, book, given, tasks)
                    given += tasks
                killer.hunting = True
                while kill and killer.missed() and more < MORE_ROUNDS:
                    _round(pool, book, given, MORE_TASKS)
                    given += MORE_TASKS
                    more += 1
                if kill:
                    killer.stop()
                _all_alive(pool)
                healed = _core.counters(segment)["healed"]
        took = time.monotonic() - began
        assert os.listdir(folder) == ["ledger"], "files left in our folder"
        figures: dict[str, Any] = book.check(given, killer.dead)
        assert kill or (healed == 0 and figures["attempts"] == given), f"healed {healed} without a kill"
        figures |= {"kills": sum(killer.counts.values()), "healed": healed}
        figures |= {f"killed {state}": killer.counts[state] for state in STATES}
        figures |= {"DONE rows of the dead": killer.done_rows, "rounds added until every state was met": more}
        return figures | {"missed": killer.missed(), "seconds": round(took, 1), "seed": seed}


@contextlib.contextmanager
def no_poison() -> Iterator[None]:
    """Whoever is killed here is innocent, however often."""
    before, retry.MOST_CRASHES = retry.MOST_CRASHES, MANY
    try:
        yield
    finally:
        retry.MOST_CRASHES = before


def _round(pool: Pool, book: Book, first: int, tasks: int) -> None:
    for way, retries, numbers in legs(first, tasks):
        before = len(book.crashes)
        way(pool.options(retries=retries), numbers, book)
        assert not retries or len(book.crashes) == before, "a task with enough retries failed"


def _ready(segment: object) -> int:
    return sum(_core.slot_info(segment, slot)["phase"] != _core.STARTING for slot in range(WORKERS))


def _all_alive(pool: Pool) -> None:
    """The pool is back to its full size."""
    processes.wait_until(lambda: sum(map(processes.runs, processes.worker_pids(pool))) == WORKERS, "all are back", 10)
    assert pool.submit(int, "7").result(HANG) == 7


# ---- arrays: whoever dies, values are right and no memory stays behind

ARRAY_LENGTHS = (0, 100, 400, 3000, 40_000, 70_000, 300_000)
SPILLED_LENGTH = 6 << 20  # fits nowhere in a room of 8 MiB
KEPT: collections.deque[Any] = collections.deque(maxlen=3)


def array_of(number: int) -> Any:
    """The argument of task `number`."""
    lucky = random.Random(number)
    return payloads.array(number, SPILLED_LENGTH if lucky.random() < 0.005 else lucky.choice(ARRAY_LENGTHS))


def spoil(number: int, value: Any) -> tuple[int, Any, Any]:
    """Changes its argument in place; what a further attempt gets must not show that. Some arguments are kept."""
    value += 1
    if number % 5 == 0:
        KEPT.append(value)
    if number % 997 == 0:
        kept, digests = list(KEPT), [payloads.digest(kept) for kept in KEPT]
        time.sleep(0.002)
        assert digests == [payloads.digest(k) for k in kept], "what a task has kept has changed"
    return number, value, value[: number % 1000]


def check_spoilt(number: int, outcome: tuple[int, Any, Any]) -> None:
    wanted = array_of(number) + np.uint8(1)
    got, value, part = outcome
    assert got == number, f"{got} for {number}"
    assert payloads.digest(value) == payloads.digest(wanted), f"array {number} has wrong bytes"
    assert payloads.digest(part) == payloads.digest(wanted[: number % 1000]), f"part {number} has wrong bytes"


def array_storm(kills: int, seed: int, every: float = 0.015) -> dict[str, Any]:
    """Workers are killed while arrays go to and fro, until there were so many kills. The figures.

    AssertionError for a wrong or lost value, for units without an owner, and for memory that grows."""
    lucky, stop, count, given = random.Random(seed), threading.Event(), 0, 0
    with processes.nothing_left(), no_poison(), payloads.started(WORKERS, 128, retries=MANY) as (pool, payload):
        segment, began = pool._client.segment, time.monotonic()
        monitor = payloads.rss(processes.monitor_pid(pool))

        def kill() -> None:
            nonlocal count
            while not stop.wait(every):
                info = _core.slot_info(segment, lucky.randrange(WORKERS))
                if info["pid"] and info["phase"] == _core.IDLE and info["reaped"] <= info["generation"]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(info["pid"], signal.SIGKILL)
                        count += 1

        killer = threading.Thread(target=kill)
        killer.start()
        held: collections.deque[tuple[int, Any]] = collections.deque(maxlen=40)
        early = 0
        try:
            while count < kills:
                numbers = range(given, given + 300)
                pairs = [(number, array_of(number)) for number in numbers]
                if given // 300 % 3 == 0:
                    futures = [pool.submit(spoil, *pair) for pair in pairs]
                    outcomes: Iterable[Any] = (future.result(HANG) for future in futures)
                else:
                    outcomes = pool.istarmap(spoil, iter(pairs), chunksize=1 if given // 300 % 3 == 1 else 8)
                for number, outcome in zip(numbers, outcomes, strict=True):
                    check_spoilt(number, outcome)
                    if lucky.random() < 0.1:
                        held.append((number, outcome))
                for number, outcome in held:
                    check_spoilt(number, outcome)
                given += 300
                if early == 0 and count >= kills // 4:
                    early = payloads.rss()
        finally:
            stop.set()
            killer.join()
        grown = payloads.rss() - early
        assert grown < 64 << 20, f"the client has grown by {grown >> 20} MiB"
        more = payloads.rss(processes.monitor_pid(pool)) - monitor
        assert more < 16 << 20, f"the monitor has grown by {more >> 20} MiB"
        futures, outcomes, outcome = [], [], None
        held.clear()
        _all_alive(pool)
        for pid in processes.worker_pids(pool):  # with what they have kept
            os.kill(pid, signal.SIGKILL)
        payloads.settle(pool, len(pool._client.functions._alive))
        folder = pool._client.options.folder
        assert not os.path.exists(folder) or not [name for name in os.listdir(folder) if name.startswith("arguments")]
        pool.shutdown()
        assert payloads.memory(payload) == 0, "memory is left"
        assert not os.path.exists(folder), "files are left"
        took = round(time.monotonic() - began, 1)
    return {"arrays": given, "kills": count, "MiB grown": grown >> 20, "seconds": took, "seed": seed}


# ---- being the victim: a client that is killed in the middle of everything


def start_sleepers(marker: str, path: str) -> int:
    """A task that has started processes in every place where they can hide, and does not end."""
    sleep = ["sh", "-c", f"sleep 1000; : {marker}"]
    for options in ({}, {"process_group": 0}, {"start_new_session": True}):
        subprocess.Popen(sleep, **options)  # type: ignore[call-overload]
    daemonize(marker)
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    while True:
        signal.pause()


def daemonize(marker: str) -> None:
    """A double fork with setsid: nobody of ours is its parent, its group or its session."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if os.fork() == 0:
            os.execlp("sh", "sh", "-c", f"sleep 1000; : {marker}")
        os._exit(0)
    os.waitpid(pid, 0)


def victim(marker: str, folder: str) -> None:
    """Load without an end on a pool some of whose tasks have started other processes."""
    with Pool(WORKERS, initializer=open_ledger, initargs=(os.path.join(folder, "ledger"),), name=marker) as pool:
        pool.submit(start_sleepers, marker, os.path.join(folder, "started"))
        for number in range(10**9):
            pool.submit(execute, number)
            if number % 500 == 0:
                pool.submit(execute, number + 10**9).result()


# ---- from the command line


def show(figures: dict[str, Any]) -> str:
    return "\n".join(f"{name:>46}: {value}" for name, value in figures.items())


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=20_000, help="tasks of one round (20000)")
    parser.add_argument("--seconds", type=float, default=0.0, help="further rounds until they are over")
    parser.add_argument("--seed", type=int, default=None, help="of the killer (by default a new one, which is printed)")
    parser.add_argument("--long", action="store_true", help="ten minutes")
    parser.add_argument("--victim", nargs=2, metavar=("MARKER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.victim:
        victim(*options.victim)
        return 0
    seconds = 600.0 if options.long else options.seconds
    faulthandler.dump_traceback_later(seconds + 300, exit=True)  # a hang is a failure
    print("without kills:", show(storm(max(600, options.tasks // 10), seed=0, kill=False)), sep="\n")
    figures = storm(options.tasks, seconds, random.randrange(1 << 30) if options.seed is None else options.seed)
    print("with kills:", show(figures), sep="\n")
    seed = random.randrange(1 << 30) if options.seed is None else options.seed
    faulthandler.dump_traceback_later(3000, exit=True)
    print("arrays:", show(array_storm(10_000 if options.long else 100, seed)), sep="\n")
    if figures["missed"]:
        print(f"no kill met a worker {figures['missed']}")
    return 1 if figures["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
