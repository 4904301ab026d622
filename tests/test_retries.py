"""Tasks that run again: when, how often, and what else happens meanwhile."""

import asyncio
import concurrent.futures
import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import processes
import pytest
import tasks

from ipc import _core
from pool import Backoff, Failure, Pool, errors, worker

LONG = 600.0  # seconds that no test waits
STEADY = Backoff(0.05, jitter=0)


def note(path: str, text: object = "") -> int:
    """A line with the time; how many there are now."""
    with open(path, "a") as file:
        file.write(f"{time.monotonic()} {text}\n")
    return len(Path(path).read_text().splitlines())


def times(path: Path) -> list[float]:
    return [float(line.split()[0]) for line in path.read_text().splitlines()]


def gaps(path: Path) -> list[float]:
    return [b - a for a, b in itertools.pairwise(times(path))]


def fail_until(path: str, count: int, make: Callable[[], BaseException], value: Any = None) -> Any:
    """Raise what `make` makes, until it is called for the `count`-th time. Returns (value, its attempt)."""
    if note(path) < count:
        raise make()
    return value, worker().attempt


def value_error() -> BaseException:
    return ValueError("again")


def soon() -> BaseException:
    return errors.RetryAfter(0.1, "busy")


def much_later() -> BaseException:
    return errors.RetryAfter(LONG)


def defer() -> BaseException:
    return errors.Defer("not yet")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(params=[0, 2], ids=["here", "2 workers"])
def either(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with Pool(request.param) as pool:
        yield pool


def waits(pool: Pool) -> bool:
    return bool(pool._client.delayed.waiting)


# ---- backoff


def test_a_failed_task_waits_longer_each_time(either: Pool, path: Path) -> None:
    patient = either.options(retries=3, backoff=STEADY)
    assert patient.submit(fail_until, str(path), 4, value_error).result() == (None, 4)
    first, second, third = gaps(path)
    assert first >= 0.05
    assert second >= 0.1
    assert third >= 0.2


@pytest.mark.parametrize("end", ["dies", "is stopped"])
def test_a_task_whose_worker_ends_waits_too(path: Path, end: str) -> None:
    with Pool(1, retries=1, backoff=Backoff(0.2, jitter=0), timeout=1) as pool:
        assert pool.submit(_ends_once, str(path), end).result() == "done"
    assert gaps(path)[0] >= 0.2


def _ends_once(path: str, end: str) -> str:
    if note(path) > 1:
        return "done"
    if end == "dies":
        tasks.die()
    return str(tasks.sleep(1000))


def test_without_backoff_there_is_no_wait(path: Path) -> None:
    """A retry of a single future had waited for the next look at lost hints, a tenth of a second."""
    with Pool(1, retries=100) as pool:
        assert pool.submit(fail_until, str(path), 101, value_error).result() == (None, 101)
    assert statistics.median(gaps(path)) < 0.05


@pytest.mark.parametrize("value", ["1", [1]])
def test_a_backoff_is_a_number_or_a_backoff(value: Any) -> None:
    with pytest.raises(TypeError, match="backoff must be a number of seconds, a Backoff or None"):
        Pool(0, backoff=value)


def test_a_number_is_short_for_a_backoff() -> None:
    pool = Pool(0, backoff=2)
    backoff = pool._policy.backoff
    assert backoff is not None
    assert (backoff.first, backoff.jitter) == (2, 1)
    assert pool.options(backoff=0)._policy.backoff is None
    assert pool.options(backoff=None)._policy.backoff is None
    assert pool.options(retries=3)._policy.backoff is backoff
    with pytest.raises(ValueError, match="must be greater than 0"):
        pool.options(backoff=-1)


# ---- while it waits


def test_a_waiting_task_costs_no_worker_and_can_be_cancelled(path: Path) -> None:
    began = time.monotonic()
    with processes.nothing_left(), Pool(1, retries=1) as pool:
        future = pool.submit(fail_until, str(path), 2, much_later)
        assert list(pool.imap(tasks.square, range(100))) == [x * x for x in range(100)]
        processes.wait_until(lambda: waits(pool), "it waits for its time")
        assert not future.running()
        assert not future.done()
        assert future.cancel()
        assert future.cancelled()
        assert not waits(pool)
        assert pool._client.idle_or_closed()
    assert time.monotonic() - began < LONG / 10


@pytest.mark.parametrize("how", ["kill", "shutdown", "terminate", "exception", "view"])
def test_whoever_ends_it_need_not_wait(path: Path, how: str) -> None:
    began = time.monotonic()
    pool = Pool(1, retries=1).start()
    view = pool.options(retries=1)
    future = view.submit(fail_until, str(path), 2, much_later)
    pool.submit(tasks.pid).result()
    processes.wait_until(lambda: waits(pool), "it waits for its time")
    if how == "kill":
        assert future.kill()
        assert future.cancelled()
    elif how == "shutdown":
        pool.shutdown(cancel_futures=True)
        assert future.cancelled()
    elif how == "view":
        view.shutdown(cancel_futures=True)
        assert future.cancelled()
    elif how == "terminate":
        pool.terminate_workers()
        assert isinstance(future.exception(), errors.PoolBroken)
    else:
        with pytest.raises(KeyboardInterrupt), pool:
            raise KeyboardInterrupt
        assert isinstance(future.exception(), errors.PoolBroken)
    pool.shutdown()
    assert time.monotonic() - began < LONG / 10


def test_an_interrupt_while_somebody_waits_for_it(path: Path) -> None:
    pool = Pool(1, retries=1)
    future = pool.submit(fail_until, str(path), 2, much_later)

    def interrupted() -> None:
        pool.submit(os.kill, os.getpid(), signal.SIGINT)
        future.result()

    with pytest.raises(KeyboardInterrupt), pool:
        interrupted()
    assert isinstance(future.exception(), errors.PoolBroken)


def test_an_interrupt_of_who_waits_without_workers(path: Path) -> None:
    began = time.monotonic()
    pool = Pool(0, retries=1)
    interrupt = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))

    def interrupted() -> None:
        interrupt.start()
        pool.submit(fail_until, str(path), 2, much_later)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    interrupt.join()
    assert pool.submit(tasks.square, 2).result() == 4
    assert time.monotonic() - began < LONG / 10


def test_the_death_of_the_monitor_is_seen_meanwhile(path: Path) -> None:
    pool = Pool(1, retries=1)
    future = pool.submit(fail_until, str(path), 2, much_later)
    pool.submit(tasks.pid).result()
    os.kill(processes.monitor_pid(pool), signal.SIGKILL)
    assert isinstance(future.exception(LONG / 10), errors.PoolBroken)


def test_shutdown_waits_for_it(path: Path) -> None:
    with Pool(1, retries=1) as pool:
        future = pool.submit(fail_until, str(path), 2, soon)
    assert future.result(0) == (None, 2)
    assert gaps(path)[0] >= 0.1


@pytest.mark.parametrize("how", ["callback", "wait", "as_completed"])
def test_its_time_comes_although_nobody_waits_in_our_code(path: Path, how: str) -> None:
    with Pool(1, retries=1) as pool:
        future = pool.submit(fail_until, str(path), 2, soon)
        if how == "callback":
            called = threading.Event()
            future.add_done_callback(lambda _: called.set())
            assert called.wait(20)
        elif how == "wait":
            assert concurrent.futures.wait([future], 20).done == {future}
        else:
            assert list(concurrent.futures.as_completed([future], 20)) == [future]
        assert future.result(0) == (None, 2)


def test_many_waits_end_each_at_its_time(tmp_path: Path) -> None:
    paths = [tmp_path / str(n) for n in range(60)]
    with Pool(2, retries=1) as pool:
        delays = [0.002 * (n * 7 % 60) for n in range(60)]
        futures = [pool.submit(_after, str(p), d) for p, d in zip(paths, delays, strict=True)]
        for future in futures[::3]:
            future.cancel()
        done = [f for f in futures if not f.cancelled()]
        assert all(f.result(20) == 2 for f in done)
    for path, delay, future in zip(paths, delays, futures, strict=True):
        if not future.cancelled():
            assert gaps(path)[0] >= delay


def _after(path: str, delay: float) -> int:
    if note(path) == 1:
        raise errors.RetryAfter(delay)
    return worker().attempt


# ---- maps


def _rest_first(folder: str, x: int, below: int, seconds: float) -> int:
    """Items below ask for a wait at their first attempt."""
    if x < below and worker().attempt == 1:
        note(f"{folder}/{x}")
        raise errors.RetryAfter(seconds)
    return x


def calls(folder: Path, count: int, below: int, seconds: float) -> Iterator[tuple[str, int, int, float]]:
    return ((str(folder), x, below, seconds) for x in range(count))


@pytest.mark.parametrize("chunksize", [1, 8, "auto"])
def test_other_items_of_a_map_go_on(tmp_path: Path, chunksize: Any) -> None:
    """Far more items wait than the workers have in hand."""
    with Pool(2, retries=1) as pool:
        results = pool.istarmap_unordered(_rest_first, calls(tmp_path, 5000, 200, LONG), chunksize=chunksize)
        first = list(itertools.islice(results, 4800))
        assert sorted(first) == list(range(200, 5000))
        results.close()  # type: ignore[attr-defined]
        assert not waits(pool)
        assert pool.submit(tasks.square, 2).result() == 4


@pytest.mark.parametrize("chunksize", [1, 8])
@pytest.mark.parametrize("buffersize", [None, 4])
def test_a_map_keeps_its_order_and_its_bound(tmp_path: Path, buffersize: int | None, chunksize: int) -> None:
    read = given = 0

    def source() -> Iterator[Any]:
        nonlocal read
        for x in range(50):
            read += 1
            yield str(tmp_path), x, 6, 0.05

    with Pool(2, retries=1) as pool:
        results = pool.istarmap(_rest_first, source(), chunksize=chunksize, buffersize=buffersize)
        for n, result in enumerate(results):
            assert result == n
            given = max(given, read - n)
        assert n == 49
    assert buffersize is None or given <= buffersize + 1


def test_an_eager_map_waits_as_futures_do(tmp_path: Path) -> None:
    with Pool(2, retries=1) as pool:
        columns = [[str(tmp_path)] * 40, range(40), [5] * 40, [0.05] * 40]
        results = pool.map(_rest_first, *columns, chunksize=4)  # type: ignore[arg-type]
        processes.wait_until(pool._client.idle_or_closed, "all has run, although nobody iterates")
        assert list(results) == list(range(40))


def test_large_items_that_wait_do_not_fill_the_memory(tmp_path: Path) -> None:
    """Little more than 64 MiB of them."""
    read = 0

    def source() -> Iterator[Any]:
        nonlocal read
        while True:
            read += 1
            yield numpy.zeros(4 << 20, numpy.uint8)

    with Pool(2, retries=1).start() as pool:
        reader = threading.Thread(target=_read_until_killed, args=(pool.imap_unordered(_rest_large, source()),))
        reader.start()
        waiting = pool._client.delayed.waiting
        processes.wait_until(lambda: len(waiting) >= 16 and len(waiting) == read, "so many wait, and no other was read")
        assert read <= 40
        pool.terminate_workers()
        reader.join()


def _read_until_killed(results: Iterator[Any]) -> None:
    with pytest.raises(errors.PoolBroken):
        next(results)


def _rest_large(array: Any) -> None:
    raise errors.RetryAfter(LONG)


# ---- what tasks ask for


def test_retry_after_is_an_attempt_with_a_wait_of_its_own(either: Pool, path: Path) -> None:
    patient = either.options(retries=2, backoff=LONG)
    assert patient.submit(fail_until, str(path), 3, soon).result() == (None, 3)
    assert min(gaps(path)) >= 0.1


def test_retry_after_without_retries_reaches_the_caller(either: Pool, path: Path) -> None:
    error = either.submit(fail_until, str(path), 2, soon).exception()
    assert isinstance(error, errors.RetryAfter)
    assert (error.delay, error.reason, str(error)) == (0.1, "busy", "again in 0.1 s: busy")
    with pytest.raises(errors.RetryAfter):
        list(either.imap(_always_later, [1]))


def _always_later(x: int) -> None:
    raise errors.RetryAfter(0)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "soon", None])
def test_a_delay_is_a_number_of_seconds(delay: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        errors.RetryAfter(delay)


class Spoilt(errors.RetryAfter):
    def __init__(self) -> None:
        super().__init__(1)
        self.delay = float("nan")


def test_a_delay_that_was_spoilt_is_an_error_like_others(either: Pool, path: Path) -> None:
    assert either.options(retries=1).submit(fail_until, str(path), 2, Spoilt).result() == (None, 2)


def test_defer_is_no_attempt_and_goes_behind_what_waits(path: Path) -> None:
    with Pool(1) as pool:
        first = pool.submit(_defer_once, str(path), "a")
        others = [pool.submit(note, str(path), name) for name in "bcdef"]
        assert first.result() == 1
        concurrent.futures.wait(others)
    order = "".join(line.split()[1] for line in path.read_text().splitlines())
    assert order.count("a") == 2
    assert order.startswith("a")
    assert not order.startswith("aa")
    assert sorted(order) == list("aabcdef")


def _defer_once(path: str, name: str) -> int:
    note(path, name)
    if path in tasks.STATE:
        return worker().attempt
    tasks.STATE[path] = True
    raise errors.Defer


def test_a_task_that_defers_itself_again_and_again_slows_down(either: Pool, path: Path) -> None:
    assert either.submit(fail_until, str(path), 9, defer).result() == (None, 1)
    slow = gaps(path)[3:]
    assert all(gap >= 0.01 * 2**n for n, gap in enumerate(slow))
    assert len(slow) == 5


def test_one_that_always_does_can_be_cancelled(path: Path) -> None:
    with Pool(1) as pool:
        future = pool.submit(fail_until, str(path), 10**9, defer)
        processes.wait_until(lambda: path.exists() and len(times(path)) > 5 and waits(pool), "it waits")
        processes.wait_until(future.kill, "killed or cancelled")
        assert isinstance(future.exception(), errors.TaskKilled) if not future.cancelled() else True


@pytest.mark.parametrize("chunksize", [1, 3])
def test_items_of_a_map_may_defer(tmp_path: Path, either: Pool, chunksize: int) -> None:
    items = [(f"{tmp_path}/{x}", 6 if x % 4 == 0 else 1, defer, x) for x in range(20)]
    results = either.istarmap(fail_until, items, chunksize=chunksize)
    assert list(results) == [(x, 1) for x in range(20)]


def test_arrays_need_retries_for_a_second_run(path: Path) -> None:
    """Without, they are the task's own: it may have changed them."""
    array = numpy.arange(1000)
    with Pool(1) as pool:
        assert isinstance(pool.submit(_spoil, str(path), array).exception(), errors.Defer)
        assert pool.options(retries=1).submit(_spoil, str(path) + " again", array).result() == 499500
        results = list(pool.options(retries=1).imap(_spoil_item, [array, array]))
        assert results == [499500, 499500]


def _spoil(path: str, array: Any) -> int:
    total = int(array.sum())
    array += 1
    if note(path) == 1:
        raise errors.Defer
    return total


def _spoil_item(array: Any) -> int:
    total = int(array.sum())
    if tasks.STATE.setdefault("spoilt", 0) < 2:
        tasks.STATE["spoilt"] += 1
        array += 1
        raise errors.Defer
    return total


def test_abort_is_not_run_again_by_either(either: Pool, path: Path) -> None:
    patient = either.options(retries=5, backoff=LONG)
    assert isinstance(patient.submit(fail_until, str(path), 9, errors.Abort).exception(), errors.Abort)
    assert len(times(path)) == 1


# ---- poison


@pytest.mark.parametrize("form", ["submit", "imap", "chunk"])
def test_a_task_that_has_crashed_three_workers_is_given_up(path: Path, form: str) -> None:
    with Pool(2, retries=50) as pool:
        if form == "submit":
            error = pool.submit(_poison, (str(path), 3)).exception()
        else:
            items = [(str(path), x) for x in range(10)]
            results = list(pool.imap(_poison, items, chunksize=5 if form == "chunk" else 1, on_error="return"))
            (failure,) = (r for r in results if isinstance(r, Failure))
            assert failure.index == 3
            assert [r for r in results if r is not failure] == [x for x in range(10) if x != 3]
            error = failure.error
        assert isinstance(error, errors.WorkerCrashed)
        assert (error.attempt, error.crashes, error.poison, error.exitcode) == (3, 3, True, 9)
        assert "attempt 3); not run again after 3 crashes" in str(error)
        assert len(times(path)) == 3
        assert pool.crashes == 3
        assert pool.submit(tasks.square, 3).result() == 9


def _poison(item: tuple[str, int]) -> int:
    path, x = item
    if x == 3:
        note(path)
        tasks.die()
    return x


def test_only_crashes_count_as_such(path: Path) -> None:
    """Three of them, with other failures in between."""
    with Pool(1, retries=50, timeout=1.5) as pool:
        error = pool.submit(_fail_in_turn, str(path)).exception()
        assert isinstance(error, errors.WorkerCrashed)
        assert (error.attempt, error.crashes, error.poison) == (8, 3, True)


def _fail_in_turn(path: str) -> None:
    way = "erete-ede"  # as below, or else a crash
    turn = note(path) - 1
    if way[turn] == "e":
        raise ValueError
    if way[turn] == "t":
        tasks.sleep(1000)
    tasks.die()


def test_crashes_without_retries_are_no_poison() -> None:
    with Pool(1) as pool:
        error = pool.submit(tasks.die).exception()
        assert isinstance(error, errors.WorkerCrashed)
        assert (error.crashes, error.poison) == (1, False)
        error = pool.options(retries=2).submit(tasks.die).exception()
        assert isinstance(error, errors.WorkerCrashed)
        assert (error.crashes, error.poison) == (3, False), "its attempts were spent anyway"


# ---- event loops


def test_a_loop_wakes_when_its_call_is_due(path: Path) -> None:
    async def main(pool: Pool) -> None:
        assert await pool.options(retries=20, backoff=Backoff(0.005, factor=1, jitter=0)).run(
            fail_until, str(path), 21, value_error
        ) == (None, 21)

    with Pool(1) as pool:
        asyncio.run(main(pool))
    assert min(gaps(path)) >= 0.005
    assert sorted(gaps(path))[10] < 0.09, "not only every tenth of a second"


@pytest.mark.parametrize("wish", [much_later, defer])
def test_a_call_that_waits_can_be_cancelled(path: Path, wish: Callable[[], BaseException]) -> None:
    async def main(pool: Pool) -> None:
        call = asyncio.create_task(pool.options(retries=1).run(fail_until, str(path), 10**9, wish))
        while not waits(pool):
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 20)
        assert not waits(pool)

    with Pool(1) as pool:
        asyncio.run(main(pool))


def test_other_items_go_on_in_a_loop_too(tmp_path: Path) -> None:
    async def main(pool: Pool) -> None:
        source = ((str(tmp_path), x, 100, LONG) for x in itertools.count())
        results = pool.options(retries=1).amap_unordered(_rest_first_item, source, chunksize=1)
        seen = [x async for x, _ in _zip(results, range(500))]
        assert min(seen) >= 100
        await results.aclose()  # type: ignore[attr-defined]
        assert not waits(pool)

    with Pool(2) as pool:
        asyncio.run(main(pool))


def _rest_first_item(item: tuple[str, int, int, float]) -> int:
    return _rest_first(*item)


async def _zip(results: AsyncIterator[Any], numbers: range) -> AsyncIterator[tuple[Any, int]]:
    for number in numbers:
        yield await anext(results), number


def test_a_call_that_is_cancelled_as_it_defers_itself_is_over(gate: tasks.Gate, path: Path) -> None:
    """Its outcome is there, but nobody has looked: too late to kill it, too early to know that it wants to go on."""

    async def main(pool: Pool) -> None:
        call = asyncio.create_task(pool.run(_hold_and_defer, gate.path, str(path)))
        await asyncio.sleep(0)
        gate.await_start()
        for _ in range(5):  # the loop has looked at what there was to see
            await asyncio.sleep(0)
        client = pool._client
        rows = range(len(client.tasks))
        with client.lock:  # the collector thread shall not look either
            gate.open()
            processes.wait_until(lambda: any(_core.row_word(client.segment, r)[0] == _core.DONE for r in rows), "done")
            call.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 20)
        assert client.idle_or_closed()

    with Pool(1) as pool:
        asyncio.run(main(pool))
    assert len(times(path)) == 1


def _hold_and_defer(gate: str, path: str) -> None:
    note(path)
    tasks.hold(gate)
    raise errors.Defer
