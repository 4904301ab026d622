"""ipc.segment: sizes, seals, too little memory, and cgroup files recorded from real systems."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ipc import _core
from ipc.memory import available_memory
from ipc.segment import MAX_CONTROL, MAX_ROOM, MIN_ROOM, Segment, default_room, default_rows

MIB = 1 << 20
ROOT = Path(__file__).parent.parent


@pytest.fixture
def segment() -> Iterator[Segment]:
    made = Segment.create(3, 2, rows=8, room=8 * _core.UNIT_SIZE)
    yield made
    made.close()


def test_create_and_attach(segment: Segment) -> None:
    assert (segment.rows, segment.workers, segment.room) == (8, 3, 8 * 65536)
    counters = _core.counters(segment.attach())
    assert (counters["rows"], counters["slots"], counters["units"]) == (8, 3, 0)
    assert os.readlink(f"/proc/self/fd/{segment.control}").startswith("/memfd:pool-control")
    assert os.readlink(f"/proc/self/fd/{segment.payload}").startswith("/memfd:pool-payload")
    for fd in (segment.control, segment.payload):
        assert not os.get_inheritable(fd)


def test_sealed_against_resizing(segment: Segment) -> None:
    for fd in (segment.control, segment.payload):
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & 6 == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        size = os.fstat(fd).st_size
        for wanted in (size - 4096, size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, wanted)


def test_control_is_allocated_and_payload_is_sparse(segment: Segment) -> None:
    control, payload = os.fstat(segment.control), os.fstat(segment.payload)
    assert control.st_size == _core.size(8, 3, 8)
    assert control.st_blocks * 512 >= control.st_size
    assert payload.st_blocks == 0


def blocks(segment: Segment) -> float:
    """Units of the payload that cost memory."""
    return os.fstat(segment.payload).st_blocks * 512 / _core.UNIT_SIZE


@pytest.fixture
def large() -> Iterator[Segment]:
    """1200 units: trim keeps 256 of each half."""
    made = Segment.create(3, 2, rows=8, room=1200 * _core.UNIT_SIZE)
    yield made
    made.close()


def test_trim_works_on_sealed_files(large: Segment) -> None:
    client = large.attach()
    _core.open_client(client)
    tasks: list[tuple[str] | None] = [None] * 8
    row = _core.publish(client, tasks, ("big",), 0, 0, 0, 0, b"x" * 400 * _core.UNIT_SIZE, 0, 0, 0, 1)
    assert blocks(large) == 400
    _core.trim(client)
    assert blocks(large) == 400  # something is in flight
    assert _core.cancel(client, tasks, row)
    _core.trim(client)
    assert blocks(large) == 256
    _core.trim(client)
    assert blocks(large) == 256
    _core.retire(client)
    assert blocks(large) == 0


def test_trim_leaves_what_is_held(large: Segment) -> None:
    """A result that the program holds, and arguments that a task has kept, beyond the units that stay warm."""
    client, worker = large.attach(), large.attach()
    _core.open_client(client)
    _core.open_worker(worker, 0, 0)
    tasks: list[tuple[str] | None] = [None] * 8
    args, result = os.urandom(260 * _core.UNIT_SIZE), os.urandom(300 * _core.UNIT_SIZE)
    assert _core.publish(client, tasks, ("big",), 0, 0, 0, 0, args, 0, 0, 0, 1) >= 0
    assert _core.claim(worker, 0, 0)
    kept = _core.arguments(worker)
    assert _core.complete(worker, 0, result) == 0
    inbox: list[Any] = []
    assert _core.collect(client, tasks, inbox, 1, object(), [], None) == 1
    view = inbox.pop()[2]
    _core.trim(client)
    assert blocks(large) == 560
    assert bytes(kept) == args
    assert bytes(view) == result
    del kept, view
    assert _core.counters(client)["units"] == 0
    _core.trim(client)  # the earlier one has not forgotten them
    assert blocks(large) == 512


def test_retired_client_gives_back_what_is_dropped(large: Segment) -> None:
    client, worker = large.attach(), large.attach()
    _core.open_client(client)
    _core.open_worker(worker, 0, 0)
    tasks: list[tuple[str] | None] = [None] * 8
    results = [os.urandom(2 * _core.UNIT_SIZE) for _ in range(2)]
    inbox: list[Any] = []
    for result in results:
        assert _core.publish(client, tasks, ("task",), 0, 0, 0, 0, b"", 0, 0, 0, 1) >= 0
        assert _core.claim(worker, 0, 0)
        assert _core.complete(worker, 0, result) == 0
        assert _core.collect(client, tasks, inbox, 1, object(), [], None) == 1
    first, second = (entry[2] for entry in inbox)
    inbox.clear()
    _core.retire(client)
    assert blocks(large) == 4
    assert (bytes(first), bytes(second)) == tuple(results)
    del first
    assert blocks(large) == 2
    assert bytes(second) == results[1]
    del second
    assert blocks(large) == 0


def test_close_twice_closes_nothing_else(segment: Segment) -> None:
    capsule = segment.attach()
    segment.close()
    read, write = os.pipe()  # may get the numbers that were closed
    segment.close()
    os.fstat(read), os.fstat(write)
    os.close(read)
    os.close(write)
    assert _core.counters(capsule)["rows"] == 8  # what is mapped stays mapped


def test_room_is_rounded_up_to_units() -> None:
    made = Segment.create(1, 1, rows=1, room=65537)
    assert made.room == 2 * 65536
    made.close()


def test_default_sizes() -> None:
    made = Segment.create(2, 2)
    try:
        assert made.rows == 1024
        assert made.room % _core.UNIT_SIZE == 0
        assert MIN_ROOM <= made.room <= MAX_ROOM
        assert os.fstat(made.control).st_size <= MAX_CONTROL
    finally:
        made.close()


@pytest.mark.parametrize(
    ("workers", "rows"), [(1, 1024), (64, 1024), (65, 2048), (128, 2048), (129, 4096), (512, 4096)]
)
def test_default_rows(workers: int, rows: int) -> None:
    assert default_rows(workers) == rows


@pytest.mark.parametrize("workers", [1, 8, 512])
def test_default_room(workers: int) -> None:
    rows = default_rows(workers)
    assert default_room(workers, rows, 256 * MIB) == 128 * MIB
    assert default_room(workers, rows, 256 * MIB + 100_000) == 128 * MIB  # whole units
    assert default_room(workers, rows, 1 << 50) == MAX_ROOM
    assert default_room(workers, rows, 0) == 0
    assert _core.size(rows, workers, MAX_ROOM // _core.UNIT_SIZE) <= MAX_CONTROL


@pytest.mark.parametrize(
    ("workers", "cores", "rows", "room"),
    [(0, 1, None, None), (513, 1, None, None), (1, 0, None, None), (1, 1, 0, None), (1, 1, 4097, None), (1, 1, 1, 0)],
)
def test_impossible_numbers(workers: int, cores: int, rows: int | None, room: int | None) -> None:
    with pytest.raises(ValueError, match="impossible"):
        Segment.create(workers, cores, rows, room)


def test_room_beyond_the_control_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipc.segment.available_memory", lambda: 1 << 50)
    with pytest.raises(ValueError, match=r"payload of 64 GiB .* control segment of 4 MiB: at most 2\d\.\d+ GiB"):
        Segment.create(1, 1, room=64 << 30)


# ---- too little memory


def test_absurd_room() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError, match=r"too little memory for a pool of 2 workers: .* 1 PiB of payload are needed"):
        Segment.create(2, 2, room=1 << 50)
    assert len(os.listdir("/proc/self/fd")) == before


def test_hardly_any_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipc.segment.available_memory", lambda: 3 * MIB // 2)
    with pytest.raises(MemoryError, match=r"\d+(\.\d)? KiB of control .* 1 MiB of payload .* 1\.5 MiB are available"):
        Segment.create(2, 2)
    monkeypatch.setattr("ipc.segment.available_memory", lambda: 2 * MIB)
    made = Segment.create(2, 2)
    assert made.room == MIN_ROOM
    made.close()
    made = Segment.create(2, 2, room=65536)  # who asks for little gets little
    assert made.room == 65536
    made.close()


def test_nothing_known_about_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipc.segment.available_memory", lambda: None)
    made = Segment.create(1, 1)
    assert made.room == MAX_ROOM
    made.close()


def test_kernel_says_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError, match=r"cannot make pool-control, .* of shared memory: Cannot allocate memory"):
        Segment.create(2, 2)
    assert len(os.listdir("/proc/self/fd")) == before


def test_file_size_limit() -> None:
    """RLIMIT_FSIZE holds for memory files as well. It has a signal, which Python ignores."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = len(os.listdir("/proc/self/fd"))
    for limit, file in ((100_000, r"pool-control, \d+(\.\d)? KiB"), (2 * MIB, "pool-payload, 16 MiB")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(
                OSError, match=rf"cannot make {file} of shared memory: File too large; .* \(ulimit -f\)"
            ):
                Segment.create(2, 2, room=16 * MIB)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == before


def test_address_space_limit() -> None:
    """In a process of its own: a limit below what pytest itself uses would hit anything."""
    program = """
import resource
from ipc.segment import Segment
segment = Segment.create(1, 1, room=256 << 20)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    segment.attach()
except MemoryError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("no address space to map 5")
    assert "256 MiB of payload" in done.stdout


# ---- cgroups


def recorded(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


MEMINFO = "MemTotal:       16384000 kB\nMemFree:         1000000 kB\nMemAvailable:    8192000 kB\n"
V2 = {
    "proc/self/cgroup": "0::/user.slice/job.service\n",
    "proc/self/mountinfo": "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
}
V1 = {
    "proc/self/cgroup": "9:memory:/docker/abc\n8:cpu,cpuacct:/\n0::/\n",
    "proc/self/mountinfo": "40 32 0:35 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    "41 32 0:36 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu,cpuacct\n",
}
JOB = "sys/fs/cgroup/user.slice/job.service"
STORIES: dict[str, tuple[dict[str, str], int | None]] = {
    "nothing can be read": ({}, None),
    "no cgroup": ({"proc/meminfo": MEMINFO}, 8192000 * 1024),
    "v2, no limit": (
        {"proc/meminfo": MEMINFO, **V2, f"{JOB}/memory.max": "max\n", f"{JOB}/memory.current": "1000\n"},
        8192000 * 1024,
    ),
    "v2, own limit": (
        {"proc/meminfo": MEMINFO, **V2, f"{JOB}/memory.max": f"{100 * MIB}\n", f"{JOB}/memory.current": f"{30 * MIB}"},
        70 * MIB,
    ),
    "v2, cached files count as free": (
        {
            **V2,
            f"{JOB}/memory.max": f"{100 * MIB}\n",
            f"{JOB}/memory.current": f"{90 * MIB}\n",
            f"{JOB}/memory.stat": f"anon {10 * MIB}\nfile {80 * MIB}\ninactive_file {50 * MIB}\n",
        },
        60 * MIB,
    ),
    "v2, the parent is tighter": (
        {
            **V2,
            f"{JOB}/memory.max": f"{100 * MIB}\n",
            f"{JOB}/memory.current": "0\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{200 * MIB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{190 * MIB}\n",
        },
        10 * MIB,
    ),
    "v2, over its limit": ({**V2, f"{JOB}/memory.max": "4096\n", f"{JOB}/memory.current": "8192\n"}, 0),
    "v1, no limit": (
        {
            "proc/meminfo": MEMINFO,
            **V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "12345\n",
        },
        8192000 * 1024,
    ),
    "v1, a container sees its own part": (
        {
            "proc/meminfo": MEMINFO,
            **V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{512 * MIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{500 * MIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {100 * MIB}\n",
        },
        112 * MIB,
    ),
    "a cgroup outside of the namespace: the top of the mount": (
        {
            **V2,
            "proc/self/cgroup": "0::/../other\n",
            "sys/fs/cgroup/memory.max": f"{MIB}\n",
            "sys/fs/cgroup/memory.current": "0",
        },
        MIB,
    ),
    "garbage": (
        {
            "proc/meminfo": "MemAvailable: many kB\n\n:\n",
            "proc/self/cgroup": "0\n::\nx:memory:/\n",
            "proc/self/mountinfo": "1 2\n - \n1 2 3 / /m rw - cgroup2\n1 2 3 / /m rw - cgroup c rw,memory\n",
            "m/memory.limit_in_bytes": "-1\n",
            "m/memory.usage_in_bytes": "x\n",
        },
        None,
    ),
}


@pytest.mark.parametrize("story", STORIES)
def test_available_memory(story: str, tmp_path: Path) -> None:
    files, expected = STORIES[story]
    assert available_memory(recorded(tmp_path, files)) == expected


def test_available_memory_of_this_machine() -> None:
    available = available_memory()
    assert available is not None
    assert available > 16 * MIB
