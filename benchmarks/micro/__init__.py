"""What each step costs, in instructions: ``python -m benchmarks micro`` (``make micro``).

Instructions are counted by callgrind, so the counts are the same on a busy machine and on an idle one, and a change of
1 % is seen. They are no times: a miss of the cache, or a word that another core holds, costs as much as a hundred
instructions and counts as one. The kernel's part is not counted; of a whole task, its looks at the clock and the core's
other system calls are, by their number. Waiting (to spin, to fall asleep) is left out.

* ``core``: the steps of ``ipc/core``, called from C, both sides in one process (core.c)
* ``codec``: values into bytes and back, by ``pool/codec.py``
* ``client``, ``worker``: a whole task, everything between the caller's call and its result, on either side of a real
  pool with one worker (inside.py)
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.micro import callgrind
from benchmarks.report import fill, number, operations, table

CORE = callgrind.ROOT / "ipc" / "core"
RESULTS = callgrind.ROOT / "benchmarks" / "results"
DOCUMENT = callgrind.ROOT / "docs" / "performance.md"
STEPS = {
    "client": {
        "_pickle_dumps": "pickle",
        "give": "plain items: read, encode, publish",
        "publish": "publish",
        "collect": "collect",
        "_pickle_loads": "unpickle",
    },
    "worker": {
        "claim": "claim",
        "run_plain": "a plain task: call, encode, complete",
        "_pickle_loads": "unpickle",
        "run_items": "a chunk's items: call, encode, commit",
        "_pickle_dumps": "pickle",
        "complete": "complete",
    },
}
"""On each side: C function → the step of a task that it is."""
REST = "Python: bytecode, frames, objects"
_TOP = 12
Say = Callable[[str], None]


def measure(say: Say = lambda _: None) -> dict[str, Any]:
    """All of it; what the JSON file holds. Raises callgrind.Missing if a tool is."""
    callgrind.look_for_tools()
    say("micro: the core")
    counted = measure_core(CORE)
    say("micro: Python")
    counted |= _measure_python()
    return {
        "schema": 1,
        "machine": machine.describe(),
        "compiler": callgrind.compiler(),
        "flags": " ".join(callgrind.FLAGS),
        "interpreter": callgrind.interpreter(),
        "operations": dict(sorted(counted.items(), key=_place)),
    }


def _place(operation: tuple[str, Any]) -> tuple[int, str]:
    name = operation[0]
    return ("core", "codec", "client", "worker").index(name.split(":")[0]), name


def measure_core(core: Path) -> dict[str, Any]:
    """The steps of the core in this folder."""
    with tempfile.TemporaryDirectory(prefix="pool-micro-") as folder:
        out = Path(folder)
        found = callgrind.run([str(callgrind.build_core(core, out))], out, "--collect-atstart=no")
        return {f"core: {name}": {"instructions": counts.instructions / n} for name, (counts, n) in found.items()}


def _measure_python() -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="pool-micro-") as folder:
        out = Path(folder)
        marks, extension = callgrind.build_marks(out), callgrind.build_extension(out)
        command = [sys.executable, "-m", "benchmarks.micro.inside", str(marks), str(extension)]
        # Nothing else: what is in the environment moves everything in memory, and that moves the counts.
        env = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
        found = callgrind.run(command, out, env=env)
        loop, n = found.pop("codec: loop")
        return {
            name: {"instructions": counts.instructions / times - loop.instructions / n}
            if name.startswith("codec: ")
            else _whole(STEPS[name.split(":")[0]], counts, times)
            for name, (counts, times) in found.items()
        }


def _whole(steps: dict[str, str], counts: callgrind.Counts, tasks: int) -> dict[str, Any]:
    within = counts.within
    # Workers wait inside of a claim, and nowhere else; the client in calls that are no step of a task.
    within["claim"] -= within["ipc_worker_wait"] + within["run_plain"]
    told = {step: within[function] / tasks for function, step in steps.items() if within[function]}
    return {
        "instructions": counts.instructions / tasks,
        "clock": counts.clock / tasks,
        "calls": counts.calls / tasks,
        "steps": told | {REST: counts.instructions / tasks - sum(told.values())},
        "top": [[function, own / tasks] for function, own in counts.own.most_common(_TOP)],
    }


def model(results: dict[str, Any]) -> str:
    """Where the instructions of a task go, side by side: for docs/performance.md."""
    tables = []
    for side, known in STEPS.items():
        whole = {name: o for name, o in results["operations"].items() if name.startswith(f"{side}: ")}
        rows = [[side, *(name.removeprefix(f"{side}: ") for name in whole)]]
        for step in dict.fromkeys([*known.values(), REST]):
            rows.append([step, *(number(o["steps"][step]) if step in o["steps"] else "" for o in whole.values())])
        rows.append(["all", *(number(o["instructions"]) for o in whole.values())])
        rows.append(["looks at the clock", *(number(round(o["clock"], 2)) for o in whole.values())])
        tables.append(table(rows))
    made = f"Made by `python -m benchmarks micro --save` of commit {results['machine']['commit']}: "
    return f"{made}{results['compiler']}, {results['interpreter']}.\n\n" + "\n".join(tables)


def markdown(results: dict[str, Any]) -> str:
    m = results["machine"]
    parts = [
        "# Instructions for each step\n",
        f"{results['compiler']}, {results['flags']}; {results['interpreter']}; commit {m['commit']}, {m['date']}. Made "
        "by `python -m benchmarks micro --save`; what is counted, and what is not, says the docstring of "
        "`benchmarks/micro/`.\n",
        operations(results),
    ]
    for name, o in results["operations"].items():
        if "top" in o:
            parts.append(f"\n## {name}: which functions\n")
            rows = [["C function, without what it calls", "instructions", "share"]]
            rows += [[f"`{f}`", number(own), f"{100 * own / o['instructions']:.0f} %"] for f, own in o["top"]]
            parts.append(table(rows))
    return "\n".join(parts)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks micro", description="Instructions for each step.")
    parser.add_argument("--json", metavar="FILE", help="write all counts there")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/micro.* and docs/performance.md")
    options = parser.parse_args(words)
    try:
        results = measure(lambda line: print(line, file=sys.stderr, flush=True))
    except callgrind.Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    text = markdown(results)
    print(text)
    data = json.dumps(results, indent=1) + "\n"
    if options.json:
        Path(options.json).write_text(data)
    if options.save:
        (RESULTS / "micro.json").write_text(data)
        (RESULTS / "micro.md").write_text(text)
        fill(DOCUMENT, "steps", model(results))
    return 0
