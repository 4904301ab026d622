"""The tables of docs/reliability.md and of the README out of the results of the parts of ``proof``. Pure: the same
results, the same text.

A part that was not run says so; nothing of it is left out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from chaos import figures, peers
from chaos.figures import none_of
from chaos.observer import STATES, UNSEEN
from chaos.soak import FEWEST, UNJUDGED, grown, is_long, sound

ENOUGH, KILLS = 1000, 100_000  # kills in each state, and all of them; only those that were judged
FAULTS, CLIENTS, PEER_KILLS, INPUTS, VALUES, TIMES = 33, 1000, 1000, 100_000, 1_000_000, 100  # the least of each
Row = tuple[str, str, str]
Part = dict[str, Any]
_TIMES = (
    ("noticed", "kill of a worker until its task's error is known", 0.05),
    ("next", "kill of a worker until the next task has begun in its slot (I20)", 0.25),
    ("deadline", "deadline until the late task's error is known", 0.1),
    ("shutdown", "`shutdown()` of a pool that has done everything until all its processes have gone", 0.5),
    ("given up", "`kill_workers()` while tasks hang until all its processes have gone", 2.0),
    ("gone", "SIGKILL of the client until all have gone: monitor, workers, what tasks had started", 1.0),
    ("jitter", "a sleep of 5 ms beside all that: how much too late it ends", math.inf),
)


def report(parts: dict[str, Part], sums: dict[str, Counter[str]], versions: dict[str, str]) -> str:
    """``parts``: what each part has found, by its name; ``sums``: of the campaigns, by version; ``versions``: of now,
    by part."""
    version = versions["kills"]
    mine = sums.get(version, Counter())
    everything = sum(sums.values(), Counter())
    rows = [row for make in _ROWS for row in make(parts)]
    rows[1:1] = _campaigns(f"version {version}", mine)
    if len(sums) > 1:
        rows += _campaigns(f"all {len(sums)} versions", everything)
    sections = [
        "### Measured",
        figures.table(("figure", "measured", "of what"), rows),
        _histogram(mine, everything),
        _latencies(parts.get("latencies")),
        _slopes(parts.get("soak")),
        _peers(parts.get("peers")),
        _about(parts, mine, versions),
    ]
    return "\n\n".join(section for section in sections if section)


def summary(parts: dict[str, Part], sums: dict[str, Counter[str]], versions: dict[str, str]) -> str:
    """The least that one should know, for the README."""
    mine = sums.get(versions["kills"], Counter())
    steps, latencies, planted = (parts.get(name) for name in ("steps", "latencies", "planted"))
    tried = {figure: measured for figure, measured, _ in _faults(parts)}
    lost, doubled = (none_of(mine[name], mine["kills judged"], "kill") for name in ("lost", "doubled"))
    wrong = none_of(mine["wrong values"], mine["values compared"], "value")
    rows = [
        ("faults that a pool in memory can meet: survived", tried["faults survived"]),
        ("workers killed at random moments, with nothing else broken", f"{mine['kills judged']:,}"),
        ("tasks lost by that", lost),
        ("tasks run twice, or charged with another's death", doubled),
        ("wrong values", wrong),
        (
            "killed, stopped or condemned at every instruction of a worker's steps",
            _moments(steps) if steps else "not run",
        ),
        ("bugs planted for all this to find: found", _found(planted) if planted else "not run"),
        ("a killed worker's task has failed after", _time(latencies, "noticed")),
        ("the next task has begun in its place after", _time(latencies, "next")),
        ("a task that is over its `timeout` has failed after the timeout and", _time(latencies, "deadline")),
        ("processes and files left of a script that was killed with SIGKILL", _leftovers(latencies)),
    ]
    return figures.table(("", "measured"), rows)


def _in_time(part: Part) -> bool:
    """By the first condition: the machine as it was."""
    samples = next(iter(part["samples"].values()))
    return all(
        len(samples[name]) >= TIMES and figures.percentile(samples[name], 0.99) <= target for name, _, target in _TIMES
    )


def _time(part: Part | None, name: str) -> str:
    if part is None:
        return "not run"
    samples = next(iter(part["samples"].values()))[name]
    half, most = (figures.milliseconds(figures.percentile(samples, share)) for share in (0.5, 0.99))
    return f"{half} ms, p99 {most} ms"


def _leftovers(part: Part | None) -> str:
    if part is None:
        return "not run"
    return none_of(sum(part["left"].values()), part["clients"], "run")


def is_enough(mine: Counter[str]) -> bool:
    """Whether so many kills were judged, in each state of who is killed, and so many values compared."""
    each = all(mine["judged: " + state] >= ENOUGH for state in STATES)
    return each and mine["kills judged"] >= KILLS and mine["values compared"] >= VALUES


def is_good(parts: dict[str, Part], sums: dict[str, Counter[str]], versions: dict[str, str]) -> bool:
    """Whether every part has run with this version, and has found what it should, often enough; on a machine with
    nothing else to do also in time."""
    if any(
        name not in parts
        or not parts[name].get("good")
        or parts[name]["version"] != version
        or not parts[name]["commit"].isalnum()  # a plus: something was not committed
        for name, version in versions.items()
    ):
        return False
    mine = sums.get(versions["kills"], Counter())
    faults, fuzz, latencies = parts["faults"], parts["fuzz"], parts["latencies"]
    return (
        len(faults["survived"]) == faults["of"] == FAULTS
        and faults["form"] == "long"
        and fuzz["executions"] >= INPUTS
        and parts["models"]["complete"] > 0
        and parts["peers"]["results"][peers.OURS]["kills"] >= PEER_KILLS
        and latencies["clients"] >= CLIENTS
        and not any(latencies["left"].values())
        and _in_time(latencies)
        and sound(parts["soak"])
        and is_long(parts["soak"])
        and is_enough(mine)
        and not mine["violations"]  # those of other versions are in the table too
    )


def _campaigns(name: str, sums: Counter[str]) -> Iterator[Row]:
    kills, values, episodes = sums["kills judged"], sums["values compared"], sums["episodes"]
    seeds = len({name.partition(":")[0] for name in sums if name.startswith("seed ")})
    hours = sums["milliseconds"] / 3_600_000
    among = f"{episodes:,} episodes, {seeds:,} seeds, {hours:.2f} hours"
    yield f"random kills, {name}", f"{kills:,}", f"and {sums['kills'] - kills:,} more that were not judged; {among}"
    judged = f"{kills:,} kills where the pool was to go on as if nothing had happened, {name}"
    yield "tasks lost", none_of(sums["lost"], kills, "kill"), judged
    yield "tasks run twice, or a death charged wrongly", none_of(sums["doubled"], kills, "kill"), judged
    yield "wrong values", none_of(sums["wrong values"], values, "value"), f"{values:,} values compared, {name}"
    left = none_of(sums["left behind"], episodes, "episode")
    yield "episodes that left processes or files", left, f"{episodes:,} episodes, {name}"
    rest = sums["violations"] - sums["lost"] - sums["doubled"] - sums["wrong values"] - sums["left behind"]
    yield "any other invariant broken", none_of(rest, episodes, "episode"), f"{episodes:,} episodes, {name}"


def _faults(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("faults")
    if part is None:
        yield "faults survived", "not run", ""
        return
    survived, all_of_them = part["survived"], part["of"]
    missing = sorted(set(range(1, all_of_them + 1)) - set(survived))
    cases = Counter(part["cases"])
    ran = (
        f"as promised below; {cases['passed']} cases of their tests passed, {cases['failed']} failed,"
        f" {cases['skipped']} were skipped"
    )
    note = f"; not survived, or not tried: {', '.join(map(str, missing))}" if missing else ""
    yield "faults survived", f"{len(survived)}/{all_of_them}", f"{ran} ({part['form']} form){note}"


def _steps(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("steps")
    if part is None:
        yield "at every instruction of a worker's steps", "not run", ""
        return
    what = (
        "of claim, complete, store, take, sleep: killed, alone and beside another; stopped; condemned; given a task"
        " while it goes to sleep"
    )
    yield "at every instruction of a worker's steps", _moments(part), f"{what} ({part['scenarios']})"
    done = f"{part['steps']}/{part['named']}"
    yield "deaths at every named step of the core", done, "0 lost, 0 doubled at each of them, else it does not count"


def _moments(part: Part) -> str:
    return f"{part['moments']:,} moments ({part['missed']} missed), 0 lost, 0 doubled" if part["moments"] else "FAILED"


def _models(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("models")
    if part is None:
        yield "states of the models explored", "not run", ""
        return
    what = (
        f"{part['complete']} searches of the protocol that were complete, of {part['configurations'] - part['planted']}"
    )
    yield "states of the models explored", f"{part['states']:,}", f"{what}; {part['bounds']}"
    yield "planted faults found in the models", f"{part['caught']}/{part['planted']}", "each with its own search"


def _orders(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("orders")
    if part is None:
        yield "orders of memory", "not run", ""
        return
    fine = f"{part['litmuses'] - part['wrong']}/{part['litmuses']}"
    orders = (
        f"litmuses of the core's steps, explored wholly; {part['needed']} orders of the source are in them, for the"
        f" other {part['explained']} it is said why nobody leans on them"
    )
    missing = f", and {part['unexplained']} ARE NEITHER" if part["unexplained"] else ""
    yield "orders of memory: enough, and each of them needed", fine, orders + missing
    found = "FAILED" if part["stood still"] else none_of(0, part["rounds"], "round")
    yield "wake-ups lost on this machine", found, f"{part['rounds']:,} rounds of going to sleep against publishing"
    yield (
        "C tests of the core as an aarch64 build",
        part["emulated"],
        "in an emulator: logic and layout, no order of memory",
    )


def _sanitizers(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("sanitizers")
    what = "C tests of the core under the thread sanitizer, or the address and undefined behaviour sanitizers"
    yield "runs without a sanitizer's report", "not run" if part is None else f"{part['passed']}/{part['of']}", what


def _fuzz(parts: dict[str, Part]) -> Iterator[Row]:
    part, name = parts.get("fuzz"), "inputs of the fuzzer that led a reader astray"
    if part is None:
        yield name, "not run", ""
        return
    found = none_of(0, part["executions"], "input") if part["good"] else "FAILED"
    what = "damaged shared memory, before and during calls of client, monitor and workers, under the same sanitizers"
    yield name, found, f"{part['executions']:,} inputs, {part['edges']:,} edges: {what}"


def _planted(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("planted")
    for name, what in (("in chaos", "bugs planted for the chaos runner"), ("in core", "bugs planted in the C core")):
        found = "not run" if part is None else f"{part[name][0]}/{part[name][1]}"
        yield f"{what}: caught", found, "one after the other, each in a copy"


def _found(part: Part) -> str:
    found, planted = (sum(counts) for counts in zip(part["in chaos"], part["in core"], strict=True))
    return f"{found}/{planted}"


def _checked(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("soak")
    if part is None:
        yield "wrong values in a pool that lives long", "not run", ""
        return
    tasks = Counter(part["tasks"])
    compared = tasks["values"] + tasks["wrong"]
    kills = f"{part['samples'][-1]['kills']:,} kills of its workers meanwhile"
    yield (
        "wrong values in a pool that lives long",
        none_of(tasks["wrong"], compared, "value"),
        f"{compared:,} values compared; {kills}",
    )


def _left(parts: dict[str, Part]) -> Iterator[Row]:
    part = parts.get("latencies")
    if part is None:
        yield "left after SIGKILL of the client", "not run", ""
        return
    for what, count in part["left"].items():
        yield (
            f"{what} left after SIGKILL of the client",
            none_of(count, part["clients"], "run"),
            f"{part['clients']} runs",
        )


_ROWS: tuple[Callable[[dict[str, Part]], Iterator[Row]], ...] = (
    _faults, _steps, _models, _orders, _sanitizers, _fuzz, _planted, _checked, _left,
)  # fmt: skip


def _histogram(mine: Counter[str], everything: Counter[str]) -> str:
    rows = []
    for state in (*STATES, UNSEEN):
        count, ever = mine["judged: " + state], everything["judged: " + state]
        few = "" if count >= ENOUGH or state == UNSEEN else f" (fewer than {ENOUGH:,})"
        rows.append((state, f"{count:,}{few}", f"{mine['killed: ' + state] - count:,}", f"{ever:,}"))
    compared = "death records compared"
    rows.append((compared, f"{mine[compared]:,}", "", f"{everything[compared]:,}"))
    what = (
        "What the dead were at, as an observer outside of the pool has read it in shared memory while they stood still:"
    )
    return f"{what}\n\n{figures.table(('killed while', 'kills', 'not judged', 'with all versions'), rows)}"


def _latencies(part: Part | None) -> str:
    if part is None:
        return "Times: not run."
    rows = []
    for condition, samples in part["samples"].items():
        for name, what, target in _TIMES:
            times = samples[name]
            shown = (figures.milliseconds(figures.percentile(times, share)) for share in (0.5, 0.99, 1))
            wanted = figures.milliseconds(target) if target < math.inf else ""
            missed = " (missed)" if figures.percentile(times, 0.99) > target else ""
            rows.append((what, condition, f"{len(times):,}", *shown, wanted + missed))
    head = ("milliseconds", "machine", "samples", "p50", "p99", "max", "p99 to be reached")
    return (
        f"Times, with {part['workers']} workers; busy: beside as many computing processes as cores, which is not"
        " judged.\n\n" + figures.table(head, rows)
    )


def _slopes(part: Part | None) -> str:
    if part is None:
        return "What grows in one pool that lives long: not run."
    samples, tasks = part["samples"], Counter(part["tasks"])
    first, last = samples[0], samples[-1]
    more = grown(samples) if len(samples) >= FEWEST else {}
    names = [name for name in first if name != "kills"]
    rows = [
        (name, f"{first[name]:,}", f"{last[name]:,}", f"{more.get(name, 'too few samples')}{_unjudged(name, more)}")
        for name in names
    ]
    what = (
        f"One pool, {last['kills']:,} kills, {tasks['values']:,} right values, {tasks['wrong']:,} wrong ones; counted"
        f" {len(samples)} times at rest, and the slope (95 %) of the second half. RSS has pages of libraries in it that"
        " come when their code runs for the first time, and shared memory is what was touched last and not given back"
        " yet: what is a process' own is anonymous, and what is in use of shared memory is counted by units. Before the"
        " blocks are counted the interpreter's cache of types is cleared, which holds up to 4,096 names:"
    )
    return f"{what}\n\n{figures.table(('at rest', 'first', 'last', 'more per 1,000 kills'), rows)}"


def _unjudged(name: str, more: dict[str, figures.Slope]) -> str:
    judged = not name.endswith(UNJUDGED) or name not in more or more[name].per_thousand + more[name].error < 1
    return "" if judged else " (not judged)"


def _peers(part: Part | None) -> str:
    if part is None:
        return "The same kills for other pools: not run."
    return peers.text(part["results"], part["scale"]["peer_seconds"])


def _scale(part: Part) -> str:
    """How much of it was asked for, where that is a number."""
    asked = {name.replace("_", " "): count for name, count in part["scale"].items() if type(count) in (int, float)}
    return "".join(f", {name} {count:g}" for name, count in asked.items())


def _about(parts: dict[str, Part], mine: Counter[str], versions: dict[str, str]) -> str:
    lines = []
    for name, part in sorted(parts.items()):
        older = "" if part["version"] == versions[name] else " (an older one)"
        lines.append(
            f"- {name}: commit {part['commit']}, version {part['version']}{older}, {part['date']}, seed {part['seed']},"
            f" {part['took']:.0f} s{_scale(part)}; {part['machine']}; load {part['load']} before it"
            + "".join(f"; NOT GOOD before, with {when}" for when in part["failed"])
        )
    played = sorted((name.removeprefix("seed "), count) for name, count in mine.items() if name.startswith("seed "))
    if played:
        seeds = ", ".join(f"{seed}: {count:,}" for seed, count in played)
        lines.append(f"- seeds of the random kills, and the episodes of each, from 0 on: {seeds}")
    proven = "A zero has its bound beside it (rule of three, 95 %). x86-64 only; aarch64 is unproven."
    return "\n".join([proven, "", *lines])
