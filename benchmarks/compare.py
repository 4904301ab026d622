"""Two files of results, compared: ``python -m benchmarks compare BEFORE.json AFTER.json``.

What counts is how many times as good as a rival we are, for that was measured within one run: machines, and one machine
from day to day, differ by more than versions do. What has no rival is compared as it is, and only if both files are of
the same machine. The verdict is *better* or *worse* if no run of the one file reaches a run of the other, and the
medians differ by more than 3 %; else *no difference* that could be told. Of so many lines one or two may be chance,
with three runs a file more often than with five: so a verdict is worth a second look, the lack of one is not.

Exit code: 0 nothing is worse, 1 something is, 2 the files cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import advantage, number, table
from benchmarks.rivals import OURS

LEAST = 0.03
BETTER, WORSE, SAME, LACKING = "better", "**worse**", "no difference", "not in both"
Results = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """``before``, ``after``: the runs, each as how good it was (more is better); empty: was not measured."""

    workload: str
    case: str
    rival: str
    metric: str
    before: list[float]
    after: list[float]

    @property
    def verdict(self) -> str:
        return verdict(self.before, self.after)

    @property
    def change(self) -> float | None:
        """Median after by median before; None: not measured."""
        old, new = _median(self.before), _median(self.after)
        return new / old if old and new else None


def verdict(before: list[float], after: list[float]) -> str:
    """Of runs whose numbers are better if they are larger."""
    if not before or not after:
        return LACKING
    ratio = _median(after) / _median(before) if _median(before) else 1.0
    if min(after) > max(before) and ratio > 1 + LEAST:
        return BETTER
    if max(after) < min(before) and ratio < 1 / (1 + LEAST):
        return WORSE
    return SAME


def _median(runs: list[float]) -> float:
    ordered = sorted(runs)
    half = len(ordered) // 2
    return (ordered[half] + ordered[~half]) / 2 if ordered else 0.0


def lines(before: Results, after: Results) -> Iterator[Line]:
    """Everything that is in one of the files."""
    old, new = dict(_runs(before)), dict(_runs(after))
    same_machine = all(before["machine"][what] == after["machine"][what] for what in ("cpu", "cores"))
    for key in dict.fromkeys([*old, *new]):
        if key[2] != OURS or same_machine:
            yield Line(*key, old.get(key, []), new.get(key, []))


def _runs(results: Results) -> Iterator[tuple[tuple[str, str, str, str], list[float]]]:
    """(workload, case, rival, metric) → how many times as good as the rival in each run; where there is no rival, for
    us, how good."""
    for name, workload in results["workloads"].items():
        for case, measured in workload["cases"].items():
            for metric in _compared(workload):
                higher = workload["higher_is_better"] and metric != "cpu_us"
                ratios = {r: s["runs"] for r, s in measured["ratios"].get(metric, {}).items() if r != OURS}
                if not ratios:
                    own = measured["rivals"].get(OURS, {}).get(metric)
                    ratios = {OURS: own["runs"]} if own else {}
                for rival, runs in ratios.items():
                    yield (name, case, rival, metric), [advantage(run, higher) for run in runs]


def _compared(workload: dict[str, Any]) -> list[str]:
    """The first metric, and CPU time."""
    metrics = list(workload["metrics"])
    return metrics[:1] + [metric for metric in metrics[1:] if metric == "cpu_us"]


def markdown(found: list[Line], before: Results, after: Results) -> str:
    """A table of all that differs, and how much there is of each verdict."""
    told = Counter(line.verdict for line in found)
    rows = [["workload", "case", "against", "by", "before", "after", "change", ""]]
    for line in found:
        if line.verdict != SAME:
            change = line.change
            rows.append(
                [
                    *(line.workload, line.case, "-" if line.rival == OURS else line.rival, line.metric),
                    *(_spread(line.before), _spread(line.after)),
                    "" if change is None else f"{100 * (change - 1):+.0f} %",
                    line.verdict,
                ]
            )
    text = [
        f"{_of(before)} → {_of(after)}. Times as good as the rival (with none, -: the figure itself, or 1 by it where "
        "less is better); median, in brackets the lowest and the highest run.\n",
    ]
    if len(rows) > 1:
        text.append(table(rows))
    text.append(", ".join(f"{told[v]} {v.strip('*')}" for v in (BETTER, WORSE, SAME, LACKING)) + ".\n")
    return "\n".join(text)


def _of(results: Results) -> str:
    return f"{results['machine']['commit']}, {results['machine']['date'][:16]}, {results['sizes']['runs']} runs"


def _spread(runs: list[float]) -> str:
    return f"{number(_median(runs))} ({number(min(runs))} .. {number(max(runs))})" if runs else ""


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description="Compare two files of --json.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    options = parser.parse_args(words)
    try:
        before, after = (json.loads(file.read_text()) for file in (options.before, options.after))
        for results in (before, after):
            if "workloads" not in results or results["schema"] != 1:
                raise ValueError("not a file of python -m benchmarks --json")
    except (OSError, ValueError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    if before["sizes"]["name"] != after["sizes"]["name"]:
        sizes = f"{before['sizes']['name']} and {after['sizes']['name']}"
        print(f"cannot compare: the sizes differ ({sizes}), so the tasks do", file=sys.stderr)
        return 2
    found = list(lines(before, after))
    print(markdown(found, before, after))
    return 1 if any(line.verdict == WORSE for line in found) else 0
