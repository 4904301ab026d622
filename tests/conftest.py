"""What all tests share."""

import os
import shutil
from collections.abc import Callable

import pytest


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
