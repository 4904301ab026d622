"""The long form of the tests of faults (POOL_LONG=1): those that docs/reliability.md names run many times (POOL_REPEATS
times those that are not listed here), and nothing may be left after any of them."""

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import processes
from chaos.figures import named_tests

LONG = os.environ.get("POOL_LONG") == "1"
OFTEN, SOME, ONCE = int(os.environ.get("POOL_REPEATS", "10")), 3, 1
PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"
FEWER = {
    # takes seconds
    "test_chaos.py::test_every_task_ends_exactly_once_while_workers_are_killed": SOME,
    "test_chaos.py::test_whatever_a_seed_draws_adds_up": SOME,
    "test_chaos.py::test_however_the_pool_ends_all_is_told_and_nothing_is_left": SOME,
    "test_ctrl_c.py::test_every_future_ends_in_a_rain_of_interrupts": SOME,
    "test_deadlines.py::test_an_endless_loop_in_c_is_killed_in_time_with_its_stack_and_its_processes": SOME,
    "test_exit.py::test_two_seconds_after_a_signal_nobody_is_left_whatever_hangs": SOME,
    "test_payloads.py::test_no_file_outlives_the_pool_whoever_is_killed": SOME,
    "test_reliability.py::test_a_monotonic_clock_that_is_days_off_changes_nothing": SOME,
    "test_reliability.py::test_a_wall_clock_that_jumps_by_days_changes_nothing": SOME,
    # does the same each time
    "test_core_c.py::test_the_core_keeps_its_promises": ONCE,
    "test_images.py::test_noise": ONCE,
    "test_images.py::test_one_bit_of_a_word_is_wrong": ONCE,
    "test_restart.py::test_story": ONCE,
    # repeats its fault itself: `times`
    "test_exit.py::test_a_client_that_is_killed_while_its_pool_starts_leaves_nobody": ONCE,
    "test_exit.py::test_a_second_after_client_and_monitor_were_killed_together_no_worker_is_left": ONCE,
    "test_exit.py::test_a_second_after_the_client_was_killed_nobody_is_left": ONCE,
    "test_reliability.py::test_a_fork_bomb_is_gone_when_its_worker_is": ONCE,
    "test_reliability.py::test_all_workers_are_killed_at_once_again_and_again": ONCE,
    "test_reliability.py::test_a_signal_at_a_worker_in_its_first_moments_costs_no_task": ONCE,
    "test_reliability.py::test_a_signal_at_a_worker_is_that_of_the_task_it_runs": ONCE,
    "test_reliability.py::test_an_idle_worker_that_is_killed_is_replaced_soon": ONCE,
    "test_reliability.py::test_forks_beside_threads_that_hold_locks": ONCE,
    "test_reliability.py::test_signals_at_the_monitor_from_its_first_moment_on": ONCE,
    "test_reliability.py::test_signals_in_any_order_at_client_and_monitor": ONCE,
    "test_reliability.py::test_workers_killed_before_a_task_is_claimed_spend_no_attempt": ONCE,
}
_MORE = 1.05  # times as much memory is no growth yet
_NAMED = frozenset(test for tests in named_tests(PAGE.read_text()).values() for test in tests)


def count(test: str) -> int:
    """How often a test (``file.py::name``) runs."""
    return FEWER.get(test, OFTEN) if is_looked_at(test) else ONCE


def is_looked_at(test: str) -> bool:
    """Whether nothing may be left after it."""
    return LONG and test in _NAMED


def times(short: int, long: int) -> Iterator[int]:
    """For a test that repeats its fault in one pool; in the long form nothing may grow meanwhile."""
    for n in range(long if LONG else short):
        yield n
        if LONG and n == 1:
            early = _Held()
    if LONG:
        early.check(_Held())


class _Held:
    """What this process holds."""

    def __init__(self) -> None:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.files = len(processes.open_files())
        with open("/proc/self/statm") as file:
            self.memory = int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def check(self, later: "_Held") -> None:
        assert later.files <= self.files, f"{later.files - self.files} descriptors more"
        assert later.memory <= self.memory * _MORE, f"RSS grows from {self.memory:,} to {later.memory:,}"


_early: dict[str, _Held] = {}  # by case: after its second repeat, for the first one imports and fills caches


@contextlib.contextmanager
def nothing_added(case: str, repeat: int, folder: Path) -> Iterator[None]:
    """One repeat of a case, which makes its files in `folder`. Nothing may be there afterwards that was not before:
    process, descriptor, or file."""
    with mock.patch.dict(os.environ, TMPDIR=str(folder)), processes.nothing_left():
        yield
    assert not os.listdir(folder)
    if repeat == 1:
        _early[case] = _Held()
    elif repeat > 1:
        _early[case].check(_Held())
