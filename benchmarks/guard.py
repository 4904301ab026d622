"""Whether something has become slower: ``python -m benchmarks guard``, run by the tests.

Nothing here is a time. Instructions (benchmarks/micro) are compared with those of ``baseline.json``, and the CPU time
of a task with that of the same task in another pool, measured in turns in the same run.

Instructions depend on the compiler and, for what Python does, on the interpreter. So the baseline has a section for
each that it was made with; the core's steps are compared with the same compiler only, the rest with the same compiler
and interpreter. Where there is no such section, ``guard`` says so and compares nothing (exit code 3).

After a change that is meant: ``python -m benchmarks guard --renew``, and commit the baseline with the change.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import micro, suite
from benchmarks.micro import callgrind
from benchmarks.rivals import OURS
from benchmarks.sizes import QUICK

BASELINE = Path(__file__).parent / "baseline.json"
RENEW = "If that is meant: python -m benchmarks guard --renew, and commit benchmarks/baseline.json."
_LEAST = 2.0  # instructions that may always be added
_TOLERANCE = (
    ("core: ", 0.02),
    ("codec: encode", 0.1),  # what the allocator has at hand is chance
    ("codec: ", 0.05),
    ("client: futures", 0.15),  # how many come in one turn is chance, and a turn is dear
    ("worker: futures", 0.15),
    ("client: chunks", 0.1),
    ("client: ", 0.05),
    ("worker: ", 0.05),
)
RATIOS = (
    ("noop", "multiprocessing", 0.6),
    ("noop", "executor", 0.12),
    ("futures", "executor", 0.25),
)
"""(workload, rival, the most that our CPU time of a task may be by theirs): about four times what it is on a machine
with nothing else to do, for CPU time, too, is longer beside other load. The counts find what is smaller."""


def tolerance(name: str) -> float:
    """The share by which an operation may grow."""
    return next(share for prefix, share in _TOLERANCE if name.startswith(prefix))


def keys(results: dict[str, Any]) -> dict[str, str]:
    """What the counts of "core" and of the rest depend on."""
    core = f"{results['compiler']} {results['flags']}"
    return {"core": core, "python": f"{results['interpreter']}; {core}"}


def sections(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The counts as the baseline has them: key → operation → instructions."""
    found: dict[str, dict[str, float]] = {key: {} for key in keys(results).values()}
    for name, operation in results["operations"].items():
        key = keys(results)["core" if name.startswith("core: ") else "python"]
        found[key][name] = round(operation["instructions"], 1)
    return found


def grown(now: dict[str, float], before: dict[str, float]) -> list[str]:
    """A sentence for each operation that has grown by more than is allowed, or is gone."""
    found = []
    for name, old in before.items():
        if name not in now:
            found.append(f"{name}: is not measured any more")
            continue
        more = now[name] / old - 1
        if now[name] > old * (1 + tolerance(name)) and now[name] > old + _LEAST:
            found.append(
                f"{name}: {old:,.1f} → {now[name]:,.1f} instructions, {100 * more:+.1f} % "
                f"({100 * tolerance(name):.0f} % are allowed)"
            )
    return found


def shrunk(now: dict[str, float], before: dict[str, float]) -> list[str]:
    """Operations that are now cheaper by more than the tolerance: the baseline is too generous."""
    return [name for name, old in before.items() if name in now and now[name] < old * (1 - tolerance(name))]


def compare(results: dict[str, Any], baseline: dict[str, dict[str, float]]) -> tuple[list[str], list[str]]:
    """(what has grown, keys without a baseline)."""
    worse, unknown = [], []
    for key, counts in sections(results).items():
        if key in baseline:
            worse += grown(counts, baseline[key])
        else:
            unknown.append(key)
    return worse, unknown


def measure_ratios() -> dict[str, Any]:
    """The suite's results for what RATIOS names, in about 20 s."""
    sizes = replace(QUICK, seconds=0.1)
    rivals = list(dict.fromkeys(rival for _, rival, _ in RATIOS))
    return suite.run(sizes, list(dict.fromkeys(workload for workload, _, _ in RATIOS)), [OURS, *rivals])


def too_dear(results: dict[str, Any]) -> list[str]:
    """A sentence for each ratio of RATIOS that is above its limit, or could not be measured."""
    found = []
    for workload, rival, most in RATIOS:
        case = results["workloads"][workload]["cases"][""]
        ratio = case["ratios"].get("cpu_us", {}).get(rival)
        if ratio is None:
            told = case["rivals"][rival].get("missing") or case["rivals"][rival].get("failed") or "ours failed"
            found.append(f"{workload}: nothing to compare with: {told}")
        elif ratio["median"] > most:
            found.append(
                f"{workload}: a task takes {ratio['median']:.2f} of the CPU time that it takes {rival} "
                f"({most} is allowed; each run: {', '.join(f'{run:.2f}' for run in ratio['runs'])})"
            )
    return found


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks guard", description="Has something become slower?")
    parser.add_argument("--renew", action="store_true", help="what is measured now is the baseline from now on")
    parser.add_argument("--micro", metavar="FILE", help="take the counts from there (micro --json), do not count")
    options = parser.parse_args(words)
    try:
        counted = json.loads(Path(options.micro).read_text()) if options.micro else micro.measure()
    except callgrind.Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    baseline = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    if options.renew:
        BASELINE.write_text(json.dumps(baseline | sections(counted), indent=1, sort_keys=True) + "\n")
        return 0
    worse, unknown = compare(counted, baseline)
    dear = too_dear(measure_ratios())
    for line in [*worse, *([RENEW] if worse else []), *dear]:
        print(line)
    for key in unknown:
        print(f"no baseline for {key}: nothing is compared; python -m benchmarks guard --renew adds one")
    for key, counts in sections(counted).items():
        if cheaper := shrunk(counts, baseline.get(key, {})):
            print(f"cheaper than the baseline, which could be renewed: {', '.join(cheaper)}")
    return 1 if worse or dear else 3 if unknown else 0
