"""The promises about deaths, under load: seeds draw what is done to a pool, an oracle outside judges; see chaos/."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import processes
import pytest
import tasks
from chaos import campaign, killer, observer, oracle, peers, plan, work
from chaos.oracle import Verdict
from chaos.plan import Event, Plan, batch

from ipc import _core
from pool import Pool
from pool.errors import PoolBroken, WorkerCrashed

WORKERS = 3


def played(the_plan: Plan, capsys: Any) -> Counter[str]:
    """The figures of an episode in which everything adds up."""
    verdict, said = campaign.play(the_plan)
    with capsys.disabled():
        print("", campaign.show(verdict.figures), sep="\n")
    assert not verdict.wrong, "\n".join([*verdict.wrong, said])
    return verdict.figures


@pytest.mark.timeout(100)
def test_every_task_ends_exactly_once_while_workers_are_killed(capsys: pytest.CaptureFixture[str]) -> None:
    figures = played(plan.storm(20_000, seed=20_000, hunt=True), capsys)
    assert figures["kills"] >= 100
    missed = [state for state in killer.EVERY_LOAD if not figures["killed: " + state]]
    assert not missed, f"no kill met a worker {missed}"


@pytest.mark.timeout(60)
def test_the_same_while_somebody_outside_of_the_client_kills(capsys: pytest.CaptureFixture[str]) -> None:
    """Workers of a pool with a small room, each of which leaves after a few tasks; limits condemn."""
    the_plan = plan.hail(seed=1, rounds=1, kill_every=0.01, timing="bursts")
    figures = played(the_plan, capsys)
    assert figures["kills"] >= 20
    assert figures["death records compared"] >= figures["kills"] / 2
    assert figures["killed: " + observer.UNSEEN] == 0


@pytest.mark.parametrize(("why", "broken"), [("late", []), ("crashed", ["R3"])])
def test_who_is_killed_while_condemned_dies_of_what_it_was_condemned_for(
    why: str, broken: list[str], tmp_path: Path
) -> None:
    event = batch("submit", 0, 1, "late", timeout=0.05)
    (number,) = work.numbers(0, 1, "late")
    end = f"{why} {number if why == 'crashed' else ''}"
    (tmp_path / "outcomes").write_text(
        f"batch {json.dumps(event.details)}\ndeath {number} 42 {why}\nend {number} {end}\n"
    )
    (tmp_path / "kills").write_text(f"42 {observer.CONDEMNED}\n")
    (tmp_path / "ledger").write_text(f"{number} 42 run\n")
    crashes = int(why == "crashed")
    rest = {"full": True, "unfinished": 0, "files left": 0, "in use": 0, "crashes": crashes, "healed": 0, "seconds": 1}
    (tmp_path / "final.json").write_text(json.dumps(rest))
    verdict = oracle.judge(str(tmp_path), Plan("hail", 1, 1, 0.01, False, [event], "shutdown"), 0, "")
    assert [text.partition(":")[0] for text in verdict.wrong] == broken


@pytest.mark.parametrize("second", ["", "death {other} 42 crashed\n", "decoding 42\n"])
def test_a_death_is_charged_once(second: str, tmp_path: Path) -> None:
    """That both tasks by themselves could have ended so is not enough."""
    event = batch("submit", 0, 2, "plain", retries=1)
    number, other = work.numbers(0, 2, "plain")
    ends = "".join(f"end {n} value {work.digest_of(n)}\n" for n in (number, other))
    told = f"batch {json.dumps(event.details)}\ndeath {number} 42 crashed\n" + second.format(other=other) + ends
    (tmp_path / "outcomes").write_text(told)
    (tmp_path / "kills").write_text(f"42 {observer.SINGLE}\n")
    (tmp_path / "ledger").write_text(f"{number} 42 run\n{number} 43 run\n{other} 43 run\n")
    crashes = 1 + bool(second)
    rest = {"full": True, "unfinished": 0, "files left": 0, "in use": 0, "crashes": crashes, "healed": 0, "seconds": 1}
    (tmp_path / "final.json").write_text(json.dumps(rest))
    verdict = oracle.judge(str(tmp_path), Plan("hail", 1, 1, 0.01, False, [event], "shutdown"), 0, "")
    assert [text.partition(":")[0] for text in verdict.wrong] == ["I4"] * bool(second)
    assert verdict.figures["kills judged"] == 1
    assert verdict.figures["values compared"] == 2


def test_an_observer_sees_what_each_worker_is_at(gate: tasks.Gate) -> None:
    with Pool(2) as pool:
        future = pool.submit(tasks.hold, gate.path)
        gate.await_start()
        seen = observer.Observer(os.getpid())
        processes.wait_until(lambda: all(map(seen.is_ready, range(2))), "all are ready")
        assert sorted(seen.states([0, 1])) == sorted([observer.SINGLE, observer.IDLE])
        busy = seen.states([0, 1]).index(observer.SINGLE)
        pid, generation, *_ = seen.slot(busy)
        assert pid in processes.worker_pids(pool)
        assert seen.death(busy, generation) is None
        os.kill(pid, signal.SIGKILL)
        assert isinstance(future.exception(20), WorkerCrashed)
        assert seen.death(busy, generation) == (pid, signal.SIGKILL, _core.DIED)
        processes.wait_until(
            lambda: seen.slot(busy).generation == generation + 1 and seen.is_ready(busy), "a successor"
        )
        assert seen.death(busy, generation + 1) is None
    seen.close()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other, pytest.raises(observer.Gone, match="has no pool"):
        observer.Observer(other.pid)


@pytest.mark.timeout(30)
def test_without_kills_nothing_is_healed_and_every_task_is_executed_once(capsys: pytest.CaptureFixture[str]) -> None:
    figures = played(plan.storm(4_000, seed=0, kill_every=0)._replace(profile="calm"), capsys)
    assert figures["healed"] == 0
    assert figures["executions"] == figures["ended: value"] == figures["tasks"] == 4_000


@pytest.mark.timeout(60)
def test_arrays_are_right_and_no_memory_stays_behind_while_workers_are_killed(capsys: Any) -> None:
    figures = played(Plan("arrays", 1, WORKERS, 0.0, False, [Event("arrays", {"kills": 150})], "shutdown"), capsys)
    assert figures["kills among arrays"] >= 150


@pytest.mark.timeout(100)
@pytest.mark.parametrize(("profile", "seed"), [("mixed", 2), ("mixed", 3), ("calm", 1), ("rogue", 10), ("rogue", 11)])
def test_whatever_a_seed_draws_adds_up(profile: str, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    played(plan.draw(profile, seed), capsys)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("end", plan.ENDS)
@pytest.mark.parametrize("seed", range(2))
def test_however_the_pool_ends_all_is_told_and_nothing_is_left(
    end: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task has started processes in every place where they can hide. How soon they are gone is test_exit.py's."""
    seen = random.Random(seed).random()
    events = [
        batch("submit", 0, 1, "hiding"),
        Event("hidden", {}),
        Event("load", {"first": 1, "count": 300, "seen": seen}),
    ]
    figures = played(Plan("ends", seed, WORKERS, 0.0, False, events, end), capsys)
    if end != "client":
        assert figures["ended: broken"] > 0


def test_a_plan_survives_being_written_down() -> None:
    for profile in plan.PROFILES:
        drawn = plan.draw(profile, 5)
        assert drawn == plan.draw(profile, 5)
        assert Plan.of(drawn.text()) == drawn


def test_the_smallest_slice_that_fails_is_found() -> None:
    events = [Event(str(k), {}) for k in range(13)]
    whole = Plan("calm", 0, 1, 0.0, False, events, "shutdown")
    asked = []

    def fails(the_plan: Plan) -> bool:
        asked.append(the_plan)
        return {"3", "8"} <= {event.what for event in the_plan.events}

    assert campaign.smallest(whole, fails, 60) == [3, 8]
    assert len(asked) < 40
    assert campaign.smallest(whole, fails, 0) == list(range(13)), "without time it is the whole"


def test_campaigns_add_up_and_end_with_the_first_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = str(tmp_path / "sums.json")
    verdicts = [Verdict([], Counter(kills=2, episodes=1)) for _ in range(4)]
    verdicts += [Verdict(["I5: twice"], Counter(kills=1, episodes=1, violations=1))] * 50
    monkeypatch.setattr(campaign, "play", lambda *_, **__: (verdicts.pop(0), "what it said"))
    assert campaign.campaign(7, 0, "calm", sums)["kills"] == 2
    assert campaign.campaign(8, 100, "calm", sums, slicing=0)["violations"] == 1
    known = campaign.load(sums)[campaign.core()]
    assert known["kills"] == 9
    assert known["seed 7:calm"] == 1
    assert known["seed 8:calm"] == 4
    told = capsys.readouterr().out
    assert "episode 8:3:calm" in told
    assert "I5: twice" in told
    assert "what it said" in told
    assert "--replay 8:3:calm --only 0,1" in told


@pytest.mark.timeout(90)
def test_the_kills_that_other_pools_are_shown() -> None:
    """Of the table of `chaos.peers`, our own line."""
    command = [sys.executable, "-m", "chaos.peers", "--only", "this pool", "--kills", "10", "--seconds", "10"]
    ran = subprocess.run(command, cwd=campaign.TESTS, capture_output=True, text=True, timeout=80)
    names, _, line = (row.strip("| ").split(" | ") for row in ran.stdout.splitlines()[-3:])
    figures = {name: float(figure) for name, figure in zip(names[1:], line[1:], strict=True)}
    assert line[0] == peers.OURS
    assert figures["kills"] >= 10
    assert peers.is_fair(figures)


# ---- the monitor is killed, whoever waits


def _start_and_wait(marker: str) -> None:
    """Processes in our group and in our session, none of which ends; and neither do we."""
    for options in ({}, {"process_group": 0}):
        subprocess.Popen(["sh", "-c", f"sleep 1000; : {marker}"], **options)  # type: ignore[call-overload]
    while True:
        signal.pause()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("waiter", ["result", "callback", "imap", "nobody"])
def test_when_the_monitor_is_killed_all_unfinished_ends_as_broken_and_nothing_is_left(waiter: str) -> None:
    marker = f"chaos-{os.getpid()}-{random.getrandbits(60)}"
    with processes.nothing_left():
        pool = Pool(WORKERS).start()
        stuck = [pool.submit(_start_and_wait, marker) for _ in range(WORKERS)]
        queued = [pool.submit(int, "1") for _ in range(3000)]  # more than there are rows
        called: list[Any] = []
        results = pool.imap_unordered(int, ["2"] * 100) if waiter == "imap" else None
        if waiter == "callback":
            for future in queued:
                future.add_done_callback(called.append)
        processes.wait_until(lambda: len(processes.named(marker)) >= 2 * WORKERS, "tasks have started processes")
        os.kill(processes.monitor_pid(pool), signal.SIGKILL)
        if waiter == "callback":
            processes.wait_until(lambda: len(called) == len(queued), "the callbacks were called", 10)
        elif results is not None:
            with pytest.raises(PoolBroken):
                list(results)
        elif waiter == "nobody":
            processes.wait_until(lambda: all(future.done() for future in queued), "the futures ended by themselves", 10)
        for future in stuck + queued:
            assert isinstance(future.exception(10), PoolBroken)
        assert processes.named(marker) == []
        with pytest.raises(PoolBroken):
            pool.submit(int, "1")
        began = time.monotonic()
        pool.shutdown()
        assert time.monotonic() - began < 4.0  # not the 5 s for a monitor that does not answer
