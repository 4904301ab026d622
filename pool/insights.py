"""Where the time and the memory of a run went: ``Pool.insights()``.

::

    with Pool() as pool:
        ...
    insights = pool.insights()       # at any time; after the end: as it was at the end
    print(insights)                  # tables
    insights.plot("workers.svg")     # how busy each worker was, over time
    json.dumps(insights.to_dict())
"""

from __future__ import annotations

import os
from collections import Counter, namedtuple
from collections.abc import Callable

from ipc import _core, process
from pool import chunks, codec
from pool.tally import OTHER, Slow, Snapshot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.client import Client

_DOING = {
    _core.REPLACED: "replaced",
    _core.IS_STARTING: "starting",
    _core.IS_IDLE: "idle",
    _core.IS_BUSY: "busy",
    _core.IS_WAITING: "waiting",
    _core.IS_LEAVING: "leaving",
}
_POINTS = 180  # in time, of the utilisation: as many as a slot has spans


class WorkerInsight(
    namedtuple("WorkerInsight", "slot pid state start busy wait idle tasks restarts rss peak_rss cpu threads")
):
    """One worker, that is one slot with all processes that have lived in it one after the other.

    Attributes:
        slot: its number.
        pid: process id; 0: it is being replaced, or the pool has ended.
        state: ``"idle"``, ``"busy"``, ``"waiting"``, ``"starting"``, ``"leaving"``, ``"replaced"``,
            ``"stopped"`` (the process itself: SIGSTOP, a debugger), ``"ended"``.
        start: seconds without a worker that was ready: from the pool's start, or a death, until the initializer was
            through.
        busy: seconds in tasks: decoding, running, encoding and storing, also of attempts that came to no end.
        wait: seconds in which a result waited for room.
        idle: the rest. The four add up to ``Insights.elapsed``.
        tasks: items finished.
        restarts: how its processes ended, and how often: a signal's name, ``"exit code 3"``, ``"timeout"``,
            ``"memory limit"``, ``"OOM"``, ``"killed"`` (by ``Future.kill()``), ``"recycled"``
            (``max_tasks_per_child``), ``"changed"`` (``recycle_changed``), ``"restarted"`` (``Pool.restart()``), ``"not
            ready"`` (a failed start).
        rss: resident memory now in bytes, with the shared pages that it has touched.
        peak_rss: the most that it ever was, in any of the processes.
        cpu: seconds of CPU time, with those of children that tasks have started and waited for.
        threads: that the process has now: its first one, those of libraries, those that tasks have left behind.
    """

    __slots__ = ()
    slot: int
    pid: int
    state: str
    start: float
    busy: float
    wait: float
    idle: float
    tasks: int
    restarts: dict[str, int]
    rss: int
    peak_rss: int
    cpu: float
    threads: int


class FunctionInsight(
    namedtuple(
        "FunctionInsight", "name count errors crashes limits kills total p50 p95 longest cpu_user cpu_system peak_rss"
    )
):
    """All runs of the functions of one name; of what came after the 255th name: ``"(other)"``.

    Attributes:
        name: ``module.qualname``.
        count: runs that came to an end, with an error too; each attempt and each item of a chunk counts.
        errors: of these, how many raised, or returned what cannot be pickled.
        crashes: runs whose worker died; limits: that were stopped at their deadline or memory limit; kills: by
            ``Future.kill()``. None of them is in ``count`` or in the times.
        total: seconds that the runs took together.
        p50: median in seconds, to 6 %; p95: likewise; longest: to 0.1 %.
        cpu_user, cpu_system: seconds of CPU time of the runs of 1 ms or more, with that of processes which they started
            and waited for. Nobody looks at shorter ones, so it is a lower bound.
        peak_rss: the most resident memory in bytes that a worker had at the end of a run of 1 ms or more, or within
            it, if that was the most that this process ever had. So it is a lower bound. 0: there was no such run.
    """

    __slots__ = ()
    name: str
    count: int
    errors: int
    crashes: int
    limits: int
    kills: int
    total: float
    p50: float
    p95: float
    longest: float
    cpu_user: float
    cpu_system: float
    peak_rss: int


class SlowItem(namedtuple("SlowItem", "seconds function item index slot")):
    """One of the five slowest runs.

    Attributes:
        seconds: run time.
        function: ``module.qualname``.
        item: what it was called with, shortened; or how large that was, if it was more than 64 KiB.
        index: position in the input of its map; None for ``submit``.
        slot: the worker.
    """

    __slots__ = ()
    seconds: float
    function: str
    item: str
    index: int | None
    slot: int


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


class Utilisation(namedtuple("Utilisation", "step busy deaths")):
    """How busy each worker was over time.

    Attributes:
        step: seconds from one point to the next; the first one begins when the pool was started.
        busy: for each worker a list of numbers from 0 (idle) to 1 (in tasks all the time).
        deaths: (seconds since the start, slot, how it ended) of workers that were replaced, at most 1,000.
    """

    __slots__ = ()
    step: float
    busy: list[list[float]]
    deaths: list[tuple[float, int, str]]


class Insights(namedtuple("Insights", "elapsed workers functions slowest crashes payload utilisation")):
    """Where the time and the memory of a run went.

    Attributes:
        elapsed: seconds since the workers were started, until now or until the pool's end.
        workers: a WorkerInsight for each worker; empty before the start. With ``max_workers=0`` this process is the
            only one.
        functions: a FunctionInsight for each name, those that took the most time first.
        slowest: the slowest runs, as SlowItem, the slowest first.
        crashes: attempts that ended with their worker, by how that ended (see ``WorkerInsight.restarts``).
        payload: a PayloadInsight: the shared memory.
        utilisation: a Utilisation: what ``plot`` shows.

    If a task has damaged the shared memory, what is told of workers begins anew with the fresh ones."""

    __slots__ = ()
    elapsed: float
    workers: list[WorkerInsight]
    functions: list[FunctionInsight]
    slowest: list[SlowItem]
    crashes: dict[str, int]
    payload: PayloadInsight
    utilisation: Utilisation

    def __str__(self) -> str:
        if not self.workers:
            return "the workers are not started yet"
        parts = [_workers_table(self), _functions_table(self.functions), _slowest_table(self.slowest)]
        return "\n\n".join(part for part in [*parts, _rest(self)] if part)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain dicts, lists, numbers and strings, for JSON."""
        return {name: _plain(value) for name, value in self._asdict().items()}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of how busy each worker was over time: SVG or PNG, by the suffix of ``path``; deaths are
        marked.

        Raises ModuleNotFoundError without matplotlib (``pip install 'prefork-pool[plot]'``), ValueError for another
        suffix or before the start, OSError if the file cannot be written."""
        from pool.plot import draw

        if not self.workers:
            raise ValueError("there is nothing to plot before the workers are started")
        draw(self, path)


def _plain(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


# ---- gathering


class _Seen(namedtuple("_Seen", "snapshot numbers counted lost reasons ends deaths slowest room spilled")):
    """What was read under the lock."""

    __slots__ = ()


def look(client: Client) -> _Seen:
    """Under the client's lock; for ``describe``."""
    tally = client.tally
    numbers = {OTHER: 0, **tally.numbers}
    return _Seen(
        snapshot=client.seen(),
        numbers=numbers,
        counted={number: _core.counted(tally.counts, number) for number in numbers.values()},
        lost={number: dict(lost) for number, lost in tally.lost.items()},
        reasons=sum(tally.lost.values(), Counter()),
        ends={slot: dict(ends) for slot, ends in tally.ends.items()},
        deaths=list(tally.deaths),
        slowest=list(tally.slowest),
        room=client.room,
        spilled=client.spilled,
    )


def describe(seen: Any) -> Insights:
    """Not under the lock: showing items runs code of the caller."""
    snapshot = seen.snapshot
    functions = [
        _function(name, seen.counted[number], seen.lost.get(number, {})) for name, number in seen.numbers.items()
    ]
    return Insights(
        elapsed=(snapshot.now - snapshot.created) / 1e9 if snapshot else 0.0,
        workers=[_worker(snapshot, slot, seen.ends.get(slot, {})) for slot in range(len(snapshot.slots))]
        if snapshot
        else [],
        functions=sorted((f for f in functions if f.count or f.crashes or f.limits or f.kills), key=_by_time),
        slowest=[SlowItem(slow.ns / 1e9, slow.name, _item(slow), slow.index, slow.slot) for slow in seen.slowest],
        crashes=dict(seen.reasons.most_common()),
        payload=_payload(snapshot, seen.room, seen.spilled),
        utilisation=_utilisation(snapshot, seen.deaths) if snapshot else Utilisation(0.0, [], []),
    )


def _by_time(function: FunctionInsight) -> tuple[float, str]:
    return -function.total, function.name


def _worker(snapshot: Snapshot, slot: int, ends: dict[str, int]) -> WorkerInsight:
    times, elapsed = snapshot.slots[slot], snapshot.now - snapshot.created
    left, parts = elapsed, []
    for name in ("busy_ns", "start_ns", "wait_ns"):  # damaged or not: none is more than there was
        parts.append(min(times[name], left))
        left -= parts[-1]
    busy, start, wait = (ns / 1e9 for ns in parts)
    use = process.Usage() if snapshot.ended or times["pid"] <= 0 else process.usage_of(times["pid"])
    return WorkerInsight(
        slot=slot,
        pid=0 if snapshot.ended else times["pid"],
        state="ended" if snapshot.ended else "stopped" if use.stopped else _DOING[times["doing"]],
        start=start,
        busy=busy,
        wait=wait,
        idle=left / 1e9,
        tasks=times["tasks"],
        restarts=ends,
        rss=use.rss,
        peak_rss=max(use.peak, times["used_most"]),
        cpu=(use.cpu_ns + times["used_ns"]) / 1e9,
        threads=use.threads,
    )


def _function(name: str, counted: tuple[int, ...], lost: dict[str, int]) -> FunctionInsight:
    count, errors, *times, resident = counted
    limits, kills = lost.get("timeout", 0) + lost.get("memory limit", 0), lost.get("killed", 0)
    total, p50, p95, longest, user, system = (ns / 1e9 for ns in times)
    crashes = sum(lost.values()) - limits - kills
    return FunctionInsight(
        name, count, errors, crashes, limits, kills, total, p50, p95, longest, user, system, resident
    )


def _item(slow: Slow) -> str:
    """The arguments of a call for people, shortened; how large they are, if they were not kept or cannot be shown."""
    try:
        if slow.data is not None:
            part = slow.data if slow.k is None else chunks.sent(slow.data, slow.flags)[slow.k]
            return _shown(chunks.decode_part(part), slow.call, slow.index is not None)
    except Exception:  # it cannot be rebuilt any more; or its repr, which is the caller's, has failed
        pass
    return f"({_size(slow.size)} of arguments)"


def _shown(value: Any, call: int, of_map: bool) -> str:
    import reprlib

    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    if call == codec.CALL_ONE or of_map:
        return short.repr(value)
    if call == codec.CALL_STAR:
        return ", ".join(map(short.repr, value))
    args, kwargs = value[-2:]  # before them, perhaps, the function
    return ", ".join([*map(short.repr, args), *(f"{k}={short.repr(v)}" for k, v in kwargs.items())])


def _payload(snapshot: Snapshot | None, room: int, spilled: int) -> PayloadInsight:
    if snapshot is None:
        return PayloadInsight(0, 0, 0, 0, 0, 0, spilled)
    count = snapshot.counters
    used, functions, views, kept = (count[name] * _core.UNIT_SIZE for name in ("units", "functions", "views", "kept"))
    return PayloadInsight(room, used, functions, views, kept, count["copied"], spilled)


def _utilisation(snapshot: Snapshot, deaths: list[tuple[int, int, str]]) -> Utilisation:
    """All workers with one step: slots that have folded less often, or not since long ago, are folded now."""
    span = max(span for span, _ in snapshot.spans)
    elapsed = snapshot.now - snapshot.created
    while elapsed // span >= _POINTS:
        span *= 2
    lengths = [min(span, elapsed - start) for start in range(0, elapsed, span)]  # the last one is not over yet
    busy = []
    for fine, spans in snapshot.spans:
        ratio = span // fine
        sums = (sum(spans[k * ratio : (k + 1) * ratio]) for k in range(len(lengths)))
        busy.append([min(1.0, ns / length) for ns, length in zip(sums, lengths, strict=True)])
    marks = [(max(0, min(at - snapshot.created, elapsed)) / 1e9, slot, how) for at, slot, how in deaths]
    return Utilisation(span / 1e9, busy, marks)


# ---- tables, at most 120 columns


def _workers_table(insights: Insights) -> str:
    elapsed = max(insights.elapsed, 1e-9)
    lines = [
        f"{'slot':>4} {'pid':>8} {'state':<9}{'start':>7}{'busy':>7}{'wait':>7}{'idle':>7}{'tasks':>16}"
        f"{'cpu':>9}{'rss':>11}{'peak rss':>11}  restarts"
    ]
    for w in insights.workers:
        shares = "".join(f"{part / elapsed:>7.1%}" for part in (w.start, w.busy, w.wait, w.idle))
        lines.append(
            f"{w.slot:>4} {w.pid or '-':>8} {w.state:<9}{shares}{w.tasks:>16,}"
            f"{_seconds(w.cpu):>9}{_known(_size, w.rss):>11}{_known(_size, w.peak_rss):>11}  {_counts(w.restarts, 20)}"
        )
    if len(insights.workers) > 1:
        all_ = insights.workers
        sums = [sum(w[k] for w in all_) / elapsed / len(all_) for k in range(3, 7)]
        restarts: Counter[str] = sum((Counter(w.restarts) for w in all_), Counter())
        lines.append(
            f"{'all':>4} {'':>8} {'':<9}{''.join(f'{share:>7.1%}' for share in sums)}{sum(w.tasks for w in all_):>16,}"
            f"{_seconds(sum(w.cpu for w in all_)):>9}{_known(_size, sum(w.rss for w in all_)):>11}"
            f"{_known(_size, max(w.peak_rss for w in all_)):>11}  {_counts(dict(restarts.most_common()), 20)}"
        )
    return "\n".join(line.rstrip() for line in lines)


def _functions_table(functions: list[FunctionInsight]) -> str:
    if not functions:
        return ""
    width = min(22, max(8, *(len(f.name) for f in functions)))
    lines = [
        f"{'function':<{width}}{'count':>14}{'errors':>8}{'crashes':>8}{'limits':>8}{'kills':>6}"
        f"{'total':>9}{'p50':>9}{'p95':>9}{'longest':>9}{'cpu':>9}{'peak rss':>9}"
    ]
    for f in functions:
        times = "".join(
            f"{_known(_seconds, t):>9}" for t in (f.total, f.p50, f.p95, f.longest, f.cpu_user + f.cpu_system)
        )
        lines.append(
            f"{_end_of(f.name, width):<{width}}{f.count:>14,}{f.errors:>8,}{f.crashes:>8,}{f.limits:>8,}{f.kills:>6,}"
            f"{times}{_known(_size, f.peak_rss):>9}"
        )
    return "\n".join(lines)


def _slowest_table(slowest: list[SlowItem]) -> str:
    if not slowest:
        return ""
    width = min(30, max(8, *(len(s.function) for s in slowest)))
    lines = [f"{'slowest':<8}{'slot':>5}{'index':>13}  {'function':<{width}}  item"]
    for s in slowest:
        index = "" if s.index is None else f"{s.index:,}"
        start = f"{_seconds(s.seconds):<8}{s.slot:>5}{index:>13}  {_end_of(s.function, width):<{width}}  "
        item = " ".join(s.item.split())
        room = 120 - len(start)
        lines.append(start + (item if len(item) <= room else item[: room - 3] + "..."))
    return "\n".join(line.rstrip() for line in lines)


def _rest(insights: Insights) -> str:
    p = insights.payload
    parts = {"values of this program": p.views, "kept by tasks": p.kept, "functions": p.functions}
    used = ", ".join(f"{_size(size)} {what}" for what, size in parts.items() if size)
    notes = {"copied for want of room": p.copied, "through files": p.spilled}
    lines = [
        f"elapsed  {_seconds(insights.elapsed)}",
        f"crashes  {_counts(insights.crashes, 100) or 'none'}",
    ]
    if p.room:
        lines.append(f"payload  {_size(p.used)} of {_size(p.room)} in use" + (f" ({used})" if used else ""))
        if more := ", ".join(f"{count:,} {what}" for what, count in notes.items() if count):
            lines.append(f"{'':<9}{more}")
    return "\n".join(lines)


def _counts(counts: dict[str, int], width: int) -> str:
    """``2 SIGSEGV, 1 timeout``; what has no room is summed up."""
    parts = [f"{count:,} {what}" for what, count in counts.items()]
    for shown in range(len(parts), -1, -1):
        rest = sum(list(counts.values())[shown:])
        text = ", ".join([*parts[:shown], *([f"{rest:,} others" if shown else f"{rest:,}"] if rest else [])])
        if len(text) <= width:
            break
    return text


def _known(show: Callable[[float], str], number: float) -> str:
    return show(number) if number else "-"


def _end_of(name: str, width: int) -> str:
    return name if len(name) <= width else "..." + name[len(name) - width + 3 :]


def _seconds(seconds: float) -> str:
    """Three digits with a unit."""
    if seconds >= 10_000:
        return f"{_digits(seconds / 3600)} h"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{seconds * 1e9:.0f} ns" if seconds else "0 s"


def _size(size: float) -> str:
    """Bytes, three digits with a unit."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1000 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} B" if units[0] == "B" else f"{_digits(size)} {units[0]}"


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 99.95 else f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"


__all__ = [
    "FunctionInsight",
    "Insights",
    "PayloadInsight",
    "SlowItem",
    "Utilisation",
    "WorkerInsight",
    "describe",
    "look",
]
