"""Figures out of what was counted and measured, and the words for them. Pure: only text and numbers, in and out.

Nothing is made to look better than it is: times are rounded up, shares are not rounded at all, a test that was skipped
has failed, and beside a count of zero stands what that zero shows.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import ROUND_CEILING, Context
from typing import NamedTuple

BEGIN, END = "<!-- proof: make proof writes what is between these marks -->", "<!-- /proof -->"


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of all (0 to 1) do not exceed. ValueError without samples."""
    if not samples:
        raise ValueError("there is no percentile of nothing")
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def milliseconds(seconds: float) -> str:
    """Rounded up to a tenth."""
    return f"{math.ceil(round(seconds * 10_000, 6)) / 10:.1f}"


def bound(trials: int) -> str:
    """What it shows that something has happened in none of so many trials, with 95 % confidence."""
    if trials <= 3:
        return "too few to show anything"
    return f"p ≤ {Context(prec=2, rounding=ROUND_CEILING).divide(3, trials):.1e}"


def none_of(found: int, trials: int, what: str) -> str:
    """`found` in so many trials; if it is none, with its bound."""
    per = f" per {what}" if trials > 3 else ""
    return f"{found:,}" if found else f"0 ({bound(trials)}{per})"


class Slope(NamedTuple):
    """Of a straight line: how much more per 1,000, and how far off that may be (95 %)."""

    per_thousand: float
    error: float

    def __str__(self) -> str:
        return f"{self.per_thousand:+.2f} ± {self.error:.2f}"


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    """Least squares. ValueError for fewer than three different places."""
    count = len(points)
    if len({x for x, _ in points}) < 3:
        raise ValueError("a slope needs three points")
    mean_x, mean_y = (sum(values) / count for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    grows = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - grows * (x - mean_x)) ** 2 for x, y in points)
    return Slope(1000 * grows, 1000 * 1.96 * math.sqrt(rest / (count - 2) / spread))


# ---- what programs print


def named_tests(page: str) -> dict[int, list[str]]:
    """The tests of each fault of docs/reliability.md."""
    rows = re.findall(r"^\| (\d+) \|.*\|$", page, re.M)
    lines = re.findall(r"^\| \d+ \|.*\|$", page, re.M)
    return {int(n): re.findall(r"`(test_\w+\.py::\w+)`", line) for n, line in zip(rows, lines, strict=True)}


def outcomes(report: str) -> dict[str, Counter[str]]:
    """By test function (``file.py::name``): how many of its cases have passed, failed and been skipped, of a report of
    pytest in JUnit's form."""
    found: dict[str, Counter[str]] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        file = case.get("classname", "").split(".")[-1]
        name = f"{file}.py::{case.get('name', '').partition('[')[0]}"
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        found.setdefault(name, Counter())[outcome] += 1
    return found


def survived(faults: dict[int, list[str]], results: dict[str, Counter[str]]) -> list[int]:
    """The faults all of whose tests have run and passed, in all of their cases."""
    return [
        n
        for n, tests in faults.items()
        if tests and all(set(results.get(test, {"no": 1})) == {"passed"} for test in tests)
    ]


def searches(printed: str) -> dict[str, int]:
    """Of ipc/model/run.py: configurations, states of searches of the protocol, how many of these were complete, planted
    faults, how many of them were found, and what was not as expected."""
    found: Counter[str] = Counter(configurations=0, states=0, complete=0, planted=0, caught=0, wrong=0)
    for line in printed.splitlines():
        match = re.fullmatch(r"(?:claim|sleep|payload) .*? (\d+) +\d+  (\w+) +(\w+) +[\d.]+(  WRONG)?", line)
        if match is None:
            continue
        expected, got = match[2], match[3]
        found["configurations"] += 1
        found["wrong"] += match[4] is not None
        if expected in ("complete", "partial"):
            found["states"] += int(match[1])
            found["complete"] += got == "complete"
        else:
            found["planted"] += 1
            found["caught"] += got == expected
    return dict(found)


def litmuses(printed: str) -> dict[str, int]:
    """Of ipc/model/orders.py: litmuses, how many of them were not as expected, and the orders of the source: needed in
    one, explained, neither. Nothing if it has not come to its end."""
    match = re.search(
        r"^(\d+) litmuses, (\d+) not as expected\n(\d+) orders are needed, (\d+) are not; (\d+) unexplained$",
        printed,
        re.M,
    )
    found = map(int, match.groups()) if match else [0] * 5
    return dict(zip(("litmuses", "wrong", "needed", "explained", "unexplained"), found, strict=True))


def rounds(printed: str) -> int:
    """Of tests/c/litmus: rounds of all litmuses, of those that came to their end."""
    return sum(map(int, re.findall(r"^litmus \S+ +(\d+) rounds, \d+ woken, none lost$", printed, re.M)))


def bounds(printed: str) -> str:
    """Of ipc/model/run.py: how many tasks, crashes and so on the complete searches had."""
    match = re.search(r"^bounds of the complete searches: (.+)$", printed, re.M)
    return match[1] if match else "bounds not said"


def moments(printed: str) -> dict[str, int]:
    """Of tests/c/sweep: moments, and those that were missed."""
    match = re.search(r"^sweep: (\d+) moments \((\d+) missed\), 0 lost, 0 double$", printed, re.M)
    return {"moments": int(match[1]), "missed": int(match[2])} if match else {"moments": 0, "missed": 0}


def fuzzed(printed: str) -> dict[str, int]:
    """Of libFuzzer: executions, and edges of the program that they have reached."""
    match = re.search(r"^#(\d+)\s+DONE\s+cov: (\d+)", printed, re.M)
    return {"executions": int(match[1]), "edges": int(match[2])} if match else {"executions": 0, "edges": 0}


# ---- the page


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def put(page: str, text: str) -> str:
    """The page with `text` between the marks. ValueError if they are not there."""
    before, mark, rest = page.partition(BEGIN)
    _, other, after = rest.partition(END)
    if not mark or not other:
        raise ValueError("the marks are missing")
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"
