"""fork, forkserver and spawn: the same promises, and what is different between them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import scripts
import tasks
from test_damage import overwrite

from pool import Pool, output
from pool.compat import multiprocessing as ours
from pool.errors import PoolBroken, PoolStartError, ResultNotPicklable, SegmentCorrupt, TaskTimeout, WorkerCrashed

METHODS = ["fork", "forkserver", "spawn"]
FRESH = ["forkserver", "spawn"]
_SOON = 20.0  # seconds; a second is promised, on a machine that has time

pytestmark = pytest.mark.timeout(90)


@pytest.fixture(params=METHODS)
def context(request: pytest.FixtureRequest) -> BaseContext:
    context: BaseContext = multiprocessing.get_context(request.param)
    return context


@pytest.fixture(params=METHODS)
def started(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with processes.nothing_left(), Pool(2, multiprocessing.get_context(request.param)) as pool:
        yield pool


# ---- what is the same


def test_calls_arrays_shared_objects_and_files(started: Pool, tmp_path: Path) -> None:
    assert started.submit(tasks.add, 1, 2, c=3).result() == 6
    assert list(started.map(tasks.square, range(5))) == [0, 1, 4, 9, 16]
    offset = 7
    assert list(started.imap(lambda x: x + offset, range(300))) == list(range(7, 307))
    image = np.arange(4 << 20, dtype=np.uint8).reshape(1024, -1)
    assert (started.submit(np.flipud, image).result() == image[::-1]).all()
    shared = started.share(np.arange(1000))
    assert started.submit(np.sum, shared).result() == 499500
    assert started.submit(functools.partial(np.dot, shared), shared).result() == 332833500
    assert isinstance(started.submit(tasks.fail, "x").exception(), ValueError)
    started.submit(_write, tmp_path / "made").result()
    assert (tmp_path / "made").read_text() == "whole"


def _write(path: Path) -> None:
    with output(path) as temporary:
        Path(temporary).write_text("whole")


def test_an_event_loop_and_what_tasks_print(started: Pool) -> None:
    async def some() -> list[int]:
        return await asyncio.gather(*(started.run(tasks.square, n) for n in range(5)))

    assert asyncio.run(some()) == [0, 1, 4, 9, 16]
    loud = started.options(capture_output=True).submit(print, "said")
    assert loud.result() is None
    assert loud.account is not None
    assert loud.account.output == "said\n"


def test_a_worker_that_dies_costs_its_task(started: Pool, tmp_path: Path) -> None:
    died = started.submit(os.kill, 0, signal.SIGKILL).exception()
    assert isinstance(died, WorkerCrashed)
    assert died.signal == signal.SIGKILL
    again = started.options(retries=1).submit(tasks.crash_once, str(tmp_path / "marker"), 5)
    assert again.result() == 5
    for pid in processes.worker_pids(started):
        os.kill(pid, signal.SIGKILL)
    assert list(started.map(tasks.square, range(3))) == [0, 1, 4]


def test_a_deadline(started: Pool) -> None:
    stuck = started.options(timeout=0.3).submit(sum, range(10**12))
    assert isinstance(stuck.exception(30), TaskTimeout)
    assert started.submit(abs, -1).result() == 1


def test_the_monitor_is_killed(started: Pool, gate: tasks.Gate) -> None:
    held = started.submit(tasks.hold, gate.path)
    (pid,) = gate.await_start()
    os.kill(processes.monitor_pid(started), signal.SIGKILL)
    assert isinstance(held.exception(20), PoolBroken)
    processes.wait_until(lambda: not processes.runs(pid), "the worker ends with the monitor", _SOON)


_state: list[Any] = []


def _set_up(*args: Any) -> None:
    _state.extend(args)


def _report() -> None:
    """What the initializer was given is of use: a queue and a lock."""
    queue, lock, word = _state
    with lock:
        queue.put((word, os.getpid()))
    queue.close()
    queue.join_thread()


def test_an_initializer_with_objects_that_only_travel_at_a_start(context: BaseContext) -> None:
    queue, lock = context.Queue(), context.Lock()
    with Pool(2, context, _set_up, (queue, lock, "word"), max_tasks_per_child=1) as pool:
        for task in [pool.submit(_report) for _ in range(3)]:  # the third one in a worker that was started later
            task.result()
        seen = [queue.get(timeout=20) for _ in range(3)]
    assert [word for word, _ in seen] == ["word"] * 3
    assert len({pid for _, pid in seen}) == 3


def _refuse() -> None:
    raise ValueError("no licence")


def _leave(file: Path) -> None:
    with file.open("a") as said:
        said.write("left\n")


def test_a_teardown_and_a_restart(context: BaseContext, tmp_path: Path) -> None:
    with Pool(2, context, teardown=functools.partial(_leave, tmp_path / "left")) as pool:
        first = {pool.submit(tasks.pid).result() for _ in range(20)}
        pool.restart()
        assert (tmp_path / "left").read_text() == "left\n" * 2
        assert not first & {pool.submit(tasks.pid).result() for _ in range(20)}
    assert (tmp_path / "left").read_text() == "left\n" * 4


def test_an_initializer_that_raises(context: BaseContext) -> None:
    with processes.nothing_left(), Pool(2, context, _refuse) as pool:
        error = pool.submit(abs, -1).exception(30)
        assert isinstance(error, PoolStartError)
        assert str(error).endswith("ValueError: no licence")
        assert "in _refuse" in error.traceback


@pytest.mark.parametrize("method", FRESH)
def test_an_initializer_that_cannot_travel(method: str) -> None:
    with processes.nothing_left():
        pool = Pool(2, multiprocessing.get_context(method), _set_up, (threading.Lock(),))
        for _ in range(2):  # nothing is broken by it
            with pytest.raises(TypeError, match="cannot pickle"):
                pool.submit(abs, -1)
        pool.shutdown()


def test_three_pools_at_once() -> None:
    with processes.nothing_left():
        pools = [Pool(2, multiprocessing.get_context(method)) for method in METHODS]
        waiting = [pool.imap(tasks.square, range(2000)) for pool in pools]
        for _ in range(2):
            for results in waiting:
                assert [next(results) for _ in range(1000)]
        assert isinstance(pools[1].submit(os._exit, 1).exception(), WorkerCrashed)
        assert [pool.submit(tasks.square, 3).result() for pool in pools] == [9, 9, 9]
        for pool in pools:
            pool.shutdown()


@pytest.mark.parametrize("method", FRESH)
def test_damaged_memory(method: str) -> None:
    """The pool goes on in a new segment, with a new interpreter."""
    with processes.nothing_left(), Pool(2, multiprocessing.get_context(method), _set_up, ("again",)) as pool:
        futures = [pool.submit(overwrite, "all"), *(pool.submit(tasks.square, x) for x in range(3000))]
        kinds = {type(future.exception(30)) for future in futures}
        # A result may be hurt in the very moment in which it is read, after its row was found to be right.
        assert SegmentCorrupt in kinds <= {type(None), SegmentCorrupt, ResultNotPicklable}
        assert pool.submit(_word).result(30) == "again"


def _word() -> str:
    return str(_state[-1])


def test_a_pool_in_a_task(started: Pool) -> None:
    assert started.submit(_nested, "spawn").result() == [0, 1, 4]


def _nested(method: str) -> list[int]:
    with Pool(1, multiprocessing.get_context(method)) as pool:
        return list(pool.map(tasks.square, range(3)))


def test_what_is_no_context() -> None:
    with pytest.raises(TypeError, match=r"not str: multiprocessing.get_context\('spawn'\)"):
        Pool(1, "spawn")

    class Other:
        def get_start_method(self) -> str:
            return "loky"

    with pytest.raises(ValueError, match="start method 'loky' is not supported, only 'fork', 'forkserver', 'spawn'"):
        Pool(1, Other())


# ---- a client that a fork would not be safe for


@pytest.mark.parametrize("method", FRESH)
def test_a_client_with_threads_that_compute(method: str) -> None:
    stop = threading.Event()

    def compute() -> None:
        a = np.ones((200, 200))
        while not stop.is_set():
            a @ a

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # no warning about them
            with processes.nothing_left(), Pool(2, multiprocessing.get_context(method)) as pool:
                a = np.ones((300, 300))
                assert all((c == 300).all() for c in pool.imap(functools.partial(np.matmul, a), [a] * 20))
                assert pool.submit(threading.active_count).result() == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_fork_beside_threads_names_them_and_the_other_methods(tmp_path: Path) -> None:
    script = """
        import multiprocessing, threading, warnings
        from pool import Pool
        end = threading.Event()
        threading.Thread(target=end.wait, name="mine").start()
        with warnings.catch_warnings(record=True) as caught:
            Pool(1, multiprocessing.get_context("fork")).start().shutdown()
        end.set()
        print(*(f"{w.category.__name__}: {w.message}" for w in caught))
    """
    said = scripts.run(tmp_path, script).stdout
    assert said.startswith("RuntimeWarning: the pool forks while other threads run (mine);")
    assert "forkserver" in said


_counter = 0


def _look() -> dict[str, Any]:
    return {
        "counter": _counter,
        "variable": os.environ.get("POOL_TEST_VARIABLE"),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "path": sys.path,
        "arguments": sys.argv,
        "directory": os.getcwd(),
        "authkey": bytes(multiprocessing.current_process().authkey),
        "name": multiprocessing.current_process().name,
        "files": sorted(processes.open_files().values()),
    }


def test_what_comes_along(context: BaseContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    global _counter
    monkeypatch.setenv("POOL_TEST_VARIABLE", "set")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, "/nowhere/at/all"])
    _counter = 5
    mine = tmp_path / "open"
    try:
        with open(mine, "w"), Pool(1, context, threads_per_worker=3) as pool:
            seen = pool.submit(_look).result()
    finally:
        _counter = 0
    forked = context.get_start_method() == "fork"
    assert seen["counter"] == (5 if forked else 0), "modules are imported anew"
    assert (str(mine) in seen["files"]) is forked, "files of the client"
    assert not [name for name in seen["files"] if "pool-control" in name or "pool-payload" in name]
    assert (seen["variable"], seen["threads"], seen["directory"]) == ("set", "3", str(tmp_path))
    assert (seen["path"], seen["arguments"]) == (sys.path, sys.argv)
    assert seen["authkey"] == bytes(multiprocessing.current_process().authkey)
    assert seen["name"] == "MainProcess"


# ---- __main__


SCRIPT = """
    import multiprocessing, os, sys
    from pool import Pool
    import tasks

    sys.stdout.write(f"import {__name__} {os.getpid()}\\n")
    state = "unset"

    class Point:
        def __init__(self, x):
            self.x = x

    class Wrong(Exception):
        pass

    def set_up(value):
        global state
        state = value

    def work(point):
        return state, Point(point.x + 1), isinstance(point, Point), os.getpid(), os.getppid()

    def fail():
        raise Wrong("so")

    if __name__ == "__main__":
        class Late(Point):
            pass

        def late(x):
            return Late(x)

        with Pool(2, multiprocessing.get_context(sys.argv[1]), set_up, (Point("set"),)) as pool:
            value, point, known, pid, parent = pool.submit(work, Point(1)).result()
            assert type(value) is Point and value.x == "set" and type(point) is Point and point.x == 2 and known
            value, point, known, _, _ = pool.submit(work, Late(1)).result()
            assert value.x == "set" and point.x == 2 and known
            made = pool.submit(late, 7).result()
            assert type(made) is Late and made.x == 7
            assert type(pool.submit(fail).exception()) is Wrong
            assert [p.x for p in pool.imap(lambda x: Point(x), range(3))] == [0, 1, 2]
            shared = pool.share([Point(3), Late(4)])
            assert [p.x for p in pool.submit(tasks.identity, shared).result()] == [3, 4]
            assert {pool.submit(work, Point(1)).result()[3] for _ in range(50)} <= {
                pid for pid in pool._client._running.worker_pids()
            }
            print("processes", os.getpid(), parent, *pool._client._running.worker_pids())
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["script", "module"])
def test_functions_and_classes_of_the_script(method: str, how: str, tmp_path: Path) -> None:
    if how == "script":
        said = scripts.run(tmp_path, SCRIPT, method).stdout.split("\n")
    else:
        launcher = "import runpy, sys; sys.argv[1:2] = []; runpy.run_module('main_of_test', None, '__main__', True)"
        (tmp_path / "main_of_test.py").write_text(textwrap.dedent(SCRIPT))
        said = scripts.run(tmp_path, launcher, "main_of_test", method).stdout.split("\n")
    imported = {(name, int(pid)) for _, name, pid in (line.split() for line in said if line.startswith("import"))}
    (pids,) = ([int(pid) for pid in line.split()[1:]] for line in said if line.startswith("processes"))
    client, monitor, *workers = pids
    assert ("__main__", client) in imported
    again = {pid for name, pid in imported if name == "__mp_main__"}
    assert len(again) + 1 == len(imported)
    if method == "spawn":
        assert set() < again <= set(workers), "each for itself; one may have had nothing to do yet"
    else:
        assert again == ({monitor} if method == "forkserver" else set())


def test_what_goes_by_name_is_known_for_each_pool(tmp_path: Path) -> None:
    """A later pool, whose workers do not have a name, takes it from no earlier one."""
    script = """
        import multiprocessing
        from pool import Pool
        state = "unset"

        def set_up():
            global state
            state = "set"

        if __name__ == "__main__":
            class Late:
                pass

            def look(x):
                return state, isinstance(x, Late), Late

            pools = [Pool(1, multiprocessing.get_context(method), set_up) for method in ("fork", "spawn", "fork")]
            for pool in pools:
                pool.start()
            shared = Pool.share(Late())
            for pool in pools:
                seen, known, kind = pool.submit(look, Late()).result()
                print(seen, known, kind is Late, isinstance(pool.submit(lambda x: x, shared).result(), Late))
                pool.shutdown()
    """
    assert scripts.run(tmp_path, script).stdout.splitlines() == [
        "set True True True",
        "unset True True True",  # a function that the worker does not have brings its own globals
        "set True True True",
    ]


@pytest.mark.parametrize("method", FRESH)
def test_a_main_that_cannot_be_imported_again_travels_by_value(method: str) -> None:
    text = f"""
import multiprocessing
from pool import Pool
class Point:
    def __init__(self, x):
        self.x = x
def work(point):
    return Point(point.x + 1)
with Pool(1, multiprocessing.get_context({method!r})) as pool:
    found = pool.submit(work, Point(1)).result()
    print(type(found) is Point, found.x)
"""
    for arguments, source in ((["-"], text), (["-c", text], "")):
        done = subprocess.run([sys.executable, *arguments], input=source, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ("True 2\n", "")


@pytest.mark.parametrize("method", FRESH)
def test_a_script_without_the_guard_is_told(method: str, tmp_path: Path) -> None:
    script = """
        import multiprocessing, sys
        from pool import Pool
        Pool(2, multiprocessing.get_context(sys.argv[1])).submit(abs, -1).result()
    """
    said = scripts.run(tmp_path, script, method, code=1).stderr
    assert "pool.errors.PoolStartError" in said
    assert "script.py, which starts a pool: with the start methods spawn and forkserver" in said
    assert "if __name__ == '__main__':" in said


@pytest.mark.parametrize("method", FRESH)
def test_a_script_that_raises_when_it_is_imported(method: str, tmp_path: Path) -> None:
    script = """
        import multiprocessing, sys
        from pool import Pool, errors
        if __name__ != "__main__":
            raise SystemExit("not here")
        try:
            Pool(2, multiprocessing.get_context(sys.argv[1])).submit(abs, -1).result(20)
        except errors.PoolStartError as error:
            print(str(error).endswith("SystemExit: not here"), "script.py" in error.traceback)
    """
    assert scripts.run(tmp_path, script, method).stdout == "True True\n"


def test_what_the_fork_server_preloads(tmp_path: Path) -> None:
    script = """
        import multiprocessing, os, sys
        from pool import Pool
        import tasks
        if __name__ != "__main__":
            print("import", os.getpid(), flush=True)
        def look():
            return "payloads" in sys.modules, os.getpid()
        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["no_such_module", "payloads"])
            with Pool(1, context) as pool:
                print(*pool.submit(look).result())
    """
    (_, pid), (found, worker) = (line.split() for line in scripts.run(tmp_path, script).stdout.splitlines())
    assert (found, pid) == ("True", worker), "without __main__ in the list each worker imports it"


@pytest.mark.parametrize("method", FRESH)
def test_what_imports_print_is_written_once(method: str, tmp_path: Path) -> None:
    """It stands in a buffer if the standard output is no terminal; workers have a copy of what the monitor had."""
    script = """
        import multiprocessing, sys
        from pool import Pool
        print("import", __name__)
        if __name__ == "__main__":
            with Pool(1, multiprocessing.get_context(sys.argv[1]), max_tasks_per_child=1) as pool:
                assert list(pool.map(abs, [-1, -2])) == [1, 2]
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        [sys.executable, "script.py", method], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    again = done.stdout.split("\n").count("import __mp_main__")
    assert done.stdout.count("import __main__") == 1
    assert again == 1 if method == "forkserver" else 2 <= again <= 3  # a third worker may have been on its way


def test_threads_of_the_fork_server_are_told(tmp_path: Path) -> None:
    script = """
        import multiprocessing, sys, threading, time
        from pool import Pool
        if __name__ != "__main__":
            threading.Thread(target=time.sleep, args=(1000,), name="imported", daemon=True).start()
        if __name__ == "__main__":
            for method in ("spawn", "forkserver"):
                print(method, file=sys.stderr)
                with Pool(1, multiprocessing.get_context(method)) as pool:
                    print(pool.submit(threading.active_count).result())
    """
    done = scripts.run(tmp_path, script)
    assert done.stdout == "2\n1\n"
    quiet, _, loud = done.stderr.partition("forkserver\n")
    assert quiet == "spawn\n"
    assert "RuntimeWarning: the fork server forks while threads run that its imports have started (imported)" in loud


# ---- the end


ENDLESS = """
    import multiprocessing, os, sys, time
    from pool import Pool
    if __name__ != "__main__":
        open(sys.argv[2], "w").close()
        sum(range(10**12))  # one long call into C
    if __name__ == "__main__":
        pool = Pool(2, multiprocessing.get_context(sys.argv[1])).start()
        while not os.path.exists(sys.argv[2]) or (sys.argv[1] == "spawn" and len(pool._client.processes()) < 4):
            time.sleep(0.001)
        print(pool._client._running.pid, *pool._client._running.worker_pids(), flush=True)
"""


@pytest.mark.parametrize("method", FRESH)
def test_workers_that_are_killed_while_they_import(method: str, tmp_path: Path) -> None:
    script = (
        ENDLESS
        + """
        began = time.monotonic()
        pool.kill_workers()
        assert time.monotonic() - began < 15  # not the end of the call into C
    """
    )
    with processes.nothing_left():
        scripts.run(tmp_path, script, method, str(tmp_path / "marker"))


@pytest.mark.parametrize("method", FRESH)
def test_the_client_is_killed_while_workers_import(method: str, tmp_path: Path) -> None:
    script = (
        ENDLESS
        + """
        time.sleep(1000)
    """
    )
    with scripts.start(tmp_path, script, method, str(tmp_path / "marker")) as client, _killed(client):
        assert client.stdout is not None
        theirs = [int(pid) for pid in client.stdout.readline().split() if int(pid)]
        assert len(theirs) == (1 if method == "forkserver" else 3)
        assert all(processes.runs(pid) for pid in theirs)
        client.kill()
        processes.wait_until(lambda: not any(map(processes.runs, theirs)), "monitor and workers end", _SOON)


@contextlib.contextmanager
def _killed(client: subprocess.Popen[str]) -> Iterator[None]:
    """At the end of the block: else a failed test would wait for it."""
    try:
        yield
    finally:
        client.kill()


HOLDING = """
    import multiprocessing, os, sys, signal, tasks
    from pool import Pool
    if __name__ == "__main__":
        with Pool(2, multiprocessing.get_context(sys.argv[1])) as pool:
            held = [pool.submit(tasks.hold, sys.argv[2]) for _ in range(2)]
            running = pool._client._running
            print(running.pid, flush=True)
            held[0].result()
"""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_client_ends_in_the_middle(method: str, how: signal.Signals, tmp_path: Path, gate: tasks.Gate) -> None:
    with processes.nothing_left():
        with scripts.start(tmp_path, HOLDING, method, gate.path) as client, _killed(client):
            assert client.stdout is not None
            assert client.stderr is not None
            monitor = int(client.stdout.readline())
            theirs = [monitor, *gate.await_start(2)]
            client.send_signal(how)
            assert client.wait(20) == -how
            if how == signal.SIGINT:
                said = client.stderr.read().splitlines()
                assert said.count("KeyboardInterrupt") == 1, "nobody else says anything"
        processes.wait_until(lambda: not any(map(processes.runs, theirs)), "monitor and workers end", _SOON)


@pytest.mark.parametrize("method", FRESH)
def test_an_interpreter_that_does_not_start(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with processes.nothing_left(), Pool(1, multiprocessing.get_context(method)) as pool:
        theirs = multiprocessing.spawn.get_executable()
        multiprocessing.set_executable("/nonexistent/python")
        try:
            error = pool.submit(abs, -1).exception(30)
        finally:
            multiprocessing.set_executable(theirs)
        assert isinstance(error, PoolStartError)


# ---- the adapter


def test_the_adapter_asks_multiprocessing(tmp_path: Path) -> None:
    script = """
        import multiprocessing, sys
        from pool.compat.multiprocessing import Pool
        if __name__ == "__main__":
            with Pool(1) as pool:
                print(pool.apply(eval, ("'runpy' in __import__('sys').modules",)))
            multiprocessing.set_start_method("spawn")
            with Pool(1) as pool:
                print(pool.apply(eval, ("'runpy' in __import__('sys').modules",)))
    """
    assert scripts.run(tmp_path, script).stdout == "False\nTrue\n"
    with ours.Pool(1, context=multiprocessing.get_context("spawn")) as pool:
        assert pool.apply(tasks.square, (3,)) == 9
