"""Episodes one after the other, and sums over all campaigns.

``python -m chaos [--seed S] [--seconds T] [--profile P] [--sums FILE]`` runs episodes of seed S for T seconds; the sums
in FILE go on growing. ``--replay S:N`` plays episode N of seed S again. Exit code 0: everything added up. Of an episode
that fails seed and number are printed, and the smallest slice of its plan that is known to fail.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import processes

from chaos import oracle, plan
from chaos.oracle import Verdict
from chaos.plan import Plan

HANG = 60.0  # seconds without any outcome: then it hangs
TRIES = 3  # times that a slice is played before it is believed to be harmless
TESTS = Path(__file__).parent.parent


def play(the_plan: Plan, path: str = "", hang: float = HANG) -> tuple[Verdict, str]:
    """One episode, and the player's stderr. ``path``: where its modules are looked for first."""
    folder = tempfile.mkdtemp(prefix=f"chaos-{os.getpid()}-")
    try:
        (Path(folder) / "plan.json").write_text(the_plan.text())
        os.mkdir(files := os.path.join(folder, "files"))
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (path, str(TESTS)))), TMPDIR=files)
        left = ""
        try:
            with processes.nothing_left():
                exit_code, said = _client(folder, environment, hang)
        except AssertionError as error:
            left = str(error)
        if named := processes.named(os.path.basename(folder)):
            left += f" processes {named} are left"
        if os.listdir(files):
            left += f" files {os.listdir(files)} are left"
        return oracle.judge(folder, the_plan, exit_code, left), said
    finally:
        shutil.rmtree(folder)


def _client(folder: str, environment: dict[str, str], hang: float) -> tuple[int, str]:
    command = [sys.executable, "-m", "chaos.player", folder, str(hang)]
    with open(os.path.join(folder, "stderr"), "w+") as stderr:
        client = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stderr=stderr, cwd=folder)
        try:
            exit_code = client.wait(3 * hang)
        except subprocess.TimeoutExpired:
            client.kill()
            exit_code = client.wait()
        stderr.seek(0)
        return exit_code, stderr.read()


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
    return "\n".join([*lines, f"again: --replay {name}" + f" --only {','.join(map(str, keep))}"])


# ---- sums


def load(path: str) -> Counter[str]:
    if not os.path.exists(path):
        return Counter()
    with open(path) as file:
        return Counter(json.load(file))


def save(path: str, sums: Counter[str]) -> None:
    with open(path + ".new", "w") as file:
        json.dump(dict(sorted(sums.items())), file, indent=1)
        file.write("\n")
    os.replace(path + ".new", path)


def show(sums: Counter[str]) -> str:
    lines = [f"{name:>46}: {count:,}" for name, count in sorted(sums.items()) if count]
    if sums["kills"] and not sums["violations"]:
        lines.append(f"{'lost or doubled, at 95 % fewer than':>46}: {3 / sums['kills']:.1e} per kill")
    return "\n".join(lines)


def campaign(seed: int, seconds: float, profile: str = "", sums_path: str = "", slicing: float = 60.0) -> Counter[str]:
    """Episodes until the time is over, at least one; the sums of this campaign. It ends with the first that fails."""
    total: Counter[str] = Counter()
    end, number = time.monotonic() + seconds, 0
    while not number or time.monotonic() < end:
        the_plan = plan.draw(profile, seed * 1_000_003 + number) if profile else plan.drawn(seed, number)
        verdict, said = play(the_plan)
        total += verdict.figures
        total["profile: " + the_plan.profile] += 1
        if sums_path:
            sums = load(sums_path)
            sums += verdict.figures
            sums["profile: " + the_plan.profile] += 1
            save(sums_path, sums)
        if verdict.wrong:
            name = f"{seed}:{number}" + (f":{profile}" if profile else "")
            print(explain(the_plan, verdict, said, name, slicing), flush=True)
            break
        number += 1
    return total


def replay(name: str, only: str) -> int:
    seed, number, *profile = name.split(":")
    of_profile = bool(profile)
    the_plan = (
        plan.draw(profile[0], int(seed) * 1_000_003 + int(number)) if of_profile else plan.drawn(int(seed), int(number))
    )
    keep = [int(k) for k in only.split(",")] if only else list(range(len(the_plan.events)))
    the_plan = the_plan.slice(keep)
    print(f"profile {the_plan.profile}, {the_plan.workers} workers, end: {the_plan.end}")
    print(*(f"  {k:3}: {event}" for k, event in zip(keep, the_plan.events, strict=True)), sep="\n")
    verdict, said = play(the_plan)
    print(*verdict.wrong, said, show(verdict.figures), sep="\n")
    return 1 if verdict.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20), help="by default a new one")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--profile", choices=list(plan.PROFILES), default="", help="only such episodes")
    parser.add_argument("--sums", default="", help="file with the sums of all campaigns so far")
    parser.add_argument("--replay", default="", help="SEED:EPISODE, as printed")
    parser.add_argument("--only", default="", help="events of a replay, as printed")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay, options.only)
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    total = campaign(options.seed, options.seconds, options.profile, options.sums)
    print(show(total))
    if options.sums:
        print("all campaigns:", show(load(options.sums)), sep="\n")
    return 1 if total["violations"] else 0
