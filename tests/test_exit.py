"""How a client ends, well and badly, and what its forks may do: scripts in processes of their own."""

import functools
import gc
import os
import random
import signal
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import processes
import pytest
import scripts
import tasks
from chaos.figures import percentile
from repeats import LONG, times

from ipc import process
from pool import Pool, errors
from pool.client import Client

pytestmark = pytest.mark.timeout(300 if LONG else 60)


def _tracebacks(stderr: str) -> int:
    """How many: by the whole first line, for lines of source may name Traceback too (``inspect`` does, while it is
    imported)."""
    return stderr.count("Traceback (most recent call last):\n")


def test_pending_work_finishes_at_the_end_of_a_script(tmp_path: Path) -> None:
    script = """
        import sys, tasks
        from pool import Pool

        pool = Pool(2)
        for name in range(300):
            pool.submit(tasks.touch, sys.argv[1], name)
        pool.map(tasks.touch, [sys.argv[1]] * 50, range(300, 350))
        pool.map(tasks.touch, [sys.argv[1]] * 50, range(350, 400), chunksize=7)
    """
    folder = tmp_path / "out"
    folder.mkdir()
    done = scripts.run(tmp_path, script, str(folder))
    assert len(list(folder.iterdir())) == 400
    assert (done.stdout, done.stderr) == ("", "")


def test_shutdown_without_wait_and_a_collected_pool_finish_at_exit_too(tmp_path: Path) -> None:
    script = """
        import sys, tasks
        from pool import Pool

        def begin():
            first, second = Pool(1), Pool(1)
            for name in range(100):
                first.submit(tasks.touch, sys.argv[1], name)
                second.submit(tasks.touch, sys.argv[1], 1000 + name)
            first.shutdown(wait=False)

        begin()
    """
    folder = tmp_path / "out"
    folder.mkdir()
    done = scripts.run(tmp_path, script, str(folder))
    assert len(list(folder.iterdir())) == 200
    assert done.stderr == ""


def test_callbacks_still_run_at_exit_and_may_not_submit(tmp_path: Path) -> None:
    script = """
        import processes, tasks
        from pool import Pool

        pool = Pool(1)

        def is_refused():
            try:
                pool.submit(tasks.square, 2)
            except RuntimeError as error:
                print("refused" if "cannot schedule new futures" in str(error) else repr(error))
                return True

        def callback(future):
            processes.wait_until(is_refused, "the exit has begun")
            print(future.result(), flush=True)

        pool.submit(tasks.square, 3).add_done_callback(callback)
    """
    assert scripts.run(tmp_path, script).stdout == "refused\n9\n"


@pytest.mark.parametrize("form", ["imap", "imap_unordered", "map"])
def test_exit_inside_an_unfinished_iteration(tmp_path: Path, form: str) -> None:
    script = f"""
        import itertools, tasks
        from pool import Pool

        pool = Pool(2)
        results = pool.{form}(tasks.square, {"range(500)" if form == "map" else "itertools.count()"})
        print(next(results) is not None)
    """
    done = scripts.run(tmp_path, script)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_an_exception_at_the_end_of_a_script_shows_only_itself(tmp_path: Path) -> None:
    script = """
        import tasks
        from pool import Pool

        pool = Pool(2)
        futures = [pool.submit(tasks.square, x) for x in range(100)]
        raise ValueError("mine")
    """
    stderr = scripts.run(tmp_path, script, code=1).stderr
    assert stderr.endswith("ValueError: mine\n")
    assert _tracebacks(stderr) == 1


def test_sys_exit_keeps_its_code(tmp_path: Path) -> None:
    script = """
        import sys, tasks
        from pool import Pool

        with Pool(2) as pool:
            pool.submit(tasks.sleep, 60)
            sys.exit(5)
    """
    began = time.monotonic()
    assert scripts.run(tmp_path, script, code=5).stderr == ""
    assert time.monotonic() - began < 20


# ---- Ctrl-C


def _usual(took: Callable[[], float]) -> float:
    """What of three runs the second was, in the long form the slowest: it is for a quiet machine, and on others a stall
    is no fault of ours."""
    return sorted(took() for _ in range(3))[2 if LONG else 1]


WAITS = {
    "result": "pool.submit(work, sys.argv[1]).result()",
    "with": "with pool: pool.submit(work, sys.argv[1])",
    "with result": "with pool: pool.submit(work, sys.argv[1]).result()",
    "wait": "concurrent.futures.wait([pool.submit(work, sys.argv[1])])",
    "map": "list(pool.map(work, [sys.argv[1]] * 100))",
    "imap": "list(pool.imap(work, [sys.argv[1]] * 100))",
    "imap_unordered": "for _ in pool.imap_unordered(work, [sys.argv[1]] * 100): pass",
    "shutdown": "pool.submit(work, sys.argv[1]); pool.shutdown()",
}


@pytest.mark.parametrize("wait", WAITS)
def test_one_ctrl_c_ends_everything_at_once_and_quietly(tmp_path: Path, wait: str) -> None:
    script = f"""
        import concurrent.futures, subprocess, sys, tasks
        from pool import Pool

        def work(path):
            child = subprocess.Popen(["sleep", "60"])
            with open(path + ".started", "wb", buffering=0) as started:
                started.write(child.pid.to_bytes(4, "little"))
            tasks.sleep(60)

        pool = Pool(1)
        {WAITS[wait]}
    """
    gate = tasks.Gate(tmp_path)

    def took() -> float:
        with scripts.start(tmp_path, script, gate.path) as client:
            grandchild = gate.await_start()[0]
            family = [*processes.children_of_all(client.pid), grandchild]
            began = time.monotonic()
            client.send_signal(signal.SIGINT)
            _, stderr = client.communicate(timeout=scripts.TIMEOUT)
            took = time.monotonic() - began
        assert client.returncode == -signal.SIGINT
        assert _tracebacks(stderr) == 1
        assert stderr.rstrip().endswith("KeyboardInterrupt")
        assert len(family) >= 3
        processes.wait_until(lambda: not any(map(processes.runs, family)), "all are gone")
        return took

    assert _usual(took) < 0.5
    gate.close()


def test_a_second_after_the_client_was_killed_nobody_is_left(tmp_path: Path) -> None:
    script = """
        import subprocess, sys, tasks
        from pool import Pool

        def work(path):
            subprocess.Popen(["sleep", "1000"])
            subprocess.run(["sh", "-c", "setsid sleep 1000 &"])  # a daemon in a session of its own
            tasks.hold(path)

        with Pool(2) as pool:
            for _ in range(2):
                pool.submit(work, sys.argv[1])
    """
    gate = tasks.Gate(tmp_path)

    def took() -> float:
        with scripts.start(tmp_path, script, gate.path) as client:
            gate.await_start(2)
            family = processes.children_of_all(client.pid)
            began = time.monotonic()
            client.kill()
            processes.wait_until(lambda: not any(map(processes.runs, family)), "all are gone")
            took = time.monotonic() - began
        assert len(family) >= 7
        return took

    samples = [took() for _ in times(5, 100)]
    assert percentile(samples, 0.99 if LONG else 0.5) < 1  # on a busy machine a stall is no fault of ours
    gate.close()


@pytest.mark.parametrize("moment", ["idle", "busy"])
def test_a_second_after_client_and_monitor_were_killed_together_no_worker_is_left(tmp_path: Path, moment: str) -> None:
    """Nobody is there to act: each worker dies with its parent."""
    script = """
        import signal, sys, tasks
        from pool import Pool

        with Pool(2) as pool:
            for future in [pool.submit(tasks.hold, sys.argv[1]) for _ in range(2)]:
                future.result()
            print("idle", flush=True)
            signal.pause()
    """
    gate = tasks.Gate(tmp_path)

    def took() -> float:
        with processes.nothing_left(), scripts.start(tmp_path, script, gate.path) as client:
            workers = gate.await_start(2)
            family = [client.pid, *process.children_of(client.pid)]
            assert len(family) == 2
            if moment == "idle":
                gate.open(2)
                assert client.stdout is not None
                assert client.stdout.readline() == "idle\n"
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            processes.wait_until(lambda: all(map(processes.is_stopped, family)), "neither of them acts any more")
            for pid in family:
                os.kill(pid, signal.SIGKILL)
            began = time.monotonic()
            processes.wait_until(lambda: not any(map(processes.runs, workers)), "all are gone")
            return time.monotonic() - began

    samples = [took() for _ in times(3, 50)]
    assert percentile(samples, 0.99 if LONG else 0.5) < 1
    gate.close()


def test_a_client_that_is_killed_while_its_pool_starts_leaves_nobody(tmp_path: Path) -> None:
    script = """
        import signal
        from pool import Pool

        print("starts", flush=True)
        pool = Pool(2).start()
        assert sum(pool.map(abs, range(50))) == 1225
        signal.pause()
    """
    lucky = random.Random(27)

    def took() -> float:
        ours = set(process.children_of(os.getpid()))
        with processes.nothing_left():
            with scripts.start(tmp_path, script) as client:
                assert client.stdout is not None
                client.stdout.readline()
                time.sleep(lucky.uniform(0, 0.04))  # any moment of it
                family = set(processes.children_of_all(client.pid))
                client.kill()
            began = time.monotonic()

            def left() -> bool:
                """Also of those that were forked since: whose parents are gone comes to us."""
                family.update(set(processes.children_of_all(os.getpid())) - ours)
                return any(map(processes.runs, family))

            processes.wait_until(lambda: not left(), "all are gone")
            return time.monotonic() - began

    samples = [took() for _ in times(10, 200)]
    assert percentile(samples, 0.99 if LONG else 0.5) < 1


# ---- other signals

HANGING = """
import contextlib, os, signal, tasks
from pool import Pool

for number in (signal.SIGHUP, signal.SIGQUIT):  # also where the tests run under nohup, or in the background
    signal.signal(number, signal.SIG_DFL)
client = os.getpid()

def hang(_=None):
    for number in signal.valid_signals():
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
    tasks.hold(os.environ["GATE"])

def begin():
    if os.environ["MOMENT"] == "start" and os.getppid() != client:  # a worker: its parent is the monitor
        hang()

os.register_at_fork(after_in_child=begin)
if __name__ == "__main__":
    with Pool(2) as pool:
        for future in [pool.submit(hang) for _ in range(2)]:
            future.result()
"""


@pytest.mark.parametrize("moment", ["task", "start"])
@pytest.mark.parametrize("kind", ["library", "command line"])
@pytest.mark.parametrize("numbers", ["SIGINT", "SIGTERM", "SIGTERM SIGTERM", "SIGHUP", "SIGQUIT"])
def test_two_seconds_after_a_signal_nobody_is_left_whatever_hangs(
    tmp_path: Path, gate: tasks.Gate, monkeypatch: pytest.MonkeyPatch, moment: str, kind: str, numbers: str
) -> None:
    monkeypatch.setenv("GATE", gate.path)
    monkeypatch.setenv("MOMENT", moment)
    sent = [signal.Signals[name] for name in numbers.split()]
    catches = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if kind == "command line" else ()
    expected = 128 + sent[0] if sent[0] in catches else -sent[0]

    def took() -> float:
        options = ["-m", "pool", "map", "script:hang", "1", "2"] if kind == "command line" else []
        with scripts.start(tmp_path, HANGING, options=options) as client:
            gate.await_start(2)
            family = processes.children_of_all(client.pid)
            began = time.monotonic()
            for number in sent:
                client.send_signal(number)
            _, stderr = client.communicate(timeout=scripts.TIMEOUT)
            processes.wait_until(lambda: not any(map(processes.runs, family)), "all are gone")
            took = time.monotonic() - began
        assert client.returncode == expected
        if kind == "command line":
            assert stderr.startswith("interrupted: 0 of 2 done") == (sent[0] in catches)
        assert _tracebacks(stderr) == (kind == "library" and sent[0] == signal.SIGINT)
        assert len(family) == 3
        return took

    assert _usual(took) < 2


# ---- forks


def test_a_forked_child_gets_a_clear_error_and_the_parents_pool_goes_on(tmp_path: Path) -> None:
    script = """
        import concurrent.futures, os, sys, tasks, warnings
        from pool import Pool, errors

        warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # from 3.12 on

        pool = Pool(2).start()
        gate = tasks.Gate(__import__("pathlib").Path(sys.argv[1]))
        running = pool.submit(tasks.hold, gate.path, "kept")
        gate.await_start()
        done = pool.submit(tasks.square, 3)
        assert done.result() == 9
        iteration = pool.imap(tasks.square, range(10**9))
        assert next(iteration) == 0

        def refused(call):
            try:
                call()
            except errors.PoolClosed as error:
                assert "belongs to process" in str(error), error
            else:
                raise AssertionError("not refused")

        child = os.fork()
        if child == 0:
            refused(lambda: pool.submit(tasks.square, 2))
            refused(lambda: pool.submit(lambda: 5))
            refused(lambda: pool.map(tasks.square, [1]))
            refused(lambda: next(pool.imap(tasks.square, [1])))
            refused(pool.start)
            refused(running.result)
            refused(lambda: running.exception(5))
            refused(lambda: concurrent.futures.wait([running]))
            refused(lambda: list(iteration))
            assert done.result() == 9
            assert not running.cancel() and not running.kill() and not running.running()
            pool.shutdown()
            pool.kill_workers()
            with Pool(1) as mine:
                assert mine.submit(tasks.square, 5).result() == 25
            del pool, running, iteration
            sys.exit(7)  # with all finalisers
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert [next(iteration) for _ in range(100)] == [x * x for x in range(1, 101)]
        iteration.close()
        gate.open()
        assert running.result() == "kept"
        assert list(pool.map(tasks.square, range(100))) == [x * x for x in range(100)]
        pool.shutdown()
        print("ok")
    """
    done = scripts.run(tmp_path, script, str(tmp_path))
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_a_fork_while_other_threads_use_the_pool_does_not_hang(tmp_path: Path) -> None:
    script = """
        import os, threading, tasks
        from pool import Pool, errors

        pool = Pool(2).start()
        stop = []

        def use():
            while not stop:
                assert sum(pool.imap(lambda x: x, range(50))) == 1225

        threads = [threading.Thread(target=use) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(50):
            child = os.fork()
            if child == 0:
                try:
                    pool.submit(lambda: 1)
                except errors.PoolClosed:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
        stop.append(1)
        for thread in threads:
            thread.join()
        pool.shutdown()
        print("ok")
    """
    assert scripts.run(tmp_path, script).stdout == "ok\n"


def test_a_child_that_a_task_forks_never_returns_into_the_worker(tmp_path: Path) -> None:
    script = """
        import os, tasks
        from pool import Pool

        def forks(x):
            os.fork()
            return x, os.getpid()

        with Pool(1) as pool:
            worker = pool.submit(tasks.pid).result()
            for x in range(20):
                assert pool.submit(forks, x).result() == (x, worker)
            assert list(pool.imap(forks, range(20), chunksize=5)) == [(x, worker) for x in range(20)]
        print("ok")
    """
    done = scripts.run(tmp_path, script)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_a_fork_beside_other_threads_warns_once_and_names_them(tmp_path: Path) -> None:
    script = """
        import threading, warnings, tasks
        from pool import Pool

        end = threading.Event()
        threading.Thread(target=end.wait, name="ticker").start()
        for start in (lambda pool: pool.submit(tasks.square, 2).result(), lambda pool: pool.start()):
            with Pool(1) as pool:
                start(pool)
        end.set()
    """
    stderr = scripts.run(tmp_path, script).stderr
    assert stderr.count("RuntimeWarning") == 1
    assert "script.py" in stderr.partition(": RuntimeWarning")[0]
    assert "(ticker)" in stderr


def test_output_of_tasks_is_not_repeated_by_anybody(tmp_path: Path) -> None:
    script = """
        import sys, tasks
        from pool import Pool

        sys.stdout.write("before ")  # stands in the buffer at the fork
        with Pool(2) as pool:
            pool.submit(print, "inside").result()
        sys.stdout.write("after\\n")
    """
    done = scripts.run(tmp_path, script)
    assert (done.stdout, done.stderr) == ("before inside\nafter\n", "")


def test_importing_and_making_a_pool_starts_no_process_and_no_thread(tmp_path: Path) -> None:
    script = """
        import os, threading
        import pool
        made = pool.Pool()
        assert threading.active_count() == 1
        assert not open(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read()
    """
    scripts.run(tmp_path, script)


# ---- what is the client's stays the client's


def test_no_finaliser_and_no_signal_handler_of_the_client_runs_in_another_process(tmp_path: Path) -> None:
    script = """
        import atexit, contextlib, gc, multiprocessing, os, signal, sys, time, weakref, processes, tasks
        from pool import Pool

        def note(what):
            fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(fd, f"{os.getpid()} {what}\\n".encode())
            os.close(fd)

        class Noisy:
            def __init__(self, name):
                self.name = name
                weakref.finalize(self, note, f"finalize {name}").atexit = name == "global"
                self.watched = weakref.ref(self, lambda _: note(f"weakref {name}"))

            def __del__(self):
                note(f"del {self.name}")

            def __reduce__(self):
                return int, ()  # no worker has one of its own

        def ended(how):
            if how == "fork" and os.fork() == 0:
                sys.exit()
            if how == "multiprocessing":
                child = multiprocessing.get_context("fork").Process(target=gc.collect)
                child.start()
                child.join()
            if how == "raises":
                raise ValueError(how)
            if how == "exits":
                sys.exit()
            if how == "dies":
                os._exit(1)
            if how == "hangs":
                tasks.sleep(1000)
            return gc.collect()

        def caught(_=None):
            return sorted(n for n in signal.valid_signals() if callable(signal.getsignal(n)))

        gc.disable()  # the garbage below is still there when the processes are forked
        atexit.register(note, "atexit")
        for number in signal.valid_signals():
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, lambda number, _: note(f"signal {number}"))
        kept = Noisy("global")
        garbage = Noisy("garbage")
        garbage.itself = garbage
        del garbage

        def main(local):
            first = Pool(1, initializer=gc.collect)
            gate = tasks.Gate(__import__("pathlib").Path(sys.argv[2]))
            running = first.submit(lambda path, _: tasks.hold(path), gate.path, Noisy("running"))
            gate.await_start()
            others = [first.submit(tasks.identity, Noisy("published"))]
            others += [first.submit(tasks.identity, 0) for _ in range(2000)]  # more than there are rows
            others.append(first.submit(tasks.identity, Noisy("queued")))
            with Pool(2, initializer=gc.collect, max_tasks_per_child=5) as pool:  # its processes know of the first one
                for how in ("returns", "fork", "multiprocessing", "raises", "exits", "dies", "hangs") * 2:
                    with contextlib.suppress(SystemExit):
                        pool.options(timeout=0.2 if how == "hangs" else None).submit(ended, how).exception()
                assert pool.submit(caught).result() == [signal.SIGINT]
                monitor = processes.monitor_pid(pool)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                    os.kill(monitor, number)
                for pid in (monitor, *processes.worker_pids(pool)):
                    for number in (signal.SIGWINCH, signal.SIGURG, signal.SIGCONT, signal.SIGCHLD, signal.SIGUSR1):
                        with contextlib.suppress(ProcessLookupError):  # it has done its share of tasks meanwhile
                            if pid != monitor or number != signal.SIGUSR1:
                                os.kill(pid, number)
                assert pool.options(retries=2).submit(abs, -1).result() == 1
                assert processes.runs(monitor)
            gate.open()
            assert [f.result() for f in [running, *others]] == [None, *[0] * 2002]
            first.shutdown()

        main(Noisy("local"))
        note("end of main")
        gc.collect()
        signal.raise_signal(signal.SIGUSR2)
    """
    notes = tmp_path / "notes"
    with scripts.start(tmp_path, script, str(notes), str(tmp_path)) as client:
        out, err = client.communicate(timeout=scripts.TIMEOUT)
        assert (client.returncode, out, err) == (0, "", "")
    lines = [line.split(maxsplit=1) for line in notes.read_text().splitlines()]
    strange = [line for line in lines if line[0] != str(client.pid)]
    assert not strange
    seen = Counter(what for _, what in lines)
    for name in ("garbage", "local", "running", "published", "queued"):
        assert seen[f"del {name}"] == seen[f"finalize {name}"] == 1
    assert seen["finalize global"] == seen["atexit"] == seen[f"signal {signal.SIGUSR2}"] == 1


def _end_of_a_pool_whose_errors_were_seen() -> weakref.ref[Client]:
    pool = Pool(1).start()
    future = pool.submit(time.sleep, 100)
    os.kill(processes.monitor_pid(pool), signal.SIGKILL)
    for call in (future.result, functools.partial(pool.submit, abs, -1), functools.partial(pool.imap, abs, [-1])):
        with pytest.raises(errors.PoolBroken):  # its traceback has this frame, which has the pool
            call()
    return weakref.ref(pool._client)


def test_a_broken_pool_is_let_go() -> None:
    client = _end_of_a_pool_whose_errors_were_seen()
    processes.wait_until(lambda: gc.collect() >= 0 and client() is None, "nothing holds it")
