"""`make proof`: its pure parts, and the least of the whole. What matters is that it says no more than was found."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import processes
import pytest
import test_core_c
from chaos import figures, peers, planted, proof, report, soak, sources
from chaos.observer import STATES

VERSION = "0123456789ab"
HERE = {
    "commit": "abcdef0",
    "version": VERSION,
    "date": "2026-01-02",
    "seed": 5,
    "took": 7.4,
    "machine": "1 x A Computer",
    "load": 0.5,
    "scale": {"peer_seconds": 120.0},
    "failed": [],
}
VERSIONS = dict.fromkeys(proof.PARTS, VERSION)


# ---- numbers


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1), (0.5, 50), (0.501, 51), (0.99, 99), (0.991, 100), (1.0, 100)]
)
def test_percentiles_are_samples_that_were_there(share: float, expected: int) -> None:
    assert figures.percentile(list(range(100, 0, -1)), share) == expected
    assert figures.percentile([7.0], share) == 7.0


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError, match="nothing"):
        figures.percentile([], 0.5)


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.0, "0.0"), (0.0500, "50.0"), (0.05001, "50.1"), (0.000001, "0.1"), (1.2345, "1234.5")]
)
def test_times_are_rounded_up(seconds: float, expected: str) -> None:
    assert figures.milliseconds(seconds) == expected


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        (0, "too few to show anything"),
        (3, "too few to show anything"),
        (300, "p ≤ 1.0e-2"),
        (299, "p ≤ 1.1e-2"),
        (100_000, "p ≤ 3.0e-5"),
        (200_001, "p ≤ 1.5e-5"),
        (301, "p ≤ 1.0e-2"),
    ],
)
def test_the_bound_of_a_zero_is_rounded_up(trials: int, expected: str) -> None:
    assert figures.bound(trials) == expected
    if trials > 3:
        assert float(figures.bound(trials).removeprefix("p ≤ ")) >= 3 / trials


def test_only_a_zero_has_a_bound() -> None:
    assert figures.none_of(0, 300, "kill") == "0 (p ≤ 1.0e-2 per kill)"
    assert figures.none_of(0, 0, "kill") == "0 (too few to show anything)"
    assert figures.none_of(2, 300, "kill") == "2"


def test_the_slope_of_a_line_is_exact_and_that_of_noise_has_its_error() -> None:
    line = figures.slope([(1000 * k, 7 + 3 * k) for k in range(9)])
    assert line.per_thousand == pytest.approx(3)
    assert line.error == pytest.approx(0, abs=1e-9)
    noise = figures.slope([(1000 * k, (-1) ** k) for k in range(100)])
    assert abs(noise.per_thousand) < noise.error < 0.01
    assert str(figures.Slope(1.0, 0.25)) == "+1.00 ± 0.25"
    with pytest.raises(ValueError, match="three"):
        figures.slope([(1, 2), (1, 3), (2, 4)])


def test_a_leak_shows_as_a_slope_after_the_warm_up() -> None:
    samples = [{"kills": 100 * k, "flat": 7, "leaks": 10 * k, "warms up": min(k, 4)} for k in range(20)]
    slopes = {name: str(slope) for name, slope in soak.grown(samples).items()}
    assert slopes == {"flat": "+0.00 ± 0.00", "leaks": "+100.00 ± 0.00", "warms up": "+0.00 ± 0.00"}


def test_zombies_are_seen() -> None:
    living, zombies = processes.living_and_zombies(os.getpid())
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert processes.living_and_zombies(os.getpid()) == (living + 1, zombies)
        child.stdin.close()
        processes.wait_until(
            lambda: processes.living_and_zombies(os.getpid()) == (living, zombies + 1),
            "it has ended, and is still there",
        )
    assert processes.living_and_zombies(os.getpid()) == (living, zombies)


# ---- what programs print


def test_the_faults_of_the_page_and_their_tests() -> None:
    page = (
        "| # | fault |\n| 1 | a | b | `test_a.py::test_x`, `test_b.py::test_y` |\n| 2 | c | d | `test_a.py::test_z` |\n"
    )
    assert figures.named_tests(page) == {1: ["test_a.py::test_x", "test_b.py::test_y"], 2: ["test_a.py::test_z"]}
    assert sorted(figures.named_tests(proof.PAGE.read_text())) == list(range(1, 34))


REPORT = """<testsuites><testsuite>
<testcase classname="test_a" name="test_x[1]"/><testcase classname="test_a" name="test_x[2]"/>
<testcase classname="tests.test_a" name="test_skips"><skipped message="not here"/></testcase>
<testcase classname="test_a" name="test_half[1]"/><testcase classname="test_a" name="test_half[2]"><failure/></testcase>
<testcase classname="test_a" name="test_broken"><error/></testcase>
</testsuite></testsuites>"""


def test_a_fault_is_survived_if_all_cases_of_all_its_tests_have_run_and_passed() -> None:
    results = figures.outcomes(REPORT)
    assert results["test_a.py::test_x"] == {"passed": 2}
    assert results["test_a.py::test_half"] == {"passed": 1, "failed": 1}
    faults = {
        1: ["test_a.py::test_x"],
        2: ["test_a.py::test_x", "test_a.py::test_skips"],
        3: ["test_a.py::test_half"],
        4: ["test_a.py::test_broken"],
        5: ["test_a.py::test_never_run"],
        6: [],
    }
    assert figures.survived(faults, results) == [1]


def test_the_states_of_searches_that_were_cut_or_are_of_planted_faults_are_told_apart() -> None:
    printed = """model   switches                     states  depth  expected  got           s
claim   T=3 K=1                                                         1000    236  complete  complete    8.0
sleep   T=2 K=0 DEP                                                       20     40  partial   partial     7.1
sleep   T=1 K=0 NO_LOOK                                                   30    230  stuck     stuck       4.8
claim   T=1 K=0 WEAK_CAS                                                  40    230  stuck     complete    4.8  WRONG
4 configurations in 8 s: 1 complete; 1 not as expected
bounds of the complete searches: 3 tasks, 1 crashes, 2 workers
"""
    assert figures.searches(printed) == {
        "configurations": 4, "states": 1020, "complete": 1, "planted": 2, "caught": 1, "wrong": 1,
    }  # fmt: skip
    assert figures.bounds(printed) == "3 tasks, 1 crashes, 2 workers"
    assert figures.bounds("") == "bounds not said"


def test_the_bounds_are_those_of_what_was_searched() -> None:
    path = str(proof.ROOT / "ipc" / "model" / "run.py")
    models = runpy.run_path(path)
    searched = [("claim", "T=3 K=0 C=2"), ("sleep", "T=1 K=2 NO_RESTART"), ("payload", "T=2 W=1 C=1")]
    said = "1 to 3 tasks, up to 2 crashes, up to 1 condemned, up to 2 cancelled, 1 or 2 workers"
    assert models["bounds"](searched) == said
    assert models["bounds"](searched[:1]) == "3 tasks, 0 crashes, 0 condemned, 2 cancelled, 2 workers"
    for only, bounds in {
        "payload T=1 K=1 C=1": "1 tasks, 1 crashes, 1 condemned, 0 cancelled, 2 workers",
        "payload T=1 K=0 W=1 FREE_BLIND": "none",  # a planted fault bounds nothing
    }.items():
        ran = subprocess.run([sys.executable, path, "--only", only], stdout=subprocess.PIPE, text=True, timeout=120)
        assert (ran.returncode, figures.bounds(ran.stdout)) == (0, bounds)


def test_states_are_counted_however_many_they_are() -> None:
    stored = runpy.run_path(str(proof.ROOT / "ipc" / "model" / "run.py"))["stored"]
    assert stored("  2118769 states, stored\n   123 states, matched\n") == "2118769"
    assert stored("1.0669135e+08 states, stored\n1.1724768e+08 states, matched\n") == "106691350"
    assert stored("pan: out of memory\n") == ""


def test_a_sweep_that_has_not_come_to_its_end_counts_nothing() -> None:
    assert figures.moments("small kill\nsweep: 3388 moments (2 missed), 0 lost, 0 double\n")["moments"] == 3388
    assert figures.moments("small kill 300 instructions\n") == {"moments": 0, "missed": 0}


def test_litmuses_that_have_not_come_to_their_end_count_nothing() -> None:
    names = ("litmuses", "wrong", "needed", "explained", "unexplained")
    printed = "a  5  add x\n20 litmuses, 1 not as expected\n72 orders are needed, 48 are not; 2 unexplained\n"
    assert figures.litmuses(printed) == dict(zip(names, (20, 1, 72, 48, 2), strict=True))
    assert figures.litmuses("a  5  add x\n") == dict.fromkeys(names, 0)
    printed = (
        "litmus tail       72466 rounds, 36692 woken, none lost\nlitmus asleep        34 rounds, 2 woken, none lost\n"
    )
    assert figures.rounds(printed) == 72500
    assert figures.rounds("litmus tail: round 7\n") == 0


def test_the_inputs_of_a_fuzzer_that_has_not_come_to_its_end_count_nothing() -> None:
    printed = "#8192\tpulse  cov: 900 ft: 9\n#20481\tDONE   cov: 951 ft: 3921 corp: 512/90Kb lim: 400 exec/s: 170\n"
    assert figures.fuzzed(printed) == {"executions": 20481, "edges": 951}
    assert figures.fuzzed(printed.partition("\n")[0]) == {"executions": 0, "edges": 0}


OURS = {
    "version": "1.2.3", "kills": 1009, "accepted": 100, "values": 91, "wrong": 0, "failed": 9, "lost": 0, "innocent": 0,
    "doubled": 0, "rebuilt": 0, "hung": 0, "recovery ms p50": "8.8", "recovery ms p99": "14.9",
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fair"),
    [
        ({}, True),
        ({"values": 92, "failed": 8}, True),
        ({"values": 90}, False),
        *(({name: 1}, False) for name in ("wrong", "lost", "innocent", "doubled", "rebuilt", "hung")),
    ],
)
def test_our_own_line_among_the_other_pools_is_judged(change: dict[str, int], fair: bool) -> None:
    assert peers.is_fair(OURS | change) == fair


@pytest.mark.parametrize(
    ("failed", "lost", "named", "expected"),
    [(2, 0, [5, 6], 0), (2, 0, [5, 5], 1), (1, 0, [7], 1), (2, 1, [5, 6], 1), (1, 0, [], 0), (3, 0, [], 1)],
)
def test_no_worker_is_the_culprit_of_two_tasks(failed: int, lost: int, named: list[int], expected: int) -> None:
    assert peers.innocent(failed, lost, {5, 6}, named) == expected


@pytest.mark.parametrize(
    ("kills", "failed", "lost", "rates"),
    [
        (99, 8, 1, ("-", "-", "-")),
        (100, 8, 1, ("80.0", "10.0", "0")),
        (30_000, 2, 1_000_000, ("< 0.1", "33,333.3", "0")),
    ],
)
def test_what_pools_made_of_kills_is_told_as_it_is_and_as_a_rate_if_there_were_enough(
    kills: int, failed: int, lost: int, rates: tuple[str, ...]
) -> None:
    counts, _, per_thousand = peers.text(
        {"another": OURS | {"kills": kills, "failed": failed, "lost": lost}}, 7.0
    ).rpartition("\n\nThe same for")
    told = dict(zip(peers.COLUMNS, cells(counts, "another"), strict=True))
    assert [told[name] for name in ("kills", "failed", "lost", "hung")] == [str(kills), str(failed), str(lost), "0"]
    told = dict(zip(peers.BAD, cells(per_thousand, "another"), strict=True))
    assert tuple(told[name] for name in ("failed", "lost", "hung")) == rates


@pytest.mark.parametrize(
    ("took", "share", "cut", "expected"),
    [
        ([], 0.5, [], ""),
        ([0.001, 0.002, 0.003], 0.5, [], "2.0"),
        ([0.001, 0.002, 0.003], 0.99, [], "max 3.0"),
        ([0.001, 15.0], 0.99, [15.0], "max ≥ 15000.0"),
        ([0.001, 0.002, 15.0], 0.5, [15.0], "2.0"),
        ([0.001, 15.0, 15.1], 0.5, [15.0], "≥ 15000.0"),
        ([0.001] * 99 + [math.inf], 0.99, [], "1.0"),
        ([0.001, math.inf], 0.99, [], "never"),
    ],
)
def test_times_that_we_have_cut_off_and_maxima_are_told_as_such(
    took: list[float], share: float, cut: list[float], expected: str
) -> None:
    assert peers.after(took, share, cut) == expected


@pytest.mark.parametrize(
    ("killed", "starts", "expected"),
    [
        ([], [1], []),
        ([5], [1, 5, 8, 9], [3]),
        ([5, 6], [8], [3, math.inf]),
        ([6, 5], [9, 8], [3, 3]),
        ([5, 20], [8, 9, 24], [3, 4]),
    ],
)
def test_each_start_of_a_worker_counts_as_the_recovery_from_one_kill(
    killed: list[int], starts: list[int], expected: list[float]
) -> None:
    assert [seconds * 1e9 for seconds in peers.recoveries(killed, starts)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("program", "said"), [("while True: pass", "hung as a whole"), ("raise SystemExit(3)", "its client ended with 3")]
)
def test_a_pool_that_hangs_or_ends_as_a_whole_has_a_row_that_says_so(program: str, said: str) -> None:
    found = peers.one([sys.executable, "-c", program], "no such file", 5.0 if "3" in program else 0.1)
    assert not peers.is_fair(found)
    text = peers.text({"another": {"version": "1.0", **found}, peers.OURS: OURS}, 7.0)
    assert cells(text, "another")[:3] == ["1.0", said, ""]
    assert cells(text, peers.OURS)[:3] == ["1.2.3", "1009", "100"]


class Fake:
    """A pool in this process that does with task `number` what is said of it: "value", "wrong", "error", "over" (an
    error that says that the pool is), "lost", "stop" (it, and all after it), "refuse" (the same)."""

    def __init__(self, story: dict[int, str]) -> None:
        self.story = story
        self.state = ""

    def give(self, number: int) -> Future[int]:
        done = self.story.get(number, "value")
        if done in ("stop", "refuse"):
            self.state = done
        if self.state == "refuse":
            raise RuntimeError("refused")
        future: Future[int] = Future()
        if done in ("value", "wrong") and not self.state:
            future.set_result(number * 3 + (done == "wrong"))
        elif done in ("error", "over") and not self.state:
            future.set_exception(ValueError(done))
        return future


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        ({}, {}),
        ({7: "wrong", 9: "error", 300: "error"}, {"wrong": 1, "failed": 2, "innocent": 2}),
        ({number: "lost" for number in range(1, 400, 3)}, {"lost": 133, "innocent": 133}),
        ({500: "refuse"}, {"rebuilt": 1}),
        ({500: "over"}, {"rebuilt": 1, "failed": 1, "innocent": 1}),
        ({500: "stop"}, {"hung": 1, "lost": 101, "innocent": 101}),
    ],
)
def test_what_a_pool_has_done_is_told_apart(
    story: dict[int, str], expected: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "KNOCK", 0.2)
    path = tmp_path / "ledger"
    path.touch()
    left = dict(story)  # a pool that is made anew does not do it again

    def make() -> Fake:
        mine = dict(left)
        for number, done in story.items():
            if done in ("stop", "refuse"):
                left.pop(number, None)
        return Fake(mine)

    way = peers.Way(
        "", make, Fake.give, Future.done, Future.result, lambda pool: None, lambda error: str(error) == "over", 1.0
    )
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        found = peers.Run(way, str(path), 1).play(kills=1, seconds=3.0 if "stop" in story.values() else 1.0)
        assert processes.runs(stranger.pid), "it was there before any pool"
    names = ("wrong", "failed", "lost", "innocent", "rebuilt", "hung")
    assert {name: found[name] for name in names} == {**dict.fromkeys(names, 0), **expected}
    assert found["accepted"] == found["values"] + found["wrong"] + found["failed"] + found["lost"] > 0


def test_a_pool_that_stands_still_at_the_end_has_hung(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.touch()
    way = peers.Way("", lambda: Fake({1: "stop"}), Fake.give, Future.done, Future.result, lambda pool: None)
    found = peers.Run(way._replace(patience=0.2), str(path), 1).play(kills=0, seconds=9.0)
    assert (found["hung"], found["rebuilt"], found["lost"]) == (1, 0, found["accepted"] - 1)


@pytest.mark.parametrize(("hung", "slow", "mark"), [(False, False, ""), (False, True, "≥ "), (True, False, "≥ ")])
def test_a_recovery_is_cut_off_if_the_pool_hung_or_its_end_was_not_awaited(
    hung: bool, slow: bool, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "END", 0.2 if slow else 9.0)
    path = tmp_path / "ledger"
    path.touch()
    awaited = threading.Event()
    end = awaited.wait if slow else lambda: None
    way = peers.Way("", lambda: Fake({}), Fake.give, Future.done, Future.result, lambda pool: end())
    run = peers.Run(way, str(path), 1)
    run.killed = {1: time.monotonic_ns() - 3 * 10**9, 2: time.monotonic_ns() - 2 * 10**9}
    run._began = {3: run.killed[1] + 10**6}  # before the pool was over: not cut off
    run._give_up(Fake({}), hung)
    awaited.set()
    run._began[4] = time.monotonic_ns() + 10**6
    found = json.loads(json.dumps(run._figures()))
    assert found["recovery ms p50"] == "1.0"
    assert re.fullmatch(rf"max {mark}\d{{4,}}\.\d", found["recovery ms p99"])
    text = peers.text({"another": {"version": "1.0", **found}}, 7.0)
    told = dict(zip(peers.COLUMNS, cells(text, "another"), strict=True))
    assert told["recovery ms p99"] == found["recovery ms p99"]


def test_a_pool_that_fails_its_tasks_though_nobody_is_killed_is_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    way = peers.Way("", lambda: Fake({0: "error"}), Fake.give, Future.done, Future.result, lambda pool: None)
    with pytest.raises(ValueError, match="error"):
        peers.Run(way, str(path), 1).play(kills=0, seconds=9.0)


# ---- the page


def good_parts() -> dict[str, Any]:
    samples = [
        {
            "kills": 600 * k, "client: blocks": 9 + k % 2, "workers": soak.WORKERS, "client: zombies": 0,
            "monitor: zombies": 0, "client: descriptors": 7, "files": 0, "units in use": 0,
        }
        for k in range(1, 9)
    ]  # fmt: skip
    times = {
        name: [0.001] * 100 + [0.002] * 100
        for name in ("noticed", "next", "deadline", "shutdown", "given up", "gone", "jitter")
    }
    parts: dict[str, Any] = {
        "faults": {"survived": list(range(1, 34)), "of": 33, "cases": {"passed": 90}, "form": "long", "good": True},
        "steps": {"moments": 3388, "missed": 1, "scenarios": "all", "steps": 20, "named": 20, "good": True},
        "models": {
            "configurations": 99, "states": 12345, "complete": 40, "planted": 59, "caught": 59, "wrong": 0,
            "bounds": "2 crashes", "good": True,
        },
        "orders": {
            "litmuses": 20, "wrong": 0, "needed": 72, "explained": 48, "unexplained": 0, "rounds": 300_000,
            "stood still": False, "emulated": "passed", "good": True,
        },
        "sanitizers": {"passed": 5, "of": 5, "good": True},
        "fuzz": {"executions": 300_000, "edges": 900, "good": True},
        "peers": {"results": {peers.OURS: OURS, "another": {**OURS, "lost": 7}}, "good": True},
        "planted": {"in chaos": [15, 15], "in core": [75, 75], "good": True},
        "latencies": {
            "samples": {"idle": times}, "left": {"processes": 0, "files": 0}, "clients": 1000, "workers": 2,
            "good": True,
        },
        "soak": {"samples": samples, "tasks": {"values": 5000}, "files left": 0, "seconds": 3600, "good": True},
        "kills": {"good": True},
    }  # fmt: skip
    assert not any(set(part) & set(HERE) for part in parts.values())
    return {name: {**part, **HERE} for name, part in parts.items()}


def sums(**more: int) -> dict[str, Counter[str]]:
    found = Counter(
        {
            "kills": 150_000, "kills judged": 120_000, "episodes": 30, "values compared": 3_000_000, "seed 5": 20,
            "seed 5:hail": 10, "milliseconds": 3_600_000,
        }
    )  # fmt: skip
    found.update({what + state: 2000 for state in STATES for what in ("killed: ", "judged: ")})
    found.update(more)
    return {VERSION: found}


def cells(text: str, figure: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {figure} |"))
    return [cell.strip(" |") for cell in line.split(" | ")[1:]]


def cell(text: str, figure: str) -> str:
    """What the table says was measured."""
    return cells(text, figure)[0]


def test_the_table() -> None:
    text = report.report(good_parts(), sums(), VERSIONS)
    assert cell(text, "faults survived") == "33/33"
    assert "| random kills, version 0123456789ab | 120,000 | and 30,000 more that were not judged; 30 episodes" in text
    assert "(missed)" not in text
    assert cell(text, "tasks lost") == "0 (p ≤ 2.5e-5 per kill)"
    assert cell(text, "wrong values") == "0 (p ≤ 1.0e-6 per value)"
    assert cell(text, "bugs planted for the chaos runner: caught") == "15/15"
    assert cell(text, "bugs planted in the C core: caught") == "75/75"
    assert cell(text, "inputs of the fuzzer that led a reader astray") == "0 (p ≤ 1.0e-5 per input)"
    assert cell(text, "wake-ups lost on this machine") == "0 (p ≤ 1.0e-5 per round)"
    assert cell(text, "wrong values in a pool that lives long") == "0 (p ≤ 6.0e-4 per value)"
    assert "the episodes of each, from 0 on: 5: 20, 5:hail: 10" in text
    assert cells(text, "another")[:2] == ["1.2.3", "1009"]
    assert cell(text, "condemned") == "2,000"
    assert cell(text, "files left after SIGKILL of the client") == "0 (p ≤ 3.0e-3 per run)"
    assert "| jitter" not in text
    assert "not run" not in text
    assert "commit abcdef0, version 0123456789ab, 2026-01-02, seed 5, 7 s" in text
    assert "seed 5, 7 s, peer seconds 120; 1 x A Computer; load 0.5 before it" in text
    assert report.is_good(good_parts(), sums(), VERSIONS)


def test_the_gist_of_it() -> None:
    def said(parts: Any, found: Any) -> dict[str, str]:
        lines = report.summary(parts, found, VERSIONS).splitlines()[2:]
        return {what: measured for what, measured in (line.strip("| ").split(" | ") for line in lines)}

    good = said(good_parts(), sums())
    assert good["faults that a pool in memory can meet: survived"] == "33/33"
    assert good["workers killed at random moments, with nothing else broken"] == "120,000"
    assert good["tasks lost by that"] == "0 (p ≤ 2.5e-5 per kill)"
    assert good["bugs planted for all this to find: found"] == "90/90"
    assert good["a killed worker's task has failed after"] == "1.0 ms, p99 2.0 ms"
    assert good["processes and files left of a script that was killed with SIGKILL"] == "0 (p ≤ 3.0e-3 per run)"
    assert said(good_parts(), sums(lost=2))["tasks lost by that"] == "2"
    nothing = said({}, {})
    assert nothing["workers killed at random moments, with nothing else broken"] == "0"
    assert sum(measured == "not run" for measured in nothing.values()) == 7
    assert not any(measured.startswith("0 (p") for measured in nothing.values())


def spoilt() -> Iterator[tuple[dict[str, Any], dict[str, Counter[str]], str, str]]:
    """Results that are not good, a figure, and what it must say."""
    figures_of = {
        "faults": "faults survived",
        "steps": "at every instruction of a worker's steps",
        "models": "states of the models explored",
        "orders": "orders of memory",
        "sanitizers": "runs without a sanitizer's report",
        "fuzz": "inputs of the fuzzer that led a reader astray",
        "planted": "bugs planted in the C core: caught",
        "latencies": "left after SIGKILL of the client",
    }
    for name, figure in figures_of.items():
        parts = good_parts()
        del parts[name]
        yield parts, sums(), figure, "not run"
    parts = good_parts()
    parts["faults"].update(survived=list(range(2, 34)), good=False)
    yield parts, sums(), "faults survived", "32/33"
    parts = good_parts()
    parts["latencies"]["left"]["files"] = 1
    yield parts, sums(), "files left after SIGKILL of the client", "1"
    parts = good_parts()
    parts["soak"]["samples"][-1]["client: descriptors"] = 8
    yield parts, sums(), "client: descriptors", "7"
    for name, count in (
        ("workers", soak.WORKERS - 1), ("client: zombies", 1), ("monitor: zombies", 1), ("units in use", 1),
    ):  # fmt: skip
        parts = good_parts()
        parts["soak"]["samples"][3][name] = count
        yield parts, sums(), name, str(parts["soak"]["samples"][0][name])
    parts = good_parts()
    parts["soak"]["tasks"]["wrong"] = 1
    yield parts, sums(), "wrong values in a pool that lives long", "1"
    parts = good_parts()
    for k, at in enumerate(parts["soak"]["samples"]):
        at["client: blocks"] += 10 * k
    yield parts, sums(), "client: blocks", "10"
    parts = good_parts()
    parts["fuzz"]["good"] = False
    yield parts, sums(), "inputs of the fuzzer that led a reader astray", "FAILED"
    for change, figure, measured in (
        ({"wrong": 1}, "orders of memory: enough, and each of them needed", "19/20"),
        ({"stood still": True}, "wake-ups lost on this machine", "FAILED"),
        ({"emulated": "FAILED"}, "C tests of the core as an aarch64 build", "FAILED"),
    ):
        parts = good_parts()
        parts["orders"].update(change, good=False)
        yield parts, sums(), figure, measured
    parts = good_parts()
    parts["peers"]["good"] = False
    yield parts, sums(), peers.OURS, "1.2.3"
    parts = good_parts()
    parts["latencies"]["samples"]["idle"]["noticed"] = [0.001, 0.051]
    yield parts, sums(), "kill of a worker until its task's error is known", "idle"
    for name, change, figure, measured in (
        ("faults", {"form": "short"}, "faults survived", "33/33"),
        ("faults", {"survived": [1, 2], "of": 2}, "faults survived", "2/2"),
        ("faults", {"commit": "abcdef0+"}, "faults survived", "33/33"),
        ("kills", {"good": False}, "tasks lost", "0 (p ≤ 2.5e-5 per kill)"),
        ("fuzz", {"executions": 10}, "inputs of the fuzzer that led a reader astray", "0 (p ≤ 3.0e-1 per input)"),
        ("latencies", {"clients": 2}, "files left after SIGKILL of the client", "0 (too few to show anything)"),
        ("models", {"complete": 0}, "states of the models explored", "12,345"),
        ("soak", {"seconds": 3599}, "workers", str(soak.WORKERS)),
    ):
        parts = good_parts()
        parts[name].update(change)
        yield parts, sums(), figure, measured
    parts = good_parts()
    parts["peers"]["results"][peers.OURS] = {**OURS, "kills": 9}
    yield parts, sums(), peers.OURS, "1.2.3"
    parts = good_parts()
    parts["latencies"]["samples"]["idle"]["deadline"] = [0.001]
    yield parts, sums(), "deadline until the late task's error is known", "idle"
    parts = good_parts()
    del parts["soak"]["samples"][:3]
    yield parts, sums(), "workers", str(soak.WORKERS)
    parts = good_parts()
    for at in parts["soak"]["samples"]:
        at["kills"] //= 2
    yield parts, sums(), "workers", str(soak.WORKERS)
    yield good_parts(), sums(**{"kills judged": -20_001}), "random kills, version 0123456789ab", "99,999"
    yield good_parts(), sums(**{"judged: leaving": -1001}), "leaving", "999 (fewer than 1,000)"
    yield good_parts(), sums(**{"values compared": -2_999_000}), "wrong values", "0 (p ≤ 3.0e-3 per value)"
    parts = good_parts()
    parts["soak"]["version"] = "another"
    yield parts, sums(), "workers", str(soak.WORKERS)
    yield good_parts(), sums(lost=1, violations=1), "tasks lost", "1"
    yield good_parts(), sums(violations=2), "any other invariant broken", "2"
    yield good_parts(), {"another": Counter(kills=10)}, "random kills, version 0123456789ab", "0"


@pytest.mark.parametrize(("parts", "found", "figure", "expected"), list(spoilt()))
def test_what_is_not_good_is_not_called_so(parts: Any, found: Any, figure: str, expected: str) -> None:
    assert not report.is_good(parts, found, VERSIONS)
    assert cell(report.report(parts, found, VERSIONS), figure) == expected


def test_states_that_were_met_too_rarely_and_parts_of_an_older_core_are_marked() -> None:
    few = sums()
    few[VERSION]["judged: leaving"] = 999
    text = report.report(good_parts(), few, VERSIONS)
    assert cell(text, "leaving") == "999 (fewer than 1,000)"
    assert "(an older one)" not in text
    assert "(an older one)" in report.report(good_parts(), few, {**VERSIONS, "soak": "another"})


def test_older_cores_are_summed_apart() -> None:
    text = report.report(good_parts(), {**sums(), "old": Counter({"kills judged": 5, "lost": 1})}, VERSIONS)
    assert cell(text, f"random kills, version {VERSION}") == "120,000"
    assert cell(text, "random kills, all 2 versions") == "120,005"
    lost = re.findall(r"^\| tasks lost \| (.*?) \|", text, re.M)
    assert lost == ["0 (p ≤ 2.5e-5 per kill)", "1"]


def test_only_what_is_between_the_marks_is_replaced() -> None:
    page = f"a\n{figures.BEGIN}\nold\n{figures.END}\nb\n"
    assert figures.put(page, "new") == f"a\n{figures.BEGIN}\n\nnew\n\n{figures.END}\nb\n"
    assert figures.put(figures.put(page, "x"), "new") == figures.put(page, "new")
    with pytest.raises(ValueError, match="marks"):
        figures.put("no marks", "new")
    assert figures.put(proof.PAGE.read_text(), "new").count("new") >= 1


# ---- the whole


def test_judges_are_found_with_all_that_they_import() -> None:
    assert {"tests/chaos/killer.py", "tests/tasks.py", "tests/test_layout.py"} <= set(sources.judges("chaos.player"))
    assert "tests/chaos/killer.py" in sources.judges("chaos.soak")
    assert "tests/chaos/oracle.py" not in sources.judges("chaos.soak")
    assert sources.judges("no module of ours") == ("tests/chaos/__init__.py",)
    for part in proof.PARTS.values():
        for name in part.judged_by:
            assert list(sources.ROOT.glob(name)) or len(sources.judges(name)) > 1, "it is there"


def test_pages_are_written_only_if_everything_has_run_in_full_on_these_sources() -> None:
    parts = {name: {**part, "scale": proof.how_much(name, proof.Scale())} for name, part in good_parts().items()}
    assert proof.is_whole(parts, VERSIONS)
    assert not proof.is_whole(parts, {**VERSIONS, "kills": "another"})
    assert not proof.is_whole({name: part for name, part in parts.items() if name != "fuzz"}, VERSIONS)
    for name in parts:
        less = {**parts[name], "scale": proof.how_much(name, proof.BRIEF)}
        assert not proof.is_whole({**parts, name: less}, VERSIONS)


@pytest.mark.timeout(300)
def test_the_least_of_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, readme = tmp_path / "page.md", tmp_path / "readme.md"
    for path in (page, readme):
        path.write_text(f"before\n{figures.BEGIN}\n{figures.END}\nafter\n")
    arguments = ["--brief", "--folder", str(tmp_path / "proof"), "--page", str(page), "--readme", str(readme)]
    arguments += ["--seed", "3"]
    assert proof.main(arguments) == 1, "the least is never enough"
    text = page.read_text()
    assert cell(text, "faults survived") == "1/33"
    assert int(cell(text, f"random kills, version {proof.versions()['kills']}")) > 0
    assert cell(text, "deaths at every named step of the core") == "1/20"
    assert int(cell(text, "at every instruction of a worker's steps").split()[0].replace(",", "")) > 1000
    assert cell(text, "planted faults found in the models") == "1/1"
    assert cell(text, "runs without a sanitizer's report") == "1/5"
    assert cell(text, "wake-ups lost on this machine").startswith("0 (p")
    assert int(cells(text, peers.OURS)[1]) >= 3
    assert int(text.partition(" inputs, ")[0].split()[-1].replace(",", "")) > 0
    assert cell(text, "bugs planted for the chaos runner: caught") == f"1/{len(planted.PLANTED)}"
    assert cell(text, "bugs planted in the C core: caught") == f"1/{len(test_core_c.PLANTED)}"
    assert "not run" not in text + readme.read_text()
    assert cell(readme.read_text(), "faults that a pool in memory can meet: survived").startswith("1/33")
    assert all(f"- {name}: commit " in text for name in proof.PARTS)
    capsys.readouterr()
    assert proof.main([*arguments, "--only", "soak,orders"]) == 1
    said = capsys.readouterr().out
    assert "soak: known since" in said
    assert "orders: NOT GOOD" in said, "and it is run again"
    assert re.search(r"^- orders: .*; NOT GOOD before, with commit \S+, \d{4}-\d\d-\d\d, seed 3$", said, re.M)
