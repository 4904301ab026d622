"""The fuzzer of tests/c/fuzz.c for some seconds, always with the same inputs; `make fuzz` goes on from there."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from test_core_c import CORE, HERE, Planted, build, miss, run

RUNS = 8000
REACHED = 800  # edges; with these inputs there are more than 900, and 200 before the first
FOUND = sorted((HERE / "found").iterdir())

# What each input in found/ finds.
PLANTED = [
    Planted(
        "a number of the spans is read again after it was found to be right",
        "insight.c",
        [
            ("    uint32_t shift = shift_of(spans); /* read once", "    uint32_t shift; /* read once"),
            (
                "    for (; to >> shift >= IPC_SPANS; shift++) fold(spans, shift);\n",
                "    while (to >> shift_of(spans) >= IPC_SPANS) fold(spans, shift_of(spans));\n"
                "    shift = shift_of(spans);\n",
            ),
        ],
        "fuzz",
        "found/spans-fold",
    ),
    Planted(
        "the length of a result is taken as it stands",
        "client.c",
        [("    return result->length <= room ? 0 : IPC_DAMAGED;", "    return 0;")],
        "fuzz",
        "found/result-length",
    ),
]


@pytest.fixture(scope="module")
def fuzz(require: Callable[[str], str], lack: Callable[[str], NoReturn]) -> Path:
    clang = require("clang")
    folder = subprocess.run([clang, "-print-resource-dir"], check=True, capture_output=True, text=True).stdout.strip()
    if not list(Path(folder).glob("lib/*/libclang_rt.fuzzer*")):
        lack("the fuzzer of clang is not installed")
    return build(CORE, HERE / "build", "fuzz")


def test_what_was_found_before_is_repaired(fuzz: Path) -> None:
    done = run(fuzz, *map(str, FOUND), timeout=60)
    assert done.returncode == 0, done.stderr[-4000:]


def test_no_input_makes_a_reader_stray(fuzz: Path, tmp_path: Path) -> None:
    options = [f"-runs={RUNS}", "-seed=1", "-max_len=400", "-len_control=0", f"-artifact_prefix={tmp_path}/"]
    (tmp_path / "inputs").mkdir()
    done = run(fuzz, *options, str(tmp_path / "inputs"), str(HERE / "found"), timeout=100)
    assert done.returncode == 0, done.stderr[-4000:]
    last = re.search(r"^#(\d+)\s+DONE\s+cov: (\d+)", done.stderr, re.M)
    assert last, done.stderr[-4000:]
    print(f"{last[1]} executions, {last[2]} edges")
    assert int(last[1]) >= RUNS
    assert int(last[2]) >= REACHED


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
@pytest.mark.usefixtures("fuzz")
def test_a_planted_bug_is_caught(bug: Planted, tmp_path: Path) -> None:
    missed = miss(bug, tmp_path)
    assert missed is None, missed


def test_each_input_has_its_bug() -> None:
    assert [path.name for path in FOUND] == sorted(bug.arguments.removeprefix("found/") for bug in PLANTED)
