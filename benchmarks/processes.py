"""What a pool costs, from the outside: CPU time and context switches of this process and of everything it has started.

CPU time is read from each process's CPU clock (nanoseconds, all its threads, also those that have ended), not from
/proc/<pid>/stat, which counts in hundredths of a second.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """Of one process, since its start."""

    cpu_ns: int
    waits: int  # voluntary context switches: it slept and was woken
    preemptions: int


def family() -> list[int]:
    """This process and all its descendants, this one first."""
    found = [os.getpid()]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def usage(pid: int) -> Usage:
    """Raises OSError if the process is gone."""
    waits = preemptions = 0
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            waits += int(fields["voluntary_ctxt_switches"])
            preemptions += int(fields["nonvoluntary_ctxt_switches"])
    return Usage(time.clock_gettime_ns((~pid << 3) | 2), waits, preemptions)  # CPUCLOCK_SCHED of that process


def machine_busy() -> float:
    """Seconds that all cores together have worked since boot, for whomever, or were kept by the hypervisor."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


class Meter:
    """``with Meter() as meter: work()``; then the differences. Reading others' figures is not counted as work.

    ``foreign`` is the percentage of the machine that others took meanwhile: what it leaves is what was measured.
    """

    def __enter__(self) -> Meter:
        pids = family()
        self._before = {pid: usage(pid) for pid in reversed(pids)}  # this process last
        self._busy = machine_busy()
        self._since = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        me = os.getpid()
        cpu = time.clock_gettime_ns((~me << 3) | 2)
        self.seconds = time.perf_counter() - self._since
        busy = machine_busy() - self._busy
        self.spent: dict[int, Usage] = {}
        for pid, before in self._before.items():
            with contextlib.suppress(OSError):
                now = usage(pid)
                cpu_ns = cpu if pid == me else now.cpu_ns
                self.spent[pid] = Usage(
                    cpu_ns - before.cpu_ns, now.waits - before.waits, now.preemptions - before.preemptions
                )
        own = sum(u.cpu_ns for u in self.spent.values()) / 1e9
        self.foreign = max(0.0, 100 * (busy - own) / self.seconds / (os.cpu_count() or 1))

    def per_task(self, tasks: int) -> dict[str, float]:
        """The metrics that every throughput workload reports."""
        all_cpu = sum(u.cpu_ns for u in self.spent.values())
        switches = sum(u.waits + u.preemptions for u in self.spent.values())
        return {
            "tasks": tasks,
            "rate": tasks / self.seconds,
            "cpu_us": all_cpu / tasks / 1000,
            "client_cpu_us": self.spent[os.getpid()].cpu_ns / tasks / 1000,
            "switches": 1000 * switches / tasks,
            "foreign": self.foreign,
        }


def memory(field: str) -> int:
    """Bytes of this process: VmRSS, VmHWM, RssAnon, ..."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def forget_peak() -> None:
    """VmHWM begins again from what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")
