"""`pool.compat.joblib`: the hooks of joblib's backends, and scikit-learn on top of it."""

import gc
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import joblib
import numpy
import processes
import pytest
import tasks
from joblib import Parallel, delayed, parallel_config
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

from pool import errors
from pool.compat.joblib import register


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    """Two workers for everything in the test."""
    register()
    with parallel_config("pool", n_jobs=2):
        yield


def nested_backend(_: object) -> tuple[str, list[int], int]:
    name = type(joblib.parallel.get_active_backend()[0]).__name__
    return name, Parallel(n_jobs=2)(delayed(tasks.square)(x) for x in range(3)), os.getpid()


def nested_pool(_: object) -> list[int]:
    # Threads of an earlier call in this worker: joblib tells them to end, and does not wait for them.
    processes.wait_until(lambda: threading.active_count() == 1, "no other thread runs")
    values: list[int] = Parallel(n_jobs=2, backend="pool")(delayed(tasks.square)(x) for x in range(3))
    return values


@pytest.mark.parametrize("batch_size", ["auto", 1, 7])
def test_values_come_in_order(batch_size: Any) -> None:
    values = Parallel(batch_size=batch_size)(delayed(tasks.square)(x) for x in range(3000))
    assert values == [x * x for x in range(3000)]


def test_lambdas_closures_and_arrays() -> None:
    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    shift = 5
    assert Parallel()(delayed(lambda x: x + shift)(x) for x in range(20)) == list(range(5, 25))
    assert [local.x for local in Parallel()(delayed(Local)(x) for x in range(20))] == list(range(20))
    big = numpy.arange(300_000)
    assert Parallel(batch_size=3)(delayed(numpy.sum)(big) for _ in range(6)) == [big.sum()] * 6


@pytest.mark.parametrize("batch_size", ["auto", 1, 10])
def test_a_crash_names_its_item(batch_size: Any) -> None:
    with pytest.raises(errors.WorkerCrashed, match=r"worker died in tasks\.die_now_and_then\(37, each=37\): SIGKILL"):
        Parallel(batch_size=batch_size)(delayed(tasks.die_now_and_then)(x, each=37) for x in range(1, 70))
    assert Parallel()(delayed(tasks.square)(x) for x in range(3)) == [0, 1, 4]


def test_other_errors_of_the_pool_name_the_function_too() -> None:
    with pytest.raises(errors.ResultNotPicklable, match=r"tasks\.make_locked returned a Locked"):
        Parallel()(delayed(tasks.make_locked)() for _ in range(3))


def test_an_exception_has_its_remote_traceback() -> None:
    with pytest.raises(ValueError, match="10 is bad") as caught:
        Parallel(batch_size=4)(delayed(tasks.fail_if)(x, 10) for x in range(1, 20))
    assert "in fail_if" in str(caught.value.__cause__)


def test_options_of_the_pool(tmp_path: Any) -> None:
    marker = str(tmp_path / "marker")
    with parallel_config("pool", n_jobs=2, retries=1):
        assert Parallel()(delayed(tasks.crash_once)(marker, x) for x in range(4)) == list(range(4))
    with pytest.raises(TypeError, match="retrys"), parallel_config("pool", n_jobs=2, retrys=1):
        Parallel()(delayed(tasks.square)(x) for x in range(3))


def test_timeout_kills_and_the_backend_lives() -> None:
    began = time.monotonic()
    with Parallel(timeout=0.5) as parallel:
        with pytest.raises(multiprocessing.TimeoutError):
            parallel(delayed(tasks.sleep)(x) for x in (0.0, 1000.0))
        assert time.monotonic() - began < 60
        assert parallel(delayed(tasks.square)(x) for x in range(3)) == [0, 1, 4]


def test_generators() -> None:
    inputs = (delayed(tasks.square)(x) for x in range(500))
    assert list(Parallel(return_as="generator")(inputs)) == [x * x for x in range(500)]
    inputs = (delayed(tasks.square)(x) for x in range(500))
    assert sorted(Parallel(return_as="generator_unordered")(inputs)) == [x * x for x in range(500)]


def test_a_generator_that_is_left() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib tells what was computed in vain
        values = Parallel(return_as="generator", pre_dispatch=4)(delayed(tasks.square)(x) for x in range(10_000))
        assert [next(values), next(values)] == [0, 1]
        values.close()
    assert Parallel()(delayed(tasks.square)(x) for x in range(3)) == [0, 1, 4]


def test_nested_calls_use_threads_or_a_pool_of_their_own() -> None:
    nested = Parallel()(delayed(nested_backend)(x) for x in range(2))
    assert [(name, values) for name, values, _ in nested] == [("ThreadingBackend", [0, 1, 4])] * 2
    assert os.getpid() not in {pid for _, _, pid in nested}
    assert Parallel()(delayed(nested_pool)(x) for x in range(2)) == [[0, 1, 4]] * 2


def test_inner_max_num_threads() -> None:
    assert Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2)) == ["1", "1"]
    with parallel_config("pool", n_jobs=2, inner_max_num_threads=3):
        assert Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(2)) == ["3", "3"]


def test_n_jobs() -> None:
    assert joblib.effective_n_jobs(3) == 3
    assert joblib.effective_n_jobs(-1) == len(os.sched_getaffinity(0))
    with pytest.raises(ValueError, match="n_jobs == 0"):
        joblib.effective_n_jobs(0)
    assert Parallel(n_jobs=1)(delayed(tasks.pid)() for _ in range(2)) == [os.getpid()] * 2
    with parallel_config("pool"):
        assert os.getpid() not in Parallel()(delayed(tasks.pid)() for _ in range(2))


def test_workers_are_used_again() -> None:
    pids = [pid for _ in range(4) for pid in Parallel(n_jobs=2)(delayed(tasks.pid)() for _ in range(50))]
    assert len(set(pids)) <= 2


def test_workers_end_with_what_has_used_them() -> None:
    with processes.nothing_left():
        Parallel(n_jobs=2, backend="pool")(delayed(tasks.square)(x) for x in range(100))
        with pytest.raises(errors.WorkerCrashed):
            Parallel(n_jobs=2, backend="pool")(delayed(tasks.die_now_and_then)(x, 1) for x in range(100))
        gc.collect()


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any]:
    data, target = load_digits(return_X_y=True)
    return data[:600], target[:600]


def scores(digits: tuple[Any, Any]) -> list[Any]:
    search = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [1e-3, 1e-2]}, cv=3).fit(*digits)
    forest = RandomForestClassifier(20, random_state=0).fit(*digits)
    return [
        cross_val_score(SVC(gamma=0.001), *digits, cv=4),
        search.cv_results_["mean_test_score"],
        [search.best_params_["C"], search.best_params_["gamma"]],
        forest.predict_proba(digits[0]),
    ]


def test_scikit_learn_gives_the_same_as_with_loky(digits: tuple[Any, Any]) -> None:
    ours = scores(digits)
    with parallel_config("loky", n_jobs=2):
        theirs = scores(digits)
    joblib.externals.loky.get_reusable_executor().shutdown(kill_workers=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert numpy.array_equal(mine, other)
