"""dask, tqdm and rich with a pool."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import dask
import dask.bag
import pytest
import rich.console
import rich.progress
import scripts
import tasks
import tqdm
from tqdm.contrib.concurrent import _executor_map

from pool import Pool, errors
from pool.compat.tqdm import process_map


@pytest.fixture(autouse=True)
def no_thread_of_tqdm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)


@pytest.fixture
def dask_pool(pool: Pool) -> Iterator[Pool]:
    with dask.config.set(pool=pool):
        yield pool


def test_dask_bag(dask_pool: Pool) -> None:
    bag = dask.bag.from_sequence(range(100), npartitions=10)
    assert bag.map(lambda x: x * x).filter(lambda x: x % 2 == 0).sum().compute() == sum(x * x for x in range(0, 100, 2))
    pids = set(bag.map(tasks.pid).compute())
    assert pids
    assert os.getpid() not in pids


def test_dask_delayed(dask_pool: Pool) -> None:
    square, total = dask.delayed(tasks.square), dask.delayed(sum)
    assert total([square(x) for x in range(10)]).compute() == 285
    assert total([square(x) for x in range(10)]).compute(scheduler="processes") == 285
    assert dask.delayed(tasks.pid)().compute() != os.getpid()


def test_dask_gets_a_crash_that_the_pool_survives(dask_pool: Pool) -> None:
    with pytest.raises(errors.WorkerCrashed):
        dask.delayed(tasks.die_now_and_then)(1, 1).compute(scheduler="processes")
    assert dask.delayed(tasks.square)(3).compute() == 9


def test_tqdm_wraps_what_the_pool_gives(pool: Pool) -> None:
    out = io.StringIO()
    assert list(tqdm.tqdm(pool.imap(tasks.square, range(50)), total=50, file=out)) == [x * x for x in range(50)]
    assert "50/50" in out.getvalue()


def test_process_map_counts_items() -> None:
    out = io.StringIO()
    values = process_map(tasks.add, range(100), range(1, 1000), max_workers=2, chunksize=30, file=out, desc="sums")
    assert values == [2 * x + 1 for x in range(100)]
    assert "sums: 100%" in out.getvalue()
    assert "100/100" in out.getvalue()


def test_process_map_of_what_has_no_length() -> None:
    out = io.StringIO()
    assert process_map(tasks.square, iter(range(7)), max_workers=2, file=out) == [x * x for x in range(7)]
    assert "7it" in out.getvalue()


def test_process_map_takes_a_class_for_the_bar() -> None:
    class Counting(tqdm.tqdm):  # type: ignore[type-arg]
        made = 0

        def __init__(self, *args: object, **kwargs: object) -> None:
            Counting.made += 1
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]

    assert process_map(tasks.square, [3], max_workers=1, tqdm_class=Counting, file=io.StringIO()) == [9]
    assert Counting.made == 1


def test_the_executor_map_of_tqdm_takes_our_pool() -> None:
    """It gives the initializer a lock, and puts its own function in the place of `submit`. Its bar is not looked at:
    the list can be there before the last callbacks have run."""
    out = io.StringIO()
    assert _executor_map(Pool, tasks.square, range(50), max_workers=2, file=out) == [x * x for x in range(50)]


def test_rich_tracks_what_the_pool_gives(pool: Pool) -> None:
    out = io.StringIO()
    console = rich.console.Console(file=out, force_terminal=True)
    results = rich.progress.track(pool.imap(tasks.square, range(50)), total=50, console=console)
    assert list(results) == [x * x for x in range(50)]
    assert "100%" in out.getvalue()


def test_what_is_not_installed_is_named(tmp_path: Path) -> None:
    script = """
        import sys
        sys.modules["joblib"] = sys.modules["tqdm"] = sys.modules["tqdm.auto"] = None
        try:
            import pool.compat.joblib
        except ImportError as error:
            print(error)
        from pool.compat.tqdm import process_map
        try:
            process_map(abs, [1])
        except ImportError as error:
            print(error)
    """
    said = "pool.compat.{0} needs {0}: pip install {0}\n"
    assert scripts.run(tmp_path, script).stdout == said.format("joblib") + said.format("tqdm")
