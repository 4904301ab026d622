"""What users of other pools have reported for years, as far as no other test here shows that it cannot happen. The
whole list: docs/pains.md."""

import gc
import weakref
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import processes
import pytest
import scripts
import tasks

from pool import Pool


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("how", ["shutdown", "dropped", "with"])
def test_no_future_is_stranded_when_workers_reach_their_limit_at_the_end(how: str, most: int) -> None:
    """cpython 119592, 152967: with a limit of tasks for each worker, shutdown(wait=False), or a pool that nobody holds,
    left futures that never ended."""
    pool: Pool | None = Pool(2, max_tasks_per_child=most)
    futures = [pool.submit(tasks.identity, x) for x in range(30)]
    if how == "shutdown":
        pool.shutdown(wait=False)
    elif how == "with":
        with pool:
            pass
    gone = weakref.ref(pool)
    pool = None
    gc.collect()
    assert gone() is None
    assert wait(futures, 30).not_done == set()
    assert [future.result() for future in futures] == list(range(30))


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_large_results_of_workers_that_live_for_one_task(size: int) -> None:
    """mpire 32: results larger than a pipe, and a lifespan of one task, hung."""
    with Pool(2, max_tasks_per_child=1) as pool:
        results = [len(value) for value in pool.imap(bytes, [size] * 12)]
    assert results == [size] * 12


@pytest.mark.parametrize("form", ["imap", "imap_unordered", "map"])
def test_a_map_that_was_read_in_part_stops_no_end(form: str) -> None:
    """cpython 64192, 155477: a lazy map that was left in the middle, and close() and join() then."""
    with processes.nothing_left(), Pool(2) as pool:
        options: dict[str, Any] = {"buffersize": 4}
        results = getattr(pool, form)(tasks.identity, iter(range(1000)), **options)
        assert next(results) in range(4)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        pool.submit(tasks.identity, 1)


NOISE = """
import sys
import numpy
from pool import Pool

def leaks(x, kept=[]):
    kept.append(bytearray(50_000_000))
    return x

def array(x):
    return numpy.ones(300_000) * x

def main():
    with Pool(2, max_tasks_per_child=3) as pool:
        shared = pool.share(numpy.zeros(1_000_000))
        assert pool.submit(numpy.sum, shared).result() == 0
        assert list(pool.imap(leaks, range(20))) == list(range(20))
        kept = [a[0] for a in pool.imap(array, range(20))]
    print("end")

main()
"""


def test_recycled_workers_and_shared_memory_print_no_warnings(tmp_path: Path) -> None:
    """joblib 869, 883; cpython 116849: warnings of a leak where a worker was replaced on purpose, and of "leaked
    shared_memory objects"."""
    before = processes.shared_files()
    ran = scripts.run(tmp_path, NOISE)
    assert (ran.stdout, ran.stderr) == ("end\n", "")
    assert processes.shared_files() == before


def test_workers_replaced_after_each_task_go_on_for_long() -> None:
    """cpython 115634: with a limit above one, a token of an idle worker that had gone already was counted on, and
    nobody was started in its place."""
    with Pool(3, max_tasks_per_child=2) as pool:
        for round in range(60):  # each finds some workers idle, some leaving, some new
            futures = [pool.submit(tasks.identity, x) for x in range(round % 7)]
            assert [future.result(timeout=30) for future in futures] == list(range(round % 7))
