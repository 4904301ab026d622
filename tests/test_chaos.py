"""The promises about deaths, under load: seeds draw what is done to a pool, an oracle outside judges; see chaos/."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import processes
import pytest
import tasks
from chaos import campaign, killer, observer, oracle, peers, plan, witness, work
from chaos.oracle import Verdict
from chaos.plan import MANY, Event, Plan, batch
from chaos.sources import TESTS

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


# ---- the oracle sees it: records of episodes that never were


REST: dict[str, Any] = {
    "full": True, "unfinished": 0, "files left": [], "in use": 0, "healed": 0, "seconds": 1,
    "zombies": [], "descriptors": {"client": [10, 10], "monitor": [14, 14]},
    "mappings": {"client": [270, 280], "monitor": [270, 270]}, "generations": 1, "ends": {"SIGKILL": 1},
}  # fmt: skip


def judged(folder: Path, event: Event, told: str, kills: str, ledger: str, most: int = MANY, **rest: Any) -> Verdict:
    """Of an episode with one worker and one event, whose pool counts what was told. `most`: crashes of a task."""
    died = [line for line in told.splitlines() if line.startswith(("death", "decoding"))]
    counts = {
        "crashes": sum(not line.endswith(" late") for line in died),
        "counted": {"ended": told.count(" value "), "died": len(died)},
    }
    (folder / "outcomes").write_text(f"batch {json.dumps({**event.details, 'ns': 0})}\n{told}")
    (folder / "kills").write_text(kills)
    (folder / "ledger").write_text(ledger)
    (folder / "final.json").write_text(json.dumps({**REST, **counts, **rest}))
    the_plan = Plan("hail", 1, 1, 0.01, False, [event], "shutdown", most_crashes=most)
    return oracle.judge(str(folder), the_plan, 0, "")


def broken(verdict: Verdict) -> set[str]:
    return {text.partition(":")[0] for text in verdict.wrong}


@pytest.mark.parametrize(("why", "breaks"), [("late", set()), ("crashed", {"R3"})])
def test_who_is_killed_while_condemned_dies_of_what_it_was_condemned_for(
    why: str, breaks: set[str], tmp_path: Path
) -> None:
    event = batch("submit", 0, 1, "late", timeout=0.05)
    (number,) = work.numbers(0, 1, "late")
    detail = number if why == "crashed" else ""
    told = f"death {number} 42 60000000 {why}\nend {number} 60000001 {why} {detail}\n"
    ledger = f"0 42 born 10\n{number} 42 run 20\n0 43 born 60000002\n"
    kills = f"42 55000000 {observer.CONDEMNED}\n42 55000001 {observer.UNSEEN}\n"  # what came too late changes nothing
    verdict = judged(tmp_path, event, told, kills, ledger)
    assert broken(verdict) == breaks


@pytest.mark.parametrize(
    ("roused", "settled", "early"),
    [(50_000_040, 70_000_000, False), (49_000_000, 70_000_000, True), (0, 49_000_000, True), (0, 50_000_040, False)],
)
def test_a_deadline_that_comes_early_is_seen(roused: int, settled: int, early: bool, tmp_path: Path) -> None:
    """The stack is asked for when it is over; who had no time to say so is known to be dead a little later."""
    event = batch("submit", 0, 1, "late", timeout=0.05)
    (number,) = work.numbers(0, 1, "late")
    told = f"death {number} 42 {settled} late\nend {number} {settled + 1} late \n"
    ledger = f"0 42 born 30\n{number} 42 run 500\n" + f"{number} 42 roused {roused}\n" * bool(roused)
    verdict = judged(tmp_path, event, told, "", f"{ledger}0 43 born 80000000\n", ends={"timeout": 1})
    assert broken(verdict) == ({"G6"} if early else set())


TOLD = "end {1} 910 value {3}\ndeath {0} 42 300 crashed\nend {0} 900 value {2}\n"
KILLS = f"42 200 {observer.SINGLE}\n"
LEDGER = "0 42 born 10\n{0} 42 run 100\n0 43 born 400\n{0} 43 run 500\n{0} 43 end 600\n{1} 43 run 700\n{1} 43 end 800\n"


@pytest.mark.parametrize(
    ("old", "new", "breaks"),
    [
        ("", "", ""),
        ("", "death {1} 42 301 crashed\n", "I4"),
        ("", "decoding 42 301\n", "I4"),
        ("42 run 100", "42 overlap 100", "I5"),
        ("43 run 500", "43 run 199", "I5 G1"),
        ("43 run 500", "43 run 299", "G1"),
        ("{0} 42 run 100\n", "{0} 42 run 100\n{0} 42 end 510\n", "I5"),
        ("{0} 43 end 600\n", "", "I5 I2"),
        ("{1} 43 end 800\n", "", "I2"),
        ("{0} 43 run 500\n{0} 43 end 600\n", "{0} 42 end 250\n", "I2 I4 I10"),
        ("{1} 43 run 700\n", "", "I2 I4 I10"),
        ("{1} 43 run 700\n{1} 43 end 800\n", "{1} 44 run 700\n{1} 44 end 800\n", "I2"),
        ("{1} 43 end 800\n", "{1} 43 end 800\n{1} 43 run 911\n{1} 43 end 912\n", "I3 I4 I10"),
        ("end {1} 910", "cancelled {1} 650\nend {1} 910", "I3"),
        ("end {1} 910", "end {1} 790", "I2"),
        ("0 43 born 400", "0 43 born 5000000201", "I20"),
        ("{1} 43 end 800\n", "{1} 43 end 800\n0 44 born 850\n", "I13"),
        ("0 43 born 400\n", "", "I13 I2"),
        ("end {1} 910 value {3}\n", "", "I14 I10"),
        ("end {1} 910 value {3}\n", "refused 0 1 PoolBroken\n", "I19 I10"),
        ("{1} 43 run 700\n{1} 43 end 800\nend {1} 910 value {3}\n", "refused 0 1 PoolBroken\n", ""),
        ("end {0} 900 value {2}\n", "refused 0 1 PoolBroken\n", "I14 I19 I10"),
    ],
)  # fmt: skip
def test_what_cannot_have_been_is_seen(old: str, new: str, breaks: str, tmp_path: Path) -> None:
    """Two tasks with one retry; worker 42 was killed in the first. All is as it should be, but for one thing."""
    event = batch("submit", 0, 2, "plain", retries=1)
    number, other = work.numbers(0, 2, "plain")
    assert old in LEDGER + TOLD, "the good record has changed"
    record = (LEDGER + TOLD).replace(old, new) if old else LEDGER + TOLD + new
    lines = record.format(number, other, work.digest_of(number), work.digest_of(other)).splitlines(keepends=True)
    ledger = [line for line in lines if line[0].isdecimal()]
    told = [line for line in lines if not line[0].isdecimal()]
    verdict = judged(tmp_path, event, "".join(told), KILLS, "".join(ledger))
    assert broken(verdict) == set(breaks.split())
    if not breaks and not new:
        assert verdict.figures["kills judged"] == 1
        assert verdict.figures["values compared"] == verdict.figures["executions"] - 1 == 2


@pytest.mark.parametrize(
    ("crashes", "ended", "breaks"),
    [(2, False, set()), (2, True, {"I4"}), (3, True, set()), (3, False, {"I6"}), (4, True, {"I6"})],
)
def test_a_task_is_poison_after_three_crashes(crashes: int, ended: bool, breaks: set[str], tmp_path: Path) -> None:
    (number,) = work.numbers(0, 1, "plain")
    ledger, told, kills = ["0 40 born 1"], [], []
    for k in range(crashes):
        ledger += [f"{number} {40 + k} run {100 * k + 10}", f"0 {41 + k} born {100 * k + 40}"]
        kills.append(f"{40 + k} {100 * k + 20} {observer.SINGLE}")
        told.append(f"death {number} {40 + k} {100 * k + 30} crashed")
    if ended:
        told.append(f"end {number} 900 crashed {number}")
    else:
        ledger += [f"{number} {40 + crashes} run 600", f"{number} {40 + crashes} end 700"]
        told.append(f"end {number} 900 value {work.digest_of(number)}")
    lines = ("\n".join(words) + "\n" for words in (told, kills, ledger))
    ends = {"generations": crashes, "ends": {"SIGKILL": crashes}}
    verdict = judged(tmp_path, batch("submit", 0, 1, retries=MANY), *lines, most=3, **ends)
    assert broken(verdict) == breaks
    assert bool(verdict.figures["doubled"]) == bool(breaks)


@pytest.mark.parametrize(
    ("rest", "breaks"),
    [
        ({"full": False}, "I11"),
        ({"zombies": [44]}, "I11"),
        ({"descriptors": {"client": [10, 10], "monitor": [14, 15]}}, "I12"),
        ({"mappings": {"client": [270, 303], "monitor": [270, 270]}}, "I12"),
        ({"mappings": {"client": [270, 302], "monitor": [270, 279]}}, "I12"),
        ({"files left": ["/dev/null"]}, "I12"),
        ({"in use": 3}, "I12"),
        ({"falls": ["crashes of the pool, 3 to 2"]}, "I10"),
        ({"crashes": 2}, "I10"),
        ({"counted": {"ended": 2, "died": 0}}, "I10"),
        ({"counted": {"ended": 3, "died": 1}}, "I10"),
        ({"unfinished": 1}, "I14"),
        ({"generations": 2}, "I13"),
        ({"generations": 2, "ends": {"SIGKILL": 2}}, "I13"),
        ({"ends": {"recycled": 1}}, "I13"),
        ({"ends": {"not ready": 1}}, "I13"),
    ],
)
def test_what_is_wrong_at_rest_is_seen(rest: dict[str, Any], breaks: str, tmp_path: Path) -> None:
    event = batch("submit", 0, 2, "plain", retries=1)
    number, other = work.numbers(0, 2, "plain")
    names = number, other, work.digest_of(number), work.digest_of(other)
    verdict = judged(tmp_path, event, TOLD.format(*names), KILLS, LEDGER.format(*names), **rest)
    assert broken(verdict) == {breaks}


@pytest.mark.parametrize(
    ("way", "retries", "breaks"), [("submit", 0, {"I16"}), ("submit", 1, set()), ("imap", 0, set())]
)
def test_one_worker_that_begins_with_the_second_task_is_seen(
    way: str, retries: int, breaks: set[str], tmp_path: Path
) -> None:
    event = batch(way, 0, 2, "plain", retries=retries)
    numbers = work.numbers(0, 2, "plain")
    ends = "".join(f"end {n} 900 value {work.digest_of(n)}\n" for n in numbers)
    lines = (f"{n} 42 run {20 + k}\n{n} 42 end {20 + k}\n" for k, n in enumerate(reversed(numbers)))
    verdict = judged(tmp_path, event, ends, "", "0 42 born 10\n" + "".join(lines), generations=0, ends={})
    assert broken(verdict) == breaks


def test_no_two_pages_of_large_values_are_the_same() -> None:
    numbers = [len(work.KINDS) * serial + work.LARGE for serial in (0, 1, 7, 4000)]
    pages = set()
    for number in numbers:
        value = work.value_of(number)
        assert isinstance(value, bytes)
        assert work.digest(value) == work.digest_of(number)
        pages.update(value[at : at + 4096] for at in range(0, work.LARGE_SIZE, 4096))
    assert len(pages) == len(numbers) * work.LARGE_SIZE // 4096


@pytest.mark.timeout(60)
def test_what_a_pool_without_monitor_refuses_has_no_outcome(capsys: pytest.CaptureFixture[str]) -> None:
    """And only that: the batch before is told as always; some of it hangs, so it ends by that death, which is known."""
    events = [
        batch("submit", 0, 20, "late"), Event("end by monitor", {}), batch("submit", 20, 5), batch("imap", 30, 5),
    ]  # fmt: skip
    figures = played(Plan("ends", 1, 1, 0.0, False, events, "interrupt"), capsys)
    assert figures["tasks"] == 30
    assert figures["ended: not told"] == 10
    assert figures["ended: broken"] > 0


# ---- what is looked at, and episodes


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


def test_a_count_that_goes_down_is_seen() -> None:
    with Pool(1).start() as pool:
        seen = witness.Witness(pool, 1, 20)
        pool.submit(abs, -7).result()
        seen.look()
        with mock.patch.object(pool._client, "crashes", 5):
            seen.look()
        assert not seen.falls
        seen.look()
        assert seen.falls == ["crashes of the pool, 5 to 0"]


@pytest.mark.timeout(30)
def test_without_kills_nothing_is_healed_and_every_task_is_executed_once(capsys: pytest.CaptureFixture[str]) -> None:
    figures = played(plan.storm(4_000, seed=0, kill_every=0)._replace(profile="calm"), capsys)
    assert figures["healed"] == 0
    assert figures["executions"] == figures["ended: value"] == figures["tasks"] > 3_500


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
    monkeypatch.setattr(campaign, "PLANS", tmp_path / "plans")
    sums = str(tmp_path / "sums.json")
    verdicts = [Verdict([], Counter(kills=2, episodes=1)) for _ in range(4)]
    verdicts += [Verdict(["I5: twice"], Counter(kills=1, episodes=1, violations=1))] * 50
    monkeypatch.setattr(campaign, "play", lambda *_, **__: (verdicts.pop(0), "what it said"))
    assert campaign.campaign(7, 0, "calm", sums)["kills"] == 2
    assert campaign.campaign(8, 100, "calm", sums, slicing=0)["violations"] == 1
    known = campaign.load(sums)[campaign.version()]
    assert known["kills"] == 9
    assert known["seed 7:calm"] == 1
    assert known["seed 8:calm"] == 4
    told = capsys.readouterr().out
    assert "episode 8:3:calm" in told
    assert "I5: twice" in told
    assert "what it said" in told
    (file,) = (tmp_path / "plans").iterdir()
    assert f"again: make chaos REPLAY={file}" in told
    kept = campaign.planned(str(file))
    assert all(event in campaign.planned("8:3:calm").events for event in kept.events)


def test_a_slice_looks_for_what_the_whole_episode_has_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = str(tmp_path / "sums.json")
    campaign.add(sums, Counter({"killed: idle": 5}))
    played = []

    def play(the_plan: Plan, *_: object) -> tuple[Verdict, str]:
        played.append(the_plan)
        return Verdict(["I5: twice"], Counter(violations=1)), ""

    monkeypatch.setattr(campaign, "PLANS", tmp_path / "plans")
    monkeypatch.setattr(campaign, "play", play)
    campaign.campaign(7, 0, "hail", sums, slicing=1)
    (file,) = (tmp_path / "plans").iterdir()
    assert len(played) > 3
    for the_plan in (*played, campaign.planned(str(file))):
        assert the_plan.met is not None
        assert the_plan.met["idle"] == 5


def test_campaigns_that_add_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    sums = str(tmp_path / "sums.json")
    with Pool(2) as pool:
        futures = [pool.submit(_add, sums, 50) for _ in range(2)]
        assert [future.result(50) for future in futures] == [None, None]
    assert campaign.load(sums)[campaign.version()]["kills"] == 100


def _add(sums: str, times: int) -> None:
    for _ in range(times):
        campaign.add(sums, Counter(kills=1))


@pytest.mark.timeout(90)
def test_the_kills_that_other_pools_are_shown() -> None:
    """Of the table of `chaos.peers`, our own line."""
    command = [sys.executable, "-m", "chaos.peers", "--only", "this pool", "--kills", "10", "--seconds", "10"]
    ran = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=80)
    rows = (row for row in ran.stdout.splitlines() if row.startswith(f"| {peers.OURS} |"))
    counted, rates = (row.strip("| ").split(" | ")[1:] for row in rows)
    told = dict(zip(peers.COLUMNS, counted, strict=True))
    assert told["version"] == metadata.version("prefork-pool")
    assert int(told["kills"]) >= 10
    assert peers.is_fair({name: int(told[name]) for name in ("accepted", "values", *peers.BAD)})
    assert told["recovery ms p99"].startswith("max "), "so few have no 99th percentile"
    assert set(rates) == {"-"}, "nor a rate"


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
