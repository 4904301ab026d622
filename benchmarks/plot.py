"""The results as pictures: how far ahead of each rival, in each workload; and what more workers or rows do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.report import advantage
from benchmarks.rivals import OURS

SHOWN = ("noop", "futures", "round_trip", "chunks", "arrays", "start_up", "busy", "thumbnails")


def draw(results: dict[str, Any], path: Path) -> None:
    """One line for each workload and case, one point for each rival; right of 1 ours is ahead."""
    pyplot = _pyplot()
    rows = list(_rows(results))
    names = sorted({rival for _, values in rows for rival in values}, key=list(results["rivals"]).index)
    figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(rows) + 1.6), layout="constrained")
    axes.axvline(1, color="#888888", linewidth=1)
    for marker, name in zip("osD^vPX*<>hd", names, strict=False):
        points = [(values[name], k) for k, (_, values) in enumerate(rows) if name in values]
        axes.scatter(*zip(*points, strict=True), marker=marker, s=36, label=name, alpha=0.85)
    axes.set_xscale("log")
    axes.set_xticks([0.1, 0.3, 1, 3, 10, 30, 100, 1000], ["0.1", "0.3", "1", "3", "10", "30", "100", "1000"])
    axes.minorticks_off()
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("times as good as the rival, log scale (right of 1: pool is ahead)")
    machine = results["machine"]
    axes.set_title(f"pool against others: {machine['cores']} cores, {machine['python']}, commit {machine['commit']}",
                   fontsize=10)  # fmt: skip
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=len(names), fontsize=8, frameon=False)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)


def draw_scaling(results: dict[str, Any], path: Path) -> None:
    """Tasks per second (above) and CPU time of a task (below), by workers (left) and by rows (right)."""
    pyplot = _pyplot()
    cases = results["workloads"]["scaling"]["cases"]
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 5), sharex="col", sharey="row", layout="constrained")
    for column, what in enumerate(("workers", "rows")):
        points = sorted((int(case.split()[0]), c["rivals"][OURS]) for case, c in cases.items() if case.endswith(what))
        for row, (metric, scale, label) in enumerate(
            (("rate", 1e-6, "million tasks/s"), ("cpu_us", 1.0, "CPU µs a task, all processes"))
        ):
            told = [(x, values[metric]) for x, values in points if metric in values]
            low, middle, high = ([v[k] * scale for _, v in told] for k in ("min", "median", "max"))
            axes[row][column].fill_between([x for x, _ in told], low, high, alpha=0.2, linewidth=0)
            axes[row][column].plot([x for x, _ in told], middle, marker="o", markersize=4)
            axes[row][column].set_xscale("log", base=2)
            axes[row][column].set_xticks([x for x, _ in told], [f"{x:,}" for x, _ in told])
            axes[row][column].grid(color="#dddddd", linewidth=0.6)
            if column == 0:
                axes[row][column].set_ylabel(label)
        axes[1][column].set_xlabel(what)
    for row_of_both in axes:
        row_of_both[0].set_ylim(bottom=0)  # when both are drawn: it keeps the upper end
    machine = results["machine"]
    title = f"No-op tasks one by one: {machine['cores']} cores, {machine['python']}, commit {machine['commit']}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, facecolor="white", metadata={"Date": None})
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "pool", "font.family": "sans-serif"})
    return pyplot


def _rows(results: dict[str, Any]) -> Any:
    """(label, {rival: how many times ours is as good})."""
    for name in SHOWN:
        if (workload := results["workloads"].get(name)) is None:
            continue
        main = next(iter(workload["metrics"]))
        for case, result in workload["cases"].items():
            ratios = result["ratios"].get(main, {})
            values = {
                rival: advantage(ratios[rival]["median"], workload["higher_is_better"])
                for rival in ratios
                if rival != OURS
            }
            if values:
                label = name.replace("_", " ")
                yield (f"{label}, {case}" if len(workload["cases"]) > 1 else label), values
