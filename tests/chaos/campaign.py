"""Episodes one after the other, and sums over all campaigns.

``python -m chaos [--seed S] [--seconds T] [--profile P] [--sums FILE]`` runs episodes of seed S for T seconds; the sums
in FILE go on growing. ``--replay S:N`` plays episode N of seed S again. Exit code 0: everything added up. Of an episode
that fails seed and number are printed, and the smallest slice of its plan that is known to fail, which is kept in a
file for ``--replay FILE``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import processes

from chaos import oracle, plan
from chaos.killer import Killer
from chaos.observer import STATES, UNSEEN
from chaos.oracle import Verdict
from chaos.plan import Plan
from chaos.sources import ROOT, SOURCES, digest, judges, surroundings

HANG = 60.0  # seconds without any outcome: then it hangs
TRIES = 3  # times that a slice is played before it is believed to be harmless
PLANS = ROOT / "build" / "chaos"  # of what has failed


def play(the_plan: Plan, path: str = "", hang: float = HANG) -> tuple[Verdict, str]:
    """One episode, and the player's stderr. ``path``: where its modules are looked for first."""
    folder = tempfile.mkdtemp(prefix=f"chaos-{os.getpid()}-")
    try:
        (Path(folder) / "plan.json").write_text(the_plan.text())
        os.mkdir(files := os.path.join(folder, "files"))
        environment = surroundings(path, TMPDIR=files)
        left = ""
        hail = Hail(the_plan, folder) if the_plan.outside else None
        try:
            with processes.nothing_left():
                exit_code, said = _client(folder, environment, hang, hail)
        except AssertionError as error:
            left = str(error)
        if named := processes.named(os.path.basename(folder)):
            left += f" processes {named} are left"
        if os.listdir(files):
            left += f" files {os.listdir(files)} are left"
        verdict = oracle.judge(folder, the_plan, exit_code, left)
        if verdict.figures["kills judged"]:
            met = killed(verdict.figures)
            verdict.figures.update({f"judged: {state}": met[state] for state in STATES})
        if hail is not None:
            verdict.wrong.extend(hail.wrong)
            verdict.figures.update(hail.figures, violations=len(hail.wrong), doubled=len(hail.wrong))
        return verdict, said
    finally:
        shutil.rmtree(folder)


def _client(folder: str, environment: dict[str, str], hang: float, hail: Hail | None) -> tuple[int, str]:
    command = [sys.executable, "-m", "chaos.player", folder, str(hang)]
    pipes = {} if hail is None else {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with open(os.path.join(folder, "stderr"), "w+") as stderr:
        client = subprocess.Popen(
            command, env=environment, stderr=stderr, cwd=folder, text=True, **{"stdin": subprocess.DEVNULL, **pipes}
        )
        watchdog = threading.Timer(3 * hang, client.kill)
        watchdog.start()
        try:
            if hail is not None:
                hail.over(client)
            exit_code = client.wait()
        finally:
            watchdog.cancel()
        stderr.seek(0)
        return exit_code, stderr.read()


class Hail:
    """Kills from outside: while a player says that it works, workers of its pool are killed by us."""

    def __init__(self, plan: Plan, folder: str) -> None:
        self.wrong: list[str] = []
        self.figures: Counter[str] = Counter()
        self._plan = plan
        self._path = os.path.join(folder, "kills")

    def over(self, client: subprocess.Popen[str]) -> None:
        assert client.stdin is not None
        assert client.stdout is not None
        with client.stdin, client.stdout, open(self._path, "a", 1) as kills:
            plan = self._plan
            killer = Killer(
                client.pid, plan.kill_every, plan.seed, lambda *words: print(*words, file=kills), STATES,
                plan.timing, Counter(plan.met),
            )  # fmt: skip
            killer.hunting = plan.hunt
            for step in (killer.start, killer.stop):
                if not client.stdout.readline():
                    break  # it has ended, and why is seen elsewhere
                step()
                with contextlib.suppress(BrokenPipeError):
                    print(file=client.stdin, flush=True)
            killer.stop()
        self.wrong = [f"I4: {text}" for text in killer.wrong_records]
        self.figures["death records compared"] = killer.records


def smallest(the_plan: Plan, fails: Callable[[Plan], bool], seconds: float) -> list[int]:
    """Events of the plan that are enough to fail, as far as that is found out in so many seconds: halves, quarters and
    so on are left out, and stay out if the rest still fails."""
    end = time.monotonic() + seconds
    keep = list(range(len(the_plan.events)))
    size = len(keep)
    while size > 1:
        size = -(-size // 2)
        at = 0
        while at < len(keep) and time.monotonic() < end:
            rest = keep[:at] + keep[at + size :]
            if rest and fails(the_plan.slice(rest)):
                keep = rest
            else:
                at += size
    return keep


def fails(the_plan: Plan, path: str = "", hang: float = HANG) -> bool:
    return any(play(the_plan, path, hang)[0].wrong for _ in range(TRIES))


def explain(the_plan: Plan, verdict: Verdict, said: str, name: str, seconds: float) -> str:
    keep = smallest(the_plan, fails, seconds)
    lines = [f"FAILED: episode {name}: profile {the_plan.profile}, seed {the_plan.seed}, end: {the_plan.end}"]
    lines += [f"  {text}" for text in verdict.wrong[:20]]
    lines += [f"  ... and {len(verdict.wrong) - 20} more"] * (len(verdict.wrong) > 20)
    if said:
        lines += ["  the client's stderr:", *(f"    {line}" for line in said.splitlines()[-60:])]
    lines.append(f"the smallest slice that is known to fail, {len(keep)} of {len(the_plan.events)} events:")
    lines += [f"  {k:3}: {the_plan.events[k]}" for k in keep]
    PLANS.mkdir(parents=True, exist_ok=True)
    file = PLANS / f"{name.replace(':', '-')}.json"
    file.write_text(the_plan.slice(keep).text())
    return "\n".join([*lines, f"again: make chaos REPLAY={file}"])


# ---- sums


JUDGES = ("chaos.campaign", "chaos.player")
"""What plays and judges episodes, with all that they import."""


def version() -> str:
    """Of what campaigns put to the proof, and of what judges it."""
    return digest(*SOURCES, *judges(*JUDGES))


def load(path: str) -> dict[str, Counter[str]]:
    """Sums by version."""
    if not os.path.exists(path):
        return {}
    with open(path) as file:
        return {name: Counter(figures) for name, figures in json.load(file).items()}


def add(path: str, figures: Counter[str]) -> None:
    """To the sums of the version that there is now, whoever else adds to them at the same time."""
    with open(path + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        sums = load(path)
        sums.setdefault(version(), Counter()).update(figures)
        with open(path + ".new", "w") as file:
            json.dump({name: dict(sorted(figures.items())) for name, figures in sums.items()}, file, indent=1)
            file.write("\n")
        os.replace(path + ".new", path)


def show(sums: Counter[str]) -> str:
    lines = [f"{name:>46}: {count:,}" for name, count in sorted(sums.items()) if count and not name.startswith("seed ")]
    if sums["kills judged"] and not sums["violations"]:
        lines.append(f"{'lost or doubled, at 95 % fewer than':>46}: {3 / sums['kills judged']:.1e} per kill")
    return "\n".join(lines)


def campaign(seed: int, seconds: float, profile: str = "", sums_path: str = "", slicing: float = 60.0) -> Counter[str]:
    """Episodes until the time is over, at least one; the sums of this campaign. It ends with the first that fails. With
    sums it begins behind the last episode that is in them."""
    total: Counter[str] = Counter()
    known = load(sums_path).get(version(), Counter()) if sums_path else Counter()
    played = f"seed {seed}" + (f":{profile}" if profile else "")
    end, number = time.monotonic() + seconds, known[played]
    while not total or time.monotonic() < end:
        the_plan = plan.draw(profile, seed * 1_000_003 + number) if profile else plan.drawn(seed, number)
        if the_plan.outside:
            the_plan = the_plan._replace(met=dict(killed(known + total)))
        verdict, said = play(the_plan)
        figures = verdict.figures + Counter({"profile: " + the_plan.profile: 1, played: 1})
        total += figures
        if sums_path:
            add(sums_path, figures)
        if verdict.wrong:
            name = f"{seed}:{number}" + (f":{profile}" if profile else "")
            print(explain(the_plan, verdict, said, name, slicing), flush=True)
            break
        number += 1
    return total


def killed(figures: Counter[str]) -> Counter[str]:
    """Kills by what they have met."""
    return Counter({state: figures["killed: " + state] for state in (*STATES, UNSEEN)})


def planned(name: str) -> Plan:
    """The plan in a file, or of SEED:EPISODE or SEED:EPISODE:PROFILE: then as if nobody had been killed before."""
    if os.path.exists(name):
        return Plan.of(Path(name).read_text())
    seed, number, *profile = name.split(":")
    if profile:
        return plan.draw(profile[0], int(seed) * 1_000_003 + int(number))
    return plan.drawn(int(seed), int(number))


def replay(name: str) -> int:
    the_plan = planned(name)
    print(f"profile {the_plan.profile}, {the_plan.workers} workers, end: {the_plan.end}")
    print(*(f"  {k:3}: {event}" for k, event in enumerate(the_plan.events)), sep="\n")
    verdict, said = play(the_plan)
    print(*verdict.wrong, said, show(verdict.figures), sep="\n")
    return 1 if verdict.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20), help="by default a new one")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--profile", choices=list(plan.PROFILES), default="", help="only such episodes")
    parser.add_argument("--sums", default="", help="file with the sums of all campaigns so far")
    parser.add_argument("--replay", default="", help="SEED:EPISODE, or a file, as printed")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    total = campaign(options.seed, options.seconds, options.profile, options.sums)
    print(show(total))
    if options.sums:
        sums = load(options.sums)
        print("all campaigns with this version:", show(sums[version()]), sep="\n")
        print(f"and with all {len(sums)} versions:", show(sum(sums.values(), Counter())), sep="\n")
    return 1 if total["violations"] else 0
