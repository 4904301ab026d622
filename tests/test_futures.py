"""What `Future` promises: the standard interface, its outcomes from bad input, callbacks, cancelling and killing."""

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError
from pathlib import Path
from typing import Any

import payloads
import processes
import pytest
import scripts
import tasks

from pool import Future, Pool, errors

pytestmark = [pytest.mark.timeout(30), pytest.mark.usefixtures("idle_afterwards")]


@pytest.fixture
def busy(pool: Pool, gate: tasks.Gate) -> Iterator[list[Future]]:
    """Both workers hold a task; afterwards they are let go."""
    running = [pool.submit(tasks.hold, gate.path, number) for number in range(2)]
    gate.await_start(2)
    yield running
    gate.open(2)
    concurrent.futures.wait(running)


# ---- submit and result


def test_submit_passes_all_arguments_on_also_those_named_self_and_fn(pool: Pool) -> None:
    future = pool.submit(tasks.capture, 1, self=2, fn=3, args=4, kwargs=5)
    assert future.result() == ((1,), {"self": 2, "fn": 3, "args": 4, "kwargs": 5})
    assert isinstance(future, concurrent.futures.Future)
    with pytest.raises(TypeError, match="fn"):
        pool.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="must be callable"):
        pool.submit(5)  # type: ignore[arg-type]


def test_arguments_are_encoded_before_submit_returns(pool: Pool, busy: list[Future]) -> None:
    argument = [1, 2]
    future = pool.submit(tasks.identity, argument)
    argument.append(3)
    assert not future.done()
    assert busy[0].kill()  # makes room for it
    assert future.result() == [1, 2]


def test_values_of_all_sizes_come_back(pool: Pool) -> None:
    for size in (0, 1, 400, 431, 432, 433, 65535, 65536, 1 << 20, 10 << 20):
        data = os.urandom(size)
        assert pool.submit(tasks.identity, data).result() == data


def test_result_and_exception_wait_no_longer_than_their_timeout(busy: list[Future]) -> None:
    for call in (busy[0].result, busy[0].exception):
        for timeout in (0, 0.05, -1):
            with pytest.raises(TimeoutError) as caught:
                call(timeout)
            assert type(caught.value) is TimeoutError  # not TaskTimeout: the task runs on
    assert busy[0].running()


def test_a_deadline_is_another_error_than_waiting_too_long(pool: Pool) -> None:
    future = pool.options(timeout=0.2).submit(tasks.sleep, 60)
    with pytest.raises(errors.TaskTimeout) as caught:
        future.result(20)
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.timeout, caught.value.task) == (0.2, "tasks.sleep")


def test_a_tasks_own_exception_arrives_as_itself_with_the_remote_traceback(pool: Pool) -> None:
    for _ in range(2):  # also the second time
        with pytest.raises(ValueError, match=r"^7$") as caught:
            pool.submit(tasks.fail, 7).result()
        assert caught.value.args == (7,)
        assert "in fail" in str(caught.value.__cause__)
    future = pool.submit(tasks.leave, 3)
    assert isinstance(future.exception(), SystemExit)  # a failure of the task, not a crash
    with pytest.raises(SystemExit):
        future.result()


def test_states_follow_the_task(pool: Pool, busy: list[Future]) -> None:
    waiting = pool.submit(tasks.square, 3)
    assert (waiting.running(), waiting.done(), waiting.cancelled()) == (False, False, False)
    assert (busy[0].running(), busy[0].done(), busy[0].cancelled()) == (True, False, False)
    assert "state=running" in repr(busy[0])
    assert "state=pending" in repr(waiting)
    assert waiting.cancel()
    assert "state=cancelled" in repr(waiting)


# ---- cancel and kill


def test_cancel_takes_back_what_has_not_started_and_nothing_else(pool: Pool, busy: list[Future]) -> None:
    waiting = [pool.submit(tasks.fail, x) for x in range(3000)]  # in rows, and beyond them in the queue
    assert not busy[0].cancel()
    for future in waiting:
        assert future.cancel()
        assert future.cancel()
        assert (future.cancelled(), future.done(), future.running()) == (True, True, False)
    with pytest.raises(CancelledError):
        waiting[0].result()
    with pytest.raises(CancelledError):
        waiting[-1].exception()
    done = pool.submit(tasks.fail, tasks.Locked())
    assert not done.cancel()


def test_kill_stops_a_running_task_and_only_that(pool: Pool, busy: list[Future]) -> None:
    pid = os.getpid()
    assert busy[0].kill()
    with pytest.raises(errors.TaskKilled) as caught:
        busy[0].result()
    assert caught.value.task == "tasks.hold"
    assert caught.value.pid != pid
    assert busy[1].running()
    waiting = pool.submit(tasks.square, 3)
    assert waiting.result() == 9  # by the new worker
    assert not waiting.kill()
    assert waiting.result() == 9


def test_kill_cancels_what_has_not_started(pool: Pool, busy: list[Future]) -> None:
    waiting = pool.submit(tasks.square, 3)
    assert waiting.kill()
    assert waiting.cancelled()


# ---- many


def test_submits_without_reading_neither_block_nor_hang(pool: Pool) -> None:
    futures = [pool.submit(tasks.identity, x) for x in range(100_000)]
    assert sum(future.result() for future in futures) == sum(range(100_000))


def test_outcomes_that_nobody_reads_are_not_kept() -> None:
    with Pool(2) as pool:
        sizes = []
        for _ in range(5):
            for x in range(30_000):
                pool.submit(tasks.identity, x)
            processes.wait_until(pool._client.idle_or_closed, "all has run, though nobody waits for it", 60)
            sizes.append(payloads.rss())
    assert sizes[-1] - sizes[1] < 10 << 20, sizes  # the first ones leave free memory for the others


def test_a_future_needs_no_dict_though_its_outcome_came_when_there_were_many(tmp_path: Path) -> None:
    # A new interpreter: how it lays attributes out is settled by the first futures.
    done = scripts.run(
        tmp_path,
        """
        import tracemalloc
        from pool import Pool

        def read(count):
            futures = [pool.submit(abs, k) for k in range(count)]
            return sum(future.result() for future in futures), futures

        with Pool(1) as pool:
            read(100)
            tracemalloc.start()
            total, futures = read(5000)
            print(tracemalloc.get_traced_memory()[0] / len(futures))
        """,
    )
    assert 100 < float(done.stdout) < 600  # bytes; with a dict 820


def test_a_pool_with_buffersize_lets_submit_wait() -> None:
    with Pool(2, buffersize=10) as pool:
        most = 0
        futures = []
        for x in range(1000):
            futures.append(pool.submit(tasks.square, x))
            most = max(most, pool._client.unfinished)
        assert [future.result() for future in futures] == [x * x for x in range(1000)]
        assert most <= 10


def test_many_threads_may_submit(pool: Pool) -> None:
    sums: list[int] = []

    def run(number: int) -> None:
        futures = [pool.submit(tasks.identity, number * x) for x in range(2000)]
        sums.append(sum(future.result() for future in futures) - number * sum(range(2000)))

    threads = [threading.Thread(target=run, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sums == [0] * 8


# ---- callbacks


def test_callbacks_run_exactly_once_and_off_the_submitters_thread(pool: Pool) -> None:
    calls: list[tuple[Any, int]] = []
    futures = [pool.submit(tasks.identity, x) for x in range(2000)]
    late = 0
    for future in futures:
        late += future.done()
        future.add_done_callback(lambda f: calls.append((f, threading.get_ident())))
    concurrent.futures.wait(futures)
    processes.wait_until(lambda: len(calls) >= 2000, "all callbacks ran")
    assert {future for future, _ in calls} == set(futures)
    assert len(calls) == 2000
    assert sum(thread == threading.get_ident() for _, thread in calls) <= late + 2000 * (late > 0)


def test_callbacks_of_pending_futures_run_in_order_in_the_collector(pool: Pool, gate: tasks.Gate) -> None:
    future, calls, done = pool.submit(tasks.hold, gate.path, 5), [], threading.Event()
    for number in range(3):
        future.add_done_callback(lambda f, n=number: calls.append((n, f.result(), threading.current_thread().name)))
    future.add_done_callback(lambda _: done.set())
    gate.await_start()
    gate.open()
    assert future.result() == 5
    assert done.wait(20)
    assert calls == [(number, 5, "pool-collector") for number in range(3)]
    future.add_done_callback(lambda f: calls.append(f.result()))  # at once
    assert calls[3:] == [5]


def test_callbacks_that_raise_hurt_nobody(pool: Pool, gate: tasks.Gate, caplog: pytest.LogCaptureFixture) -> None:
    future, done = pool.submit(tasks.hold, gate.path), threading.Event()
    for error in (ValueError, SystemExit):
        future.add_done_callback(lambda _, error=error: (_ for _ in ()).throw(error()))
    future.add_done_callback(lambda _: done.set())
    gate.await_start()
    gate.open()
    assert done.wait(20)
    assert caplog.text.count("exception calling callback") == 2


def test_callbacks_may_submit_and_wait(pool: Pool) -> None:
    depth, end = 300, threading.Event()
    seen: list[int] = []

    def again(future: Any) -> None:
        seen.append(future.result())
        if len(seen) == depth:
            end.set()
        else:
            assert pool.submit(tasks.square, 3).result() == 9
            pool.submit(tasks.identity, len(seen)).add_done_callback(again)

    pool.submit(tasks.identity, 0).add_done_callback(again)
    assert end.wait(20)
    assert seen == list(range(depth))


def test_callbacks_of_cancelled_futures_run_too(pool: Pool, busy: list[Future]) -> None:
    future, done = pool.submit(tasks.square, 3), threading.Event()
    future.add_done_callback(lambda f: done.set() if f.cancelled() else None)
    assert future.cancel()
    assert done.wait(20)


# ---- wait and as_completed


def test_wait_returns_when_it_was_asked_to(pool: Pool, gate: tasks.Gate) -> None:
    slow = pool.submit(tasks.hold, gate.path)
    gate.await_start()
    fast, bad = pool.submit(tasks.square, 2), pool.submit(tasks.fail, 2)
    done, pending = concurrent.futures.wait([slow, fast, bad], return_when=FIRST_EXCEPTION, timeout=20)
    assert bad in done
    assert slow in pending
    done, pending = concurrent.futures.wait([slow, fast], return_when=FIRST_COMPLETED, timeout=20)
    assert (done, pending) == ({fast}, {slow})
    done, pending = concurrent.futures.wait([slow, fast, bad], timeout=0.05)
    assert (done, pending) == ({fast, bad}, {slow})
    gate.open()
    done, pending = concurrent.futures.wait([slow, fast, bad], return_when=ALL_COMPLETED, timeout=20)
    assert not pending


def test_wait_returns_on_cancel_from_another_thread(pool: Pool, busy: list[Future]) -> None:
    future = pool.submit(tasks.square, 3)
    thread = threading.Thread(target=future.cancel)
    threading.Timer(0, thread.start).start()
    done, _ = concurrent.futures.wait([future], timeout=20)
    assert done == {future}
    thread.join()


def test_the_state_that_wait_reads_and_the_news_of_it_are_one(pool: Pool, gate: tasks.Gate) -> None:
    future = pool.submit(tasks.hold, gate.path)
    with future._condition:  # as wait() and as_completed() hold it while they look
        gate.await_start()
        gate.open()
        processes.wait_until(future.done, "the outcome has come")
        assert future._state == "PENDING"  # else they would count it as done, and be told of it afterwards
    processes.wait_until(lambda: future._state == "FINISHED", "those who wait are told")


@pytest.mark.parametrize("round", range(20))
def test_as_completed_and_wait_name_each_future_once_while_results_pour_in(pool: Pool, round: int) -> None:
    futures = [pool.submit(tasks.identity, x) for x in range(300)]
    collector = threading.Thread(target=lambda: [future.result() for future in futures])
    collector.start()  # so that futures end at any moment of the calls below
    seen = list(concurrent.futures.as_completed(futures))
    assert len(seen) == 300
    assert set(seen) == set(futures)
    more = [pool.submit(tasks.identity, x) for x in range(300)]
    pending = concurrent.futures.wait(more).not_done
    assert not pending
    collector.join()


def test_as_completed_gives_up_after_its_timeout(busy: list[Future]) -> None:
    with pytest.raises(TimeoutError, match=r"2 .of 2. futures unfinished"):
        list(concurrent.futures.as_completed(busy, timeout=0.05))


# ---- asyncio


def test_asyncio_awaits_a_thousand_at_once(pool: Pool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        results = await asyncio.gather(*(loop.run_in_executor(pool, tasks.square, x) for x in range(1000)))
        assert results == [x * x for x in range(1000)]
        assert await asyncio.wrap_future(pool.submit(tasks.square, 3)) == 9
        with pytest.raises(ValueError, match="bad"):
            await loop.run_in_executor(pool, tasks.fail, "bad")

    asyncio.run(main())


def test_asyncio_cancels_what_has_not_started(pool: Pool, busy: list[Future]) -> None:
    async def main() -> None:
        future = pool.submit(tasks.square, 3)
        waiting = asyncio.wrap_future(future)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0)  # the loop hands it on in its next turn
        assert future.cancelled()

    asyncio.run(main())
