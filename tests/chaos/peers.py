"""The same kills for other pools: what each of them makes of the death of a worker.

``python -m chaos.peers [--kills N] [--seconds S] [--only NAMES]`` (it needs the extra "bench") plays each pool in a
process of its own: two workers, tasks of 1 ms, 100 of which are kept waiting, and every 50 ms one random worker is
killed, whatever it is at. Nobody asks for a task to be run again. ``make proof`` writes the table into
docs/reliability.md:

    version     of the library, or of Python
    kills       workers killed, each of them alive, of the pool in use, and one that had begun a task
    accepted    tasks that the pool has taken: values + wrong + failed + lost
    values      ended with their value
    wrong       ended with another value
    failed      ended with an error
    lost        have not ended when nothing had come for 30 s (pebble: 190 s)
    innocent    failed or lost beyond one for each kill: no killed worker can have been running these; where errors
                name a worker, at least those that name one that was not killed, or one that another has named
    doubled     begun more than once
    rebuilt     times that the pool said that it was over, and a new one was made
    hung        times that it did not say so, but nothing came for so long, not even what it was given meanwhile
    recovery    from a kill until a worker begins its first task, each such worker for one kill: median, and 99 % or,
                of fewer than 100 kills, the maximum. ≥: we have cut it off, after 15 s of ending a pool, or as it hung

A pool that goes on is never made anew, whatever it has lost: its later tasks overtake those.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple, NoReturn

import processes

from chaos import figures
from chaos.sources import surroundings

WORKERS, WAITING, TASK_SECONDS, KILL_EVERY = 2, 100, 0.001, 0.05
HANG = 30.0  # seconds; what comes late is not lost
LOCKS = 190.0  # the same for pebble: its workers wait 60 s for a lock of the dead, twice or thrice, until it is over
KNOCK = 1.0  # then one more task is given, to see whether the pool goes on
LOOK = 0.02
END = 15.0  # seconds to end a pool that is over; mpire allows itself five for each of its three queues
ENOUGH = 100  # kills, for rates and a 99th percentile
LEDGER = "CHAOS_PEERS_LEDGER"  # variable of the environment: it reaches every kind of worker
ENTRY = "=qqq8x"  # task, pid, ns; of a size that divides a page, so none is ever seen, or left, half


def task(number: int) -> int:
    fd = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, struct.pack(ENTRY, number, os.getpid(), time.monotonic_ns()))
    os.close(fd)
    end = time.perf_counter() + TASK_SECONDS
    while time.perf_counter() < end:
        pass
    return number * 3


# ---- pools


class Way(NamedTuple):
    """To use a pool as its documentation says."""

    package: str  # as it is installed; "": it comes with Python
    make: Callable[[], Any]
    give: Callable[[Any, int], Any]  # returns a handle; raises if the pool takes no more
    ended: Callable[[Any], bool]
    ask: Callable[[Any, float], Any]  # a handle, for its value, so many seconds
    end: Callable[[Any], object]
    is_over: Callable[[Exception], bool] = lambda _: False  # whether a task's error says so, if nothing else does
    patience: float = HANG  # longer than any time limit of its own
    culprit: Callable[[Exception], int] | None = None  # pid of the worker that a task's error names


def _ours() -> Any:
    from pool import Pool

    return Pool(WORKERS).start()


def _stdlib() -> Any:
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(WORKERS)


def _loky() -> Any:
    from loky import ProcessPoolExecutor

    return ProcessPoolExecutor(WORKERS)


def _multiprocessing() -> Any:
    from multiprocessing import Pool

    return Pool(WORKERS)


def _pebble() -> Any:
    from pebble import ProcessPool

    return ProcessPool(WORKERS)


def _mpire() -> Any:
    from mpire import WorkerPool

    return WorkerPool(WORKERS)


def _submit(pool: Any, number: int) -> Any:
    return pool.submit(task, number)


def _schedule(pool: Any, number: int) -> Any:
    return pool.schedule(task, args=(number,))


def _apply(pool: Any, number: int) -> Any:
    return pool.apply_async(task, (number,))


def _done(handle: Any) -> bool:
    return bool(handle.done())


def _ready(handle: Any) -> bool:
    return bool(handle.ready())


def _result(handle: Any, timeout: float) -> Any:
    return handle.result(timeout)


def _get(handle: Any, timeout: float) -> Any:
    return handle.get(timeout)


def _pid(error: Exception) -> int:
    return int(getattr(error, "pid", 0))


def _stop_and_join(pool: Any) -> None:
    pool.stop()
    pool.join()


def _has_lost_a_worker(error: Exception) -> bool:
    """mpire shuts down then. It goes on taking tasks, which would never end: one is to call `terminate`."""
    return isinstance(error, RuntimeError) and str(error).endswith("died unexpectedly")


OURS = "this pool"
POOLS = {
    OURS: Way("prefork-pool", _ours, _submit, _done, _result, lambda pool: pool.kill_workers(), culprit=_pid),
    "ProcessPoolExecutor": Way("", _stdlib, _submit, _done, _result, lambda pool: pool.shutdown(wait=False)),
    "loky": Way("loky", _loky, _submit, _done, _result, lambda pool: pool.shutdown(wait=False, kill_workers=True)),
    "multiprocessing.Pool": Way("", _multiprocessing, _apply, _ready, _get, lambda pool: pool.terminate()),
    "pebble": Way("pebble", _pebble, _schedule, _done, _result, _stop_and_join, patience=LOCKS),
    "mpire": Way("mpire", _mpire, _apply, _ready, _get, lambda pool: pool.terminate(), _has_lost_a_worker),
}


def version(way: Way) -> str:
    if way.package:
        return metadata.version(way.package)
    return f"{platform.python_implementation()} {platform.python_version()}"


# ---- in a process of its own


class Run:
    """One pool under fire."""

    def __init__(self, way: Way, path: str, seed: int) -> None:
        self.way = way
        self.path = path
        self.random = random.Random(seed)
        self.accepted = 0  # tasks; they are numbered as they are accepted
        self.open: dict[int, Any] = {}  # those that have not ended, by number
        self.ends: Counter[str] = Counter()
        self.killed: dict[int, int] = {}  # pid → ns
        self.named: list[int] = []  # pids, by errors of tasks
        self.rebuilt = self.hung = 0
        self._began: dict[int, int] = {}  # pid → ns of its first task
        self._first = 0  # task of this pool
        self._overtaken = 0  # tasks below it: one that was given WAITING tasks later has ended
        self._born = 0  # ns: when this pool was made
        self._news = 0.0  # when a task has ended last
        self._knocked = False  # one more was given since
        self._read = 0
        self._cuts: list[int] = []  # ns: when we did not wait for a pool any longer
        self._strangers = set(processes.children_of_all(os.getpid()))  # that were here before any pool
        self._spared = threading.Event()  # nobody is killed any more
        self._stop = threading.Event()

    def play(self, kills: int, seconds: float) -> dict[str, Any]:
        end = time.monotonic() + seconds
        pool = self._made()
        assert self._give(pool)
        assert self.way.ask(self.open[0], self.way.patience) == 0, "it works as long as nobody is killed"
        killer = threading.Thread(target=self._kill, args=(kills, end), daemon=True)
        killer.start()
        while self._goes_on(end):
            assert killer.is_alive()
            over = not self._fill(pool) or self._look()
            hung = not over and self._silence() > KNOCK + self.way.patience
            if over or hung:
                self._give_up(pool, hung)
                pool = self._made()
        self._settle(pool)
        self._stop.set()
        killer.join()
        return self._figures()

    def _made(self) -> Any:
        self._first = self._overtaken = self.accepted
        self._born = time.monotonic_ns()
        pool = self.way.make()
        self._heard()
        return pool

    def _goes_on(self, end: float) -> bool:
        """As long as somebody is killed, and then until all who were have a successor that has begun a task."""
        if not self._spared.is_set():
            return True
        took = recoveries(list(self.killed.values()), list(self._began.values()))
        return math.inf in took and time.monotonic() < end + 2 * self.way.patience

    def _fill(self, pool: Any) -> bool:
        """Gives what is missing of the tasks that are to wait, and one more if there is silence; False: refused."""
        count = WAITING - sum(number >= self._overtaken for number in self.open)
        if self._silence() > KNOCK and not self._knocked:
            self._knocked = True
            count = max(count, 1)
        return all(self._give(pool) for _ in range(count))

    def _give(self, pool: Any) -> bool:
        try:
            self.open[self.accepted] = self.way.give(pool, self.accepted)
        except Exception:
            return False
        self.accepted += 1
        return True

    def _look(self) -> bool:
        """Takes what has ended; whether an error has said that the pool is over."""
        waiting = [number for number in self.open if number >= self._overtaken] or list(self.open)
        with contextlib.suppress(Exception):  # it is looked at below
            self.way.ask(self.open[waiting[len(waiting) // 2]], LOOK)
        over = False
        for number in [number for number, handle in self.open.items() if self.way.ended(handle)]:
            handle = self.open.pop(number)
            try:
                self.ends["values" if self.way.ask(handle, 0) == number * 3 else "wrong"] += 1
            except Exception as error:
                self.ends["failed"] += 1
                over = over or (number >= self._first and self.way.is_over(error))
                if self.way.culprit:
                    self.named.append(self.way.culprit(error))
            self._overtaken = max(self._overtaken, number - WAITING)
            self._heard()
        return over

    def _heard(self) -> None:
        self._news, self._knocked = time.monotonic(), False

    def _silence(self) -> float:
        return time.monotonic() - self._news

    def _give_up(self, pool: Any, hung: bool) -> None:
        if hung:
            self.hung += 1
            self._lose()
        else:
            self.rebuilt += 1
            while self._silence() < KNOCK and any(number >= self._first for number in self.open):
                self._look()  # what the pool has to say of them; `end` could cut it short
        end = threading.Thread(target=self.way.end, args=(pool,), daemon=True)
        end.start()
        end.join(END)
        if hung or end.is_alive():
            self._cuts.append(time.monotonic_ns())
            for pid in set(processes.children_of_all(os.getpid())) - self._strangers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def _lose(self) -> None:
        self.ends["lost"] += len(self.open)
        self.open.clear()

    def _settle(self, pool: Any) -> None:
        """Waits for what has not ended. A last task shows whether the pool still goes on."""
        last = self.accepted
        self._give(pool)
        self._heard()
        while self.open and self._silence() < self.way.patience:
            self._look()
        self.hung += last in self.open
        self._lose()

    def _kill(self, kills: int, end: float) -> None:
        while not self._stop.wait(KILL_EVERY):
            for _, pid, ns in self._begun(self._read):
                self._began.setdefault(pid, ns)
            if len(self.killed) >= kills or time.monotonic() > end:
                self._spared.set()
            else:
                self._kill_one()

    def _kill_one(self) -> None:
        living = [pid for pid, ns in self._began.items() if ns > self._born and self._is_worker(pid)]
        if living:
            pid, now = self.random.choice(living), time.monotonic_ns()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[pid] = now

    def _is_worker(self, pid: int) -> bool:
        """Whether it is alive, and our child or that of a child: the number could be somebody else's by now."""
        parent = processes.parent_of(pid)
        return pid not in self.killed and processes.runs(pid) and os.getpid() in (parent, processes.parent_of(parent))

    def _begun(self, offset: int = 0) -> Iterator[tuple[int, ...]]:
        """What tasks have written, from there on."""
        with open(self.path, "rb") as file:
            file.seek(offset)
            data = file.read()
        self._read = offset + len(data)
        return struct.iter_unpack(ENTRY, data)

    def _figures(self) -> dict[str, Any]:
        begun = Counter(number for number, _, _ in self._begun())
        kills = len(self.killed)
        ends = {name: self.ends[name] for name in ("values", "wrong", "failed", "lost")}
        assert sum(ends.values()) == self.accepted, (self.accepted, ends)
        kills_at = sorted(self.killed.values())
        took = recoveries(kills_at, list(self._began.values()))
        cut = [
            seconds
            for at, seconds in zip(kills_at, took, strict=True)
            if any(at < moment < at + seconds * 1e9 for moment in self._cuts)
        ]
        return {
            "kills": kills,
            "accepted": self.accepted,
            **ends,
            "innocent": innocent(ends["failed"], ends["lost"], set(self.killed), self.named),
            "doubled": sum(count > 1 for count in begun.values()),
            "rebuilt": self.rebuilt,
            "hung": self.hung,
            "recovery ms p50": after(took, 0.5, cut),
            "recovery ms p99": after(took, 0.99, cut),
        }


def innocent(failed: int, lost: int, killed: set[int], named: Sequence[int]) -> int:
    """How many tasks, at least, have failed or were lost though no worker was killed that ran them. `named`: the pids
    in the errors of those that have failed, if errors of this pool name any."""
    return max(0, failed + lost - len(killed), len(named) - len(killed & set(named)))


def recoveries(killed: Sequence[int], starts: Sequence[int]) -> list[float]:
    """Seconds from each kill to the next start, each of which counts for one kill only; inf: there was none. Times in
    ns."""
    later = iter(sorted(starts))
    return [(next((at for at in later if at > kill), math.inf) - kill) / 1e9 for kill in sorted(killed)]


def after(took: Sequence[float], share: float, cut: Sequence[float]) -> str:
    """A percentile in milliseconds, of fewer than ENOUGH the median or the maximum, and says so. ``cut``: those of them
    that would have been longer if we had waited; then it is a lower bound."""
    if not took:
        return ""
    few = len(took) < ENOUGH and share > 0.5
    seconds = max(took) if few else figures.percentile(took, share)
    if not math.isfinite(seconds):
        return "never"
    return "max " * few + "≥ " * any(one <= seconds for one in cut) + figures.milliseconds(seconds)


# ---- outside


BAD = ("wrong", "failed", "lost", "innocent", "doubled", "rebuilt", "hung")
COLUMNS = ("version", "kills", "accepted", "values", *BAD, "recovery ms p50", "recovery ms p99")


def is_fair(found: dict[str, Any]) -> bool:
    """Whether every task of this pool has ended once, and no more of them with an error than workers were killed."""
    spoilt = any(found.get(name, 1) for name in ("wrong", "lost", "innocent", "doubled", "rebuilt", "hung"))
    return not spoilt and found["values"] + found["failed"] == found["accepted"]


def text(results: dict[str, dict[str, Any]], seconds: float) -> str:
    """The table, and what it shows."""
    what = (
        f"The same kills for other pools: {WORKERS} workers, tasks of {TASK_SECONDS * 1e3:.0f} ms, {WAITING} of which"
        f" are kept waiting; every {KILL_EVERY * 1e3:.0f} ms, for at most {seconds:.0f} s, a worker that is alive and"
        " has begun a task before is killed, whatever it is at (with tasks so short, often the pool's own steps);"
        " nobody asks for a task to be run again. *accepted* = *values* + *wrong* + *failed* (ended with an error) +"
        f" *lost* (had not ended when nothing had come for {HANG:.0f} s; of pebble {LOCKS:.0f} s, for it waits 60 s"
        " for a lock of the dead, up to thrice). *innocent*: failed or lost beyond one for each kill; as a worker"
        " runs one task at a time, at least so many were running in no killed one; of this pool, whose errors name the"
        " worker, also those that name one that was not killed, or that another error has named. *doubled*: begun more"
        " than once."
        " *rebuilt*: the pool said that it was over, as ProcessPoolExecutor, loky and mpire do at a death by design,"
        " and was made anew; *hung*: it did not say so, but nothing came for so long, not even what it was given"
        " meanwhile. *recovery*: from a kill until a worker begins its first task, each such worker counted for one"
        f" kill; if the pool was over, with its end, for which it is given {END:.0f} s, and the start of the new one."
        " *≥*: that we have cut off, or a pool that hung, so it would have been longer; *max*: of fewer than"
        f" {ENOUGH} kills there is no 99th percentile."
    )
    rows = [(pool, *(found.get(name, "") for name in COLUMNS)) for pool, found in results.items()]
    rates = [(pool, *(_rate(found, name) for name in BAD)) for pool, found in results.items()]
    return (
        f"{what}\n\n{figures.table(('pool', *COLUMNS), rows)}\n\n"
        f"The same for each 1,000 kills, where there were at least {ENOUGH}:\n\n"
        f"{figures.table(('for each 1,000 kills', *BAD), rates)}"
    )


def _rate(found: dict[str, Any], name: str) -> str:
    """To a tenth; what is not 0 is never shown as 0."""
    kills = found["kills"]
    if not isinstance(kills, int) or kills < ENOUGH:
        return "-"
    rate = found[name] * 1000 / kills
    return "0" if not rate else f"{rate:,.1f}" if rate >= 0.1 else "< 0.1"


def compared(names: Sequence[str], kills: int, seconds: float, seed: int) -> dict[str, dict[str, Any]]:
    """What each of these pools has made of so many kills, or of those of so many seconds."""
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            command = [sys.executable, "-m", "chaos.peers", "--kills", str(kills), "--seed", str(seed)]
            path = os.path.join(folder, "ledger")
            command += ["--seconds", str(seconds), "--one", name, path]
            results[name] = {"version": version(POOLS[name]), **one(command, path, seconds + 5 * POOLS[name].patience)}
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    return results


def one(command: list[str], path: str, seconds: float) -> dict[str, Any]:
    """What this process has written about its pool, or what became of it. Not through a pipe: what a pool leaves
    behind would hold it open."""
    environment = surroundings()
    ran = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        status = ran.wait(seconds)
    except subprocess.TimeoutExpired:
        return {"kills": "hung as a whole"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)
        ran.wait()
    if status:
        return {"kills": f"its client ended with {status}"}
    with open(path + ".json") as file:
        return dict(json.load(file))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="chaos.peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=90.0, help="of kills, at most, for each pool")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(POOLS))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        _be_client(*options.one, options)
    results = compared(options.only.split(","), options.kills, options.seconds, options.seed)
    print(text(results, options.seconds))
    return 0


def _be_client(name: str, path: str, options: argparse.Namespace) -> NoReturn:
    os.environ[LEDGER] = path
    try:
        with open(path, "w"):
            pass
        found = Run(POOLS[name], path, options.seed).play(options.kills, options.seconds)
        with open(path + ".json", "w") as file:
            json.dump(found, file)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # without waiting for threads of a pool that hangs


if __name__ == "__main__":
    sys.exit(main())
