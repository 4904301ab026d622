"""`Pool.run` and `Pool.amap`: values, cancellation that stops, no thread, nothing lost, whichever loop and whoever else
uses the pool. Each test runs on asyncio's loop and on uvloop."""

import _thread
import asyncio
import contextlib
import itertools
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import scripts
import tasks
import test_damage
import uvloop

from ipc import _core
from pool import Failure, NotYet, Pool, Progress, ears, errors

pytestmark = pytest.mark.timeout(60)

Run = Callable[[Coroutine[Any, Any, Any]], Any]
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """uvloop has two descriptors from its first loop on."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture(autouse=True)
def _nothing_left(_warm: None) -> Iterator[None]:
    threads = threading.enumerate()
    with processes.nothing_left():
        yield
    # None was started that goes on; one of before may have ended.
    processes.wait_until(lambda: set(threading.enumerate()) <= set(threads), "its threads have ended")


@pytest.fixture(params=LOOPS)
def new_loop(request: pytest.FixtureRequest) -> Callable[[], asyncio.AbstractEventLoop]:
    return LOOPS[request.param]


@pytest.fixture
def run(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> Run:
    """As `asyncio.run`, in the loop of the test. A thread that is started meanwhile is an error."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        started: list[object] = []
        start = threading.Thread.start

        def note(thread: threading.Thread) -> None:
            started.append(thread)
            start(thread)

        try:
            threading.Thread.start = note  # type: ignore[method-assign]
            with asyncio.Runner(loop_factory=new_loop) as runner:
                return runner.run(main)
        finally:
            threading.Thread.start = start  # type: ignore[method-assign]
            assert not started

    return run


@pytest.fixture
def no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes must come by the wire: a lost ring is a hang."""
    monkeypatch.setattr(ears, "_CHECK_SECONDS", 1000.0)


@contextlib.contextmanager
def open_pool(max_workers: int, **options: Any) -> Iterator[Pool]:
    """As `with Pool(...)`, but a test that fails does not wait for what it has left at a gate."""
    pool = Pool(max_workers, **options)
    try:
        yield pool
    except BaseException:
        pool.kill_workers()
        raise
    pool.shutdown()


def in_flight(pool: Pool) -> int:
    segment = pool._client.segment
    return 0 if segment is None else _core.counters(segment)["in_flight"]


async def turns(condition: Callable[[], Any], what: str) -> None:
    """Let the loop run until the condition is true."""
    end = asyncio.get_running_loop().time() + 20
    while not condition():
        assert asyncio.get_running_loop().time() < end, f"not within 20 s: {what}"
        await asyncio.sleep(0.001)


async def begun(awaitable: Coroutine[Any, Any, Any], gate: tasks.Gate, count: int = 1) -> tuple[Any, list[int]]:
    """A task of the loop whose call holds at the gate, and the pids of who holds there."""
    task = asyncio.get_running_loop().create_task(awaitable)
    await asyncio.sleep(0)
    return task, gate.await_start(count)


# ---- run


def test_values_and_errors_are_those_of_submit(run: Run) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            assert await pool.run(tasks.square, 12) == 144
            assert await pool.run(tasks.add, 1, b=2, c=3) == 6
            assert await pool.run(lambda x: x + 1, 1) == 2
            assert await pool.options(retries=1).run(tasks.capture, fn=1) == ((), {"fn": 1})
            with pytest.raises(ValueError, match="bad") as caught:
                await pool.run(tasks.fail, "bad")
            assert "in fail" in str(caught.value.__cause__)
            with pytest.raises(TypeError, match="pickle"):
                await pool.run(tasks.identity, tasks.Locked())
            with pytest.raises(errors.ResultNotPicklable):
                await pool.run(tasks.make_locked)
            with pytest.raises(TypeError, match="must be callable"):
                await pool.run(5)  # type: ignore[arg-type]
            with pytest.raises(errors.WorkerCrashed, match="exit code 9"):
                await pool.run(tasks.die, 1)
            assert await pool.run(tasks.square, 5) == 25
        with pytest.raises(errors.PoolClosed):
            await pool.run(tasks.square, 1)

    run(main())


def test_a_large_value_arrives_as_from_submit(run: Run) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            data = os.urandom(1 << 20)
            assert await pool.run(tasks.identity, data) == data

    run(main())


def test_no_ring_of_the_wire_is_lost_one_by_one(run: Run, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            for x in range(2000):
                assert await pool.run(tasks.square, x) == x * x
            assert _core.counters(pool._client.segment)["healed"] == 0

    run(main())


def test_no_ring_of_the_wire_is_lost_all_at_once(run: Run, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            for _ in range(3):  # more than there are rows
                assert await asyncio.gather(*(pool.run(tasks.square, x) for x in range(3000))) == [
                    x * x for x in range(3000)
                ]
            assert not pool._client.awaiting
            assert pool._client.unfinished == 0

    run(main())


def test_gather_hands_on_the_first_error(run: Run) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            results = await asyncio.gather(*(pool.run(tasks.fail_if, x) for x in range(1, 8)), return_exceptions=True)
            assert [str(r) for r in results] == ["1", "2", "3", "4", "5 is bad", "6", "7"]
            with pytest.raises(ValueError, match="5 is bad"):
                await asyncio.gather(*(pool.run(tasks.fail_if, x) for x in range(1, 8)))

    run(main())


def test_in_place_without_workers(run: Run) -> None:
    async def source() -> AsyncIterator[int]:
        for x in range(10):
            await asyncio.sleep(0)
            yield x

    async def main() -> None:
        with open_pool(max_workers=0) as pool:
            assert await pool.run(os.getpid) == os.getpid()
            with pytest.raises(ValueError, match="bad"):
                await pool.run(tasks.fail, "bad")
            assert [y async for y in pool.amap(tasks.square, range(10))] == [x * x for x in range(10)]
            assert [y async for y in pool.amap(tasks.square, source())] == [x * x for x in range(10)]

    run(main())


def test_run_in_executor_goes_on_working_beside_it(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with open_pool(2) as pool:
            results = await asyncio.gather(
                *(
                    pool.run(tasks.square, x) if x % 2 else loop.run_in_executor(pool, tasks.square, x)
                    for x in range(2000)
                )
            )
            assert results == [x * x for x in range(2000)]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


# ---- cancellation


def hold_with_child(path: str) -> None:
    subprocess.Popen(["sleep", "1000"])
    tasks.hold(path)


def test_cancellation_stops_the_call_and_all_it_has_started(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            task, (pid,) = await begun(pool.run(hold_with_child, gate.path), gate)
            children = processes.children_of_all(pid)
            assert children
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not any(map(processes.runs, [pid, *children]))  # now, and not some time later
            assert await pool.run(tasks.square, 3) == 9

    run(main())


def test_a_timeout_stops_the_call(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            await pool.run(tasks.square, 1)
            pids: list[int] = []

            def when_it_runs() -> None:
                pids.extend(gate.await_start())
                limit.reschedule(0)

            asyncio.get_running_loop().call_soon(when_it_runs)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(None) as limit:
                    await pool.run(tasks.hold, gate.path)
            task, more = await begun(pool.run(tasks.hold, gate.path), gate)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(task, 0.05)
            assert not any(map(processes.runs, pids + more))
            assert await pool.run(tasks.square, 3) == 9

    run(main())


def test_a_call_that_has_not_started_never_runs_after_its_cancellation(
    run: Run, gate: tasks.Gate, tmp_path: Path
) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            first, _ = await begun(pool.run(tasks.hold, gate.path, 1), gate)
            waiting = [asyncio.ensure_future(pool.run(tasks.touch, str(tmp_path), f"x{k}")) for k in range(3000)]
            await asyncio.sleep(0)  # 1023 of them have a row, the others wait for one
            for task in waiting:
                task.cancel()
            results = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(r) for r in results} == {asyncio.CancelledError}
            gate.open()
            assert await first == 1
            assert await pool.run(tasks.square, 3) == 9
        assert not list(tmp_path.glob("x*"))

    run(main())


def test_a_cancelled_call_is_not_retried(run: Run, gate: tasks.Gate, tmp_path: Path) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            task, (pid,) = await begun(pool.options(retries=5).run(tasks.hold, gate.path), gate)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not processes.runs(pid)
            assert pool._client.idle_or_closed()
            # Its worker dies of something else, just before: that would have been worth a retry.
            task, (pid,) = await begun(pool.options(retries=5).run(tasks.hold, gate.path), gate)
            os.kill(pid, signal.SIGKILL)
            processes.wait_until(lambda: not processes.runs(pid), "it is dead")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pool._client.idle_or_closed()

    run(main())


def test_a_second_cancellation_does_not_wait_for_the_kill(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            task, (pid,) = await begun(pool.run(tasks.hold, gate.path), gate)
            os.kill(processes.monitor_pid(pool), signal.SIGSTOP)  # nobody can kill now
            task.cancel()
            await asyncio.wait([task], timeout=0.05)
            assert not task.done()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert processes.runs(pid)
            os.kill(processes.monitor_pid(pool), signal.SIGCONT)
            assert await pool.run(tasks.square, 3) == 9

    run(main())


def test_what_has_finished_cannot_be_cancelled_any_more(run: Run) -> None:
    """The outcome is there, and the loop has not got round to it."""

    async def main() -> None:
        with open_pool(1) as pool:
            task = asyncio.ensure_future(pool.run(tasks.square, 3))
            await asyncio.sleep(0)
            processes.wait_until(lambda: pool._client.pump() or pool._client.idle_or_closed(), "it is done")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not pool._client.awaiting

    run(main())


def test_a_shielded_call_goes_on(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            inner, (pid,) = await begun(pool.run(tasks.hold, gate.path, "done"), gate)
            outer = asyncio.ensure_future(asyncio.wait_for(asyncio.shield(inner), 0.01))
            with pytest.raises(TimeoutError):
                await outer
            assert processes.runs(pid)
            gate.open()
            assert await inner == "done"

    run(main())


def test_a_task_group_stops_the_others_when_one_fails(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            pids: list[int] = []

            async def fail() -> None:
                pids.extend(gate.await_start())
                await pool.run(tasks.fail, "bad")

            async def group() -> None:
                async with asyncio.TaskGroup() as group:
                    group.create_task(pool.run(tasks.hold, gate.path))
                    group.create_task(fail())

            with pytest.raises(ExceptionGroup) as caught:
                await group()
            assert [str(error) for error in caught.value.exceptions] == ["bad"]
            assert not processes.runs(pids[0])
            assert await pool.run(tasks.square, 3) == 9

    run(main())


INTERRUPTED = """
import asyncio, sys, uvloop
from pool import Pool
import tasks

async def main():
    with Pool(2) as pool:
        try:
            await asyncio.gather(*(pool.run(tasks.hold, sys.argv[2]) for _ in range(4)))
        except asyncio.CancelledError:
            print("cancelled")
            raise

{"asyncio": asyncio, "uvloop": uvloop}[sys.argv[1]].run(main())
"""


@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c_stops_all_calls(loop: str, gate: tasks.Gate, tmp_path: Path) -> None:
    with scripts.start(tmp_path, INTERRUPTED, loop, gate.path) as script:
        pids = gate.await_start(2)
        script.send_signal(signal.SIGINT)
        out, err = script.communicate(timeout=scripts.TIMEOUT)
    assert (script.returncode, out) == (-signal.SIGINT, "cancelled\n")
    assert err.endswith("\nKeyboardInterrupt\n")
    assert not any(map(processes.runs, pids))


# ---- deaths and ends


def test_a_killed_worker_costs_its_call_alone(run: Run, gate: tasks.Gate, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            task, (pid,) = await begun(pool.run(tasks.hold, gate.path), gate)
            others = asyncio.gather(*(pool.run(tasks.square, x) for x in range(100)))
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(errors.WorkerCrashed, match="SIGKILL"):
                await task
            assert await others == [x * x for x in range(100)]

    run(main())


def test_retries_and_deadlines(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            task, (pid,) = await begun(pool.options(retries=1).run(tasks.hold, gate.path, "second"), gate)
            os.kill(pid, signal.SIGKILL)
            await turns(lambda: pool.crashes, "the death is seen")
            gate.await_start()
            gate.open()
            assert await task == "second"
            with pytest.raises(errors.TaskTimeout):
                await pool.options(timeout=0.1).run(tasks.hold, gate.path)

    run(main())


def test_the_monitors_death_reaches_who_awaits(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            held, _ = await begun(pool.run(tasks.hold, gate.path), gate)
            mapped = asyncio.ensure_future(anext(pool.amap(tasks.hold, [gate.path])))
            await turns(lambda: in_flight(pool) == 2, "both are given away")
            gate.await_start()
            os.kill(processes.monitor_pid(pool), signal.SIGKILL)
            for task in (held, mapped):
                with pytest.raises(errors.PoolBroken):
                    await task
            with pytest.raises(errors.PoolBroken):
                await pool.run(tasks.square, 1)

    run(main())


def test_the_pool_is_ended_while_calls_are_awaited(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        files = len(processes.open_files())
        for _ in range(3):
            pool = Pool(1)
            held, _pids = await begun(pool.run(tasks.hold, gate.path), gate)
            waiting = asyncio.ensure_future(pool.run(tasks.square, 1))
            await asyncio.sleep(0)
            pool.kill_workers()
            for task in (held, waiting):
                with pytest.raises(errors.PoolBroken, match="terminated"):
                    await task
        # The loop goes on: it has let go of the wires of pools that are gone.
        await turns(lambda: len(processes.open_files()) <= files, "the descriptors are closed")

    run(main())


def test_a_loop_that_is_idle_lets_go_of_a_pool_that_ends(run: Run) -> None:
    async def main() -> None:
        files = len(processes.open_files())
        for _ in range(3):
            with open_pool(1) as pool:
                assert await pool.run(tasks.square, 3) == 9
        await turns(lambda: len(processes.open_files()) <= files, "the descriptors are closed")

    run(main())


def test_damage_brings_another_segment_and_its_wire(run: Run, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            assert await pool.run(tasks.square, 3) == 9
            first = pool._client.segment
            results = await asyncio.gather(
                pool.run(test_damage.overwrite, "all"),
                *(pool.run(tasks.square, x) for x in range(3000)),
                return_exceptions=True,
            )
            # A result may be hurt in the very moment in which it is read, after its row was found to be right.
            assert {type(r) for r in results[1:]} <= {int, errors.SegmentCorrupt, errors.ResultNotPicklable}
            await turns(lambda: pool._client.segment is not first, "the damage is found")
            for x in range(100):
                assert await pool.run(tasks.square, x) == x * x

    run(main())


def test_a_loop_is_closed_with_calls_in_flight(
    new_loop: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tasks.Gate(tmp_path, "first"), tasks.Gate(tmp_path, "second")
    with open_pool(2) as pool:
        left: list[Any] = []

        async def main() -> list[int]:
            pids = []
            for gate in (first, second):
                task, (pid,) = await begun(pool.run(tasks.hold, gate.path), gate)
                task._log_destroy_pending = False  # that it is left behind is what is tested
                left.append(task)
                pids.append(pid)
            left.append(pool.amap(tasks.square, itertools.count()))
            left.append(asyncio.ensure_future(anext(left[-1])))
            left[-1]._log_destroy_pending = False
            await turns(lambda: in_flight(pool) > 4, "the map has given something away")
            return pids

        loop = new_loop()
        pids = loop.run_until_complete(main())
        loop.close()
        left[0].get_coro().close()
        processes.wait_until(lambda: not processes.runs(pids[0]), "a call that is closed is stopped")
        assert processes.runs(pids[1])
        with asyncio.Runner(loop_factory=new_loop) as runner:  # another loop goes on with the same pool
            assert runner.run(pool.run(tasks.square, 3)) == 9
            second.open()
            runner.run(turns(lambda: pool._client.turn() or pool._client.unfinished == 0, "the other call ends"))
        assert pool.submit(tasks.square, 4).result() == 16
        left.clear()
    first.close()
    second.close()


def test_many_loops_after_each_other(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with open_pool(1) as pool:
        files = 0
        for k in range(20):
            with asyncio.Runner(loop_factory=new_loop) as runner:
                assert runner.run(pool.run(tasks.square, k)) == k * k
            files = files or len(processes.open_files())
            assert len(processes.open_files()) <= files
            assert len(pool._client.ears) <= 1


def close_everything() -> list[int]:
    """The worker loses all descriptors, and has sockets of its own under the numbers that the pool moves its to."""
    os.closerange(3, 4096)
    mine, other = socket.socketpair()
    taken = [os.dup2(other.fileno(), n) for n in range(1000, 1024)]
    tasks.STATE["mine"] = mine, other
    return taken


def bytes_got() -> bytes:
    mine: socket.socket = tasks.STATE["mine"][0]
    with contextlib.suppress(BlockingIOError):
        return mine.recv(100, socket.MSG_DONTWAIT)
    return b""


def test_a_worker_that_has_closed_its_wire_writes_into_nobodys_file(run: Run) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            wires = await pool.run(close_everything)
            assert pool._client._running.wire[1].fileno() not in wires  # the client's; the worker's has a high number
            for x in range(5):  # found by the timer
                assert await pool.run(tasks.square, x) == x * x
            assert await pool.run(bytes_got) == b""

    run(main())


# ---- others use the pool too


def test_two_loops_and_a_thread_that_waits(new_loop: Callable[[], asyncio.AbstractEventLoop], no_timer: None) -> None:
    """Lead and listening change hands all the time, and no timer of a loop helps."""
    with open_pool(2) as pool:
        failed: list[BaseException] = []

        async def calls() -> None:
            for x in range(150):
                assert await pool.run(tasks.square, x) == x * x
                assert await asyncio.gather(*(pool.run(tasks.square, y) for y in range(7))) == [y * y for y in range(7)]
            assert [y async for y in pool.amap(tasks.square, range(2000))] == [x * x for x in range(2000)]

        def in_a_loop() -> None:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(asyncio.wait_for(calls(), 50))

        def waiting() -> None:
            for x in range(300):
                assert pool.submit(tasks.square, x).result(30) == x * x
            assert list(pool.imap(tasks.square, range(5000))) == [x * x for x in range(5000)]

        def guarded(what: Callable[[], None]) -> None:
            try:
                what()
            except BaseException as error:
                failed.append(error)

        pool.start()
        threads = [threading.Thread(target=guarded, args=(what,)) for what in (in_a_loop, in_a_loop, waiting)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed
        assert not pool._client.awaiting
        pool._client.join_collector()


def test_a_loop_that_is_busy_holds_up_nobody(
    new_loop: Callable[[], asyncio.AbstractEventLoop], gate: tasks.Gate, no_timer: None
) -> None:
    """It listens, and hears nothing because its own code runs."""
    with open_pool(2) as pool:
        pool.start()
        held, others_are_done = threading.Event(), threading.Event()

        async def busy() -> None:
            task, _ = await begun(pool.run(tasks.hold, gate.path, "held"), gate)
            await turns(lambda: pool._client._listening, "it sleeps, listening")
            held.set()
            others_are_done.wait(30)
            gate.open()
            assert await task == "held"

        def in_a_loop() -> None:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(busy())

        thread = threading.Thread(target=in_a_loop)
        thread.start()
        held.wait(30)
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                assert runner.run(asyncio.wait_for(pool.run(tasks.square, 3), 20)) == 9
            assert pool.submit(tasks.square, 4).result(20) == 16
            done = threading.Event()
            pool.submit(tasks.square, 5).add_done_callback(lambda _: done.set())
            assert done.wait(20)
        finally:
            others_are_done.set()
            thread.join()
    pool._client.join_collector()


def test_a_thread_collects_for_a_loop_and_leaves_the_lead_to_it(run: Run, gate: tasks.Gate, no_timer: None) -> None:
    with open_pool(2) as pool:
        pool.start()
        thread = threading.Thread(target=lambda: pool.submit(tasks.hold, gate.path, "thread").result())
        thread.start()
        gate.await_start()
        processes.wait_until(lambda: pool._client._leading, "the thread leads")

        async def main() -> None:
            assert await pool.run(tasks.square, 3) == 9  # the thread collects it
            assert await asyncio.gather(*(pool.run(tasks.square, x) for x in range(500))) == [x * x for x in range(500)]
            task, _ = await begun(pool.run(tasks.identity, await pool.run(tasks.square, 4)), gate, 0)
            assert await task == 16
            gate.open()
            await turns(lambda: not thread.is_alive(), "the thread has its result")
            for x in range(100):  # and now the loop listens again
                assert await pool.run(tasks.square, x) == x * x

        run(main())
        thread.join()
    pool._client.join_collector()


def test_the_lead_comes_back_while_a_call_is_awaited(run: Run, tmp_path: Path, no_timer: None) -> None:
    """A thread leads when the call is made, and leaves before it ends: then the wire must ring."""
    first, second = tasks.Gate(tmp_path, "first"), tasks.Gate(tmp_path, "second")
    with open_pool(2) as pool:
        pool.start()
        thread = threading.Thread(target=lambda: pool.submit(tasks.hold, first.path).result())
        thread.start()
        first.await_start()
        processes.wait_until(lambda: pool._client._leading, "the thread leads")

        async def main() -> None:
            task, _ = await begun(pool.run(tasks.hold, second.path, "second"), second)
            await asyncio.sleep(0)
            first.open()
            thread.join()
            assert pool._client._listening
            second.open()
            assert await task == "second"

        run(main())
    pool._client.join_collector()
    first.close()
    second.close()


def test_what_ends_while_a_thread_leaves_the_lead_is_not_overlooked(
    new_loop: Callable[[], asyncio.AbstractEventLoop], gate: tasks.Gate, no_timer: None
) -> None:
    """It comes after the thread's last look, and before anybody listens."""

    async def main() -> None:
        with open_pool(2) as pool:
            client = pool._client
            task, _ = await begun(pool.run(tasks.hold, gate.path, "held"), gate)
            await turns(lambda: client._listening, "it listens")
            (row,) = [k for k, published in enumerate(client.tasks) if published is not None]

            looked: list[bool] = []

            def after_its_look() -> bool:
                if client._leading and not looked:
                    gate.open()
                    processes.wait_until(
                        lambda: _core.row_word(client.segment, row)[0] == _core.DONE, "there is a result"
                    )
                    looked.append(True)
                return bool(looked)

            thread = threading.Thread(target=client.wait_for, args=(after_its_look,))
            thread.start()
            thread.join()
            assert await asyncio.wait_for(task, 20) == "held"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_a_thread_that_declines_the_lead_passes_it_on(
    new_loop: Callable[[], asyncio.AbstractEventLoop], gate: tasks.Gate, no_timer: None
) -> None:
    """It is woken to lead when it has just got what it waits for."""

    async def main() -> None:
        with open_pool(2) as pool:
            client = pool._client
            task, _ = await begun(pool.run(tasks.hold, gate.path, "held"), gate)
            await turns(lambda: client._listening, "it listens")
            leave, handed = threading.Event(), threading.Event()
            leader = threading.Thread(target=client.wait_for, args=(leave.is_set,))
            leader.start()
            processes.wait_until(lambda: client._leading, "it leads")
            follower = threading.Thread(target=client.wait_for, args=(lambda: handed.is_set() and not client._leading,))
            follower.start()
            processes.wait_until(lambda: client._followers, "it follows")
            handed.set()
            leave.set()
            client.news()
            leader.join()
            follower.join()
            gate.open()
            assert await asyncio.wait_for(task, 20) == "held"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_news_from_a_thread_during_a_turn_bring_another_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have come after the turn's look."""

    async def main() -> None:
        with open_pool(1) as pool:
            assert await pool.run(tasks.square, 3) == 9
            (ear,) = pool._client.ears.values()
            turn, taken = pool._client.turn, 0

            def told_meanwhile() -> bool:
                nonlocal taken
                taken += 1
                again = turn()
                if taken == 1:
                    _thread.start_new_thread(tell, ())
                    told.wait(20)
                return again

            def tell() -> None:
                ear.tell()
                told.set()

            told = threading.Event()
            monkeypatch.setattr(pool._client, "turn", told_meanwhile)
            ear.soon()
            await turns(lambda: taken == 2, "another turn")

    run(main())


def test_a_loop_that_does_not_hear_stops_no_collector(
    new_loop: Callable[[], asyncio.AbstractEventLoop], gate: tasks.Gate
) -> None:
    """Calls that nobody waits for go on, more of them than there are rows."""

    async def main() -> None:
        task, _ = await begun(pool.run(tasks.hold, gate.path), gate)
        await turns(lambda: pool._client._listening, "it listens")
        futures = [pool.submit(tasks.square, x) for x in range(3000)]
        processes.wait_until(lambda: all(future.done() for future in futures), "somebody collects")  # not this loop
        gate.open()
        await task

    with open_pool(2) as pool, asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    pool._client.join_collector()


# ---- quiet


class CountingSelector(selectors.DefaultSelector):
    waits = 0

    def select(self, timeout: float | None = None) -> Any:
        self.waits += 1
        return super().select(timeout)


def test_a_loop_sleeps_while_nothing_comes(gate: tasks.Gate) -> None:
    selector = CountingSelector()

    async def main() -> None:
        with open_pool(2) as pool:

            async def waits(seconds: float) -> int:
                before = selector.waits
                await asyncio.sleep(seconds)
                return selector.waits - before

            task, _ = await begun(pool.run(tasks.hold, gate.path), gate)
            assert await pool.run(tasks.square, 3) == 9
            assert await waits(0.55) <= 8  # one timer each 100 ms, for what may have been lost
            gate.open()
            await task
            await waits(0.15)  # the timer lapses
            assert await waits(0.3) <= 2
            os.kill(processes.worker_pids(pool)[0], signal.SIGKILL)  # not even a death wakes who awaits nothing
            assert await waits(0.3) <= 3

    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(main())


# ---- buffersize and views


def test_buffersize_bounds_what_is_unfinished_without_blocking_the_loop(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(2, buffersize=4) as pool:
            calls = asyncio.gather(*(pool.run(tasks.square, x) for x in range(500)))
            seen = set()
            while not calls.done():
                await asyncio.sleep(0)
                seen.add(pool._client.unfinished)
            assert await calls == [x * x for x in range(500)]
            assert max(seen) == 4
            holding = [asyncio.ensure_future(pool.run(tasks.hold, gate.path, x)) for x in range(4)]
            await asyncio.sleep(0)
            waiting = asyncio.ensure_future(pool.run(tasks.square, 5))
            given_up = asyncio.ensure_future(pool.run(tasks.square, 6))
            gate.await_start(2)
            await asyncio.sleep(0)
            assert pool._client.unfinished == 4
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
            gate.open(4)
            assert await waiting == 25
            assert await asyncio.gather(*holding) == [0, 1, 2, 3]
            assert not pool._client.awaiting
            assert not pool._client.curious

    run(main())


def test_room_that_is_not_taken_goes_to_the_next(run: Run, gate: tasks.Gate, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(1, buffersize=1) as pool:
            held, _ = await begun(pool.run(tasks.hold, gate.path), gate)
            wrong = [asyncio.ensure_future(pool.run(tasks.identity, tasks.Locked())) for _ in range(3)]
            waiting = asyncio.ensure_future(pool.run(tasks.square, 5))
            await turns(lambda: len(pool._client.curious) == 1, "they wait")
            gate.open()
            await held
            for call in wrong:
                with pytest.raises(TypeError, match="pickle"):
                    await call
            assert await waiting == 25

    run(main())


def test_those_who_wait_for_room_are_told_of_the_end(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(1, buffersize=1) as pool:
            held, _ = await begun(pool.run(tasks.hold, gate.path), gate)
            waiting = asyncio.ensure_future(pool.run(tasks.square, 5))
            await asyncio.sleep(0)
            pool.kill_workers()
            with pytest.raises(errors.PoolBroken):
                await held
            with pytest.raises(errors.PoolClosed):
                await waiting

    run(main())


def test_a_view_waits_for_what_went_through_it(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            with pool.options(retries=1) as view:
                task = asyncio.ensure_future(view.run(tasks.square, 7))
                await asyncio.sleep(0)
            assert pool._client.idle_or_closed()  # the end of the block has waited, with the loop standing
            assert await task == 49
            with pytest.raises(errors.PoolClosed):
                await view.run(tasks.square, 1)
            with pytest.raises(errors.PoolClosed):
                view.amap(tasks.square, [1])
            assert await pool.run(tasks.square, 8) == 64

    run(main())


# ---- amap

FORMS = ["amap", "amap_unordered"]


class Counted:
    """An endless input that knows how far it was read."""

    def __init__(self) -> None:
        self.read = 0
        self.closed = False

    def __iter__(self) -> Iterator[int]:
        for x in itertools.count():
            self.read = x + 1
            yield x

    async def asynchronous(self) -> AsyncIterator[int]:
        try:
            for x in self:
                if x % 10 == 0:
                    await asyncio.sleep(0)
                yield x
        finally:
            self.closed = True


async def upto(n: int) -> AsyncIterator[int]:
    for x in range(n):
        if x % 50 == 0:
            await asyncio.sleep(0)
        yield x


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_amap_gives_all_values(run: Run, form: str, chunksize: Any, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            amap = getattr(pool, form)
            for source in (range(3000), upto(3000)):
                values = [y async for y in amap(tasks.square, source, chunksize=chunksize)]
                assert (values if form == "amap" else sorted(values)) == [x * x for x in range(3000)]
            assert [y async for y in amap(tasks.square, [])] == []
            assert [y async for y in amap(tasks.square, upto(0))] == []
            assert not pool._client.awaiting

    run(main())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("way", ["sync", "async"])
def test_amap_is_lazy_and_bounded(run: Run, form: str, way: str) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            source = Counted()
            given = source if way == "sync" else source.asynchronous()
            results = getattr(pool, form)(tasks.square, given, buffersize=6, chunksize=1)
            assert source.read == 0
            for taken in range(1, 100):
                await anext(results)
                assert source.read <= taken + 7
            for _ in range(20):  # a slow consumer: nothing more is read
                await asyncio.sleep(0.001)
            assert source.read <= 99 + 7
            await results.aclose()

    run(main())


@pytest.mark.parametrize("pauses", [0, 10])
def test_results_come_while_the_input_has_nothing(run: Run, pauses: int, no_timer: None) -> None:
    """With pauses, the input has something while nobody waits for it: the consumer is busy with what it got."""

    async def main() -> None:
        with open_pool(2) as pool:
            got = asyncio.Event()

            async def source() -> AsyncIterator[int]:
                for x in range(20):
                    yield x
                    await asyncio.wait_for(got.wait(), 20)  # for the result of what it has given
                    got.clear()

            async for _ in pool.amap(tasks.square, source()):
                got.set()
                for _ in range(pauses):
                    await asyncio.sleep(0)

    run(main())


class Sometimes:
    """A plain input that has something now and then."""

    def __init__(self) -> None:
        self._given = itertools.count()
        self._asked = itertools.count()

    def __iter__(self) -> "Sometimes":
        return self

    def __next__(self) -> int:
        if next(self._asked) % 3:
            raise NotYet
        if (x := next(self._given)) == 10:
            raise StopIteration
        return x


def test_an_input_that_has_nothing_yet_is_asked_again(run: Run) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            assert [y async for y in pool.amap(tasks.square, Sometimes())] == [x * x for x in range(10)]

    run(main())


async def _leave(results: Any, way: str) -> None:
    if way == "aclose":
        await anext(results)
        await results.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(results)
        return
    async for _ in results:
        if way == "break":
            break
        raise ZeroDivisionError


async def _each(source: AsyncIterator[int], path: str) -> AsyncIterator[str]:
    async with contextlib.aclosing(source):  # type: ignore[type-var]
        async for _ in source:
            yield path


@pytest.mark.parametrize("way", ["break", "error", "aclose", "cancellation"])
@pytest.mark.parametrize("source", ["sync", "async"])
def test_leaving_takes_back_what_has_not_started(run: Run, gate: tasks.Gate, way: str, source: str) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            items = Counted()
            paths: Any = (gate.path for _ in items) if source == "sync" else _each(items.asynchronous(), gate.path)
            leaving = asyncio.ensure_future(_leave(pool.amap_unordered(tasks.hold, paths, chunksize=1), way))
            await turns(lambda: in_flight(pool) >= 4, "more is given away than there are workers")
            gate.await_start(2)
            if way == "cancellation":
                leaving.cancel()
            else:
                gate.open()
            with contextlib.suppress(asyncio.CancelledError, ZeroDivisionError):
                await leaving
            del leaving, paths  # an exception holds the frame that holds the iterator
            await asyncio.sleep(0)  # and until here the loop holds the task
            read = items.read
            gate.open(100)
            await turns(lambda: pool._client.turn() or pool._client.idle_or_closed(), "what runs ends")
            os.set_blocking(gate._started, False)
            more = 0
            with contextlib.suppress(BlockingIOError):
                more = len(os.read(gate._started, 400)) // 4
            assert more <= (way != "cancellation")  # one that was claimed when the first had ended
            assert items.read == read
            if source == "async":
                await turns(lambda: items.closed, "the input is told")
            assert await pool.run(tasks.square, 3) == 9

    run(main())


async def _all_into(seen: list[int], results: AsyncIterator[int]) -> None:
    async for result in results:
        seen.append(result)


def test_failures_in_their_places(run: Run) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            for source in (range(1, 12), [x async for x in upto(12)][1:]):
                got = [y async for y in pool.amap(tasks.fail_if, source, on_error="return")]
                assert [y.item if isinstance(y, Failure) else y for y in got] == list(range(1, 12))
                assert [y.index for y in got if isinstance(y, Failure)] == [4, 9]
                assert [y async for y in pool.amap(tasks.fail_if, source, on_error="skip")] == [
                    x for x in range(1, 12) if x % 5
                ]
            seen: list[int] = []
            with pytest.raises(ValueError, match="5 is bad") as caught:
                await _all_into(seen, pool.amap(tasks.fail_if, itertools.count(1)))
            assert seen == [1, 2, 3, 4]
            assert caught.value.__notes__ == ["item 4 of the input: 5"]
            for wrong in ({"on_error": "ignore"}, {"chunksize": 0}, {"buffersize": 0}):
                with pytest.raises(ValueError, match=next(iter(wrong))):
                    pool.amap(tasks.square, [], **wrong)  # type: ignore[arg-type]

    run(main())


def test_an_input_that_cannot_be_iterated_is_said_at_once(run: Run) -> None:
    class Broken:
        def __aiter__(self) -> AsyncIterator[int]:
            raise ZeroDivisionError

    async def main() -> None:
        with open_pool(1) as pool, pytest.raises(ZeroDivisionError):
            pool.amap(tasks.square, Broken())

    run(main())


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
def test_an_input_that_raises_counts_up_to_there(run: Run, error: type[BaseException]) -> None:
    async def source() -> AsyncIterator[int]:
        for x in range(20):
            yield x
        raise error("the input")

    async def main() -> None:
        with open_pool(2) as pool:
            seen: list[int] = []
            with pytest.raises(error):
                await _all_into(seen, pool.amap(tasks.square, source()))
            if error is ValueError:
                assert seen == [x * x for x in range(20)]
            await turns(lambda: pool._client.turn() or pool._client.idle_or_closed(), "the rest is dropped")

    run(main())


def test_a_crash_in_a_map_costs_its_item(run: Run, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            got = [y async for y in pool.amap(_die_at_forty, range(1, 100), on_error="return")]
            assert [y.item for y in got if isinstance(y, Failure)] == [40, 80]
            assert [y for y in got if not isinstance(y, Failure)] == [x for x in range(1, 100) if x % 40]

    run(main())


def _die_at_forty(x: int) -> int:
    return tasks.die_now_and_then(x, 40)


def test_several_maps_and_calls_at_once(run: Run, no_timer: None) -> None:
    async def main() -> None:
        with open_pool(2) as pool:

            async def mapped(k: int) -> list[int]:
                form = pool.amap if k % 2 else pool.amap_unordered
                return sorted([y async for y in form(tasks.square, upto(500) if k % 3 else range(500))])

            maps = [asyncio.ensure_future(mapped(k)) for k in range(6)]
            for x in range(200):
                assert await pool.run(tasks.square, x) == x * x
            for values in await asyncio.gather(*maps):
                assert values == [x * x for x in range(500)]

    run(main())


def test_the_loop_goes_on_while_results_come_as_fast_as_they_are_taken(run: Run) -> None:
    async def main() -> None:
        with open_pool(max_workers=0) as pool:  # results are always there at once
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0)
                    ticks += 1

            ticking = asyncio.ensure_future(tick())
            loop = asyncio.get_running_loop()
            end = loop.time() + 20
            async for _ in pool.amap(tasks.square, itertools.count()):
                if ticks >= 10 or loop.time() > end:
                    break
            assert ticks >= 10
            ticking.cancel()

    run(main())


def test_an_iteration_belongs_to_one_task_at_a_time(run: Run, gate: tasks.Gate) -> None:
    async def main() -> None:
        with open_pool(1) as pool:
            results = pool.amap(tasks.hold, [gate.path])
            first = asyncio.ensure_future(anext(results))
            await asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="another task"):
                await anext(results)
            with pytest.raises(RuntimeError, match="another task"):
                await results.aclose()  # type: ignore[attr-defined]
            gate.open()
            assert await first is None

    run(main())


def test_the_progress_of_a_map(run: Run) -> None:
    async def main() -> None:
        with open_pool(2) as pool:
            seen: list[Progress] = []
            assert len([y async for y in pool.amap(tasks.square, range(100), progress=seen.append)]) == 100
            assert (seen[-1].done, seen[-1].total, seen[-1].ended) == (100, 100, True)
            async for _ in pool.amap(tasks.square, upto(100), progress=seen.append):
                break
            assert seen[-1].ended
            with pytest.raises(TypeError, match="progress"):
                pool.amap(tasks.square, [], progress=1)  # type: ignore[arg-type]

    run(main())


def test_importing_the_pool_does_not_import_asyncio() -> None:
    script = "import sys, pool; assert 'asyncio' not in sys.modules and 'pool.aio' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
