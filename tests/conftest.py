"""What all tests share."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tasks

from pool import Pool


@pytest.fixture
def require() -> Callable[[str], str]:
    """`require("spin")` → path of the program. Without it the test is skipped, or fails in CI: a skip hides a hole."""
    return _require


def _require(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        message = f"{tool} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


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
def gate(tmp_path: Path) -> Iterator[tasks.Gate]:
    """For tasks that run until the test lets them go."""
    gate = tasks.Gate(tmp_path)
    yield gate
    gate.close()
