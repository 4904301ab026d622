"""``pool bench``: whole and consistent figures; what they say is for people."""

import json
import os
import re
from pathlib import Path

import processes
import pytest
from commands import folder, run

from pool.cli import Stopped, bench

__all__ = ["folder"]

POOLS = {"pool", "multiprocessing", "executor"}


def test_every_measure_has_every_pool_and_run() -> None:
    told = json.loads(run("bench", "--quick", "--json", "-j", "1")[0])
    assert told["workers"] == 1
    assert {"cpus", "kernel", "python", "load_average"} <= set(told["machine"])
    assert set(told["results"]) == {"one_by_one", "futures", "chunks", "round_trip", "start"}
    for measure, by_pool in told["results"].items():
        assert set(by_pool) == POOLS
        for name, figure in by_pool.items():
            assert len(figure["runs"]) == told["runs"]
            assert 0 < figure["min"] <= figure["median"] <= figure["max"]
            if name != "pool":
                ours, theirs = by_pool["pool"]["runs"][0], figure["runs"][0]
                times = ours / theirs if measure in ("one_by_one", "futures", "chunks") else theirs / ours
                assert figure["times"]["runs"][0] == pytest.approx(times)


def test_the_table_names_pools_and_measures() -> None:
    out, err = run("bench", "--quick")
    assert err == ""
    for pool in ("pool.Pool", "multiprocessing.Pool", "ProcessPoolExecutor"):
        assert pool in out
    assert re.search(r"^tasks one by one, tasks/s  +[\d,]+ \([\d,]+ \.\. [\d,]+\) .* x [\d.,]+$", out, re.M)
    assert "load average" in out


def test_a_module_here_is_not_taken_for_one_of_ours(folder: Path) -> None:
    (folder / "json.py").write_text("raise RuntimeError('not this one')\n")
    assert run("bench", "--quick", "--json", "-j", "1")[0].startswith("{")


def test_a_pool_that_fails_or_hangs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stopped, match=r"^pool\.Pool failed: ValueError: .*workers"):
        bench._measure("pool", -1, 0.01)
    monkeypatch.setattr(bench, "_PATIENCE", 0)
    with pytest.raises(Stopped, match="ProcessPoolExecutor was not measured within 0 s"):
        bench._measure("executor", 1, 0.01)
    assert not processes.children_of_all(os.getpid())


def test_a_lost_task_is_noticed() -> None:
    with pytest.raises(AssertionError, match="100 tasks gave a sum of 4851"):
        bench._rate(lambda n: range(n - 1), 0.01)


def test_it_is_among_the_commands() -> None:
    assert re.search(r"^  bench +Measure the pool on this machine", run("--help")[0], re.M)
