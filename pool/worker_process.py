"""A worker process: claim a task, run it, publish what came of it; until told to stop, condemned, or recycled.

It is forked by the monitor and never returns from :func:`main`. The order of its first steps (fork hygiene) matters:
what can be killed or left behind by a death comes after what makes a death clean.
"""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable

from ipc import _core
from pool import capture, chunks, codec, context, spill
from pool.functions import FunctionCache
from pool.output import record_to
from pool.worker_options import WorkerOptions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

DUMP_SIGNAL = signal.SIGRTMAX - 1
"""Makes a worker write the Python stack of all its threads into its log, from C, so also while an endless C loop holds
the GIL."""

DEADLINE_SIGNAL = signal.SIGALRM
"""Ends a worker whose teardown takes too long."""

BOOT_FAILED = 3  # exit code; what counts is that the worker was never ready
LEFT_CHANGED = 4  # exit code: after a task that has left the process changed
_HAS_LEFT = " has left changed: "  # in its log, between who and what
_SPIN_US = 20
_PROBE = 4 << 20  # bytes that a worker must still be able to get after a MemoryError
_IDLE_MS = 1000
_NOT_READY: tuple[Callable[..., Any] | None, int, int] = None, 0, 0


class _Process:
    """Facts of this worker process that hooks and tasks ask for."""

    forked = False  # True in a child that a task has forked
    hook = False  # its initializer or its teardown runs
    results: _Results
    capture: capture.Capture
    spoilt = False  # a task has used up the memory: the next one shall not suffer for it


_in_task = False  # an interrupt is for the task, and for nothing else


def _is_active() -> bool:
    return _in_task or _core.runs_item() or _Process.hook


def _interrupt(number: int, frame: object) -> None:
    """SIGINT. Between two tasks, or while a result is on its way, a KeyboardInterrupt would lose a claimed row."""
    if _in_task or _core.runs_item():
        raise KeyboardInterrupt


def main(
    segment: object, slot: int, generation: int, files: tuple[int, int, int], monitor: int, options: WorkerOptions
) -> NoReturn:
    """Be the worker of ``slot`` until the end of the process. ``files``, which the monitor reads when it is dead: its
    log, the names of unfinished outputs, what its tasks print."""
    code = BOOT_FAILED
    log_fd, outputs_fd, said_fd = map(_move_up, files)
    try:
        _core.set_wire(segment, _move_up(_core.wire(segment)))
        _isolate(segment, slot, generation, log_fd, monitor)
        context.be_worker(context.Worker(segment, slot, generation), _is_active)
        _settle_in(slot, outputs_fd, options)
        _Process.results = _Results(options.folder, slot, generation)
        _Process.capture = capture.Capture(said_fd)
        _core.set_phase(segment, _core.IDLE)
        watched = _Watched(log_fd) if options.recycle_changed else None
        planned = _loop(segment, options.max_tasks_per_child or 0, watched)
        _core.set_phase(segment, _core.LEAVING)
        code = 0 if watched is None or not watched.changed else LEFT_CHANGED
        if planned and options.teardown is not None:
            _tear_down(options.teardown, options.grace, log_fd)
    except BaseException as error:
        _report(error, log_fd)
    finally:
        flush()
        os._exit(code)


def flush() -> None:
    """Write out what was printed. Streams that somebody has closed, broken or replaced are not ours to judge."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def _isolate(segment: object, slot: int, generation: int, log_fd: int, monitor: int) -> None:
    """A session of its own, the monitor's death is ours, default signals, no way back for a child that a task forks."""
    os.setsid()
    _core.die_with_parent(signal.SIGKILL)
    if os.getppid() != monitor:  # it died before the line above
        os._exit(1)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT):  # what the monitor has set
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, _interrupt)
    # A pool inside a task: its monitor is a child that the task forked, its worker is a worker.
    global _in_task
    _Process.forked = _in_task = False
    _core.left_item()
    _core.open_worker(segment, slot, generation)
    _core.dont_fork(segment)
    os.register_at_fork(before=_core.forked, after_in_child=lambda: _forked(segment))
    faulthandler.enable(log_fd)
    faulthandler.register(DUMP_SIGNAL, log_fd, all_threads=True, chain=False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def default_handlers() -> None:
    """No Python handler of the client runs in a process that we have forked."""
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)


def _move_up(fd: int) -> int:
    """The same file under a high number: a task that closes all descriptors and opens others gets the low ones, so what
    we write later does not end up in its files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = 1024 if soft == resource.RLIM_INFINITY else min(soft, 1024)  # higher would make the table of files large
    try:
        high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, highest - 16))
    except OSError:
        return fd
    os.close(fd)
    return high


def _forked(segment: object) -> None:
    _Process.forked = True
    _core.forget(segment)  # the control segment is not mapped here


def _settle_in(slot: int, outputs_fd: int, options: WorkerOptions) -> None:
    """Priority, memory score, title, imports, threads, random numbers; last the user's initializer."""
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "r+b", buffering=0) as score:
        # When memory runs out the kernel shall take a worker, not the client, whose own score was inherited.
        score.write(b"%d" % min(1000, int(score.read()) + 500))
    if options.nice:
        os.nice(options.nice)
    if options.cpu_affinity:
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[slot % len(cpus)]})
    set_title(f"{options.name}: worker {slot}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # replaced by something that is not a text stream
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    record_to(outputs_fd)
    initializer, initargs = options.initializer, options.initargs
    if options.preparation is not None:
        initializer, initargs, options.teardown = options.preparation.in_worker()
    _limit_threads(options.threads_per_worker)
    # What is imported later seeds itself.
    if (random := sys.modules.get("random")) is not None:
        random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (multiprocessing := sys.modules.get("multiprocessing.process")) is not None:
        multiprocessing._children = set()  # type: ignore[attr-defined]  # the client's children are not ours to poll
    gc.enable()
    if initializer is not None:
        _Process.hook = True
        initializer(*initargs)
        _Process.hook = False


def _limit_threads(threads: int) -> None:
    """BLAS and OpenMP pools that are already loaded; those loaded later obey the environment that the monitor has
    set."""
    if not any(name in sys.modules for name in ("numpy", "scipy", "torch", "sklearn")):
        return
    try:
        import threadpoolctl
    except ImportError:
        return
    threadpoolctl.threadpool_limits(threads)


def import_title() -> None:
    """Import what ``set_title`` needs: in the client, because in a fresh fork it takes three times as long."""
    with contextlib.suppress(ImportError, OSError):  # OSError: too many open files
        import setproctitle  # noqa: F401


def set_title(title: str) -> None:
    """The process title as ``ps`` and ``top`` show it."""
    if (setproctitle := sys.modules.get("setproctitle")) is not None:
        setproctitle.setproctitle(title)
        # The kernel's short name too, but without spaces: from Python 3.12 on os.fork() counts the words of
        # /proc/self/stat to find the number of threads, and would warn of threads in each task that forks.
        setproctitle.setthreadtitle(title.replace(": ", ":").replace(" ", "-"))


def _report(error: BaseException, log_fd: int) -> None:
    """The traceback of a failed start, for ``PoolStartError``, or of a failed teardown, for people."""
    text = codec.trace(error, skip=2 if not isinstance(error, _core.Damaged) else 0)
    with contextlib.suppress(OSError):
        os.write(log_fd, text.encode(errors="replace"))


def _tear_down(teardown: Callable[[], object], timeout: float, log_fd: int) -> None:
    """Call it. The deadline is the kernel's, so it holds in C code too: the stack goes into the log, then the process
    dies of the signal. It stays set until the process is gone."""
    # Not faulthandler's own timer: one of the client's, as pytest sets it, would be waited for, but its thread is not
    # here. Default first: a handler that a task has left would be the next in the chain.
    signal.signal(DEADLINE_SIGNAL, signal.SIG_DFL)
    faulthandler.register(DEADLINE_SIGNAL, log_fd, all_threads=True, chain=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (DEADLINE_SIGNAL,))
    signal.setitimer(signal.ITIMER_REAL, timeout)
    _Process.hook = True
    teardown()


def split_log(log: str) -> tuple[str, str]:
    """What a worker says there of a task that has changed its process; and the rest."""
    lines = log.splitlines(keepends=True)
    said = [line for line in lines if _HAS_LEFT in line][:1]
    return "".join(said).strip(), "".join(line for line in lines if line not in said)


class _Watched:
    """What tasks must leave as the initializer has left it, and where it is said that one has not."""

    def __init__(self, log_fd: int) -> None:
        from pool import changes

        self.changed = False
        self._changes = changes
        self._before = changes.look()
        self._log_fd = log_fd

    def has_changed(self, fn: Callable[..., Any] | None) -> bool:
        """Since then, and ``fn`` was the last to run."""
        differ = self._changes.since(self._before)
        if differ:
            self.changed = True
            name = "a task" if fn is None else codec.task_name(fn)
            with contextlib.suppress(OSError):  # it may have closed that too
                os.write(self._log_fd, f"{name}{_HAS_LEFT}{differ}\n".encode(errors="replace"))
        return self.changed


def _loop(segment: object, recycle_after: int, watched: _Watched | None) -> bool:
    """Run tasks. Returns whether this is a planned end: not if it is condemned."""
    functions = FunctionCache(segment)
    limit = _core.room(segment) // 64
    kept = 0  # after the last collection
    done = 0
    fn, fn_id, fn_generation = _NOT_READY  # which tasks `claim` may run by itself
    while True:
        claim = _core.claim(segment, _SPIN_US, _IDLE_MS, fn, fn_id, fn_generation)
        if claim is True:
            continue
        if claim is None:
            if (share := sys.modules.get("pool.share")) is not None and share.release_unused():
                functions.clear()  # they may hold it
                fn, fn_id, fn_generation = _NOT_READY
            continue
        if claim is False:
            break
        if type(claim) is tuple and len(claim) == 6:
            key = claim[:2]
            _, _, call, items, args, _ = claim
            code = (_run_chunk if items else _run_one)(segment, functions, claim)
            single = call == codec.CALL_ONE and not items and not recycle_after and watched is None
            fn, fn_id, fn_generation = functions.known(*key) if single else _NOT_READY
        elif type(claim) is int:
            code, items, args = claim, 1, b""
        else:
            items, args = 1, b""
            kind, data = _encoded(claim)
            claim = None  # what its finalisers do belongs to the task, its time and its deadline
            code = _forked_or(_core.complete, segment, kind, data)
        claim = data = None  # nothing of a task is held while there is no other
        if _Process.forked:  # a child of a task has come back to our loop: it must not touch anything of ours
            os._exit(0)
        if code < 0:
            return False
        if _Process.spoilt:
            break
        # Arguments that tasks have kept take room from others. What cycles keep is collected; a worker that still keeps
        # more than four times as much is to be replaced.
        if args is None and _core.kept(segment) > kept + limit:
            gc.collect()
            kept = _core.kept(segment)
            if kept > 4 * limit:
                break
        done += items or 1
        if recycle_after and done >= recycle_after:
            break
        if watched is not None and watched.has_changed(functions.known(*key)[0]):
            break
    return True


def _call(fn: Callable[..., Any] | None, call: int, argument: Any) -> Any:
    if call == codec.CALL_ONE:
        return fn(argument)  # type: ignore[misc]
    if call == codec.CALL_ARGS:
        return fn(*argument[0], **argument[1])  # type: ignore[misc]
    if call == codec.CALL_STAR:
        return fn(*argument)  # type: ignore[misc]
    return argument[0](*argument[1], **argument[2])


def _run_one(segment: object, functions: FunctionCache, claim: tuple[Any, ...]) -> int:
    global _in_task
    fn_id, generation, call, _, args, flags = claim
    caught = _Process.capture if flags & _core.CAPTURE else None
    if caught is not None:
        caught.start()
    try:
        _in_task = True
        fn = functions.get(fn_id, generation) if fn_id else None
        value = _call(fn, call, codec.loads(args) if args is not None else _arguments(segment, flags))
        kind, data = codec.encode_value(value)
        value = None  # as what a task raises: its finalisers belong to the task (but buffers on their way hold theirs)
        _in_task = False
    except BaseException as error:
        _in_task = False
        kind, data = _encode_error(error)
    if caught is not None and not _Process.forked:
        kind, data = _with_output(caught, kind, data)
        caught.stop()
    return _forked_or(_core.complete, segment, kind, data)


def _encoded(ran: Any) -> tuple[int, Any]:
    """The result of a task that `claim` has run: ``ran`` is (value,), or what it raised."""
    global _in_task
    if type(ran) is not tuple:
        return _encode_error(ran, 0)
    try:
        _in_task = True
        kind, data = codec.encode_value(ran[0])
        _in_task = False
    except BaseException as error:
        _in_task = False
        kind, data = _encode_error(error, 1)
    return kind, data


def _run_chunk(segment: object, functions: FunctionCache, claim: tuple[Any, ...]) -> int:
    """A chunk: each item's result is committed before the next item starts, so that a death is charged to one item."""
    if not claim[5] & _core.CAPTURE:
        return _run_batch(segment, functions, claim, None)
    caught = _Process.capture
    caught.start()
    code = _run_batch(segment, functions, claim, caught)
    caught.stop()
    return code


def _run_batch(
    segment: object, functions: FunctionCache, claim: tuple[Any, ...], caught: capture.Capture | None
) -> int:
    fn_id, generation, call, items, args, flags = claim
    try:
        fn = functions.get(fn_id, generation) if fn_id else None
        batch = codec.loads(args) if args is not None else _arguments(segment, flags)
    except BaseException as error:
        broken: tuple[int, Any] = _encode_error(error)
        if caught is not None and not _Process.forked:
            broken = _with_output(caught, *broken)
        code = _core.begin_items(segment)
        while items and code == 0:
            code = _forked_or(_core.commit, segment, *broken)
            items -= 1
        return code
    decode = chunks.decode_part if flags & chunks.PARTS else None
    code = _core.begin_items(segment)
    if code == 0:
        code = _run_items(segment, fn, call == codec.CALL_STAR, batch, decode, caught)
    return code


def _run_items(
    segment: object,
    fn: Any,
    star: bool,
    batch: list[Any],
    decode: Callable[[Any], Any] | None,
    caught: capture.Capture | None,
) -> int:
    """All of them. Items whose values are numbers or short strings follow each other without a step in Python: the core
    calls, encodes and commits. What it cannot encode, and what is raised, comes back to here."""
    global _in_task
    while True:
        try:
            done: Any = _core.run_items(segment, fn, star, batch, decode, caught is not None)
            if type(done) is int:
                return done
            _in_task = True
            kind, data = codec.encode_value(done[0])
            _in_task = False
            done = None
        except BaseException as error:
            _in_task = False
            kind, data = _encode_error(error, 1)
        if caught is not None and not _Process.forked:
            kind, data = _with_output(caught, kind, data)
        code = _forked_or(_core.commit, segment, kind, data)
        if code < 0:
            return code


def _with_output(caught: capture.Capture, kind: int, data: Any) -> tuple[int, Any]:
    said = caught.take()
    return capture.attach(kind, data, said) if said else (kind, data)


def _arguments(segment: object, flags: int) -> Any:
    """Arguments that are not simply a pickle in the row. Nobody here may hold their bytes afterwards: what the task
    keeps of them is told by who still does."""
    data = _core.arguments(segment)
    if flags & codec.IN_FILE:
        data = spill.read(bytes(data).decode())
    return codec.loads_packed(data) if flags & _core.PACKED else codec.loads(data)


def _forked_or(publish: Callable[[object, int, Any], int], segment: object, kind: int, data: Any) -> int:
    if _Process.forked:
        os._exit(0 if kind & ~codec.MORE in codec.VALUES else 1)
    if type(data) is not bytes and spill.exceeds_memory(spill.size(data)):
        kind, data = _spill(kind, data)
    code = publish(segment, kind, data)
    if code == _core.TOO_LARGE:
        return publish(segment, *_spill(kind, data))
    return code


def _spill(kind: int, data: Any) -> tuple[int, bytes]:
    """The same result as a file."""
    try:
        return _Process.results.spill(kind, data)
    except OSError as error:
        return codec.encode_too_large(spill.size(data), str(error))


class _Results:
    """Files for results that do not fit into the payload room."""

    def __init__(self, folder: str, slot: int, generation: int) -> None:
        self._where = folder, slot, generation
        self._count = 0

    def spill(self, kind: int, data: Any) -> tuple[int, bytes]:
        self._count += 1
        path = spill.result_path(*self._where, self._count)
        spill.write(path, data)
        return kind | codec.SPILLED, path.encode()


def _short_of_memory() -> bool:
    """Whether what the task has left of the memory would fail the next one too."""
    try:
        bytearray(_PROBE)
    except MemoryError:
        return True
    return False


def _encode_error(error: BaseException, frames: int = 2) -> tuple[int, bytes]:
    """``frames``: of ours, at the beginning of its traceback."""
    _Process.spoilt = _Process.spoilt or (isinstance(error, MemoryError) and _short_of_memory())
    try:
        return codec.encode_error(error, skip=frames)
    except BaseException:  # MemoryError while the report is made
        _Process.spoilt = True
        return codec.ERROR, codec.EMERGENCY
