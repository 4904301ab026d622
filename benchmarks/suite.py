"""Runs everything: workload by workload, run by run, the rivals in turn."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import machine, photos, stats, tasks
from benchmarks.rivals import OURS, RIVALS, missing
from benchmarks.sizes import Sizes
from benchmarks.targets import judge
from benchmarks.workloads import WORKLOADS, Workload

_SECONDS = 180  # no measurement takes longer, unless it hangs
_HEAVY_RUNS = 3
Say = Callable[[str], None]
Keep = Callable[[dict[str, Any]], None]


def run(
    sizes: Sizes, only: list[str], rivals: list[str], say: Say = lambda _: None, keep: Keep = lambda _: None
) -> dict[str, Any]:
    """Measure these workloads with these rivals. Returns what the JSON file holds; ``keep`` gets it after each
    workload, as far as it has come."""
    described = machine.describe()  # first: the load average is that of before
    start = time.monotonic()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="pool-bench-") as folder:
        sizes = replace(sizes, loops_per_us=tasks.measure_loops_per_us(), photos_folder=folder)
        if "thumbnails" in only:
            with contextlib.suppress(ImportError):  # then each rival fails by itself, and says so
                photos.prepare(Path(folder))
        for name in only:
            begun = time.monotonic()
            measured[name] = _workload(WORKLOADS[name], sizes, rivals, say)
            measured[name]["seconds"] = round(time.monotonic() - begun, 1)
            keep(_results(described, sizes, rivals, measured, time.monotonic() - start))
    return _results(described, sizes, rivals, measured, time.monotonic() - start)


def _results(
    described: dict[str, Any], sizes: Sizes, rivals: list[str], measured: dict[str, Any], seconds: float
) -> dict[str, Any]:
    results = {
        "schema": 1,
        "machine": described,
        "sizes": replace(sizes, photos_folder="").as_dict(),  # a temporary folder, gone by now
        "seconds": round(seconds, 1),
        "rivals": {name: {"settings": RIVALS[name].settings, "missing": missing(RIVALS[name])} for name in rivals},
        "workloads": measured,
    }
    results["foreign_cpu_percent"] = _foreign(measured)
    results["targets"] = judge(results)
    return results


def _workload(workload: Workload, sizes: Sizes, rivals: list[str], say: Say) -> dict[str, Any]:
    names = [name for name in rivals if name in workload.rivals(sizes)]
    result: dict[str, Any] = {
        "name": workload.name,
        "title": workload.title,
        "metrics": dict(workload.metrics),
        "higher_is_better": workload.higher,
        "not_asked": [name for name in rivals if name not in names],
        "cases": {},
    }
    cases = workload.cases(sizes)
    answers: dict[str, dict[str, list[dict[str, Any]]]] = {case: {name: [] for name in names} for case in cases}
    for k in range(sizes.runs):
        say(f"{workload.name}: run {k + 1} of {sizes.runs}")
        for case in cases:
            now = [name for name in names if k < _HEAVY_RUNS or not RIVALS[name].heavy]
            order = now[k % len(now) :] + now[: k % len(now)] if now else []
            for name, answer in zip(order, _turn(workload, case, order, sizes), strict=True):
                answers[case][name].append(answer)
    for case in cases:
        by_rival = {name: _gather(answers[case][name]) for name in names}
        ratios = _ratios(answers[case], workload.metrics)
        result["cases"][case] = {"rivals": by_rival, "ratios": ratios}
    return result


def _turn(workload: Workload, case: str, names: list[str], sizes: Sizes) -> list[dict[str, Any]]:
    if not workload.together:
        return [_measure(workload.name, case, name, sizes) for name in names]
    with ThreadPoolExecutor(max(1, len(names))) as threads:
        return list(threads.map(lambda name: _measure(workload.name, case, name, sizes), names))


def _measure(workload: str, case: str, rival: str, sizes: Sizes) -> dict[str, Any]:
    """{"metrics": ...}, {"missing": why} or {"failed": why}."""
    if why := missing(RIVALS[rival]):
        return {"missing": why}
    with tempfile.TemporaryDirectory(prefix="pool-bench-") as folder, tempfile.TemporaryFile() as output:
        file = Path(folder) / "answer"
        command = [sys.executable, "-m", "benchmarks.measure", workload, case, rival, json.dumps(sizes.as_dict())]
        process = subprocess.Popen(
            [*command, file], cwd=machine.ROOT, env=_environment(), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what a rival has left behind
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if file.exists():
            return dict(json.loads(file.read_text()))
        output.seek(0)
        lines = output.read().decode(errors="replace").strip().splitlines()
        return {"failed": lines[-1] if lines else f"nothing came in {_SECONDS} s"}


def _environment() -> dict[str, str]:
    """Compiled modules are kept, else each import of ours would compile, and those of installed rivals not."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def _foreign(measured: dict[str, Any]) -> dict[str, object] | None:
    """How much of the machine others took during the measurements, over all of them; None: nobody looked."""
    found: list[float] = []
    for workload in measured.values():
        if not WORKLOADS[workload["name"]].together:  # there the others are rivals
            for case in workload["cases"].values():
                found += [
                    min(100.0, run) for v in case["rivals"].values() for run in v.get("foreign", {}).get("runs", [])
                ]
    return stats.summary(found) if found else None


def _gather(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Metric → summary over the runs; and why there is none, where there is none."""
    good = [a["metrics"] for a in answers if "metrics" in a]
    result: dict[str, Any] = {metric: stats.summary([m[metric] for m in good]) for metric in (good[0] if good else {})}
    for problem in ("missing", "failed"):
        if found := [a[problem] for a in answers if problem in a]:
            result[problem] = found[0]
    return result


def _ratios(answers: dict[str, list[dict[str, Any]]], metrics: Iterable[str]) -> dict[str, Any]:
    """Metric → rival → summary of ours / theirs, made within each run."""
    ours = answers.get(OURS, [])
    ratios: dict[str, Any] = {}
    for metric in metrics:
        for name, theirs in answers.items():
            pairs = [
                (a["metrics"][metric], b["metrics"][metric])
                for a, b in zip(ours, theirs, strict=False)
                if name != OURS and "metrics" in a and "metrics" in b
            ]
            if runs := [a / b for a, b in pairs if b]:
                ratios.setdefault(metric, {})[name] = stats.summary(runs)
    return ratios
