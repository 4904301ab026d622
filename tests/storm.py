"""The kill storm: workers are killed all the time, and every task must end exactly once, with the right value or with
WorkerCrashed.

::

    tasks ──▶ submit · imap in chunks · imap one by one ──▶ outcomes ┐
    killer thread ──▶ SIGSTOP, look at the rows, SIGKILL ──▶ deaths  ├──▶ check: all of it must add up
    workers ──▶ O_APPEND lines, record locks ──▶ ledger ─────────────┘

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

import processes

from ipc import _core
from pool import Failure, Pool
from pool.errors import WorkerCrashed
from pool.futures import Future
from pool.mapping import MapRun
from pool.task import Death, describe_args

WORKERS = 3
KILL_EVERY = 0.05
LARGE = 3 << 20  # bytes: storing it takes long enough to be met by a kill
MANY = 1000  # retries that nobody uses up
HANG = 60.0  # seconds without any outcome: then it hangs
NOTHING, SHORT, BUSY, BIG = "no-op", "0.5 ms", "5 ms", "large result"
_KINDS = (*[NOTHING] * 63, *[SHORT] * 28, *[BUSY] * 6, *[BIG] * 3)
CLASSES = ("READY", "RUNNING", "STORING", "DONE", "none")


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
    """Kills a random worker every KILL_EVERY seconds, and counts what the dead was at.

    It is stopped first, so what its rows say is what they say at its death. A third of the kills waits for a worker in
    the state met least so far: storing takes so little time that chance alone would take minutes to hit it.
    """

    def __init__(self, pool: Pool, seed: int) -> None:
        self.classes: Counter[str] = Counter()
        self.done_rows = 0
        self.starting = 0
        self.pids: set[int] = set()
        self._client = pool._client
        self._segment = pool._client.segment
        self._rows = _core.counters(self._segment)["rows"]
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="killer")

    @property
    def kills(self) -> int:
        return sum(self.classes.values())

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            due = time.monotonic()
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + KILL_EVERY, time.monotonic())
                slot = self._random.randrange(WORKERS)
                if self._random.random() < 1 / 3:
                    slot = self._await(min(CLASSES, key=self.classes.__getitem__), due, slot)
                self._kill(slot)
        except BaseException as error:
            self._error = error

    def _await(self, wanted: str, until: float, slot: int) -> int:
        """A slot whose worker is in the wanted state, or any."""
        while time.monotonic() < until and not self._stop.is_set():
            states = self._look()
            for k in range(WORKERS):
                if self._class(k, states) == wanted:
                    return k
            self._stop.wait(0.0002)  # lets the client's thread run
        return slot

    def _look(self) -> list[tuple[int, int, int]]:
        """(state, slot, generation) of all rows that a worker owns."""
        words = (_core.row_word(self._segment, row) for row in range(self._rows))
        return [word[:3] for word in words if word[0] not in (_core.FREE, _core.READY)]

    def _class(self, slot: int, states: list[tuple[int, int, int]]) -> str:
        generation = _core.slot_info(self._segment, slot)["generation"] & _core.GENERATION_MASK
        mine = {state for state, owner, g in states if (owner, g) == (slot, generation)}
        for state, name in ((_core.RUNNING, "RUNNING"), (_core.STORING, "STORING"), (_core.DONE, "DONE")):
            if state in mine:
                return name
        return "READY" if _core.counters(self._segment)["ready"] else "none"

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
            states = self._look()
            name = self._class(slot, states)
            starting = _core.slot_info(self._segment, slot)["phase"] == _core.STARTING
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            os.close(fd)
        self.pids.add(pid)
        self.classes[name] += 1
        self.starting += starting
        self.done_rows += sum((state, owner) == (_core.DONE, slot) for state, owner, _ in states)


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

    def check(self, given: int, killed: set[int]) -> dict[str, int]:
        """Everything must add up; the figures."""
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
        assert {pid for _, pid in charged} | self.uncharged <= killed, "somebody died whom we did not kill"
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
            "chunks killed while decoded (nobody charged)": len(self.uncharged),
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


def through_imap(pool: Any, numbers: range, book: Book) -> None:
    for number, result in zip(numbers, pool.imap(execute, numbers, chunksize=1, on_error="return"), strict=True):
        book.take(number, result.error if isinstance(result, Failure) else result)


WAYS = (through_submit, through_chunks, through_imap)


def legs(tasks: int, first: int = 0) -> Iterator[tuple[Any, int, range]]:
    """(way, retries, numbers): each way without retries and with more than enough."""
    share = tasks // (2 * len(WAYS))
    for k, (way, retries) in enumerate((way, retries) for retries in (0, MANY) for way in WAYS):
        end = tasks if k == 2 * len(WAYS) - 1 else (k + 1) * share
        yield way, retries, range(first + k * share, first + end)


def storm(tasks: int, seconds: float = 0.0, seed: int = 1, kill: bool = True) -> dict[str, Any]:
    """One storm: rounds of `tasks` tasks until `seconds` are over, at least one. The figures.

    AssertionError if anything does not add up."""
    with tempfile.TemporaryDirectory(prefix="storm-") as folder:
        book = Book(os.path.join(folder, "ledger"))
        began = time.monotonic()
        with processes.nothing_left(), book.listening():
            pool = Pool(WORKERS, initializer=open_ledger, initargs=(book.path,)).start()
            segment = pool._client.segment
            processes.wait_until(lambda: _ready(segment) == WORKERS, "the workers are ready")
            killer, given = Killer(pool, seed), 0
            with pool, killer if kill else contextlib.nullcontext():
                while not given or time.monotonic() - began < seconds:
                    for way, retries, numbers in legs(tasks, given):
                        before = len(book.crashes)
                        way(pool.options(retries=retries), numbers, book)
                        assert not retries or len(book.crashes) == before, "a task with enough retries failed"
                    given += tasks
                killer._stop.set()
                _all_alive(pool)
                healed = _core.counters(segment)["healed"]
        took = time.monotonic() - began
        assert os.listdir(folder) == ["ledger"], "files left in our folder"
        figures: dict[str, Any] = book.check(given, killer.pids)
        assert kill or (healed == 0 and figures["attempts"] == given), f"healed {healed} without a kill"
        figures |= {"kills": killer.kills, "of starting workers": killer.starting, "healed": healed}
        figures |= {"at death": {name: killer.classes[name] for name in CLASSES}}
        figures |= {"DONE rows of the dead": killer.done_rows, "seconds": round(took, 1), "seed": seed}
        return figures


def _ready(segment: object) -> int:
    return sum(_core.slot_info(segment, slot)["phase"] != _core.STARTING for slot in range(WORKERS))


def _all_alive(pool: Pool) -> None:
    """The pool is back to its full size."""
    processes.wait_until(lambda: sum(map(processes.runs, processes.worker_pids(pool))) == WORKERS, "all are back", 10)
    assert pool.submit(int, "7").result(HANG) == 7


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
    missed = [name for name, count in figures["at death"].items() if not count]
    if missed:
        print(f"classes that no kill met: {missed}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
