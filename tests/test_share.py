"""Pool.share: one read-only copy for everybody, which goes when nobody uses it any more."""

import contextlib
import functools
import gc
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import payloads
import processes
import pytest
import scripts
import tasks
from payloads import MIB, array, digest

from pool import Pool, share

pytestmark = pytest.mark.timeout(60)
LENGTH = 3 * MIB


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield
        gc.collect()


@pytest.fixture(params=[0, 2], ids=["inline", "workers"])
def pool(request: pytest.FixtureRequest) -> Iterator[Pool]:
    with Pool(request.param) as pool:
        yield pool


def _users(handle: share.Shared | int, pids: list[int]) -> list[int]:
    """Which of these processes have the memory open or mapped."""
    inode = handle if isinstance(handle, int) else handle._inode
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            opened = [os.stat(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd") if _is_share(pid, fd)]
            with open(f"/proc/{pid}/maps") as maps:
                mapped = [int(line.split()[4]) for line in maps if "pool-share" in line]
            if inode in [*mapped, *(file.st_ino for file in opened)]:
                found.append(pid)
    return found


def _is_share(pid: int, fd: str) -> bool:
    with contextlib.suppress(OSError):
        return "pool-share" in os.readlink(f"/proc/{pid}/fd/{fd}")
    return False


def _everybody(pool: Pool) -> list[int]:
    return [os.getpid(), processes.monitor_pid(pool), *processes.worker_pids(pool)]


def _item(data: Any, key: Any) -> Any:
    return data[key]


def _digest_and(k: int, value: Any) -> tuple[int, int]:
    return k, digest(value)


def _write(value: Any) -> None:
    value[0] = 1


def _address(value: Any) -> tuple[int, int]:
    return os.getpid(), value.__array_interface__["data"][0]


def _refers(k: int, handle: Any) -> tuple[int, int]:
    return k, digest(handle)


# ---- where a handle may stand


def test_tasks_get_the_object_itself(pool: Pool) -> None:
    value = array(1, LENGTH)
    handle = pool.share(value)
    wanted = digest(value)
    value[:] = 0  # it is a copy
    assert digest(handle.get()) == wanted
    assert handle.get() is handle.get()
    assert pool.submit(digest, handle).result() == wanted
    assert pool.submit(_item, {"a": [1, (handle,)]}, "a").result()[1][0].nbytes == LENGTH
    assert pool.submit(functools.partial(_digest_and, value=handle), 3).result() == (3, wanted)
    for size in (1, 7, "auto"):
        assert list(pool.imap(functools.partial(_digest_and, value=handle), range(50), chunksize=size)) == [
            (k, wanted) for k in range(50)
        ]
        assert pool.starmap(_refers, [(k, handle) for k in range(50)], chunksize=size) == [
            (k, wanted) for k in range(50)
        ]
    assert list(pool.map(lambda k: (k, len(handle)), range(5))) == [(k, LENGTH) for k in range(5)]


def test_any_object_can_be_shared(pool: Pool) -> None:
    table = {"words": ["a", "b"] * 1000, "deep": {"grid": np.asfortranarray(array(1, 60_000).reshape(300, 200))}}
    handle = pool.share(table)
    assert pool.submit(_item, handle, "words").result() == table["words"]
    deep = pool.submit(_item, handle, "deep").result()
    assert (deep["grid"] == table["deep"]["grid"]).all()  # type: ignore[call-overload]
    assert pool.submit(len, pool.share(b"x" * LENGTH)).result() == LENGTH
    assert pool.submit(tasks.identity, pool.share(None)).result() is None
    with pytest.raises(TypeError):
        pool.share(tasks.Locked())


def test_nobody_can_write_to_it(pool: Pool) -> None:
    handle = pool.share(array(1, LENGTH))
    assert isinstance(pool.submit(_write, handle).exception(), ValueError)
    with pytest.raises(ValueError, match="read-only"):
        handle.get()[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        handle.get().flags.writeable = True
    assert digest(handle.get()) == digest(array(1, LENGTH))


def test_a_worker_maps_it_once_and_copies_nothing() -> None:
    with Pool(2) as pool:
        pool.start()
        before = {pid: payloads.rss(pid, "RssAnon") for pid in processes.worker_pids(pool)}
        handle = pool.share(array(1, 64 * MIB))
        assert len(set(pool.imap(_address, [handle] * 50, chunksize=1))) <= 2
        for pid, anonymous in before.items():
            assert payloads.rss(pid, "RssAnon") < anonymous + 40 * MIB


# ---- processes that come and go


def test_workers_started_before_and_later_and_two_pools_share_it() -> None:
    early = Pool.share(array(1, LENGTH))
    wanted = digest(array(1, LENGTH))
    with Pool(2) as one, Pool(2) as other:
        late = Pool.share(array(2, LENGTH))
        for pool in (one, other, one.options(retries=1)):
            assert pool.submit(digest, early).result() == wanted
            assert pool.submit(digest, late).result() == digest(array(2, LENGTH))
        for _ in range(3):
            for pid in processes.worker_pids(one):
                with contextlib.suppress(ProcessLookupError):  # of the last round, and not written off yet
                    os.kill(pid, signal.SIGKILL)
            assert set(one.options(retries=20).imap(digest, [early] * 20, chunksize=1)) == {wanted}
    with Pool(1, max_tasks_per_child=3) as third:
        assert list(third.imap(digest, [early] * 20)) == [wanted] * 20


def test_a_task_needs_no_handle_but_its_own(gate: tasks.Gate) -> None:
    """Dropped as soon as it was given: in arguments, in the function, in what waits behind others, in a retry."""
    with Pool(1) as pool:
        wanted = digest(array(1, LENGTH))
        first = pool.submit(tasks.hold, gate.path)
        gate.await_start()
        futures = [pool.submit(digest, pool.share(array(1, LENGTH)))]
        futures.append(pool.submit(functools.partial(digest, pool.share(array(1, LENGTH)))))
        handle = pool.share(array(1, LENGTH))
        futures.append(pool.submit(lambda: digest(handle)))
        futures += [pool.submit(digest, pool.share(array(1, LENGTH))) for _ in range(5)]
        results = pool.imap(functools.partial(_digest_and, value=pool.share(array(1, LENGTH))), range(3))
        handle = None  # type: ignore[assignment]
        gc.collect()
        gate.open()
        first.result()
        assert [future.result() for future in futures] == [wanted] * 8
        assert list(results) == [(k, wanted) for k in range(3)]


def test_used_in_a_retry_after_a_death(tmp_path: Path) -> None:
    with Pool(2, retries=3) as pool:
        count = str(tmp_path / "count")
        futures = [pool.submit(_die_first, pool.share(array(1, LENGTH)), count) for _ in range(3)]
        gc.collect()
        assert [future.result() for future in futures] == [digest(array(1, LENGTH))] * 3


def _die_first(value: Any, count: str) -> int:
    if payloads.Attempts(count).next() <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return digest(value)


# ---- the end


@pytest.mark.parametrize("when", ["before the start", "after the start"])
@pytest.mark.parametrize("how", ["argument", "partial", "map", "lambda"])
def test_memory_is_given_back_when_nobody_uses_it(how: str, when: str) -> None:
    handle = Pool.share(array(1, LENGTH)) if when == "before the start" else None
    with Pool(2).start() as pool:
        if handle is None:
            handle = pool.share(array(1, LENGTH))
        inode, files = handle._inode, len(processes.open_files())
        _use(pool, handle, how)
        assert os.getpid() in _users(inode, _everybody(pool))
        del handle
        gc.collect()
        processes.wait_until(lambda: not _users(inode, _everybody(pool)), "nobody uses it")
        assert len(processes.open_files()) == files - 1


def _use(pool: Pool, handle: share.Shared, how: str) -> None:
    if how == "argument":
        assert set(pool.imap(len, [handle] * 20, chunksize=1)) == {LENGTH}
    elif how == "partial":
        assert {pool.submit(functools.partial(len, handle)).result() for _ in range(20)} == {LENGTH}
    elif how == "map":
        assert len(list(pool.imap(functools.partial(_digest_and, value=handle), range(50)))) == 50
    else:
        assert [pool.submit(lambda: len(handle)).result() for _ in range(3)] == [LENGTH] * 3  # type: ignore[arg-type]


def test_no_descriptor_is_left_after_many_handles(pool: Pool) -> None:
    pool.start()
    before = len(processes.open_files())
    for k in range(100):
        assert pool.submit(digest, pool.share(array(k, 10_000))).result() == digest(array(k, 10_000))
    gc.collect()
    processes.wait_until(lambda: len(processes.open_files()) <= before + 2, "descriptors are closed")
    assert len(share._known) <= 1


def test_an_object_outlives_its_handle_but_a_pickled_handle_does_not() -> None:
    handle = Pool.share(array(1, LENGTH))
    value = handle.get()
    stale = pickle.dumps(handle)
    assert pickle.loads(stale) is value
    del handle
    gc.collect()
    assert digest(value) == digest(array(1, LENGTH))
    others = [Pool.share(array(k, 1000)) for k in range(20)]  # the descriptor's number is used again
    with pytest.raises(FileNotFoundError):
        pickle.loads(stale)
    del others


def test_after_the_owners_exit_there_is_a_clear_error(tmp_path: Path) -> None:
    script = """
        import pickle, sys, numpy as np
        from pool import Pool
        handle = Pool.share(np.ones(1000))
        open(sys.argv[1], "wb").write(pickle.dumps(handle))
    """
    scripts.run(tmp_path, script, str(tmp_path / "handle"))
    with pytest.raises(FileNotFoundError):
        pickle.loads((tmp_path / "handle").read_bytes())


def _in_child(check: Callable[[], bool]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if check() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("looked", [False, True])
def test_a_forked_child_of_the_client_may_use_and_drop_it(looked: bool) -> None:
    handles = [Pool.share(array(1, LENGTH))]
    wanted = digest(array(1, LENGTH))
    if looked:
        assert digest(handles[0].get()) == wanted

    def child() -> bool:
        good = digest(handles[0].get()) == wanted
        with Pool(1) as own:
            good = good and own.submit(digest, handles[0]).result() == wanted
        handles.clear()
        gc.collect()
        return good

    assert _in_child(child) == 0
    assert digest(handles[0].get()) == wanted
    with Pool(1) as pool:
        assert pool.submit(digest, handles[0]).result() == wanted


def test_a_forked_child_may_use_it_after_its_parent_has_dropped_it(gate: tasks.Gate) -> None:
    handles = [Pool.share(array(1, LENGTH))]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            tasks.hold(gate.path)
            with Pool(1) as own:
                wanted = digest(array(1, LENGTH))
                code = 0 if (own.submit(digest, handles[0]).result(), digest(handles[0].get())) == (wanted,) * 2 else 2
        finally:
            os._exit(code)
    gate.await_start()
    handles.clear()
    gc.collect()
    gate.open()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_what_memory_cannot_hold_stands_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pool import spill

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(spill, "exceeds_memory", lambda length: True)
    handle = Pool.share(array(1, LENGTH))
    monkeypatch.undo()
    with Pool(1) as pool:
        assert pool.submit(digest, handle).result() == digest(array(1, LENGTH))
    assert os.listdir(tmp_path) == []
