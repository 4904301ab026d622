"""What cannot travel, and what misbehaves on its way: only that task fails, with an error that names it."""

import builtins
import os
import resource
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from pickle import PicklingError
from typing import Any

import pytest
import tasks

from pool import Pool, errors

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(autouse=True)
def _innocents_are_not_touched(pool: Pool) -> Iterator[None]:
    before = [pool.submit(tasks.square, x) for x in range(50)]
    yield
    assert [future.result() for future in before] == [x * x for x in range(50)]
    assert pool.submit(tasks.square, 12).result() == 144
    assert pool._client.unfinished == 0


def test_an_argument_that_cannot_be_pickled_is_the_futures_error(pool: Pool) -> None:
    for future in (
        pool.submit(tasks.identity, tasks.Locked()),
        pool.submit(tasks.identity, key=tasks.Locked()),
        pool.submit(tasks.Locked().__init__),
        pool.submit(lambda x=tasks.Locked(): x),  # noqa: B008
        pool.submit(tasks.identity, (x for x in [1])),
    ):
        assert future.done()
        with pytest.raises(TypeError, match="cannot pickle"):
            future.result()
    with pytest.raises(TypeError, match="cannot pickle"):
        pool.imap(lambda x, lock=tasks.Locked(): x, [1])  # noqa: B008


def test_a_result_that_cannot_be_pickled_names_task_and_type(pool: Pool) -> None:
    with pytest.raises(errors.ResultNotPicklable, match="lock") as caught:
        pool.submit(tasks.make_locked).result()
    assert isinstance(caught.value, PicklingError)
    assert caught.value.task == "tasks.make_locked"
    assert caught.value.type_name == "Locked"


def test_an_exception_that_cannot_be_pickled_is_reported_by_type_text_and_traceback(pool: Pool) -> None:
    with pytest.raises(errors.RemoteError) as caught:
        pool.submit(tasks.raise_locked).result()
    assert caught.value.type_name == "LockedError"
    assert "holds a lock" in str(caught.value)
    assert "in raise_locked" in caught.value.traceback


def test_an_exception_that_pickles_but_cannot_be_rebuilt_is_reported_too(pool: Pool) -> None:
    with pytest.raises(errors.RemoteError) as caught:
        pool.submit(tasks.raise_two_arguments).result()
    assert caught.value.type_name == "TwoArguments"
    assert "two arguments" in str(caught.value)
    assert "in raise_two_arguments" in caught.value.traceback


def test_an_exception_whose_text_raises_arrives(pool: Pool) -> None:
    future = pool.submit(tasks.raise_bad_text)
    assert isinstance(future.exception(), tasks.BadText)
    assert "raise_bad_text" in str(future.exception().__cause__)  # type: ignore[union-attr]


def test_an_exception_with_a_cycle_of_causes_arrives(pool: Pool) -> None:
    with pytest.raises(ValueError, match="first") as caught:
        pool.submit(tasks.raise_cycle).result()
    assert "second" in str(caught.value.__cause__)


def test_an_exception_with_a_long_text_arrives(pool: Pool) -> None:
    error = pool.submit(tasks.raise_long, 10 << 20).exception()
    assert isinstance(error, ValueError)
    assert len(error.args[0]) == 10 << 20
    assert len(str(error.__cause__)) < 65 * 1024


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Pool]:
    """A pool with the smallest room: values of more than half a megabyte go through files in ``tmp_path``."""
    monkeypatch.setattr("ipc.segment.default_room", lambda *_: 0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with Pool(1) as pool:
        yield pool
    assert not os.listdir(tmp_path)


def test_what_is_too_large_for_the_room_goes_through_a_file(small: Pool) -> None:
    large = bytes(range(256)) * (4 << 12)
    assert small.submit(tasks.identity, large).result() == large
    assert list(small.imap(tasks.identity, [large, b"x", large], chunksize=3)) == [large, b"x", large]
    error = small.submit(tasks.raise_long, 4 << 20).exception()
    assert isinstance(error, ValueError)
    assert len(error.args[0]) == 4 << 20
    assert small.options(retries=1).submit(tasks.raise_long, 4 << 20).exception().args == error.args


def test_what_fits_neither_into_the_room_nor_on_the_disk_is_refused_by_name(small: Pool, tmp_path: Path) -> None:
    for future in (small.submit(tasks.identity, bytes(2 << 20)), small.submit(bytes, 2 << 20)):
        assert len(future.result()) == 2 << 20
    small.submit(resource.setrlimit, resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY)).result()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))  # what a full disk does to a large file
    try:
        for future in (small.submit(tasks.identity, bytes(2 << 20)), small.submit(bytes, 2 << 20)):
            with pytest.raises(errors.PayloadTooLarge, match=r"the arguments of tasks.identity|the result of .*bytes"):
                future.result()
        with pytest.raises(errors.PayloadTooLarge, match="the result of"):
            small.submit(tasks.raise_long, 2 << 20).result()
        results = list(small.imap(bytes, [1, 2 << 20, 2], on_error="return", chunksize=3))
        assert [results[0], results[2]] == [bytes(1), bytes(2)]
        assert isinstance(results[1].error, errors.PayloadTooLarge)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- loky's crash tests: {pickle, unpickle, run, pickle result, unpickle result} x {exit, C exit, error, SEGV}


@pytest.mark.parametrize("how", ["exit", "c exit", "error", "SEGV"])
@pytest.mark.parametrize("step", ["run", "unpickle", "pickle result"])
def test_misbehaviour_in_a_worker_costs_only_its_task(pool: Pool, step: str, how: str) -> None:
    future = {
        "run": lambda: pool.submit(tasks.misbehave, how),
        "unpickle": lambda: pool.submit(tasks.identity, tasks.AtUnpickle(how, os.getpid())),
        "pickle result": lambda: pool.submit(tasks.make_at_pickle, how),
    }[step]()
    error = future.exception()
    name = {"run": "misbehave", "unpickle": "identity", "pickle result": "make_at_pickle"}[step]
    if how in ("c exit", "SEGV"):
        assert isinstance(error, errors.WorkerCrashed)
        assert isinstance(error, BrokenProcessPool)
        assert (error.exitcode, error.signal) == ((7, None) if how == "c exit" else (None, 11))
        assert name in str(error)
        assert error.pid not in (0, os.getpid())
    elif step == "pickle result":
        assert isinstance(error, errors.ResultNotPicklable)
        assert name in str(error)
    else:
        assert isinstance(error, SystemExit if how == "exit" else RuntimeError)
        assert "misbehave" in str(error.__cause__)


def test_misbehaviour_while_the_client_pickles_is_an_error_of_the_call(pool: Pool) -> None:
    with pytest.raises(RuntimeError, match="misbehaved"):
        pool.submit(tasks.identity, tasks.AtPickle("error")).result()
    with pytest.raises(SystemExit):  # the caller's own thread wants to end
        pool.submit(tasks.identity, tasks.AtPickle("exit"))
    with pytest.raises(SystemExit):
        list(pool.imap(tasks.identity, [1, 2, tasks.AtPickle("exit"), 3], chunksize=1))
    with pytest.raises(SystemExit):
        list(pool.imap(tasks.identity, [1, 2, tasks.AtPickle("exit"), 3], chunksize=2))


@pytest.mark.parametrize("make", [tasks.make_bad_result, tasks.make_bad_exit])
def test_a_result_that_cannot_be_rebuilt_here_is_the_futures_error(pool: Pool, make: Callable[[], Any]) -> None:
    future = pool.submit(make)
    for _ in range(2):
        with pytest.raises(errors.ResultNotPicklable) as caught:
            future.result()
        assert make.__name__ in str(caught.value)
    assert isinstance(future.exception(), errors.ResultNotPicklable)


def test_a_crash_shows_the_arguments_without_unpickling_them_here(pool: Pool) -> None:
    error = pool.submit(tasks.misbehave, how="c exit").exception()
    assert isinstance(error, errors.WorkerCrashed)
    assert "how='c exit'" in error.args_repr
    error = pool.submit(tasks.identity, tasks.AtUnpickle("c exit", os.getpid())).exception()
    assert isinstance(error, errors.WorkerCrashed)
    assert "AtUnpickle" in error.args_repr


def test_any_exception_of_a_task_is_its_outcome_and_the_worker_lives() -> None:
    with Pool(1) as pool:
        pid = pool.submit(tasks.pid).result()
        for name in ("KeyboardInterrupt", "GeneratorExit", "BaseException", "StopIteration", "MemoryError"):
            assert type(pool.submit(_raise, name).exception()).__name__ == name
        assert pool.submit(tasks.pid).result() == pid


def _raise(name: str) -> None:
    raise getattr(builtins, name)


class ShowsItsFuture:
    """An argument whose repr asks the pool."""

    def __init__(self, future: Any = None) -> None:
        self.future = future

    def __reduce__(self) -> Any:
        return ShowsItsFuture, ()

    def __repr__(self) -> str:
        return f"<{self.future!r}>"


def test_arguments_whose_repr_uses_the_pool_do_not_hang_a_crash(pool: Pool) -> None:
    other = pool.submit(tasks.square, 2)
    future = pool.submit(tasks.die, ShowsItsFuture(other))
    assert other.result() == 4
    with pytest.raises(errors.WorkerCrashed, match="state=finished"):
        future.result(timeout=20)
