"""How many CPUs this process may really use.

`os.cpu_count()` counts the machine's. The affinity mask (taskset, cpusets) takes some away, and a cgroup quota
(containers, `CPUQuota=` of systemd) limits the time on the rest. Quotas stand at any level from the process's own
cgroup up to the root, in two file formats::

    v2   cpu.max                                     "150000 100000" | "max 100000"
    v1   cpu.cfs_quota_us, cpu.cfs_period_us         150000 | -1,    100000

Where they stand is told by `/proc/self/cgroup` (the process's path in each hierarchy) and `/proc/self/mountinfo`
(where a hierarchy is mounted, and which part of it: a container often sees its own part only).
"""

import os
from collections.abc import Iterator

__all__ = ["available_cpus", "cgroup_cap"]


def available_cpus() -> int:
    """CPUs that this process may use: the affinity mask, capped by the cgroup quota rounded up. At least 1."""
    cpus = len(os.sched_getaffinity(0))
    cap = cgroup_cap()
    return cpus if cap is None else min(cpus, cap)


def cgroup_cap(root: str = "/") -> int | None:
    """The tightest CPU quota over all cgroups of this process, in CPUs rounded up, at least 1; `None` if there is none.

    `root` is prefixed to every path that is read. What is missing, unreadable or malformed counts as no quota.
    """
    caps = [cap for folder in _cgroup_folders(root) if (cap := _folder_cap(folder)) is not None]
    return min(caps, default=None)


def _cgroup_folders(root: str) -> Iterator[str]:
    """Each folder that may hold a quota for this process: its cgroup and the cgroups above, in v1 and in v2."""
    paths = _own_paths(_read(root, "proc/self/cgroup"))
    for version, shown, mount_point in _mounts(_read(root, "proc/self/mountinfo"), paths):
        below = _below(paths[version], shown) or ""
        top = os.path.join(root, mount_point.lstrip("/"))
        while below:
            yield os.path.join(top, below)
            below = os.path.dirname(below)
        yield top


def _own_paths(text: str) -> dict[str, str]:
    """`/proc/self/cgroup` → the paths in the hierarchies that can limit CPU time, by filesystem type (v1, v2)."""
    paths = {}
    for line in text.split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path.startswith("/"):
            if number == "0" and not controllers:
                paths["cgroup2"] = path
            elif "cpu" in controllers.split(","):
                paths["cgroup"] = path
    return paths


def _mounts(text: str, paths: dict[str, str]) -> list[tuple[str, str, str]]:
    """`/proc/self/mountinfo` → (filesystem type, part of the hierarchy shown, mount point) of mounts that matter."""
    found: list[tuple[str, str, str]] = []
    for line in text.split("\n"):
        # 41 31 0:38 /part /mount/point rw,relatime shared:4 - cgroup2 source rw
        left, _, right = line.partition(" - ")
        mount, system = left.split(" "), right.split(" ")
        if len(mount) < 5 or len(system) < 3 or system[0] not in paths:
            continue
        if system[0] == "cgroup2" or "cpu" in system[2].split(","):
            found.append((system[0], _unescape(mount[3]), _unescape(mount[4])))
    chosen = []
    for version, path in paths.items():
        mounts = [m for m in found if m[0] == version]
        # Where no mount shows the own cgroup (the process was moved, or is outside of its namespace), the top of the
        # first one is the best guess; other mounts may show other people's cgroups.
        chosen += [m for m in mounts if _below(path, m[1]) is not None] or mounts[:1]
    return chosen


def _below(path: str, top: str) -> str | None:
    """`path` relative to `top`, `""` if they are the same; `None` if it is not below."""
    prefix = top.rstrip("/") + "/"
    if not (path.rstrip("/") + "/").startswith(prefix):
        return None
    below = path[len(prefix) :].strip("/")
    # ".." is how a cgroup namespace names what is outside of it; no mount inside shows that.
    return None if ".." in below.split("/") else below


def _folder_cap(folder: str) -> int | None:
    """The quota of one cgroup in CPUs, rounded up; `None` if it has none. Only one of the two formats can be there."""
    limit = _read(folder, "cpu.max").split()
    if not limit:
        limit = _read(folder, "cpu.cfs_quota_us").split() + _read(folder, "cpu.cfs_period_us").split()
    try:
        quota, period = (int(word) for word in limit)
    except ValueError:  # missing, garbage, or "max" for no quota
        return None
    if quota <= 0 or period <= 0:  # v1 writes -1 for no quota
        return None
    return -(-quota // period)


def _unescape(field: str) -> str:
    """Undo the kernel's `\\040` for the characters that would split a line of mountinfo."""
    for escaped, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        field = field.replace(escaped, plain)
    return field


def _read(folder: str, name: str) -> str:
    """Text of a small file, `""` if it can't be read."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return os.fsdecode(file.read())
    except (OSError, ValueError):  # ValueError: a NUL byte in a path
        return ""
