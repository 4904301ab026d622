"""The same kills for other pools: what each of them makes of the death of a worker.

``python -m chaos.peers [--kills N] [--seconds S] [--only NAMES]`` (it needs the extra "bench") plays each pool in a
process of its own: tasks of 1 ms on two workers, in batches, one random worker killed every 50 ms. Nobody asks for a
task to be run again. ``make proof`` writes the table into docs/reliability.md:

    kills       workers killed, each while it had run tasks before
    values      tasks that ended with their value, all of them the right one
    failed      tasks that ended with an error; one for each kill would be fair
    innocent    of them those that no killed worker had begun, or that had not begun at all
    lost        tasks that never ended: nothing came for 5 s
    doubled     tasks that ran more than once
    rebuilt     times that the pool refused to go on, or hung, and a new one was made
    recovery    from a kill until a worker that was not there before begins a task: median, 99 %
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from chaos import campaign, figures

WORKERS, BATCH, TASK_SECONDS, KILL_EVERY, HANG = 2, 100, 0.001, 0.05, 5.0
LEDGER = "CHAOS_PEERS_LEDGER"  # variable of the environment: it reaches every kind of worker


def task(number: int) -> int:
    fd = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d %d %d\n" % (number, os.getpid(), time.monotonic_ns()))
    os.close(fd)
    end = time.perf_counter() + TASK_SECONDS
    while time.perf_counter() < end:
        pass
    return number * 3


# ---- pools: how one is made, given a task, asked, and ended without any politeness


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


def _result(handle: Any, timeout: float) -> Any:
    return handle.result(timeout)


def _get(handle: Any, timeout: float) -> Any:
    return handle.get(timeout)


OURS = "this pool"
Way = tuple[Callable[[], Any], Callable[[Any, int], Any], Callable[[Any, float], Any], Callable[[Any], object]]
POOLS: dict[str, Way] = {
    OURS: (_ours, _submit, _result, lambda pool: pool.kill_workers()),
    "ProcessPoolExecutor": (_stdlib, _submit, _result, lambda pool: pool.shutdown(wait=False)),
    "loky": (_loky, _submit, _result, lambda pool: pool.shutdown(wait=False, kill_workers=True)),
    "multiprocessing.Pool": (_multiprocessing, _apply, _get, lambda pool: pool.terminate()),
    "pebble": (_pebble, _schedule, _result, lambda pool: pool.stop()),
    "mpire": (_mpire, _apply, _get, lambda pool: pool.terminate()),
}


class Run:
    """One pool under fire."""

    def __init__(self, name: str, path: str, seed: int) -> None:
        self.make, self.give, self.ask, self.end = POOLS[name]
        self.path = path
        self.random = random.Random(seed)
        self.ends: dict[int, str] = {}
        self.killed: dict[int, int] = {}  # pid → ns
        self.rebuilt = 0
        self._known: set[int] = set()
        self._read = 0
        self._stop = threading.Event()

    def play(self, kills: int, seconds: float) -> dict[str, Any]:
        end, number = time.monotonic() + seconds, 0
        pool = self.make()
        killer = threading.Thread(target=self._kill)
        killer.start()
        while len(self.killed) < kills and time.monotonic() < end:
            if not self._batch(pool, range(number, number + BATCH)):
                self.rebuilt += 1
                self._bury(pool)
                pool = self.make()
            number += BATCH
        self._stop.set()
        killer.join()
        return self._figures(number)

    def _bury(self, pool: Any) -> None:
        """As its library wants it, or if that hangs, by the pids that have run tasks."""
        end = threading.Thread(target=self.end, args=(pool,), daemon=True)
        end.start()
        end.join(2)
        known, self._known = self._known, set()
        for pid in known - set(self.killed):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _batch(self, pool: Any, numbers: range) -> bool:
        """Whether the pool can go on."""
        handles, fine = [], True
        for number in numbers:
            try:
                handles.append((number, self.give(pool, number)))
            except Exception:
                fine = False  # never accepted
                break
        news = time.monotonic()
        for number, handle in handles:
            try:
                value = self.ask(handle, max(0.05, news + HANG - time.monotonic()))
                self.ends[number] = "value" if value == number * 3 else "wrong"
            except (TimeoutError, multiprocessing.TimeoutError):
                self.ends[number] = "lost"
                fine = False
                continue
            except BaseException as error:
                self.ends[number] = "failed"
                fine = fine and not _is_broken(error)
            news = time.monotonic()
        return fine

    def _kill(self) -> None:
        while not self._stop.wait(KILL_EVERY):
            self._known = self._known | {int(line.split()[1]) for line in self._new_lines()}
            living = [pid for pid in sorted(self._known - set(self.killed)) if os.path.exists(f"/proc/{pid}/exe")]
            if living:
                pid = self.random.choice(living)
                self.killed[pid] = time.monotonic_ns()
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    del self.killed[pid]

    def _new_lines(self) -> list[str]:
        with open(self.path) as file:
            file.seek(self._read)
            lines = file.readlines()
            self._read = file.tell()
        return lines

    def _figures(self, given: int) -> dict[str, Any]:
        with open(self.path) as file:
            lines = [tuple(map(int, line.split())) for line in file]
        begun = Counter(number for number, _, _ in lines)
        last = {pid: number for number, pid, _ in lines}  # what each worker began last
        guilty = {last[pid] for pid in self.killed if pid in last}
        first: dict[int, int] = {}
        for _, pid, ns in lines:
            first.setdefault(pid, ns)
        starts = sorted(first.values())
        took = sorted(
            next((start - at for start in starts if start > at), 0) / 1e6
            for at in self.killed.values()
            if starts[-1] > at
        )
        ends = Counter(self.ends.values())
        return {
            "kills": len(self.killed),
            "tasks": given,
            "values": ends["value"],
            "wrong": ends["wrong"],
            "failed": ends["failed"],
            "innocent": sum(end == "failed" and number not in guilty for number, end in self.ends.items()),
            "lost": ends["lost"],
            "doubled": sum(count > 1 for count in begun.values()),
            "rebuilt": self.rebuilt,
            "recovery ms p50": round(took[len(took) // 2], 1) if took else None,
            "recovery ms p99": round(took[len(took) * 99 // 100], 1) if took else None,
        }


def _is_broken(error: BaseException) -> bool:
    """Whether nothing more can be given to the pool that has said this."""
    from concurrent.futures import BrokenExecutor

    from pool.errors import PoolBroken, WorkerCrashed

    return isinstance(error, PoolBroken) or (isinstance(error, BrokenExecutor) and not isinstance(error, WorkerCrashed))


def is_fair(found: dict[str, Any]) -> bool:
    """Whether every task of this pool has ended once, and no more of them with an error than workers were killed."""
    spoilt = any(found.get(name, 1) for name in ("wrong", "lost", "doubled", "rebuilt"))
    return not spoilt and found["values"] + found["failed"] == found["tasks"] and found["failed"] <= found["kills"]


def text(results: dict[str, dict[str, Any]], seconds: float) -> str:
    """The table, and what it shows."""
    what = (
        f"The same kills for other pools: {WORKERS} workers, one of them killed every {KILL_EVERY * 1e3:.0f} ms, tasks"
        f" of {TASK_SECONDS * 1e3:.0f} ms that nobody asks to be run again; at most {seconds:.0f} s for each pool."
        " *failed*: tasks that ended with an error, *innocent*: those of them that no killed worker had begun; *lost*:"
        f" that never ended (nothing came for {HANG:.0f} s); *rebuilt*: a pool that refused to go on, or hung, was made"
        " anew; *recovery*: from a kill until a new worker begins a task."
    )
    names = list(next(iter(results.values())))
    rows = [(pool, *(found.get(name, "") for name in names)) for pool, found in results.items()]
    return f"{what}\n\n{figures.table(('pool', *names), rows)}"


def compared(names: Sequence[str], kills: int, seconds: float, seed: int) -> dict[str, dict[str, Any]]:
    """What each of these pools has made of so many kills, or of those of so many seconds."""
    results = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="peers-") as folder:
            command = [sys.executable, "-m", "chaos.peers", "--kills", str(kills), "--seed", str(seed)]
            path = os.path.join(folder, "ledger")
            command += ["--seconds", str(seconds), "--one", name, path]
            environment = dict(os.environ, PYTHONPATH=str(campaign.TESTS))
            results[name] = _one(command, path, environment, seconds)
        print(f"{name}: {results[name]}", file=sys.stderr, flush=True)
    return results


def _one(command: list[str], path: str, environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Not through a pipe: what a pool leaves behind would hold it open."""
    ran = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        ran.wait(seconds + 60)
    except subprocess.TimeoutExpired:
        return {"kills": "hung as a whole"}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(ran.pid, signal.SIGKILL)
        ran.wait()
    with open(path + ".json") as file:
        return dict(json.load(file))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="chaos.peers", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, for each pool")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default=",".join(POOLS))
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, path = options.one
        os.environ[LEDGER] = path
        with open(path, "w"):
            pass
        found = Run(name, path, options.seed).play(options.kills, options.seconds)
        with open(path + ".json", "w") as file:
            json.dump(found, file)
        os._exit(0)  # without waiting for threads of a pool that hangs
    results = compared(options.only.split(","), options.kills, options.seconds, options.seed)
    print(text(results, options.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
