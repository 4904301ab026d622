"""What the client of an episode can tell of its own pool: deaths as they are settled, and what there is at rest."""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import processes

from chaos.observer import Gone, Observer
from ipc import _core, process
from pool import Pool
from pool.futures import Future
from pool.map_run import MapRun
from pool.task import Death, describe_args

_ZOMBIE_SECONDS = 1.0  # that a dead child may stay
_REST_SECONDS = 10.0


@contextlib.contextmanager
def listening(note: Callable[..., None]) -> Iterator[None]:
    """Note every settled death, by looking over the client's shoulder: before the task is given out again."""
    originals = [(sink, sink.crashed) for sink in (Future, MapRun)]
    for sink, original in originals:
        sink.crashed = _listen(original, note)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for sink, original in originals:
            sink.crashed = original  # type: ignore[method-assign]


def _listen(original: Callable[..., None], note: Callable[..., None]) -> Any:
    def crashed(run: Any, task: Any, drained: int, committed: list[Any], death: Death) -> None:
        now = time.monotonic_ns()
        if isinstance(task.item, list) and death.item == 0:
            note("decoding", death.pid, now)
        else:
            why = "late" if death.late else "memory" if death.too_large else "killed" if death.killed else "crashed"
            number = describe_args(task, death.item)
            note("death", number if number.isdecimal() else "-", death.pid, now, why)
        original(run, task, drained, committed, death)

    return crashed


class Witness:
    """Of a pool that was just started: it waits until all workers are ready. ``hang``: seconds without an answer."""

    def __init__(self, pool: Pool, workers: int, hang: float) -> None:
        self._pool = pool
        self._workers = workers
        self._hang = hang
        segment, slots = pool._client.segment, range(workers)
        processes.wait_until(
            lambda: all(_core.slot_info(segment, slot)["phase"] != _core.STARTING for slot in slots),
            "the workers are ready",
            hang,
        )
        self._before = self._used()
        self._counts: Counter[str] = Counter()
        self.falls: list[str] = []  # of what the pool counts, and never goes down

    def look(self) -> None:
        """While it works: compare what the pool counts with what it was at the last look."""
        insights = self._pool.insights()
        counts = Counter({"crashes of the pool": self._pool.crashes})
        for one in insights.functions:
            for what in ("count", "crashes", "limits", "kills"):
                counts[f"{what} of {one.name}"] = getattr(one, what)
        for slot, worker in enumerate(insights.workers):
            counts[f"tasks of slot {slot}"] = worker.tasks
            for how, times in worker.restarts.items():
                counts[f"{how} in slot {slot}"] = times
        falls = {name: (most, counts[name]) for name, most in self._counts.items() if counts[name] < most}
        self.falls += [f"{name}, {most} to {count}" for name, (most, count) in falls.items()]
        self._counts = counts

    def _used(self) -> dict[str, dict[str, int]]:
        """Descriptors and mappings of client and monitor."""
        gc.collect()
        found: dict[str, dict[str, int]] = {"descriptors": {}, "mappings": {}}
        for name, pid in (("client", os.getpid()), ("monitor", processes.monitor_pid(self._pool))):
            found["descriptors"][name] = len(os.listdir(f"/proc/{pid}/fd"))
            with open(f"/proc/{pid}/maps") as file:
                found["mappings"][name] = sum(1 for _ in file)
        return found

    def at_rest(self, renewals: int, sound: bool = True) -> dict[str, Any]:
        """What there is when nothing happens any more; what shows that something is wrong is waited for before.
        ``renewals``: so many restarts of all workers were asked for. Not ``sound``: the shared memory may be damaged
        now, and only what the kernel knows is waited for."""
        pool = self._pool
        full = self._is_full()
        if sound:
            with contextlib.suppress(AssertionError, Gone), contextlib.closing(Observer(os.getpid())) as seen:
                processes.wait_until(lambda: self._rests(seen, renewals), "the last restarts", _REST_SECONDS)
        else:
            self._pump()
        counters = _core.counters(pool._client.segment)
        generations, ends = self._lives()
        after = self._used()
        return {
            "full": full,
            "healed": counters["healed"],
            "in use": counters["units"] - counters["functions"] - counters["kept"],
            "crashes": pool.crashes,
            "counted": self._counted(),
            "generations": generations,
            "ends": ends,
            "zombies": self._zombies(),
            **{what: {name: [self._before[what][name], after[what][name]] for name in after[what]} for what in after},
        }

    def _pump(self) -> None:
        with self._pool._client.lock:
            self._pool._client.pump()

    def _is_full(self) -> bool:
        """Whether the pool works, and is back to its full size. In this order: a slot is given four workers while the
        client is busy with other things and does not settle their deaths, and then waits for it."""
        if self._pool.submit(int, "7").result(self._hang) != 7:
            return False
        with contextlib.suppress(AssertionError):
            processes.wait_until(lambda: self._living() == self._workers, "all", _REST_SECONDS)
            return True
        return False

    def _living(self) -> int:
        return sum(map(processes.runs, processes.worker_pids(self._pool)))

    def _rests(self, seen: Observer, renewals: int) -> bool:
        """Whether each slot has its last worker, which is ready and stays; all deaths are settled and counted."""
        self._pump()
        found = [seen.slot(slot) for slot in range(seen.slots)]
        ready = (
            seen.is_ready(k) and one.phase == _core.IDLE and processes.runs(one.pid) for k, one in enumerate(found)
        )
        if not all(ready):
            return False
        if not all(seen.settled(k) == one.reaped == one.generation for k, one in enumerate(found)):
            return False
        generations, ends = self._lives()
        return sum(ends.values()) == generations and _core.renewed(self._pool._client.segment) >= renewals

    def _lives(self) -> tuple[int, dict[str, int]]:
        """How many workers have had a successor, and how workers have ended."""
        ends: Counter[str] = Counter()
        for worker in self._pool.insights().workers:
            ends.update(worker.restarts)
        segment, slots = self._pool._client.segment, range(self._workers)
        return sum(_core.slot_info(segment, slot)["generation"] for slot in slots), dict(ends)

    def _counted(self) -> dict[str, int]:
        """How many attempts at tasks, not at our own questions, have come to their end, and how many have not."""
        tasks = [one for one in self._pool.insights().functions if one.name != "builtins.int"]
        ended = sum(one.count for one in tasks)
        return {"ended": ended, "died": sum(one.crashes + one.limits + one.kills for one in tasks)}

    def _zombies(self) -> list[int]:
        """Dead children of the client and the monitor that nobody has waited for, all the time."""
        parents = (os.getpid(), processes.monitor_pid(self._pool))
        found = {pid for parent in parents for pid in process.children_of(parent)}

        def gone() -> bool:
            found.intersection_update(pid for pid in list(found) if processes.is_zombie(pid))
            return not found

        with contextlib.suppress(AssertionError):
            processes.wait_until(gone, "nobody is dead", _ZOMBIE_SECONDS)
        return sorted(found)
