"""Memory limits hit the task that is over its own, count what it adds and nothing else, and hit it soon."""

import functools
import mmap
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import processes
import pytest
import scripts
import tasks

from ipc import _core, memory
from ipc.sizes import parse_size, show_size
from pool import Failure, Pool
from pool.errors import MemoryLimitExceeded, TaskTimeout, WorkerCrashed
from pool.task import Policy

MIB = 1 << 20
_LOOKS = 5  # so many of the monitor's have seen a task that must not be stopped


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


# ---- sizes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1, 1),
        (200 * MIB, 200 * MIB),
        ("1", 1),
        ("512B", 512),
        ("200M", 200 * MIB),
        ("200m", 200 * MIB),
        ("200MB", 200 * MIB),
        ("200MiB", 200 * MIB),
        (" 64 KiB ", 64 << 10),
        ("1.5GiB", 3 << 29),
        ("0.5k", 512),
        ("2T", 2 << 40),
    ],
)
def test_a_size_can_be_written_in_many_ways(text: int | str, size: int) -> None:
    assert parse_size("limit", text) == size
    with Pool(1, memory_limit=text) as pool:
        assert pool._policy == Policy(None, 0, size)
        assert pool.options(timeout=3)._policy == Policy(3, 0, size)
        assert pool.options(memory_limit=None)._policy == Policy()
        assert pool.options(memory_limit=5).options(retries=1)._policy == Policy(None, 1, 5)


@pytest.mark.parametrize(
    "wrong", ["", "M", "200X", "2 00M", "-5M", "1e9", "1,5G", "nan", "inf", "200MiBs", "0x10", "٣M"]
)
def test_a_text_that_is_no_size_is_refused(wrong: str) -> None:
    for use in (Pool, Pool(1).options):
        with pytest.raises(ValueError, match="memory_limit must be a size such as"):
            use(memory_limit=wrong)


@pytest.mark.parametrize("wrong", [0, -1, "0", "0.4", "0G"])
def test_no_limit_is_none_and_not_nothing(wrong: int | str) -> None:
    with pytest.raises(ValueError, match="memory_limit must be at least 1 byte"):
        Pool(1, memory_limit=wrong)


def test_what_is_no_size_at_all_is_refused() -> None:
    for wrong in (1.5, True, b"200M", [200]):
        with pytest.raises(TypeError, match="memory_limit must be a number of bytes"):
            Pool(1, memory_limit=wrong)  # type: ignore[arg-type]
    for wrong in (1 << 63, "8E", "9" * 30):
        with pytest.raises(ValueError, match="less than 8 EiB"):
            Pool(1, memory_limit=wrong)


def test_sizes_are_shown_as_people_read_them() -> None:
    assert [show_size(n) for n in (0, 1023, 1024, 200 * MIB, 3 << 29, 10**13)] == [
        "0 bytes", "1023 bytes", "1 KiB", "200 MiB", "1.5 GiB", "9.095 TiB",
    ]  # fmt: skip


# ---- stopped soon


def _fill_with_numpy() -> NoReturn:
    kept = []
    while True:
        kept.append(np.empty(64 * MIB, np.uint8))
        kept[-1].fill(1)


def _fill_with_bytes() -> NoReturn:
    kept = []
    while True:
        kept.append(b"\1" * (64 * MIB))


def _fill_by_the_kernel() -> NoReturn:
    """As fast as it goes: no instruction of ours touches a page."""
    kept = []
    while True:
        kept.append(mmap.mmap(-1, 64 * MIB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))


FILLS = [_fill_with_numpy, _fill_with_bytes, _fill_by_the_kernel]


@pytest.mark.timeout(200)
def test_a_task_that_fills_memory_is_stopped_soon_and_nobody_else_notices(tmp_path: Path) -> None:
    gate = tasks.Gate(tmp_path)
    ours = b"\1" * (300 * MIB)  # every worker inherits it: a look at what of that it has written to takes milliseconds
    with Pool(21) as pool:
        held = [pool.submit(tasks.hold, gate.path, n) for n in range(20)]
        try:
            pids = gate.await_start(20)
            peaks = []
            for n in range(51):
                fill = FILLS[n % 3]
                error = pool.options(memory_limit="200M").submit(fill).exception(60)
                assert isinstance(error, MemoryLimitExceeded), error
                assert 200 * MIB == error.limit < error.peak
                peaks.append(error.peak)
                assert error.pid not in pids
                assert (error.task, error.attempt) == (f"{__name__}.{fill.__name__}", 1)
                for part in (error.task, "of memory, more than its limit of 200 MiB", f"pid {error.pid}"):
                    assert part in str(error)
                assert not processes.runs(error.pid)
            # A busy machine wakes the monitor late now and then, and a task may fill more than 1 GB a second: the worst
            # says how long the machine stood still. A pool that looks too late does so most times.
            assert statistics.median(peaks) < 400_000_000
            assert set(pids) <= set(processes.worker_pids(pool))
        finally:
            gate.open(20)
        assert [future.result(20) for future in held] == list(range(20))
        assert pool.crashes == 0
    gate.close()
    assert len(ours) == 300 * MIB


def _add(size: int) -> int:
    """Touch so much, and give it back."""
    return len(b"\1" * size)


def _add_and_wait(size: int) -> None:
    kept = b"\1" * size
    while kept:
        signal.pause()


_kept: list[bytes | subprocess.Popen[bytes]] = []


def _add_and_keep(size: int) -> int:
    _kept.append(b"\1" * size)
    return sum(len(kept) for kept in _kept if isinstance(kept, bytes))


def test_what_a_task_leaves_in_its_worker_is_not_charged_to_the_next() -> None:
    with Pool(1, memory_limit="100M") as pool:
        assert [pool.submit(_add_and_keep, 60 * MIB).result(20) for _ in range(3)] == [n * 60 * MIB for n in (1, 2, 3)]
        assert list(pool.imap(_add_and_keep, [60 * MIB] * 3, chunksize=3)) == [n * 60 * MIB for n in (4, 5, 6)]
        assert pool.submit(_add, 60 * MIB).result(20)
        assert isinstance(pool.submit(_fill_with_bytes).exception(20), MemoryLimitExceeded)
        assert _deaths(pool) == 1


def _deaths(pool: Pool) -> int:
    return sum(_core.slot_info(pool._client.segment, slot)["reaped"] for slot in range(pool._max_workers))


def test_the_peak_is_the_tasks_own_and_not_that_of_an_earlier_one() -> None:
    with Pool(1) as pool:
        assert pool.submit(_add, 500 * MIB).result(60)
        # One that fills on and on would have as much as the earlier one before a busy machine stops it.
        error = pool.options(memory_limit="50M").submit(_add_and_wait, 100 * MIB).exception(20)
        assert isinstance(error, MemoryLimitExceeded)
        assert error.peak < 400 * MIB


def test_the_peak_is_what_the_kernel_says_or_what_was_seen() -> None:
    start = memory.Start(ns=1, anonymous=100, dirtied=50, faults=0, peak=1000)
    use = memory.Use(added=300, others=20, shared=70)
    assert use.peak(start, 1000) == 300  # of an earlier task
    assert use.peak(start, 1001) == 1001 - 70 - 100 + 20
    assert memory.Use(added=900, others=20, shared=70).peak(start, 1001) == 900


def test_the_next_look_comes_before_the_fastest_can_be_over() -> None:
    for left in (0, 1, 10**6, 10**7, 10**8, 10**12):
        wait = memory.seconds_to_look(left)
        assert 0.001 <= wait <= 0.05
        assert wait == 0.001 or wait * _core.FILL_RATE <= left


# ---- what counts

_inherited = b""


@pytest.fixture
def inherited() -> Iterator[int]:
    """300 MiB that the client holds before the fork."""
    global _inherited
    _inherited = np.ones(300 * MIB, np.uint8)  # type: ignore[assignment]
    yield 300 * MIB
    _inherited = b""


def _look_on(loops: int, work: Callable[[], object]) -> int:
    """Do the work, and then for as long as the monitor takes to see it, nothing that matters."""
    total = 0
    end = time.monotonic() + loops * _core.LOOK_MS / 1000
    while total == 0 or time.monotonic() < end:
        total += bool(work() is not None)
    return total


def _read_inherited() -> int:
    return int(_inherited[::4096].sum(dtype=np.int64))  # type: ignore[attr-defined]


def _write_inherited(most: int = 300 * MIB) -> int:
    _inherited[:most:4096] = 2  # type: ignore[index]
    return most


def _write_a_copy_of_it() -> int:
    return int((_inherited[: 30 * MIB] + 1)[0])


def test_inherited_memory_counts_only_where_it_is_written_to(inherited: int) -> None:
    with Pool(1, memory_limit="100M") as pool:
        assert pool.submit(_look_on, _LOOKS, _read_inherited).result(20)
        assert pool.submit(_look_on, _LOOKS, _write_a_copy_of_it).result(20)
        for most in (60, 120, 180):  # what the last one has written to is the worker's own by now
            write = functools.partial(_write_inherited, most * MIB)
            assert pool.submit(_look_on, _LOOKS, write).result(20)
        assert _deaths(pool) == 0
        error = pool.submit(_look_on, 10**6, _write_inherited).exception(20)
        assert isinstance(error, MemoryLimitExceeded)
        assert error.peak <= inherited + 10 * MIB


def _sum_of(array: object) -> int:
    return _look_on(_LOOKS, lambda: int(np.asarray(array).sum(dtype=np.int64)))


def test_shared_arrays_and_arguments_in_shared_memory_do_not_count() -> None:
    with Pool(1, memory_limit="50M") as pool:
        array = np.ones(120 * MIB, np.uint8)
        assert pool.submit(_sum_of, array).result(20)
        shared = pool.share(array)
        assert pool.submit(_sum_of, shared).result(20)
        assert pool.submit(_sum_of, shared).result(20)
        assert _deaths(pool) == 0
        assert isinstance(pool.submit(_fill_with_numpy).exception(20), MemoryLimitExceeded)


_CHILD = "import sys, time; kept = b'1' * (int(sys.argv[1]) << 20); print('filled', flush=True); time.sleep(1000)"


def _run_a_program(size: int) -> None:
    subprocess.run([sys.executable, "-c", _CHILD, str(size)], check=True)


def _fork_a_child(size: int) -> None:
    if (pid := os.fork()) == 0:
        kept = b"\1" * (size * MIB)
        while kept:
            time.sleep(1000)
    os.waitpid(pid, 0)


def _start_a_daemon(size: int) -> None:
    script = f'"{sys.executable}" -c "{_CHILD}" {size} & exit 0'
    with subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE) as shell:
        shell.communicate()  # until the daemon ends


@pytest.mark.parametrize("start", [_run_a_program, _fork_a_child, _start_a_daemon])
def test_what_a_task_starts_counts_with_it(start: Callable[[int], None]) -> None:
    with Pool(2, memory_limit="100M") as pool:
        error = pool.submit(start, 200).exception(20)
        assert isinstance(error, MemoryLimitExceeded)
        assert 100 * MIB < error.peak < 400 * MIB
        assert pool.submit(_add, 50 * MIB).result(20)
        assert _deaths(pool) == 1


def _keep_150() -> None:
    _kept.append(b"\1" * (150 * MIB))


def _start_programs_slowly() -> bool:
    """A child between vfork and exec has its parent's memory, all of it, as its own. These look for their program in so
    many places that they are seen there."""
    places = [f"/nowhere/{n}" for n in range(200_000)]

    def start() -> None:
        with pytest.raises(FileNotFoundError):
            subprocess.run(["none"], env={"PATH": ":".join(places)})

    return bool(_look_on(2 * _LOOKS, lambda: start() or 1))


def _fork_readers() -> int:
    """Each child has all of its parent's memory, and nothing of its own."""
    _kept.append(b"\1" * (60 * MIB))
    read, write = os.pipe()
    pids = []
    for _ in range(4):
        if (pid := os.fork()) == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        pids.append(pid)
    os.close(read)
    looked = _look_on(_LOOKS, lambda: 1)
    os.close(write)
    for pid in pids:
        os.waitpid(pid, 0)
    return looked


def test_what_a_child_has_from_its_parent_does_not_count_twice() -> None:
    with Pool(1, memory_limit="100M", initializer=_keep_150) as pool:
        assert pool.submit(_start_programs_slowly).result(30)
        assert pool.submit(_fork_readers).result(30)
        assert _deaths(pool) == 0


def _start_helper() -> None:
    helper = subprocess.Popen([sys.executable, "-c", _CHILD, "150"], stdout=subprocess.PIPE)
    assert helper.stdout
    helper.stdout.readline()
    _kept.append(helper)


def test_what_an_initializer_has_started_does_not_count() -> None:
    with Pool(1, memory_limit="100M", initializer=_start_helper) as pool:
        assert pool.submit(_look_on, _LOOKS, os.getpid).result(30)
        assert pool.submit(_add, 60 * MIB).result(20)
        assert _deaths(pool) == 0


# ---- an attempt over its limit is a failed attempt


def _fill_at(item: int) -> int:
    if item % 5 == 3:
        _fill_with_bytes()
    return item * 10


@pytest.mark.parametrize("ordered", [True, False])
def test_in_a_chunk_only_the_guilty_item_fails(ordered: bool) -> None:
    with Pool(2, memory_limit="50M") as pool:
        mapped = (pool.imap if ordered else pool.imap_unordered)(_fill_at, range(12), chunksize=6, on_error="return")
        outcomes = list(mapped)
        large = {o.item: o.error for o in outcomes if isinstance(o, Failure)}
        assert sorted(o for o in outcomes if not isinstance(o, Failure)) == [n * 10 for n in range(12) if n % 5 != 3]
        assert sorted(large) == [3, 8]
        assert all(isinstance(error, MemoryLimitExceeded) and error.attempt == 1 for error in large.values())
        assert _deaths(pool) == 2


def _fill_until(path: str, lucky_at: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    attempt = os.write(fd, b"x") and os.fstat(fd).st_size
    os.close(fd)
    if attempt < lucky_at:
        _fill_with_bytes()
    return attempt


def test_a_retry_has_the_full_limit_again(tmp_path: Path) -> None:
    with Pool(1, memory_limit="50M", retries=2) as pool:
        assert pool.submit(_fill_until, str(tmp_path / "a"), 3).result(20) == 3
        error = pool.submit(_fill_until, str(tmp_path / "b"), 9).exception(20)
        assert isinstance(error, MemoryLimitExceeded)
        assert error.attempt == 3
        assert (tmp_path / "b").stat().st_size == 3, "three attempts counted, three executions"
        assert list(pool.imap(functools.partial(_fill_until, str(tmp_path / "c")), [2])) == [2]
        assert pool.crashes == 0


def _raise_memory_error() -> NoReturn:
    raise MemoryError("my own")


def test_a_memory_error_of_the_task_stays_its_own() -> None:
    with Pool(1, memory_limit="50M") as pool:
        error = pool.submit(_raise_memory_error).exception(20)
        assert type(error) is MemoryError
        assert str(error) == "my own"
        assert _deaths(pool) == 0


def test_a_deadline_and_a_limit_hold_side_by_side() -> None:
    with Pool(1, memory_limit="100M", timeout=0.3) as pool:
        assert isinstance(pool.submit(_look_on, 10**6, functools.partial(_add, MIB)).exception(20), TaskTimeout)
        patient = pool.options(timeout=20)  # to fill memory takes as long as the machine likes
        assert isinstance(patient.submit(_fill_with_bytes).exception(60), MemoryLimitExceeded)
        assert isinstance(pool.options(timeout=None).submit(_fill_with_bytes).exception(20), MemoryLimitExceeded)
        free = pool.options(memory_limit=None, timeout=None)
        assert free.submit(_look_on, _LOOKS, functools.partial(_add, 150 * MIB)).result(20)


# ---- who has no limit pays nothing


def _wakes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def test_the_monitor_sleeps_while_nothing_that_runs_has_a_limit() -> None:
    with Pool(1) as pool:
        assert pool.options(memory_limit="50M").submit(_add, MIB).result(20)
        segment, monitor = pool._client.segment, processes.monitor_pid(pool)
        processes.wait_until(lambda: _core.monitor_must_look(segment), "the monitor looks at no limits any more")
        # It has said so before its last look, and goes to sleep after it.
        processes.wait_until(lambda: processes.sleeps(monitor), "it sleeps")
        before = _wakes(monitor)
        assert pool.submit(_look_on, 10, functools.partial(_add, 100 * MIB)).result(20)
        assert list(pool.imap(abs, range(1000))) == list(range(1000))
        assert _wakes(monitor) == before
        assert isinstance(pool.options(memory_limit="50M").submit(_fill_with_bytes).exception(20), MemoryLimitExceeded)


# ---- the kernel's own killer

V2 = {
    "proc/self/cgroup": "0::/user.slice/job.service\n",
    "proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
    "sys/fs/cgroup/user.slice/job.service/memory.events": "low 0\nmax 81\noom 4\noom_kill 3\noom_group_kill 9\n",
}
V1 = {
    "proc/self/cgroup": "9:memory:/docker/abc\n8:cpu,cpuacct:/\n0::/\n",
    "proc/self/mountinfo": "40 32 0:35 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 1\noom_kill 7\n",
}
STORIES: dict[str, tuple[dict[str, str], int]] = {
    "nothing can be read": ({}, 0),
    "v2": ({**V2, "proc/vmstat": "oom_kill 50\n"}, 3),
    "v1": ({**V1, "proc/vmstat": "oom_kill 50\n"}, 7),
    "no cgroup: the machine's": ({"proc/vmstat": "pgfault 7\noom_kill 50\npgalloc 8\n"}, 50),
    "v2, at the top there is no such file": (
        {**V2, "proc/self/cgroup": "0::/\n", "proc/vmstat": "oom_kill 51\n"},
        51,
    ),
    "v1 before Linux 4.13": (
        {**V1, "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\n"},
        0,
    ),
    "garbage": ({**V2, "sys/fs/cgroup/user.slice/job.service/memory.events": "oom_kill\noom_kill x\n\n"}, 0),
}


@pytest.mark.parametrize("story", STORIES)
def test_oom_kills_are_counted_where_the_kernel_counts_them(story: str, tmp_path: Path) -> None:
    files, expected = STORIES[story]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.oom_kills(str(tmp_path)) == expected


def _memory_cgroup() -> tuple[Path, str] | None:
    """Our own folder, and the name of the file with its limit."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory") / path.strip("/"), "memory.limit_in_bytes"
        if number == "0" and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            return Path("/sys/fs/cgroup") / path.strip("/"), "memory.max"
    return None


@pytest.fixture
def small_cgroup(lack: Callable[[str], NoReturn]) -> Iterator[Path]:
    """A memory cgroup of 64 MiB below ours."""
    ours = _memory_cgroup()
    if ours is None:
        lack("there are no memory cgroups")
    folder = ours[0] / f"pool-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / ours[1]).write_text(str(64 * MIB))
    except OSError as error:
        _removed(folder)
        lack(f"no memory cgroup can be made: {error}")
    yield folder
    # A dead process leaves its cgroup a moment after it was waited for.
    processes.wait_until(lambda: _removed(folder), "the cgroup is empty")


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


def test_a_worker_that_the_kernel_has_killed_for_want_of_memory_is_recognised(
    small_cgroup: Path, tmp_path: Path
) -> None:
    script = """
    import os
    import signal
    import sys
    from pathlib import Path

    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
    from pool import Pool

    def fill():
        return len(b"1" * (200 << 20))

    def killed():
        os.kill(os.getpid(), signal.SIGKILL)

    with Pool(2) as pool:
        for task in (fill, killed, fill):
            error = pool.submit(task).exception(20)
            print(type(error).__name__, error.oom, error.signal, str(error).partition(" (slot")[0])
        print(pool.submit(pow, 2, 3).result(20))
    """
    done = scripts.run(tmp_path, script, str(small_cgroup))
    oom = "WorkerCrashed True 9 worker died in __main__.fill: killed by the kernel for want of memory (OOM)"
    by_hand = "WorkerCrashed False 9 worker died in __main__.killed: SIGKILL"
    assert done.stdout.splitlines() == [oom, by_hand, oom, "8"]


def test_the_kernel_takes_a_worker_although_the_client_is_larger(small_cgroup: Path, tmp_path: Path) -> None:
    script = """
    import os
    import sys
    from pathlib import Path

    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
    from pool import Pool

    def fill():
        kept = []
        while True:
            kept.append(b"1" * (1 << 20))

    with Pool(1) as pool:
        pool.submit(pow, 2, 3).result(20)
        large = b"1" * (30 << 20)  # the worker, which was there before, does not have it
        for _ in range(3):
            error = pool.submit(fill).exception(20)
            print(type(error).__name__, error.oom)
    """
    done = scripts.run(tmp_path, script, str(small_cgroup))
    assert done.stdout.splitlines() == ["WorkerCrashed True"] * 3


def test_shared_memory_adapts_to_the_limit_of_the_cgroup_and_can_be_filled(
    small_cgroup: Path, tmp_path: Path, gate: tasks.Gate
) -> None:
    """A page that the kernel could not give would be a SIGBUS of whoever touches it."""
    script = """
    import os
    import sys
    from pathlib import Path

    Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
    import numpy
    import processes
    import tasks
    from ipc import _core
    from ipc.segment import Segment
    from pool import Pool

    MIB = 1 << 20
    numbers = numpy.arange(2 * MIB, dtype=numpy.int8)
    filling, refused = [], None
    while refused is None:
        filling.append(b"1" * (MIB // 4))
        try:
            Segment.create(1, 1).close()  # what a start does first
        except MemoryError as error:
            refused = error
    print(refused)
    del filling
    with Pool(1).start() as pool:
        room, segment = pool._client._running.room, pool._client.segment
        print(8 * MIB <= room <= 32 * MIB)
        held = pool.submit(tasks.hold, sys.argv[2])
        processes.wait_until(held.running, "nothing else is taken out")
        parts = [numbers[n : n + MIB - 4096] for n in range(room // MIB)]
        large = len(parts) // 4
        futures = [pool.submit(numpy.copy if n < large else numpy.sum, part) for n, part in enumerate(parts)]
        print(_core.counters(segment)["units"] * _core.UNIT_SIZE >= 0.45 * room)  # half of it is for arguments,
        open(sys.argv[2], "wb").write(b"x")
        results = [future.result(20) for future in futures]
        print(_core.counters(segment)["views"] * _core.UNIT_SIZE >= 0.2 * room)  # a quarter for arrays that are kept
        print(all((results[n] == parts[n]).all() for n in range(large)))
        print(all(results[n] == parts[n].sum() for n in range(large, len(parts))), pool.crashes)
    """
    done = scripts.run(tmp_path, script, str(small_cgroup), gate.path)
    refused, *rest = done.stdout.splitlines()
    assert refused.startswith("too little memory for a pool of 1 workers: ")
    assert rest == ["True", "True", "True", "True", "True 0"]


def _score(pid: int | str) -> int:
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


def _are_idle(segment: object, slots: int) -> bool:
    return all(_core.slot_info(segment, slot)["phase"] == _core.IDLE for slot in range(slots))


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_only_workers_are_offered_to_the_kernels_killer(method: str) -> None:
    before = _score("self")
    with Pool(2, multiprocessing.get_context(method)).start() as pool:
        segment = pool._client.segment
        for _ in range(2):  # the first workers, and who comes after them
            assert pool.submit(_score, "self").result(20) == before + 500
            processes.wait_until(lambda: _are_idle(segment, 2), "all are ready")
            assert [_score(pid) for pid in processes.worker_pids(pool)] == [before + 500] * 2
            assert _score("self") == _score(processes.monitor_pid(pool)) == before
            pool.restart()


@pytest.mark.parametrize(("own", "of_worker"), [(300, 800), (700, 1000)])
def test_workers_go_before_a_client_that_is_offered_itself(tmp_path: Path, own: int, of_worker: int) -> None:
    script = """
    import sys
    from pathlib import Path

    score = Path("/proc/self/oom_score_adj")
    score.write_text(sys.argv[1])
    from pool import Pool

    with Pool(1) as pool:
        print(pool.submit(score.read_text).result(20).strip())
    """
    assert scripts.run(tmp_path, script, str(own)).stdout == f"{of_worker}\n"


def test_a_kill_by_hand_is_no_oom() -> None:
    with Pool(1) as pool:
        pool.submit(pow, 2, 3).result(20)
        future = pool.submit(tasks.sleep, 1000)
        processes.wait_until(future.running, "it runs")
        os.kill(processes.worker_pids(pool)[0], 9)
        error = future.exception(20)
        assert isinstance(error, WorkerCrashed)
        assert (error.signal, error.oom) == (9, False)
