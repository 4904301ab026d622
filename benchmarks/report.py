"""The results as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.rivals import OURS


def markdown(results: dict[str, Any], counted: dict[str, Any] | None = None) -> str:
    """Everything, with the targets first. ``counted``: the instructions of each step, see benchmarks/micro."""
    m = results["machine"]
    parts = [
        "# Results\n",
        f"{m['cpu']}, {m['cores']} cores, {m['kernel']}, {m['python']}; commit {m['commit']}, {m['date']}, "
        f"load average at the start {m['load_average']:.2f}; sizes: {results['sizes']['name']}, "
        f"{results['sizes']['runs']} runs of fresh processes, rivals interleaved; {results['seconds']:.0f} s in all.\n",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in m["versions"].items()) + ".\n",
        *([noise] if (noise := _noise(results)) else []),
        "Median, in brackets the lowest and the highest run. CPU and context switches are those of all processes of a "
        "pool: client, helpers, workers. *x ours* is theirs by ours where less is better and ours by theirs where more "
        "is better, so above 1 ours is ahead; made within each run.\n",
        "![How many times as good, by workload and rival](ratios.svg)\n",
        "## Targets\n",
        targets(results),
        *(_workload(name, w) for name, w in results["workloads"].items()),
        *([] if counted is None else ["\n## Instructions for each step\n", *_counted(counted)]),
        "\n## How each rival is used\n",
        "\n".join(f"- {n}: {r['settings']}" for n, r in results["rivals"].items()),
        "",
    ]
    return "\n".join(parts)


def _counted(counted: dict[str, Any]) -> list[str]:
    return [
        f"By callgrind, of commit {counted['machine']['commit']}: {counted['compiler']}, {counted['interpreter']}. "
        "[micro.md](micro.md) says which functions they are; [docs/performance.md](../../docs/performance.md), what is "
        "made of them.\n",
        operations(counted),
    ]


def operations(counted: dict[str, Any]) -> str:
    """The table of what benchmarks/micro has counted."""
    rows = [["operation", "instructions", "looks at the clock", "other system calls"]]
    for name, o in counted["operations"].items():
        more = [number(round(o[k], 2)) if k in o else "" for k in ("clock", "calls")]
        rows.append([name, number(o["instructions"]), *more])
    return table(rows)


def _noise(results: dict[str, Any]) -> str | None:
    foreign = results["foreign_cpu_percent"]
    if foreign is None or foreign["median"] < 3:
        return None
    return (
        f"**Other processes took {foreign['median']:.0f} % of the machine meanwhile (in the worst measurement "
        f"{foreign['max']:.0f} %)**: rates, latencies and efficiencies tell little, CPU a task still does. Where Linux "
        "shares the cores out by session (sched_autogroup), such load slows rivals more than us, whose workers have a "
        "session each.\n"
    )


def targets(results: dict[str, Any]) -> str:
    rows = [["target", "now", "goal", "measured", "reached", "goal reached"]]
    for t in results["targets"]:
        sign = "≥" if t["at_least"] else "≤"
        value = "-" if t["value"] is None else number(t["value"])
        told = [{True: "yes", False: "**no**", None: "not measured"}[t[k]] for k in ("reached", "goal_reached")]
        rows.append([t["target"], f"{sign} {number(t['now'])}", f"{sign} {number(t['goal'])}", value, *told])
    return table(rows)


def _workload(name: str, workload: dict[str, Any]) -> str:
    metrics: dict[str, str] = workload["metrics"]
    main = next(iter(metrics))
    text = f"\n## {workload['title']} (`{name}`)\n"
    cases = workload["cases"]
    rows = [[*(["case"] if len(cases) > 1 else []), "", *metrics.values(), "x ours"]]
    for case, result in cases.items():
        for rival, values in result["rivals"].items():
            row = [rival]
            if problem := values.get("missing") or values.get("failed"):
                row += [problem] + [""] * len(metrics)
            else:
                row += [
                    _spread(values[metric]) if metric == main else number(values[metric]["median"])
                    for metric in metrics
                ]
                row.append(_advantage(rival, result["ratios"].get(main, {}), workload["higher_is_better"]))
            rows.append([*([case] if len(cases) > 1 else []), *row])
    if name == "scaling":
        text += "\n![Rate and CPU time by the number of workers and of rows](scaling.svg)\n"
    text += "\n" + table(rows)
    if workload["not_asked"]:
        text += f"\nNot asked here: {', '.join(workload['not_asked'])}.\n"
    return text


def _advantage(rival: str, ratios: dict[str, Any], higher: bool) -> str:
    if rival == OURS or rival not in ratios:
        return ""
    return number(advantage(ratios[rival]["median"], higher))


def advantage(ratio: float, higher: bool) -> float:
    """A ratio, ours by theirs, as how many times ours is as good."""
    return ratio if higher else 1 / ratio if ratio else 0.0


def _spread(value: dict[str, Any]) -> str:
    return f"{number(value['median'])} ({number(value['min'])} .. {number(value['max'])})"


def number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(rows: list[list[str]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"


def fill(document: Path, name: str, text: str) -> None:
    """Put the text between the two marks of that name in a document. ValueError if they are not there."""
    begin, end = f"<!-- {name}: written by the benchmarks -->\n", f"<!-- end of {name} -->\n"
    before, mark, rest = document.read_text().partition(begin)
    _, close, after = rest.partition(end)
    if not (mark and close):
        raise ValueError(f"{document} has no place for {name}")
    document.write_text(f"{before}{begin}\n{text.strip()}\n\n{close}{after}")


def times(results: dict[str, Any]) -> str:
    """Our CPU times of a no-op task, for docs/performance.md."""
    m = results["machine"]
    rows = [["", "tasks/s", "client, CPU µs a task", "others, CPU µs a task", "context switches/1,000"]]
    for name in ("noop", "futures", "chunks"):
        if (workload := results["workloads"].get(name)) is None:
            continue
        ours = workload["cases"][""]["rivals"][OURS]
        client = ours["client_cpu_us"]["median"]
        others = ours["cpu_us"]["median"] - client
        figures = [ours["rate"]["median"], client, others, ours["switches"]["median"]]
        rows.append([workload["title"], *map(number, figures)])
    return f"Commit {m['commit']}, {m['cpu']}, {m['cores']} cores, {m['python']}.\n\n" + table(rows)
