"""``Pool.insights()``: what is told of workers, functions, slow items and deaths is what has happened."""

import ctypes
import gc
import json
import os
import random
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import payloads
import processes
import pytest
import tasks
from test_layout import SIZES, SLOT, slots_at

from ipc import _core
from pool import Pool, errors
from pool.insights import FunctionInsight, Insights, PayloadInsight, SlowItem, Utilisation, WorkerInsight
from pool.tally import OTHER, Tally

MIB = 1 << 20


def took(seconds: float) -> float:
    """Sleep; how long it took."""
    start = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - start


def function(insights: Insights, name: str) -> FunctionInsight:
    (found,) = [f for f in insights.functions if f.name == name]
    return found


def parts(worker: WorkerInsight) -> float:
    return worker.start + worker.busy + worker.wait + worker.idle


# ---- workers


def test_before_the_start_there_is_nothing() -> None:
    with Pool(2) as pool:
        insights = pool.insights()
        assert str(insights) == "the workers are not started yet"
        assert (insights.workers, insights.functions, insights.slowest, insights.elapsed) == ([], [], [], 0.0)
    assert pool.insights() == insights


def test_the_four_parts_of_a_workers_time_add_up() -> None:
    with Pool(2).start() as pool:
        processes.wait_until(lambda: [w.state for w in pool.insights().workers] == ["idle"] * 2, "both are there")
        start = time.monotonic()
        inside = pool.submit(took, 0.2).result()
        outside = time.monotonic() - start
        insights = pool.insights()
        for worker in insights.workers:
            assert parts(worker) == pytest.approx(insights.elapsed)
        assert inside <= sum(w.busy for w in insights.workers) <= outside
        assert sorted(w.tasks for w in insights.workers) == [0, 1]
        assert all(w.peak_rss >= w.rss > 0 for w in insights.workers)
        later = processes.wait_until(
            lambda: (i := pool.insights()).elapsed > 2 * insights.elapsed and i, "time goes by"
        )
        for before, after in zip(insights.workers, later.workers, strict=True):
            assert after.busy == before.busy
            assert after.idle - before.idle == pytest.approx(later.elapsed - insights.elapsed)


def test_a_running_task_counts_already(gate: tasks.Gate) -> None:
    with Pool(1) as pool:
        future = pool.submit(tasks.hold, gate.path)
        processes.wait_until(future.running, "it runs")
        first = pool.insights()
        assert first.workers[0].state == "busy"
        second = processes.wait_until(lambda: (i := pool.insights()).workers[0].busy > 0.1 and i, "it goes on")
        gate.open()
        future.result()
        last = pool.insights()
    assert first.workers[0].busy < second.workers[0].busy <= last.workers[0].busy
    assert second.workers[0].tasks == 0
    assert last.workers[0].tasks == 1
    spent = second.workers[0].busy - first.workers[0].busy
    assert spent == pytest.approx(second.elapsed - first.elapsed)
    assert last.workers[0].idle == pytest.approx(last.elapsed - last.workers[0].busy - last.workers[0].start)


def test_start_lasts_until_the_initializer_is_through(gate: tasks.Gate) -> None:
    with Pool(1, initializer=tasks.hold, initargs=(gate.path,)).start() as pool:
        waiting = processes.wait_until(lambda: (i := pool.insights()).elapsed > 0.05 and i, "time goes by")
        (worker,) = waiting.workers
        assert worker.state in ("replaced", "starting")  # at first nobody is forked yet
        assert (worker.start, worker.busy, worker.idle) == (pytest.approx(waiting.elapsed), 0.0, pytest.approx(0.0))
        gate.open()
        pool.submit(tasks.square, 1).result()
        (ready,) = pool.insights().workers
        assert worker.start < ready.start
        processes.wait_until(lambda: pool.insights().workers[0].state == "idle", "it idles")
        assert pool.insights().workers[0].start == ready.start


def test_a_result_without_room_is_waited_for_and_no_run_time() -> None:
    with payloads.small_pool(1, 4) as pool:
        client = pool._client
        futures = []
        with client.lock:  # nobody collects: two of the four units are for results
            futures = [pool.submit(bytes, 40_000) for _ in range(3)]
            _core.flush(client.segment)

            def is_waiting() -> bool:
                (times,) = client.seen().slots  # type: ignore[union-attr]
                return times["doing"] == _core.IS_WAITING and times["wait_ns"] > 50_000_000

            processes.wait_until(is_waiting, "no room for the third")
            seen = client.seen()
        assert [len(future.result()) for future in futures] == [40_000] * 3
        insights = pool.insights()
        (worker,) = insights.workers
        assert worker.wait > 0.05
        assert parts(worker) == pytest.approx(insights.elapsed)
        assert seen is not None
        before = (seen.now - seen.created) / 1e9
        assert worker.busy < insights.elapsed - 0.05 <= before + insights.elapsed
        assert function(insights, "builtins.bytes").total < insights.elapsed - worker.wait


def test_memory_and_cpu_of_the_dead_count() -> None:
    with Pool(1) as pool:
        assert isinstance(pool.submit(fill_and_die, 100 * MIB).exception(), errors.WorkerCrashed)
        (dead,) = processes.wait_until(
            lambda: (i := pool.insights()).workers[0].state == "idle" and i.workers, "replaced"
        )
        assert dead.peak_rss > dead.rss + 90 * MIB  # its successor has what every worker has
        assert dead.cpu >= 0.1


def fill_and_die(size: int) -> None:
    memory = bytearray(size)
    end = time.process_time() + 0.1
    while time.process_time() < end:
        memory[::4096] = b"x" * len(memory[::4096])
    os._exit(1)


# ---- functions


def test_every_item_is_counted_also_in_chunks() -> None:
    with Pool(2) as pool:
        list(pool.imap(tasks.fail_if, range(100), on_error="skip"))
        list(pool.imap(tasks.fail_if, range(100), chunksize=7, on_error="skip"))
        list(pool.imap_unordered(tasks.fail_if, range(100), chunksize=1, on_error="skip"))
        list(pool.map(tasks.square, range(50), chunksize=50))
        for k in range(3):
            pool.submit(partial(tasks.add, 1), k).result()  # carried by each task
        assert isinstance(pool.submit(tasks.make_locked).exception(), errors.ResultNotPicklable)
        insights = pool.insights()
    assert [function(insights, "tasks.fail_if")[k] for k in (1, 2)] == [300, 60]
    assert [function(insights, "tasks.square")[k] for k in (1, 2)] == [50, 0]
    assert [function(insights, "tasks.add")[k] for k in (1, 2)] == [3, 0]
    assert [function(insights, "tasks.make_locked")[k] for k in (1, 2)] == [1, 1]
    assert sum(w.tasks for w in insights.workers) == sum(f.count for f in insights.functions) == 354
    assert insights.crashes == {}


@pytest.mark.parametrize("chunksize", [1, 5])
def test_run_times_are_those_of_the_items(chunksize: int) -> None:
    with Pool(1) as pool:
        start = time.monotonic()
        inside = list(pool.imap(took, [0.01] * 10 + [0.1], chunksize=chunksize))
        outside = time.monotonic() - start
        insights = pool.insights()
    times = function(insights, f"{__name__}.took")
    assert sum(inside) * 0.999 < times.total < outside * 1.001
    assert max(inside) * 0.999 < times.longest
    assert times.total <= insights.workers[0].busy * 1.001
    assert 0.01 * 0.999 < times.p50 < times.longest
    assert times.p50 <= times.p95 <= times.longest
    assert insights.slowest[0].seconds == times.longest


def test_attempts_are_counted_one_by_one(tmp_path: Path) -> None:
    def fails_twice(folder: str) -> int:
        tries = len(os.listdir(folder))
        Path(folder, str(tries)).touch()
        if tries < 2:
            raise ValueError
        return tries

    with Pool(1, retries=5) as pool:
        assert pool.submit(fails_twice, str(tmp_path)).result() == 2
        insights = pool.insights()
    assert [(f.count, f.errors) for f in insights.functions] == [(3, 2)]


def test_peak_memory_of_a_function() -> None:
    with Pool(1) as pool:
        pool.submit(took, 0.002).result()
        pool.submit(fill, 100 * MIB).result()
        pool.submit(tasks.square, 3).result()
        pool.submit(took, 0.002).result()
        insights = pool.insights()
    small = function(insights, f"{__name__}.took").peak_rss
    assert MIB < small < function(insights, f"{__name__}.fill").peak_rss - 90 * MIB


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("value", [None, [None]])  # what a chunk carries plainly, and what it does not
def test_cpu_time_of_a_function(workers: int, chunksize: int, value: object) -> None:
    def burn(seconds: float) -> object:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
        return value

    with Pool(workers) as pool:
        list(pool.imap(burn, [0.05] * 6, chunksize=chunksize))
        list(pool.imap(took, [0.05] * 3, chunksize=chunksize))
        insights = pool.insights()
    burnt, slept = (function(insights, f"{__name__}.{name}") for name in (burn.__qualname__, "took"))
    assert 0.25 < burnt.cpu_user + burnt.cpu_system < 0.45  # clocks of some machines differ by a tenth
    assert slept.total > 0.15
    assert slept.cpu_user + slept.cpu_system < 0.05
    head, row = str(insights).split("\n\n")[1].split("\n")[:2]
    shown = row[: head.index("cpu") + len("cpu")].split()[-2:]
    assert shown == [f"{1000 * (burnt.cpu_user + burnt.cpu_system):.0f}", "ms"]


def fill(size: int) -> None:
    memory = bytearray(size)
    memory[::4096] = b"x" * len(memory[::4096])
    time.sleep(0.002)


def test_functions_beyond_the_last_number_are_counted_together() -> None:
    tally = Tally()
    numbers = [tally.number(f"name{k}") for k in range(300)]
    assert numbers == [*range(1, 256), *[0] * 45]
    assert [tally.number(f"name{k}") for k in (0, 254, 299)] == [1, 255, 0]
    with Pool(1) as pool:
        for k in range(254):
            pool._client.tally.number(f"name{k}")
        assert pool.submit(tasks.square, 2).result() == 4
        assert pool.submit(tasks.identity, 5).result() == 5
        assert pool.submit(tasks.pid).result() > 0
        insights = pool.insights()
    assert {f.name: f.count for f in insights.functions} == {"tasks.square": 1, OTHER: 2}


# ---- deaths


def die_of(how: str) -> None:
    if how == "SIGSEGV":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit code 7":
        os._exit(7)
    time.sleep(3600)


def test_deaths_by_reason() -> None:
    with Pool(2) as pool:
        for how in ("SIGSEGV", "exit code 7", "SIGSEGV"):
            assert isinstance(pool.submit(die_of, how).exception(), errors.WorkerCrashed)
        assert isinstance(pool.options(timeout=0.05).submit(die_of, "late").exception(), errors.TaskTimeout)
        future = pool.submit(die_of, "killed")
        processes.wait_until(future.running, "it runs")
        assert future.kill()
        assert isinstance(future.exception(), errors.TaskKilled)
        insights = pool.insights()
        assert insights.crashes == {"SIGSEGV": 2, "exit code 7": 1, "timeout": 1, "killed": 1}
        told = function(insights, f"{__name__}.die_of")
        assert (told.count, told.errors, told.crashes, told.limits, told.kills) == (0, 0, 3, 1, 1)
        restarts = [how for worker in insights.workers for how, count in worker.restarts.items() for _ in range(count)]
        assert sorted(restarts) == ["SIGSEGV", "SIGSEGV", "exit code 7", "killed", "timeout"]
        assert sum(w.busy for w in insights.workers) > 0.05  # the timeout was
        assert sorted(how for _, _, how in insights.utilisation.deaths) == sorted(restarts)
        assert all(0 < at <= insights.elapsed for at, _, _ in insights.utilisation.deaths)
        assert pool.crashes == 3


def test_an_idle_workers_death_is_a_restart_but_no_crash() -> None:
    with Pool(1) as pool:
        pid = pool.submit(tasks.pid).result()
        os.kill(pid, signal.SIGKILL)
        processes.wait_until(lambda: pool.insights().workers[0].restarts == {"SIGKILL": 1}, "told")
        assert pool.insights().crashes == {}
        assert pool.submit(tasks.pid).result() != pid


def test_a_stopped_worker_is_shown_as_stopped(gate: tasks.Gate) -> None:
    with Pool(2) as pool:
        future = pool.submit(tasks.hold, gate.path)
        (pid,) = gate.await_start()
        os.kill(pid, signal.SIGSTOP)
        processes.wait_until(lambda: processes.is_stopped(pid), "it is stopped")
        insights = pool.insights()
        assert [w.state for w in insights.workers if w.pid == pid] == ["stopped"]
        assert [w.state for w in insights.workers if w.pid != pid] != ["stopped"]
        assert "stopped" in str(insights)
        os.kill(pid, signal.SIGCONT)
        gate.open()
        assert future.result(20) is None
        assert "stopped" not in [w.state for w in pool.insights().workers]


def _leave_threads(count: int) -> None:
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()


def test_threads_that_tasks_have_left_are_counted() -> None:
    with Pool(1) as pool:
        pool.submit(abs, -1).result(20)
        before = pool.insights().workers[0].threads
        pool.submit(_leave_threads, 3).result(20)
        assert pool.insights().workers[0].threads == before + 3
    assert pool.insights().workers[0].threads == 0


def test_recycled_and_failed_starts(tmp_path: Path) -> None:
    def fails_once() -> None:
        try:
            (tmp_path / "marker").mkdir()
        except FileExistsError:
            return
        raise ValueError

    with Pool(2, initializer=fails_once, max_tasks_per_child=10) as pool:
        assert len(list(pool.imap_unordered(tasks.square, range(35), chunksize=1))) == 35

        def all_are_told() -> list[WorkerInsight] | None:
            workers = pool.insights().workers
            told = all(w.restarts.get("recycled", 0) == w.tasks // 10 for w in workers)
            return workers if told and {w.state for w in workers} == {"idle"} else None

        workers = processes.wait_until(all_are_told, "each worker is recycled after ten tasks")
        assert sum(w.tasks for w in workers) == 35
        assert [w.start > 0.1 for w in workers if "not ready" in w.restarts] == [True]  # the wait after a failed start


def test_items_before_and_behind_a_crash_in_a_chunk_count() -> None:
    with Pool(1) as pool:
        calls = [(x, 7) for x in range(1, 21)]
        assert len(list(pool.istarmap(tasks.die_now_and_then, calls, chunksize=20, on_error="return"))) == 20
        insights = pool.insights()
    (told,) = insights.functions
    assert (told.count, told.errors, told.crashes) == (18, 0, 2)
    assert list(insights.crashes.values()) == [2]


# ---- slow items


class Odd:
    """Shown only where nobody holds the client's lock; and there may be many things that a repr does."""

    def __init__(self, pool: Any = None) -> None:
        self.text = "odd"

    def __repr__(self) -> str:
        owned = [o for o in gc.get_objects() if isinstance(o, Pool) and o._client.lock._is_owned()]  # type: ignore[attr-defined]
        return f"Odd({len(owned)} locks held)"


class Unshowable:
    def __repr__(self) -> str:
        raise SystemError


def slow(x: Any, **_: Any) -> None:
    time.sleep(0.002)


def slowest_of(run: Callable[[Pool], Any]) -> SlowItem:
    with Pool(1) as pool:
        run(pool)
        return pool.insights().slowest[0]


@pytest.mark.parametrize("chunksize", [1, 4])
def test_the_slowest_items_are_named(chunksize: int) -> None:
    seconds = [0.0] * 40
    seconds[7], seconds[21], seconds[33] = 1.1, 1.2, 1.0  # longer than anybody is kept from his core
    with Pool(2) as pool:
        list(pool.imap(tasks.sleep, seconds, chunksize=chunksize))
        slowest = pool.insights().slowest
    assert len(slowest) == 5
    assert {(s.index, s.item, s.function) for s in slowest[:3]} == {
        (21, "1.2", "tasks.sleep"),
        (7, "1.1", "tasks.sleep"),
        (33, "1.0", "tasks.sleep"),
    }
    assert all(s.seconds >= float(s.item) * 0.999 and s.slot in (0, 1) for s in slowest)
    assert slowest == sorted(slowest, key=lambda s: -s.seconds)


@pytest.mark.parametrize(
    ("run", "item", "index"),
    [
        (lambda pool: pool.submit(slow, "a").result(), "'a'", None),
        (lambda pool: pool.submit(slow, "a", k=3).result(), "'a', k=3", None),
        (lambda pool: pool.submit(partial(slow, k=1), (1, 2)).result(), "(1, 2)", None),
        (lambda pool: pool.submit(time.sleep, 0.002).result(), "0.002", None),
        (lambda pool: pool.starmap(slow, [("b",)], chunksize=1), "('b',)", 0),
        (lambda pool: list(pool.imap(slow, [Odd()])), "Odd(0 locks held)", 0),
        (lambda pool: list(pool.imap(slow, [[Odd()]], chunksize=2)), "[Odd(0 locks held)]", 0),
        (lambda pool: pool.submit(slow, Unshowable()).result(), "<Unshowable instance at", None),
        (lambda pool: list(pool.imap(slow, [numpy.zeros(MIB)])), "(8.00 MiB of arguments)", 0),
        (lambda pool: pool.submit(slow, b"x" * (MIB + 1)).result(), "(1.00 MiB of arguments)", None),
        (lambda pool: pool.submit(slow, Pool.share([1, 2])).result(), "of arguments)", None),
    ],
)
def test_items_are_shown_shortened(run: Callable[[Pool], Any], item: str, index: int | None) -> None:
    slowest = slowest_of(run)
    assert item in slowest.item
    assert len(slowest.item) < 200
    assert slowest.index == index


def test_slow_items_are_not_held() -> None:
    with Pool(1) as pool:
        odd = Odd()
        held = weakref.ref(odd)
        pool.submit(slow, odd).result()
        (shown,) = pool.insights().slowest
        assert shown.item == "Odd(0 locks held)"
        del odd
        gc.collect()
        assert held() is None
        assert pool._client.tally.found == []


def test_only_the_slowest_stay() -> None:
    with Pool(1) as pool:
        list(pool.imap_unordered(took, [k / 1000 for k in range(30)], chunksize=1))
        assert len(pool._client.tally.slowest) == _core.SLOWEST
        assert min(s.seconds for s in pool.insights().slowest) >= 0.020


# ---- after the end, damage


@pytest.mark.parametrize("how", ["shutdown", "kill_workers", "monitor"])
def test_the_last_state_is_kept(how: str) -> None:
    pool = Pool(2)
    list(pool.imap(tasks.square, range(1000)))
    assert isinstance(pool.submit(die_of, "exit code 7").exception(), errors.WorkerCrashed)
    if how == "monitor":
        assert pool._client._running is not None
        os.kill(pool._client._running.pid, signal.SIGKILL)
        with pytest.raises(errors.PoolBroken):
            pool.submit(time.sleep, 3600).result()
    else:
        getattr(pool, how)()
    insights = pool.insights()
    assert pool.insights() == insights
    assert {worker.state for worker in insights.workers} == {"ended"}
    assert {worker.pid for worker in insights.workers} == {0}
    assert sum(worker.tasks for worker in insights.workers) == 1000
    assert sorted(worker.restarts != {} for worker in insights.workers) == [False, True]
    assert function(insights, "tasks.square").count == 1000
    for worker in insights.workers:
        assert parts(worker) == pytest.approx(insights.elapsed)
        if how != "monitor":  # then nobody knows
            assert worker.cpu > 0
            assert worker.peak_rss > MIB
    assert " all" in str(insights)
    assert sum(w.busy for w in insights.workers) < insights.elapsed * 2


def test_damage_of_what_workers_tell_breaks_no_reader(tmp_path: Path) -> None:
    told = [*(SLOT[name] for name in ("tasks", "parks", "start_ns", "wait_ns", "since", "used_ns", "used_most"))]
    told += range(SLOT["spans"], SLOT["spans"] + SIZES["ipc_spans"], 8)
    chance = random.Random(7)
    with Pool(2) as pool:
        list(pool.imap(tasks.square, range(1000)))
        start = _control_segment(pool)
        for k in range(50):
            with pool._client.lock:
                for slot in range(2):
                    for at in told:
                        if chance.random() < 0.3:
                            where = start + slots_at(len(pool._client.tasks)) + slot * SIZES["ipc_slot"] + at
                            ctypes.c_uint64.from_address(where).value = chance.getrandbits(chance.choice((8, 40, 64)))
            insights = pool.insights()
            for worker in insights.workers:
                assert parts(worker) == pytest.approx(insights.elapsed)
            assert all(0 <= share <= 1 for busy in insights.utilisation.busy for share in busy)
            assert len(str(insights)) < 10_000
            assert json.loads(json.dumps(insights.to_dict())) is not None
            if k == 0:
                insights.plot(tmp_path / "damage.svg")
        assert list(pool.imap(tasks.square, range(1000))) == [x * x for x in range(1000)]
        assert function(pool.insights(), "tasks.square").count == 2000  # that is the client's own


def _control_segment(pool: Pool) -> int:
    """Where the client has mapped it: the only one of its size and age that `created` fits to."""
    created = _core.counters(pool._client.segment)["created"]
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "pool-control" in line:
            start = int(line.split("-")[0], 16)
            if ctypes.c_uint64.from_address(start + 40).value == created:
                return start
    raise AssertionError("it is mapped")


def test_after_damage_of_everything_the_fresh_workers_are_told() -> None:
    from test_damage import overwrite

    with Pool(2) as pool:
        list(pool.imap(tasks.square, range(100)))
        assert isinstance(pool.submit(overwrite, "all").exception(timeout=30), errors.SegmentCorrupt)
        insights = pool.insights()
        assert len(insights.workers) == 2
        assert sum(w.tasks for w in insights.workers) == 0
        assert function(insights, "tasks.square").count == 100


# ---- inline


def test_no_workers() -> None:
    with Pool(0) as pool:
        assert pool.insights().workers == []
        inside = pool.submit(took, 0.05).result()
        list(pool.imap(tasks.fail_if, range(10), chunksize=3, on_error="skip"))
        pool.submit(lambda: pool.submit(took, 0.02).result()).result()  # nested: no time counts twice
        insights = pool.insights()
        (worker,) = insights.workers
        assert (worker.pid, worker.tasks) == (os.getpid(), 13)
        assert inside <= worker.busy <= insights.elapsed
        assert parts(worker) == pytest.approx(insights.elapsed)
        assert [function(insights, "tasks.fail_if")[k] for k in (1, 2)] == [10, 2]
        assert function(insights, f"{__name__}.took").count == 2
        assert insights.slowest[0].item == "0.05"
    last = pool.insights()
    assert last.workers[0].state == "ended"
    assert last.workers[0].cpu > 0
    assert pool.insights() == last
    assert "took" in str(last)


# ---- tables, JSON, plots


def synthetic(workers: int) -> Insights:
    """As wide as it can become."""
    ends = {"SIGSEGV": 1_234_567, "exit code 255": 2, "timeout": 1, "recycled": 12, "killed": 99, "not ready": 1}
    return Insights(
        elapsed=99_999.9,
        workers=[
            WorkerInsight(slot, 4_194_304, "starting", 1e4, 7e4, 1e3, 18_999.9, 10**9, ends, 2**40, 2**41, 12_345.6, 1)
            for slot in range(workers)
        ],
        functions=[
            FunctionInsight(
                "package." * 10 + "f", 10**9, 10**5, 10**5, 10**5, 10**3, 99_999.0, 1e-9, 0.1, 9e4, 9e4, 9e3, 2**40
            )
        ],
        slowest=[SlowItem(99_999.0, "package." * 10 + "f", "x" * 300, 10**9 - 1, 511)],
        crashes=ends,
        payload=PayloadInsight(2**33, 2**32, 2**31, 2**31, 2**31, 10**6, 10**6),
        utilisation=Utilisation(1000.0, [[0.0, 0.5, 1.0]] * workers, [(1.0, 0, "SIGSEGV")]),
    )


@pytest.mark.parametrize("workers", [1, 2, 64, 512])
def test_tables_are_aligned_and_no_wider_than_120_columns(workers: int) -> None:
    table, *others = str(synthetic(workers)).split("\n\n")
    lines = table.split("\n")
    assert len(lines) == 1 + workers + (workers > 1)
    assert max(len(line) for line in "\n".join([table, *others]).split("\n")) <= 120
    right = [re.compile(rf"^.{{{lines[0].index(name) + len(name) - 1}}}\S( |$)") for name in ("tasks", "cpu", "rss")]
    assert all(column.match(line) for line in lines for column in right)
    if workers > 1:
        assert lines[-1].split()[:5] == ["all", "10.0%", "70.0%", "1.0%", "19.0%"]


def test_insights_are_json(pool: Pool, tmp_path: Path) -> None:
    list(pool.imap(tasks.square, range(10)))
    insights = pool.insights()
    data = json.loads(json.dumps(insights.to_dict()))
    assert data["functions"][0]["name"] == "tasks.square"
    assert data["workers"][1]["slot"] == 1
    assert data["utilisation"]["step"] > 0
    assert set(data) == set(Insights._fields)


def test_utilisation_is_where_the_time_went(gate: tasks.Gate) -> None:
    with Pool(2) as pool:
        pool.submit(took, 0.1).result()
        futures = [pool.submit(tasks.hold, gate.path) for _ in range(2)]
        processes.wait_until(lambda: all(future.running() for future in futures), "both run")
        processes.wait_until(lambda: sum(w.busy for w in pool.insights().workers) > 4.0, "some folds")
        gate.open(2)
        for future in futures:
            future.result()
        insights = pool.insights()
    use = insights.utilisation
    assert len(use.busy[0]) == len(use.busy[1]) <= 180
    assert (len(use.busy[0]) - 1) * use.step < insights.elapsed <= len(use.busy[0]) * use.step
    for worker, busy in zip(insights.workers, use.busy, strict=True):
        whole = sum(busy[:-1]) * use.step + busy[-1] * (insights.elapsed - (len(busy) - 1) * use.step)
        assert whole == pytest.approx(worker.busy)
        assert max(busy) == pytest.approx(1.0)
        assert busy[0] < 1


def test_a_pool_that_idles_for_long_has_no_more_points(pool: Pool) -> None:
    pool.submit(tasks.square, 2).result()
    client = pool._client
    with client.lock:
        seen = client.seen()
    assert seen is not None
    from pool.insights import _utilisation

    use = _utilisation(seen._replace(now=seen.created + 10**15), [])  # eleven days later
    assert 90 <= len(use.busy[0]) <= 180
    assert len(use.busy[0]) * use.step >= 10**6


@pytest.mark.parametrize(
    ("suffix", "magic", "workers"), [(".svg", b"<?xml", 64), (".png", b"\x89PNG", 2), (".SVG", b"<?xml", 1)]
)
def test_plots(tmp_path: Path, suffix: str, magic: bytes, workers: int) -> None:
    path = tmp_path / f"plot{suffix}"
    synthetic(workers).plot(path)
    data = path.read_bytes()
    assert data.startswith(magic)
    if magic == b"<?xml":
        text = data.decode()
        assert "busy in 27.8 hours" in text
        assert "1 SIGSEGV" in text


def test_what_cannot_be_plotted_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"a plot is a \.svg or a \.png file, not 'x\.pdf'"):
        synthetic(2).plot("x.pdf")
    with Pool(1) as pool, pytest.raises(ValueError, match="before the workers are started"):
        pool.insights().plot(tmp_path / "x.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'prefork-pool\[plot\]'"):
        synthetic(2).plot(tmp_path / "x.svg")
    assert list(tmp_path.iterdir()) == []
