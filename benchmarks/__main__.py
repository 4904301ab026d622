"""The command line; see the package."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import compare, guard, micro, plot, report, suite
from benchmarks.micro import times
from benchmarks.rivals import OURS, RIVALS
from benchmarks.sizes import FULL, QUICK, TINY, Sizes
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).parent / "results"
KEPT = Path("build") / "bench.json"
_COMMANDS = {"compare": compare.main, "guard": guard.main, "micro": micro.main, "times": times.main}


def main() -> int:
    if sys.argv[1:] and (command := _COMMANDS.get(sys.argv[1])):
        return command(sys.argv[2:])
    options = _parser().parse_args()
    sizes = QUICK if options.quick else TINY if options.tiny else FULL
    if options.runs:
        sizes = replace(sizes, runs=options.runs)
    only, rivals = _plan(options, sizes)
    if options.again:
        results = json.loads(Path(options.again).read_text())
    else:
        kept = Path(options.json) if options.json else None if options.tiny else KEPT
        results = suite.run(
            sizes, only, rivals, lambda line: print(line, file=sys.stderr, flush=True), partial(_keep, kept)
        )
    counts = RESULTS / "micro.json"
    text = report.markdown(results, json.loads(counts.read_text()) if counts.exists() else None)
    print(text)
    data = json.dumps(results, indent=1) + "\n"
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "latest.json").write_text(data)
        (RESULTS / "README.md").write_text(text)
        plot.draw(results, RESULTS / "ratios.svg")
        if "scaling" in results["workloads"]:
            plot.draw_scaling(results, RESULTS / "scaling.svg")
        report.fill(micro.DOCUMENT, "times", report.times(results))
    return 0


def _keep(path: Path | None, results: dict[str, Any]) -> None:
    """What has come so far is not lost if the run is broken off: --again shows it."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        new.write_text(json.dumps(results, indent=1) + "\n")
        new.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Compare the pool with others.")
    parser.add_argument("--quick", action="store_true", help="about three minutes instead of about forty")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for the tests of the harness
    parser.add_argument("--only", metavar="WORKLOAD", help=f"some of: {', '.join(WORKLOADS)}")
    parser.add_argument("--rivals", metavar="NAMES", help=f"some of: {', '.join(RIVALS)}; ours always takes part")
    parser.add_argument("--runs", type=int, help="fresh processes for each figure")
    parser.add_argument(
        "--json", metavar="FILE", help=f"write all figures there, after each workload (default: {KEPT})"
    )
    parser.add_argument(
        "--save",
        action="store_true",
        help="write benchmarks/results/ (figures, tables, pictures), and docs/performance.md",
    )
    parser.add_argument("--again", metavar="FILE", help="measure nothing, show what --json has written")
    return parser


def _plan(options: argparse.Namespace, sizes: Sizes) -> tuple[list[str], list[str]]:
    """The workloads and the rivals, ours among them."""
    only = [name for name in _chosen("workload", options.only, list(WORKLOADS)) if WORKLOADS[name].cases(sizes)]
    rivals = _chosen("rival", options.rivals, list(RIVALS))
    if sizes.name == "quick" and options.rivals is None:
        rivals = [name for name in rivals if RIVALS[name].quick]
    return only, rivals if OURS in rivals else [OURS, *rivals]


def _chosen(what: str, names: str | None, known: list[str]) -> list[str]:
    chosen = known if names is None else names.split(",")
    for name in chosen:
        if name not in known:
            sys.exit(f"no {what} is called {name}; there are {', '.join(known)}")
    return list(chosen)


if __name__ == "__main__":
    sys.exit(main())
