"""What all tests share."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import processes
import pytest
import repeats
import tasks

from pool import Pool

# A background job of a shell ignores it, and so would every script that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)  # so repeats of one case follow each other
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    count = repeats.count(_name(metafunc.module, metafunc.function))
    if count > 1:
        metafunc.parametrize("_repeated", range(count), indirect=True)


@pytest.fixture(autouse=True)
def _repeated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Around everything else of a repeat, or of the one run that is all there is, see repeats.py."""
    repeat = getattr(request, "param", 0)
    if not repeats.is_looked_at(_name(request.module, request.function)):
        yield
        return
    folder = request.getfixturevalue("tmp_path_factory").mktemp("files")
    case = request.node.nodeid.rpartition(str(repeat))[0]
    with repeats.nothing_added(case, repeat, folder):
        yield


def _name(module: ModuleType, function: Callable[..., None]) -> str:
    return f"{module.__name__}.py::{function.__name__}"


@pytest.fixture(scope="session")
def lack() -> Callable[[str], NoReturn]:
    """`lack("no pidfds")` skips the test, or fails it in CI: a skip hides a hole. Nothing else skips."""
    return _lack


def _lack(what: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def require() -> Callable[[str], str]:
    """`require("cc")` → path of the program. Tests without it are skipped, or fail in CI."""
    return _require


def _require(tool: str) -> str:
    return shutil.which(tool) or _lack(f"{tool} is not installed")


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Two workers for a whole file: a test that spoils them for the next one has found something."""
    pool = Pool(2).start()
    yield pool
    if pool._client.idle_or_closed():
        pool.shutdown()
    else:  # after a failed test: what it left running may never end
        pool.kill_workers()


@pytest.fixture
def idle_afterwards(pool: Pool, gate: tasks.Gate) -> Iterator[None]:  # the gate is closed after it
    """The pool of the file is as good as new after each test."""
    yield
    client = pool._client
    processes.wait_until(
        lambda: pool.submit(tasks.square, 12).result() == 144 and client.idle_or_closed(), "no task is left"
    )
    assert client.unfinished == 0


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    """For tasks that run until the test lets them go."""
    gate = tasks.Gate(tmp_path)
    yield gate
    gate.close()
