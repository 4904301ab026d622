"""The harness of the benchmarks: tiny runs, whose figures mean nothing, give whole and consistent results."""

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import processes
import pyperf
import pytest

from benchmarks import __main__, plot, report, rivals, suite, targets
from benchmarks.processes import Meter
from benchmarks.sizes import FULL, QUICK, TINY
from benchmarks.stats import percentile, summary
from benchmarks.workloads import WORKLOADS, no_op
from ipc import _core
from pool import Pool

ROOT = Path(__file__).parent.parent
RIVAL = "multiprocessing"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("bench") / "results.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--tiny",
        "--only",
        "noop,futures,round_trip,start_up,idle",
    ]
    done = subprocess.run([*command, "--rivals", RIVAL, "--runs", "2", "--json", file], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert b"# Results" in done.stdout
    return dict(json.loads(file.read_text()))


def test_every_workload_has_every_case_rival_metric_and_run(results: dict[str, Any]) -> None:
    for name, measured in results["workloads"].items():
        workload = WORKLOADS[name]
        assert list(measured["cases"]) == workload.cases(TINY)
        for case in measured["cases"].values():
            assert set(case["rivals"]) == {"pool", RIVAL} & set(workload.rivals(TINY))
            for values in case["rivals"].values():
                assert "failed" not in values
                assert set(workload.metrics) <= set(values)
                for value in values.values():
                    assert len(value["runs"]) == 2
                    assert value["min"] <= value["median"] <= value["max"]
                    assert all(math.isfinite(run) and run >= 0 for run in value["runs"])


def test_ratios_are_made_within_runs(results: dict[str, Any]) -> None:
    case = results["workloads"]["noop"]["cases"][""]
    ours, theirs = case["rivals"]["pool"]["rate"]["runs"], case["rivals"][RIVAL]["rate"]["runs"]
    assert case["ratios"]["rate"][RIVAL]["runs"] == pytest.approx([a / b for a, b in zip(ours, theirs, strict=True)])


def test_the_machine_is_described(results: dict[str, Any]) -> None:
    assert {"cpu", "cores", "kernel", "python", "versions", "commit", "load_average", "date"} <= set(results["machine"])


def test_targets_are_judged_and_what_was_not_measured_says_so(results: dict[str, Any]) -> None:
    told = {t["target"]: t for t in results["targets"]}
    assert len(told) == len(targets.TARGETS)
    assert told["no-op one by one: x multiprocessing.Pool"]["reached"] in (True, False)
    assert told["no-op one by one: x ProcessPoolExecutor"]["reached"] is None
    assert targets.judge(results) == results["targets"]


def test_the_report_names_all(results: dict[str, Any]) -> None:
    text = report.markdown(results)
    for workload in results["workloads"].values():
        assert workload["title"] in text
    assert "not measured" in text


def test_arrays_are_checked_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WORKLOADS["arrays"], "cases", lambda sizes: ["64 KiB"])
    results = suite.run(TINY, ["arrays"], ["pool", RIVAL, "executor"])
    rivals = results["workloads"]["arrays"]["cases"]["64 KiB"]["rivals"]
    assert all(set(WORKLOADS["arrays"].metrics) <= set(values) for values in rivals.values())
    by_rival = results["workloads"]["arrays"]["cases"]["64 KiB"]["ratios"]["gb_per_s"]
    ratios = [by_rival[name]["median"] for name in (RIVAL, "executor")]
    told = {t["target"]: t["value"] for t in results["targets"]}
    assert told["arrays of 64 KiB: x the best peer"] == min(ratios)


@pytest.mark.parametrize(
    ("name", "case"), [("wake", "20 µs, 2 workers"), ("late", "imap, 2 workers"), ("scaling", "64 rows")]
)
def test_workloads_for_ours_alone(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WORKLOADS[name], "cases", lambda sizes: [case])
    measured = suite.run(TINY, [name], ["pool", RIVAL])["workloads"][name]
    assert measured["not_asked"] == [RIVAL]
    assert set(WORKLOADS[name].metrics) <= set(measured["cases"][case]["rivals"]["pool"])


def test_deadlines_make_no_ops_at_most_a_tenth_dearer() -> None:
    """Accounts are on in both. The figure is a median of turns, by CPU time; on a busy machine it can be off once."""

    def by_without() -> float:
        measured = suite.run(replace(QUICK, runs=1), ["deadlines"], ["pool"])["workloads"]["deadlines"]
        return float(measured["cases"][""]["rivals"]["pool"]["by_without"]["median"])

    assert any(by_without() <= 1.10 for _ in range(3))


def test_a_pool_can_be_given_other_rows() -> None:
    with no_op._rows(128), Pool(1) as pool:
        assert pool.submit(abs, -1).result() == 1
        assert _core.counters(pool._client.segment)["rows"] == 128


def test_what_takes_long_is_left_out_of_a_quick_run() -> None:
    def plan(*words: str) -> tuple[list[str], list[str]]:
        options = __main__._parser().parse_args(words)
        return __main__._plan(options, QUICK if options.quick else FULL)

    assert plan() == (list(WORKLOADS), list(rivals.RIVALS))
    only, names = plan("--quick")
    assert set(WORKLOADS) - set(only) == {"scaling"}
    assert set(rivals.RIVALS) - set(names) == {"multiprocess", "dask", "ray"}
    assert plan("--quick", "--rivals", "ray", "--only", "noop") == (["noop"], ["pool", "ray"])


def test_heavy_rivals_run_three_times_and_ratios_are_of_the_same_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measure(workload: str, case: str, rival: str, sizes: Any) -> dict[str, Any]:
        order.append(rival)
        run = order.count(rival)
        return {"metrics": dict.fromkeys(WORKLOADS["noop"].metrics, run * (10.0 if rival == "pool" else 1.0))}

    monkeypatch.setattr(suite, "_measure", measure)
    monkeypatch.setattr(suite, "missing", lambda rival: None)
    case = suite._workload(WORKLOADS["noop"], FULL, ["pool", RIVAL, "dask"], lambda line: None)["cases"][""]
    assert len(case["rivals"]["pool"]["rate"]["runs"]) == FULL.runs == 5
    assert case["rivals"]["dask"]["rate"]["runs"] == [1.0, 2.0, 3.0]
    assert case["ratios"]["rate"]["dask"]["runs"] == [10.0, 10.0, 10.0]
    assert len(case["ratios"]["rate"][RIVAL]["runs"]) == 5
    assert order[:6] == ["pool", RIVAL, "dask", RIVAL, "dask", "pool"]


def test_the_picture_of_scaling_has_all_points(tmp_path: Path) -> None:
    some = {"median": 2e6, "min": 1e6, "max": 3e6}
    cases = {case: {"rivals": {"pool": {"rate": some, "cpu_us": some}}} for case in WORKLOADS["scaling"].cases(FULL)}
    machine = {"cores": 2, "python": "CPython", "commit": "abc"}
    plot.draw_scaling({"machine": machine, "workloads": {"scaling": {"cases": cases}}}, tmp_path / "scaling.svg")
    text = (tmp_path / "scaling.svg").read_text()
    for word in ("million tasks/s", "workers", "rows", ">64<", ">4,096<", "commit abc"):
        assert word in text


@pytest.mark.parametrize("name", ["multiprocess", "dask", "ray"])
def test_a_rival_takes_part_or_says_that_it_is_not_installed(name: str) -> None:
    found = suite.run(TINY, ["noop", "chunks", "futures"], [name])["workloads"]
    for workload in found.values():
        values = workload["cases"][""]["rivals"][name]
        assert "failed" not in values
        assert (
            values.get("missing") == f"{rivals.RIVALS[name].package} is not installed" or values["rate"]["median"] > 0
        )


def test_a_rival_that_is_not_installed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rivals.RIVALS["mpire"], "module", "no_such_module")
    results = suite.run(TINY, ["start_up"], ["mpire"])
    assert results["workloads"]["start_up"]["cases"][""]["rivals"]["mpire"] == {"missing": "mpire is not installed"}
    assert "mpire is not installed" in report.markdown(results)


def test_what_has_come_is_kept_if_a_run_is_broken_off(tmp_path: Path) -> None:
    """A full run takes half an hour."""
    file = tmp_path / "kept.json"
    command = [sys.executable, "-m", "benchmarks", "--tiny", "--rivals", RIVAL, "--json", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        processes.wait_until(file.exists, "one workload is done")
        process.send_signal(signal.SIGINT)
    assert process.returncode != 0
    shown = subprocess.run([*command[:3], "--again", str(file)], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0
    assert WORKLOADS["noop"].title in shown.stdout


def test_a_measurement_that_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.suite.photos.prepare", lambda folder: None)  # none to make thumbnails of
    results = suite.run(TINY, ["thumbnails"], [RIVAL])
    assert "Error" in results["workloads"]["thumbnails"]["cases"][""]["rivals"][RIVAL]["failed"]
    assert "Error" in report.markdown(results)


def test_the_meter_counts_children_and_not_itself() -> None:
    with Meter() as meter:
        sum(range(3_000_000))
    spent = next(iter(reversed(meter.spent.values())))
    assert 0 < spent.cpu_ns / 1e9 <= meter.seconds * 1.1
    assert meter.per_task(10)["tasks"] == 10


def test_percentiles_and_summaries() -> None:
    assert percentile(range(1, 101), 50) == 50
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7.0], 99) == 7.0
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "runs": [3.0, 1.0, 2.0]}


def test_every_target_can_be_measured_by_a_quick_run() -> None:
    """No target names a workload, a case, a metric or a rival that does not exist."""
    some = {"median": 2.0}
    measured = {}
    for w in WORKLOADS.values():
        names = w.rivals(QUICK)
        values = {name: dict.fromkeys(w.metrics, some) for name in names}
        ratios = {metric: {name: some for name in names if name != "pool"} for metric in w.metrics}
        measured[w.name] = {
            "higher_is_better": w.higher,
            "cases": {case: {"rivals": values, "ratios": ratios} for case in w.cases(QUICK)},
        }
    assert all(t["value"] is not None for t in targets.judge({"workloads": measured}))


def test_small_steps_are_timed_by_pyperf(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    command = [sys.executable, "-m", "benchmarks", "times", "--debug-single-value", "--quiet", "-o", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    found = {b.get_name(): b.mean() for b in pyperf.BenchmarkSuite.load(str(file)).get_benchmarks()}
    assert {name.split(":")[0] for name in found} == {"codec", "payload", "task", "wake"}
    assert all(1e-8 < seconds < 1 for seconds in found.values())


def test_what_is_measured_of_every_workload_can_be_saved() -> None:
    """A run of half an hour must not end with an error of json."""
    for workload in WORKLOADS.values():
        measured = suite._workload(workload, replace(TINY, runs=0), [], lambda _: None)
        assert json.loads(json.dumps(measured))["metrics"] == dict(workload.metrics)
