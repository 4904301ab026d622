"""What a pool is doing and where its memory is: ``Pool.insights()``."""

from __future__ import annotations

from collections import namedtuple

from ipc import _core

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pool.client import Client

_PHASES = {_core.STARTING: "starting", _core.IDLE: "idle", _core.LEAVING: "leaving"}


class WorkerInsight(namedtuple("WorkerInsight", "slot pid state restarts tasks rss cpu")):
    """One worker: its slot and process id (0: being replaced), ``idle``, ``busy``, ``starting`` or ``leaving``, how
    often the slot's worker was replaced, tasks finished by this process, its resident memory in bytes, with the shared
    pages that it has touched, and its CPU time in seconds."""

    __slots__ = ()
    slot: int
    pid: int
    state: str
    restarts: int
    tasks: int
    rss: int
    cpu: float


class PayloadInsight(namedtuple("PayloadInsight", "room used functions views kept copied spilled")):
    """The shared memory for arguments and results, in bytes: how much there may be, how much is in use, of it for
    functions, held by values of this program (``views``), and by arguments that tasks have kept. Then two counts since
    the start: results that were copied because too many were held already, and values that went through a file."""

    __slots__ = ()
    room: int
    used: int
    functions: int
    views: int
    kept: int
    copied: int
    spilled: int


class Insights(namedtuple("Insights", "workers payload crashes")):
    """``workers`` (a list of WorkerInsight), ``payload`` (a PayloadInsight), ``crashes`` (tasks whose worker died).

    ``print()`` shows it as a table."""

    __slots__ = ()
    workers: list[WorkerInsight]
    payload: PayloadInsight
    crashes: int

    def __str__(self) -> str:
        lines = [f"{'slot':>4} {'pid':>8} {'state':<9}{'restarts':>9}{'tasks':>11}{'rss':>10}{'cpu s':>9}"]
        lines += [
            f"{w.slot:>4} {w.pid:>8} {w.state:<9}{w.restarts:>9}{w.tasks:>11,}{_human(w.rss):>10}{w.cpu:>9.2f}"
            for w in self.workers
        ]
        p = self.payload
        lines.append(
            f"payload: {_human(p.used)} of {_human(p.room)} in use ({_human(p.views)} by values of this program, "
            f"{_human(p.kept)} kept by tasks, {_human(p.functions)} functions); "
            f"{p.copied:,} copied for want of room, {p.spilled:,} through files"
        )
        lines.append(f"crashes: {self.crashes:,}")
        return "\n".join(lines)


def look(client: Client) -> Insights:
    """Under the client's lock."""
    if client.segment is None:
        return Insights([], PayloadInsight(0, 0, 0, 0, 0, 0, client.spilled), client.crashes)
    count = _core.counters(client.segment)
    used, functions, views, kept = (count[name] * _core.UNIT_SIZE for name in ("units", "functions", "views", "kept"))
    payload = PayloadInsight(client.room, used, functions, views, kept, count["copied"], client.spilled)
    return Insights([_worker(client.segment, slot) for slot in range(client.workers)], payload, client.crashes)


def _worker(segment: object, slot: int) -> WorkerInsight:
    import psutil

    info = _core.slot_info(segment, slot)
    rss, cpu = 0, 0.0
    try:
        with (process := psutil.Process(info["pid"])).oneshot():
            rss, cpu = process.memory_info().rss, sum(process.cpu_times()[:2])
    except (psutil.Error, ValueError):  # it has just ended
        pass
    state = "busy" if _core.running(segment, slot) is not None else _PHASES.get(info["phase"], "?")
    return WorkerInsight(slot, info["pid"], state, info["generation"], info["tasks"], rss, cpu)


def _human(size: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
