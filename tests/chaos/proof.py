"""Everything that can be shown, with one command, and the table of it in docs/reliability.md; the README has the gist.

``python -m chaos.proof`` (``make proof``) runs the parts one after the other. What each has found is kept in a
folder, so a run that was broken off goes on where it was: a part is run again only if it was not good, if pool, ipc or
what judges it has changed, if more or less of it is asked for, or with ``--again``. That a part was not good is kept
and told. Campaigns add up for as long as the folder is there, and go on until there were enough kills. The table is
printed, and written if all parts have run in full on these sources, good or not. Exit code 0: all parts have run, and
all is as it should be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import test_core_c

from chaos import campaign, figures, latency, peers, planted, soak
from chaos.report import is_enough, is_good, report, summary
from chaos.sources import ROOT, SOURCES, TESTS, digest, judges, surroundings

PAGE, README = ROOT / "docs" / "reliability.md", ROOT / "README.md"
Result = dict[str, Any]
MORE_SECONDS = 120.0  # of kills, if there were not enough yet


class Scale(NamedTuple):
    """How much of each part. An empty tuple, or text, chooses all."""

    campaign: float = 1800.0  # seconds at least; then on, until there were enough kills
    soak: float = 5400.0  # seconds
    every: float = 5.0  # seconds between two counts of a soak
    kills: int = 300  # for times, on the machine as it is and on a busy one
    clients: int = 500  # the same
    peer_kills: int = 1000  # for each pool that is compared
    peer_seconds: float = 90.0  # at most
    peers: tuple[str, ...] = ()
    fuzz: float = 120.0  # seconds
    long: bool = True  # tests of faults
    enough: bool = True  # kills
    faults: tuple[int, ...] = ()
    profiles: tuple[str, ...] = ("hail", "hail", "")  # of campaigns, in equal parts; "": what a seed draws
    scenarios: tuple[str, ...] = ()  # of the sweep
    points: tuple[str, ...] = tuple(test_core_c.STEPS)
    sanitized: tuple[tuple[str, ...], ...] = (
        ("threads.tsan", "-t", "3"),
        ("steps.tsan",),
        ("threads.asan", "-t", "3"),
        ("steps.asan",),
        ("failpoints.asan", *test_core_c.STEPS),
    )
    models: str = ""  # configurations that contain it
    litmus: float = 10.0  # seconds for each on this machine
    emulated: bool = True  # the core as an aarch64 build
    bugs: tuple[str, ...] = ()  # planted for the chaos runner
    core_bugs: str = "planted"  # what pytest selects


BRIEF = Scale(
    campaign=0.0, enough=False, soak=1.0, every=0.1, long=False, kills=2, clients=1, peer_kills=3, peer_seconds=5.0,
    peers=(peers.OURS,), fuzz=1.0, faults=(9,), profiles=("storm",), scenarios=("small",),
    points=("claim:owned",), sanitized=(("steps.asan",),), models="RELAXED_TAIL", litmus=0.1, emulated=False,
    bugs=("cancelled, and run nonetheless",), core_bugs="planted and rounded",
)  # fmt: skip
"""Only to see that all of it works; what it finds says next to nothing."""


def faults(scale: Scale, _: int, __: str) -> Result:
    """The tests that the page names."""
    named = figures.named_tests(PAGE.read_text())
    tried = {number: tests for number, tests in named.items() if not scale.faults or number in scale.faults}
    tests = sorted({test for tests in tried.values() for test in tests})
    patient = ("-o", "faulthandler_timeout=1190") if scale.long else ()  # no stacks of what takes long, and may
    results = _pytest(tests, *patient, POOL_LONG="1" if scale.long else "")
    survived = figures.survived(tried, results)
    cases: Counter[str] = sum(results.values(), Counter())
    form = "long" if scale.long else "short"
    return {"survived": survived, "of": len(named), "cases": cases, "form": form, "good": len(survived) == len(named)}


def _pytest(tests: list[str], *options: str, **environment: str) -> dict[str, Counter[str]]:
    with tempfile.TemporaryDirectory(prefix="proof-") as folder:
        path = os.path.join(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={path}", *options, *tests]
        ran = subprocess.run(command, cwd=TESTS, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            print(ran.stdout)
        return figures.outcomes(Path(path).read_text())


def kills(scale: Scale, seed: int, sums: str) -> Result:
    """Random kills. What they have found is in the sums."""
    total: Counter[str] = Counter()
    share = scale.campaign / len(scale.profiles)
    for nth, profile in enumerate(itertools.cycle(scale.profiles)):
        if total["violations"] or (nth >= len(scale.profiles) and _has_enough(scale, sums)):
            return {"good": not total["violations"]}
        total += campaign.campaign(
            seed, share if nth < len(scale.profiles) else min(share, MORE_SECONDS), profile, sums
        )
    raise AssertionError("unreachable")


def _has_enough(scale: Scale, sums: str) -> bool:
    return not scale.enough or is_enough(campaign.load(sums).get(campaign.version(), Counter()))


def steps(scale: Scale, _: int, __: str) -> Result:
    """A death at every instruction, and at every named step."""
    sweep = _run("sweep", *scale.scenarios)
    found = figures.moments(sweep.stdout if sweep.returncode == 0 else "")
    done = [step for step in scale.points if _run("failpoints", step).returncode == 0]
    named = len(test_core_c.STEPS)
    scenarios = ", ".join(scale.scenarios) or "all scenarios"
    good = not scale.scenarios and bool(found["moments"]) and not found["missed"] and len(done) == named
    return {**found, "scenarios": scenarios, "steps": len(done), "named": named, "good": good}


def fuzz(scale: Scale, _: int, __: str) -> Result:
    """Inputs for the readers of shared memory. What is new in them is kept for the next time, as ``make fuzz`` does."""
    kept = test_core_c.HERE / "build" / "inputs"
    kept.mkdir(parents=True, exist_ok=True)
    options = (
        f"-max_total_time={scale.fuzz:.0f}",
        "-max_len=400",
        "-len_control=0",
        f"-artifact_prefix={kept.parent}/",
    )
    ran = _run("fuzz", *options, str(kept), str(test_core_c.HERE / "found"), timeout=scale.fuzz + 300)
    found = figures.fuzzed(ran.stderr)
    return {**found, "good": ran.returncode == 0 and found["executions"] > 0}


def _run(program: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    path = test_core_c.build(test_core_c.CORE, test_core_c.HERE / "build", program)
    ran = test_core_c.run(path, *arguments, timeout=timeout)
    if ran.returncode:
        print(program, *arguments, ran.stdout[-2000:], ran.stderr[-4000:])
    return ran


def models(scale: Scale, _: int, __: str) -> Result:
    """All searches of the models."""
    command = [sys.executable, str(ROOT / "ipc" / "model" / "run.py"), "--only", scale.models]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    found = figures.searches(ran.stdout)
    if ran.returncode:
        print(ran.stdout)
    bounds = f"only {scale.models}" if scale.models else figures.bounds(ran.stdout)
    good = ran.returncode == 0 and not scale.models and found["caught"] == found["planted"] > 0
    return {**found, "bounds": bounds, "good": good}


def orders(scale: Scale, _: int, __: str) -> Result:
    """The orders of memory: explored for the core's steps, tried on this machine, and the same code for another one."""
    explored = subprocess.run(
        [sys.executable, str(ROOT / "ipc" / "model" / "orders.py")], stdout=subprocess.PIPE, text=True
    )
    found = figures.litmuses(explored.stdout)
    if explored.returncode:
        print(explored.stdout)
    tried = _run("litmus", "-t", str(scale.litmus))
    rounds = figures.rounds(tried.stdout)
    emulated = _emulated() if scale.emulated else "left out"
    fine = explored.returncode == tried.returncode == 0 and emulated == "passed"
    good = fine and found["litmuses"] > 0 and rounds > 0
    return {**found, "rounds": rounds, "stood still": tried.returncode != 0, "emulated": emulated, "good": good}


def _emulated() -> str:
    """What the C tests do as an aarch64 build; where the emulator is missing they fail."""
    ran = subprocess.run(["make", "-C", str(test_core_c.HERE), "run-aarch64"], capture_output=True, text=True)
    if ran.returncode:
        print(ran.stdout[-2000:], ran.stderr[-2000:])
    return "FAILED" if ran.returncode else "passed"


def sanitizers(scale: Scale, _: int, __: str) -> Result:
    runs, all_of_them = scale.sanitized, len(Scale().sanitized)
    passed = sum(_run(*run).returncode == 0 for run in runs)
    return {"passed": passed, "of": all_of_them, "good": passed == all_of_them}


def bugs(scale: Scale, _: int, __: str) -> Result:
    """All planted bugs, of the chaos runner and of the core."""
    command = [sys.executable, "-m", "chaos.planted", *scale.bugs]
    ran = subprocess.run(command, env=surroundings(), stdout=subprocess.PIPE, text=True)
    last = re.search(r"^(\d+)/\d+ caught$", ran.stdout, re.M)
    chaos = (int(last[1]) if last else 0, len(planted.PLANTED))
    if chaos[0] < chaos[1]:
        print(ran.stdout)
    results = _pytest(["test_core_c.py"], "-k", scale.core_bugs).get("test_core_c.py::test_a_planted_bug_is_caught", {})
    core = (results.get("passed", 0), len(test_core_c.PLANTED))
    return {"in chaos": chaos, "in core": core, "good": chaos[0] == chaos[1] and core[0] == core[1]}


def latencies(scale: Scale, seed: int, _: str) -> Result:
    found = latency.measured(scale.kills, scale.clients, seed)
    return {**found, "workers": latency.WORKERS, "good": not any(found["left"].values())}


def compared(scale: Scale, seed: int, _: str) -> Result:
    """The same kills for other pools. Only what ours makes of them is judged."""
    names = scale.peers or tuple(peers.POOLS)
    results = peers.compared(names, scale.peer_kills, scale.peer_seconds, seed)
    good = len(names) == len(peers.POOLS) and peers.is_fair(results[peers.OURS])
    return {"results": results, "good": good}


def soaked(scale: Scale, seed: int, _: str) -> Result:
    found = soak.soak(scale.soak, scale.every, seed)
    return {**found, "good": soak.sound(found)}


class Part(NamedTuple):
    run: Callable[[Scale, int, str], Result]  # with a seed, and the file of the sums
    how_much: tuple[str, ...]  # fields of Scale
    judged_by: tuple[str, ...]  # modules of the tests, with all that they import, and files; without this one


PARTS = {
    "latencies": Part(latencies, ("kills", "clients"), ("chaos.latency",)),
    "peers": Part(compared, ("peer_kills", "peer_seconds", "peers"), ("chaos.peers",)),
    "soak": Part(soaked, ("soak", "every"), ("chaos.soak",)),
    "steps": Part(steps, ("scenarios", "points"), ("tests/c/sweep.c", "tests/c/failpoints.c", "tests/c/kit.h")),
    "sanitizers": Part(sanitizers, ("sanitized",), ("tests/c/[st]*.c", "tests/c/failpoints.c", "tests/c/kit.h")),
    "fuzz": Part(fuzz, ("fuzz",), ("tests/c/fuzz.c", "tests/c/found/*")),
    "kills": Part(kills, ("campaign", "profiles", "enough"), campaign.JUDGES),
    "faults": Part(faults, ("faults", "long"), ("tests/**/*.py", "tests/c/*.[ch]", "tests/c/found/*", "examples/*.py")),
    "planted": Part(
        bugs,
        ("bugs", "core_bugs"),
        (*campaign.JUDGES, "chaos.planted", "test_core_c", "tests/c/*.[ch]"),
    ),
    "models": Part(models, ("models",), ("ipc/model/run.py", "ipc/model/*.pml")),
    "orders": Part(orders, ("litmus", "emulated"), ("ipc/model/orders.py", "tests/c/*.[ch]")),
}


def versions() -> dict[str, str]:
    """By part: a digest of what is put to the proof, and of what judges that."""
    more = {"faults": repr(figures.named_tests(PAGE.read_text()))}
    return {
        name: digest(*SOURCES, *part.judged_by, *judges(*part.judged_by), more=more.get(name, ""))
        for name, part in PARTS.items()
    }


# ---- what is known so far


def load(folder: Path) -> dict[str, Result]:
    path = folder / "parts.json"
    return json.loads(path.read_text()) if path.exists() else {}


def save(folder: Path, parts: dict[str, Result]) -> None:
    new = folder / "parts.new"
    new.write_text(json.dumps(parts, indent=1) + "\n")
    new.replace(folder / "parts.json")


def about() -> Result:
    """Of what, where and when."""
    with open("/proc/cpuinfo") as file:
        models = re.findall(r"^model name\s*: (.*)$", file.read(), re.M) or [platform.machine()]
    kernel = re.match(r"[\d.]+", platform.release())
    python = f"{platform.python_implementation()} {platform.python_version()}"
    machine = f"{os.cpu_count()} x {models[0]}, Linux {kernel[0] if kernel else '?'}, {python}"
    return {
        "commit": _commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine,
        "load": round(os.getloadavg()[0], 1),
    }


def _commit() -> str:
    """With a plus if something of what is tested is not committed."""
    shown = subprocess.run(["git", "log", "-1", "--format=%h"], cwd=ROOT, capture_output=True, text=True)
    if shown.returncode:
        return "unknown"
    changed = subprocess.run(["git", "status", "--porcelain", "ipc", "pool", "tests"], cwd=ROOT, capture_output=True)
    return shown.stdout.strip() + "+" * bool(changed.stdout.strip())


def prove(folder: Path, names: list[str], scale: Scale, seed: int, again: bool) -> bool:
    """Run these parts, unless it is known what they find; whether all is known and good."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = str(folder / "sums.json")
    for name in names:
        here = {**about(), "version": versions()[name]}
        much = how_much(name, scale)
        known = load(folder).get(name, {})
        same = known.get("version") == here["version"]
        if not again and same and known["scale"] == much and known["good"]:
            print(f"{name}: known since {known['date']}", flush=True)
            continue
        failed = known["failed"] + [_when(known)] * (not known["good"]) if known else []
        print(f"{name} ...", flush=True)
        began = time.monotonic()
        found = PARTS[name].run(scale, seed, sums)
        took = round(time.monotonic() - began, 1)
        found = {**found, **here, "seed": seed, "took": took, "scale": much, "failed": failed}
        save(folder, {**load(folder), name: found})
        print(f"{name}: {'good' if found['good'] else 'NOT GOOD'}, {took:.0f} s", flush=True)
    return is_good(load(folder), campaign.load(sums), versions())


def how_much(name: str, scale: Scale) -> dict[str, Any]:
    """Of a part: the fields of the scale that concern it."""
    much: dict[str, Any] = json.loads(json.dumps({field: getattr(scale, field) for field in PARTS[name].how_much}))
    return much


def is_whole(parts: dict[str, Result], versions: dict[str, str]) -> bool:
    """Whether each part has run on these sources, and in full."""
    return all(
        name in parts and parts[name]["version"] == version and parts[name]["scale"] == how_much(name, Scale())
        for name, version in versions.items()
    )


def _when(known: Result) -> str:
    return f"commit {known['commit']}, {known['date']}, seed {known['seed']}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="proof", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "proof", help="where results are kept")
    parser.add_argument("--page", type=Path, help="what the table is written into, whatever has run")
    parser.add_argument("--readme", type=Path, help="what the shorter one is written into, likewise")
    parser.add_argument("--only", default="", help=f"parts, with commas between them: {', '.join(PARTS)}")
    parser.add_argument("--again", action="store_true", help="also what is known")
    parser.add_argument("--brief", action="store_true", help="the least of each part, to see that all of it works")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20), help="by default a new one")
    numbers = ("campaign", "soak", "kills", "clients", "peer_kills", "fuzz")
    for name in numbers:
        usual = Scale._field_defaults[name]
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(usual), default=usual, help="see Scale")
    parser.add_argument("--long", action=argparse.BooleanOptionalAction, default=True, help="form of the faults' tests")
    options = parser.parse_args(arguments)
    chosen = {name: getattr(options, name) for name in (*numbers, "long")}
    scale = BRIEF if options.brief else Scale(**chosen)
    names = options.only.split(",") if options.only else list(PARTS)
    good = prove(options.folder, names, scale, options.seed, options.again)
    known = (load(options.folder), campaign.load(str(options.folder / "sums.json")), versions())
    text, whole = report(*known), is_whole(known[0], known[2])
    for path, usual, part in ((options.page, PAGE, text), (options.readme, README, summary(*known))):
        if path or whole:
            file = path or usual
            file.write_text(figures.put(file.read_text(), part))
    print(text)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
