"""Two files of results, compared."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.__main__ import RESULTS

LATEST: dict[str, Any] = json.loads((RESULTS / "latest.json").read_text())


def changed(factor: float, workload: str, metric: str, rival: str) -> dict[str, Any]:
    """The last results, with our ratio to one rival so many times as large."""
    results = copy.deepcopy(LATEST)
    for case in results["workloads"][workload]["cases"].values():
        runs = case["ratios"][metric][rival]["runs"]
        runs[:] = [run * factor for run in runs]
    return results


def told(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    return [
        (line.workload, line.rival, line.metric, line.verdict)
        for line in compare.lines(before, after)
        if line.verdict != compare.SAME
    ]


def test_a_file_does_not_differ_from_itself() -> None:
    assert told(LATEST, LATEST) == []
    assert len(list(compare.lines(LATEST, LATEST))) > 100


def test_more_is_better_for_a_rate_and_worse_for_a_time() -> None:
    rate = changed(2, "noop", "rate", "executor")
    assert told(LATEST, rate) == [("noop", "executor", "rate", compare.BETTER)]
    assert told(rate, LATEST) == [("noop", "executor", "rate", compare.WORSE)]
    time = changed(2, "round_trip", "p50_us", "executor")
    assert told(LATEST, time) == [("round_trip", "executor", "p50_us", compare.WORSE)]
    cpu = changed(2, "noop", "cpu_us", "executor")
    assert told(LATEST, cpu) == [("noop", "executor", "cpu_us", compare.WORSE)]


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([10, 11, 12], [12.5, 13, 14], compare.BETTER),
        ([10, 11, 12], [11.9, 13, 14], compare.SAME),  # a run reaches one of the others
        ([10, 10, 10], [10.2, 10.2, 10.2], compare.SAME),  # too little
        ([10, 11, 12], [7, 8, 9.9], compare.WORSE),
        ([10], [], compare.LACKING),
    ],
)
def test_verdicts(before: list[float], after: list[float], verdict: str) -> None:
    assert compare.verdict(before, after) == verdict


def test_what_has_no_rival_is_compared_on_one_machine_only() -> None:
    other = copy.deepcopy(LATEST)
    runs = other["workloads"]["wake"]["cases"]["no-op, 2 workers"]["rivals"]["pool"]["rate"]["runs"]
    runs[:] = [run / 3 for run in runs]
    assert told(LATEST, other) == [("wake", "pool", "rate", compare.WORSE)]
    other["machine"]["cores"] = 64
    assert told(LATEST, other) == []


def test_the_command_says_what_is_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(json.dumps(LATEST))
    worse = changed(0.5, "noop", "rate", "executor")
    del worse["workloads"]["late"]
    after.write_text(json.dumps(worse))
    assert compare.main([str(before), str(before)]) == 0
    assert ", 0 worse, " in capsys.readouterr().out
    assert compare.main([str(before), str(after)]) == 1
    out = capsys.readouterr().out
    assert "| noop " in out
    assert "-50 %" in out
    assert "| late " in out
    assert "0 better, 1 worse, " in out
    after.write_text(json.dumps(worse | {"sizes": worse["sizes"] | {"name": "quick"}}))
    assert compare.main([str(before), str(after)]) == 2
    assert compare.main([str(before), str(tmp_path / "none")]) == 2
    after.write_text("{}")
    assert compare.main([str(before), str(after)]) == 2
