"""The guard against becoming slower: it compares this tree with its baseline, and it finds what was planted."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from benchmarks import guard, micro, report
from benchmarks.micro import callgrind

pytestmark = pytest.mark.timeout(400)
BASELINE: dict[str, dict[str, float]] = json.loads(guard.BASELINE.read_text())


@pytest.fixture(scope="module")
def counted(require: Callable[[str], str]) -> dict[str, Any]:
    require("valgrind")
    require(callgrind.CC)
    return micro.measure()


def test_no_step_takes_more_instructions_than_its_baseline(
    counted: dict[str, Any], lack: Callable[[str], NoReturn]
) -> None:
    worse, unknown = guard.compare(counted, BASELINE)
    assert not worse, "\n".join([*worse, guard.RENEW])
    if unknown:
        lack(f"no baseline for {unknown}: python -m benchmarks guard --renew adds one")


def test_a_task_takes_no_larger_part_of_the_cpu_time_that_others_take() -> None:
    assert not guard.too_dear(guard.measure_ratios())


def test_all_sides_are_counted(counted: dict[str, Any]) -> None:
    operations = counted["operations"]
    assert all(o["instructions"] > 0 for o in operations.values())
    assert {name.split(":")[0] for name in operations} == {"core", "codec", "client", "worker"}
    steps = [operations[f"core: task: {step}"]["instructions"] for step in ("publish", "claim", "complete", "collect")]
    whole = operations["core: task: all of it"]["instructions"]
    assert sum(steps) <= whole < 1.3 * sum(steps)
    assert whole < operations["worker: one by one"]["instructions"]
    assert operations["worker: chunks of 100"]["clock"] == pytest.approx(1, abs=0.2)  # once an item


def test_the_steps_of_each_side_are_found_and_make_up_all(counted: dict[str, Any]) -> None:
    for side, known in micro.STEPS.items():
        ways = [o for name, o in counted["operations"].items() if name.startswith(f"{side}: ")]
        for step in known.values():
            assert max(o["steps"].get(step, 0) for o in ways) > 100
        for o in ways:
            assert o["steps"][micro.REST] > 0
            assert sum(o["steps"].values()) == pytest.approx(o["instructions"])
    assert counted["operations"]["worker: chunks of 100"]["steps"][micro.STEPS["worker"]["run_items"]] > 500


def test_the_page_has_the_counts_that_were_saved() -> None:
    saved = json.loads((micro.RESULTS / "micro.json").read_text())
    assert micro.model(saved).strip() in micro.DOCUMENT.read_text()
    latest = json.loads((micro.RESULTS / "latest.json").read_text())
    assert report.times(latest).strip() in micro.DOCUMENT.read_text()
    text = (micro.RESULTS / "README.md").read_text()
    assert report.operations(saved) in text


def test_only_what_stands_between_its_marks_is_written_anew(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x: written by the benchmarks -->\nold\n<!-- end of x -->\nb\n")
    for _ in range(2):
        report.fill(page, "x", "new")
        assert page.read_text() == "a\n<!-- x: written by the benchmarks -->\n\nnew\n\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="has no place for y"):
        report.fill(page, "y", "new")


def test_the_table_names_all(counted: dict[str, Any]) -> None:
    text = micro.markdown(counted)
    assert all(f"| {name} " in text for name in counted["operations"])
    assert "`ipc_commit`" in text


def test_a_planted_loss_is_found(counted: dict[str, Any], tmp_path: Path) -> None:
    core = Path(shutil.copytree(micro.CORE, tmp_path / "core"))
    before = "    c->published[row] = ipc_word(IPC_READY"
    text = (core / "client.c").read_text()
    assert text.count(before) == 1
    (core / "client.c").write_text(text.replace(before, "    ipc_now(), ipc_now();\n" + before))
    planted = {name: o["instructions"] for name, o in micro.measure_core(core).items()}
    told = guard.grown(planted, {name: counted["operations"][name]["instructions"] for name in planted})
    assert [line.rsplit(": ", 1)[0] for line in sorted(told)] == ["core: task: all of it", "core: task: publish"]


def results_of(**instructions: float) -> dict[str, Any]:
    names = {name.replace("_", ": ", 1): {"instructions": count} for name, count in instructions.items()}
    return {"compiler": "cc 1", "flags": "-O2", "interpreter": "python 3", "operations": names}


def test_what_has_grown_is_named_with_how_much() -> None:
    before = results_of(core_publish=300.0, worker_one=10_000.0, core_wake=20.0)
    baseline = guard.sections(before)
    assert guard.compare(before, baseline) == ([], [])
    now = results_of(core_publish=312.0, worker_one=10_400.0, core_wake=21.5)  # 5 % are allowed, or two instructions
    assert guard.compare(now, baseline)[0] == ["core: publish: 300.0 → 312.0 instructions, +4.0 % (2 % are allowed)"]
    gone = results_of(worker_one=10_000.0, core_wake=20.0)
    assert guard.compare(gone, baseline)[0] == ["core: publish: is not measured any more"]
    assert guard.shrunk(guard.sections(results_of(core_publish=200.0))["cc 1 -O2"], baseline["cc 1 -O2"]) == [
        "core: publish"
    ]


def test_another_compiler_or_interpreter_is_not_compared() -> None:
    results = results_of(core_publish=300.0, worker_one=10_000.0)
    baseline = guard.sections(results)
    other = copy.deepcopy(results) | {"interpreter": "python 4"}
    other["operations"]["core: publish"]["instructions"] = 400.0
    other["operations"]["worker: one"]["instructions"] = 20_000.0
    worse, unknown = guard.compare(other, baseline)
    assert [line.split(" instructions")[0] for line in worse] == ["core: publish: 300.0 → 400.0"]
    assert unknown == ["python 4; cc 1 -O2"]
    assert guard.compare(results | {"compiler": "cc 2"}, baseline) == ([], ["cc 2 -O2", "python 3; cc 2 -O2"])


def test_a_ratio_over_its_limit_is_named() -> None:
    def measured(ratio: float) -> dict[str, Any]:
        case = {"rivals": {}, "ratios": {"cpu_us": {r: {"median": ratio, "runs": [ratio]} for _, r, _ in guard.RATIOS}}}
        return {"workloads": {workload: {"cases": {"": case}} for workload, _, _ in guard.RATIOS}}

    assert guard.too_dear(measured(0.05)) == []
    assert [line.split(":")[0] for line in guard.too_dear(measured(0.5))] == ["noop", "futures"]


def test_counts_are_read_from_a_file_of_callgrind() -> None:
    counts = callgrind.parse(
        "desc: Trigger: Client Request: x=1\nevents: Ir\n"
        "fn=(1) main\n0 10\n+3 5\ncfn=(2) work'2\ncalls=2 0\n* 30\ncfn=(3) ipc_worker_wait\ncalls=1 0\n0 100\n"
        "fn=(2)\n0 20\ncfn=(4) ipc_now\ncalls=3 0\n0 10\nfn=(4)\n0 10\n"
        "fn=(3)\n0 90\ncfn=(4)\ncalls=1 0\n0 10\nfn=(4)\n0 10\n"
    )
    assert counts.instructions == 10 + 5 + 20 + 10  # and not the wait, with what it calls
    assert counts.clock == 4
    assert counts.own["work"] == 20
    assert "ipc_worker_wait" not in counts.own
