"""What the pool imports, and when: scripts in fresh interpreters. A short script pays for every import."""

import os
from pathlib import Path

import scripts

HEAVY = ["concurrent.futures.process", "concurrent.futures.thread", "multiprocessing"]
HEAVY += ["click", "cloudpickle", "msgpack", "msgspec", "multiprocess", "numpy", "prometheus_client", "psutil", "redis"]
HEAVY += ["dataclasses", "inspect", "random", "socket", "subprocess", "typing"]


def test_a_run_without_errors_of_the_pool_imports_nothing_heavy(tmp_path: Path) -> None:
    script = """
        import sys
        import concurrent.futures
        concurrent.futures.Executor  # what Python itself imports for it does not count

        before = set(sys.modules)
        import pool

        # builtins: a function of this script would travel through cloudpickle. The workers show what the monitor has,
        # too: they inherit it.
        look = "set(__import__('sys').modules)"
        seen = set(sys.modules)
        with pool.Pool(2, max_tasks_per_child=50) as workers:
            assert workers.submit(abs, -1).result() == 1
            assert list(workers.map(abs, range(-100, 0), chunksize=7)) == list(range(100, 0, -1))
            assert list(workers.imap(abs, range(-100, 0))) == list(range(100, 0, -1))
            assert workers.options(timeout=60, retries=1).submit(abs, -1).result(60) == 1
            error = workers.submit(int, "x").exception()
            assert isinstance(error, ValueError) and "ValueError" in str(error.__cause__)
            for _ in range(10):
                seen |= workers.submit(eval, look).result()
        seen |= set(sys.modules)
        assert "pool.worker_process" in seen and "pool.errors" not in seen
        assert "pool.progress" not in seen
        print(*sorted(set(sys.argv[1:]) & seen - before))
    """
    assert scripts.run(tmp_path, script, *HEAVY).stdout == "\n"


def test_the_errors_are_there_when_they_are_asked_for(tmp_path: Path) -> None:
    script = """
        import pool
        assert set(pool.__all__) <= set(dir(pool))
        assert issubclass(pool.errors.WorkerCrashed, pool.errors.PoolError)
        from concurrent.futures.process import BrokenProcessPool
        assert issubclass(pool.errors.PoolBroken, BrokenProcessPool)
        assert not hasattr(pool, "error")
    """
    scripts.run(tmp_path, script)


def test_errors_that_are_first_needed_while_the_interpreter_exits(tmp_path: Path) -> None:
    """Then `concurrent.futures.process` cannot be imported any more."""
    script = """
        import concurrent.futures, os, sys, threading
        from pool import Pool

        def show(future):
            error = future.exception()
            print(type(error).__name__, isinstance(error, concurrent.futures.BrokenExecutor), flush=True)

        gate = os.open(sys.argv[1], os.O_RDWR)
        pool = Pool(1)
        pool.submit(os.read, gate, 1)
        pool.submit(os._exit, 3).add_done_callback(show)
        pool.submit(exec, "from pool.errors import Abort; raise Abort('no')").add_done_callback(show)
        threading._register_atexit(os.write, gate, b"x")  # registered after the pool's hook, so it runs before
    """
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    done = scripts.run(tmp_path, script, str(fifo))
    assert (done.stdout, done.stderr) == ("WorkerCrashed True\nAbort False\n", "")


def test_an_error_that_cannot_be_imported_loses_no_task(tmp_path: Path) -> None:
    script = """
        import concurrent.futures, os, resource, sys
        from time import sleep
        from pool import Pool

        def fill():
            files = []
            try:
                while True:
                    files.append(open(os.devnull))
            except OSError:
                return files

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Pool(1) as crashing, Pool(1) as killed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
            assert crashing.submit(abs, -1).result() == killed.submit(abs, -1).result() == 1
            files = fill()
            future, hanging = crashing.submit(os._exit, 3), killed.submit(sleep, 60)
            try:
                future.result()
            except OSError:
                print("later")
            killed.kill_workers()
            assert type(hanging.exception()) is concurrent.futures.BrokenExecutor
            assert "pool.errors" not in sys.modules
            files.clear()
            print(type(future.exception()).__name__)
    """
    assert scripts.run(tmp_path, script).stdout == "later\nWorkerCrashed\n"
