"""pool.cpus against recorded /proc and /sys/fs/cgroup trees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pool import cpus

V1 = "sys/fs/cgroup/cpu,cpuacct"
V1_MOUNT = "33 26 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct\n"
V1_OTHERS = (
    "25 0 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
    "26 25 0:22 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n"
    "34 26 0:30 / /sys/fs/cgroup/cpuset rw,nosuid shared:16 - cgroup cgroup rw,cpuset\n"
    "35 26 0:31 / /sys/fs/cgroup/memory rw,nosuid shared:17 - cgroup cgroup rw,memory\n"
)
V2 = "sys/fs/cgroup"
V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
SLICE = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-7.scope\n"
FOLDER = f"{V2}/user.slice/user-1000.slice"


def v1(quota: int | str, period: int | str = 100_000, folder: str = V1) -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


# what /proc/self/cgroup says, what mountinfo says, the other files, CPUs
TREES: dict[str, tuple[str, str, dict[str, str], int | None]] = {
    # v2
    "v2, no quota anywhere": (SLICE, V2_MOUNT, {f"{FOLDER}/cpu.max": "max 100000\n"}, None),
    "v2, own cgroup": ("0::/job\n", V2_MOUNT, {f"{V2}/job/cpu.max": "400000 100000\n"}, 4),
    "v2, rounded up": ("0::/job\n", V2_MOUNT, {f"{V2}/job/cpu.max": "150000 100000\n"}, 2),
    "v2, at least one": ("0::/job\n", V2_MOUNT, {f"{V2}/job/cpu.max": "1000 100000\n"}, 1),
    "v2, another period": ("0::/job\n", V2_MOUNT, {f"{V2}/job/cpu.max": "20000 10000\n"}, 2),
    "v2, slice above": (SLICE, V2_MOUNT, {f"{FOLDER}/cpu.max": "300000 100000\n"}, 3),
    "v2, top slice, own is wider": (
        SLICE,
        V2_MOUNT,
        {
            f"{V2}/user.slice/cpu.max": "200000 100000\n",
            f"{FOLDER}/cpu.max": "max 100000\n",
            f"{FOLDER}/user@1000.service/app.slice/run-7.scope/cpu.max": "800000 100000\n",
        },
        2,
    ),
    "v2, a sibling's quota is not ours": (SLICE, V2_MOUNT, {f"{V2}/system.slice/cpu.max": "100000 100000\n"}, None),
    "v2, container with a namespace": ("0::/\n", V2_MOUNT, {f"{V2}/cpu.max": "250000 100000\n"}, 3),
    "v2, container without a namespace": (
        "0::/docker/4f3a\n",
        "900 880 0:26 /docker/4f3a /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate\n",
        {f"{V2}/cpu.max": "50000 100000\n"},
        1,
    ),
    "v2, nested inside what the container shows": (
        "0::/docker/4f3a/job\n",
        "900 880 0:26 /docker/4f3a /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n",
        {f"{V2}/job/cpu.max": "300000 100000\n", f"{V2}/cpu.max": "600000 100000\n"},
        3,
    ),
    "v2, moved outside of its namespace: the top is the best guess": (
        "0::/../other\n",
        V2_MOUNT,
        {f"{V2}/cpu.max": "200000 100000\n", "sys/fs/other/cpu.max": "100000 100000\n"},
        2,
    ),
    "v2, the mount shows more than the namespace": (
        "0::/job\n",
        "30 23 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        {f"{V2}/cpu.max": "200000 100000\n", f"{V2}/job/cpu.max": "100000 100000\n"},
        2,
    ),
    "v2, somebody else's cgroup is mounted too": (
        "0::/job\n",
        "29 23 0:26 /jobber /mnt/jobber rw - cgroup2 cgroup2 rw\n" + V2_MOUNT,
        {f"{V2}/job/cpu.max": "400000 100000\n", "mnt/jobber/cpu.max": "100000 100000\n"},
        4,
    ),
    "v2, a colon, a space and a backslash in names": (
        "0::/a:b c/d\\e\n",
        "30 23 0:26 /a:b\\040c /mnt/cg\\134roups\\040two rw - cgroup2 cgroup2 rw\n",
        {"mnt/cg\\roups two/d\\e/cpu.max": "500000 100000\n"},
        5,
    ),
    # v1
    "v1, no quota": ("4:cpu,cpuacct:/job\n", V1_OTHERS + V1_MOUNT, v1(-1, folder=f"{V1}/job"), None),
    "v1, own cgroup": (
        "11:memory:/m\n5:cpuset:/s\n4:cpu,cpuacct:/job\n1:name=systemd:/init.scope\n",
        V1_OTHERS + V1_MOUNT,
        v1(350_000, folder=f"{V1}/job"),
        4,
    ),
    "v1, controllers in another order": (
        "4:cpuacct,cpu:/job\n",
        V1_MOUNT.replace("rw,cpu,cpuacct", "rw,cpuacct,cpu"),
        v1(50_000, 50_000, f"{V1}/job"),
        1,
    ),
    "v1, slice above": (
        "4:cpu,cpuacct:/batch.slice/batch-a.slice/run.service\n",
        V1_OTHERS + V1_MOUNT,
        v1(-1, folder=f"{V1}/batch.slice/batch-a.slice/run.service") | v1(200_000, folder=f"{V1}/batch.slice"),
        2,
    ),
    "v1, container: host's path, own part mounted": (
        "4:cpu,cpuacct:/docker/4f3a\n",
        "700 690 0:29 /docker/4f3a /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
        v1(150_000),
        2,
    ),
    "v1, container: host's path, nothing of it mounted": (
        "4:cpu,cpuacct:/kubepods/burstable/pod1/4f3a\n",
        "700 690 0:29 /kubepods/other /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct\n",
        v1(150_000),
        2,
    ),
    "v1, the files of a cpuset are not looked at": (
        "5:cpuset:/s\n",
        V1_OTHERS,
        v1(100_000, folder="sys/fs/cgroup/cpuset/s"),
        None,
    ),
    # both
    "hybrid, cpu is in v1": (
        "4:cpu,cpuacct:/job\n0::/job\n",
        V1_MOUNT + V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        v1(300_000, folder=f"{V1}/job") | {"sys/fs/cgroup/unified/job/cgroup.procs": "1\n"},
        3,
    ),
    "hybrid, cpu is in v2": (
        "4:memory:/job\n0::/job\n",
        V1_OTHERS + V2_MOUNT.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified "),
        {"sys/fs/cgroup/unified/job/cpu.max": "300000 100000\n"},
        3,
    ),
    # missing and garbage
    "no quota files": (SLICE, V2_MOUNT, {}, None),
    "no mounts": (SLICE, "", {f"{FOLDER}/cpu.max": "100000 100000\n"}, None),
    "no cgroup": ("", V2_MOUNT, {f"{V2}/cpu.max": "100000 100000\n"}, None),
    "v1 quota without its period": ("4:cpu:/\n", V1_MOUNT, {f"{V1}/cpu.cfs_quota_us": "100000\n"}, None),
    "v1 period 0": ("4:cpu:/\n", V1_MOUNT, v1(100_000, 0), None),
    "v1 words": ("4:cpu:/\n", V1_MOUNT, v1("many", "years"), None),
    "v2 empty": ("0::/\n", V2_MOUNT, {f"{V2}/cpu.max": ""}, None),
    "v2 one number": ("0::/\n", V2_MOUNT, {f"{V2}/cpu.max": "100000\n"}, None),
    "v2 three numbers": ("0::/\n", V2_MOUNT, {f"{V2}/cpu.max": "1 2 3\n"}, None),
    "v2 negative": ("0::/\n", V2_MOUNT, {f"{V2}/cpu.max": "100000 -100000\n"}, None),
    "v2 not text": ("0::/\n", V2_MOUNT, {f"{V2}/cpu.max": "\udcff\udcfe \udcff\n"}, None),
    "garbage above does not hide what is below": (
        "0::/a/b\n",
        V2_MOUNT,
        {f"{V2}/a/cpu.max": "?\n", f"{V2}/a/b/cpu.max": "200000 100000\n"},
        2,
    ),
    "garbage everywhere": (
        "::\n0:\n0::\nx:cpu\n:cpu:a\n\udcff\n",
        " - \n1 2 3 4 5 - cgroup2\n- - -\n\n\udcff",
        {},
        None,
    ),
    "lines of garbage between good ones": (
        "\n:::::\n0::/job\nzz\n",
        "nonsense\n\n1 2 - cgroup2 x y\n" + V2_MOUNT + "- \n",
        {f"{V2}/job/cpu.max": "200000 100000"},
        2,
    ),
    "a NUL in the path": ("0::/a\0b\n", V2_MOUNT, {f"{V2}/cpu.max": "200000 100000\n"}, 2),
}


@pytest.mark.parametrize(("own", "mounts", "files", "expected"), TREES.values(), ids=TREES.keys())
def test_recorded_tree(tmp_path: Path, own: str, mounts: str, files: dict[str, str], expected: int | None) -> None:
    for name, text in ({"proc/self/cgroup": own, "proc/self/mountinfo": mounts} | files).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(text))
    assert cpus.cgroup_cap(str(tmp_path)) == expected


def test_missing_proc(tmp_path: Path) -> None:
    assert cpus.cgroup_cap(str(tmp_path)) is None


@pytest.mark.parametrize(("cap", "expected"), [(None, 4), (1, 1), (3, 3), (4, 4), (64, 4)])
def test_affinity_is_capped(monkeypatch: pytest.MonkeyPatch, cap: int | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5, 7})
    monkeypatch.setattr(cpus, "cgroup_cap", lambda: cap)
    assert cpus.available_cpus() == expected


def test_real_machine_follows_the_affinity_mask() -> None:
    assert 1 <= cpus.available_cpus() <= len(os.sched_getaffinity(0))
    one = str(min(os.sched_getaffinity(0)))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from pool.cpus import available_cpus; print(available_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
