"""Other people's tests of pools, run against ours: nothing of them is copied, ours takes the place of theirs.

::

    python tests/conformance.py [SUITE...]

    multiprocessing   the _TestPool classes of the interpreter's own test._test_multiprocessing
    multiprocess      the same of multiprocess.tests
    futures           the process pool's classes of test.test_concurrent_futures

Each suite runs in a process of its own for each start method, with a time limit. What it is allowed to deviate in is
the list of docs/conformance.md, with a reason for each; a deviation that passes is an error, and so is one that no test
has, unless the list says that not all versions of CPython have it.

Where an interpreter came without its tests, or with a part of them, the variable CPYTHON_TESTS names a folder that has
them: Lib/test of the sources of its very version.
"""

import argparse
import contextlib
import faulthandler
import fnmatch
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import types
import unittest
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LIST = Path(__file__).parent.parent / "docs" / "conformance.md"
SECONDS = {"multiprocessing": 120, "multiprocess": 120, "futures": 180}
METHODS = {"multiprocessing": ("Fork", "Forkserver", "Spawn"), "futures": ("Fork", "Forkserver", "Spawn")}
"""The start methods that a suite's tests are run with, as they stand in the names of tests. multiprocess has contexts
of its own, which are not those that the adapter asks."""

_THEIRS = "test.test_concurrent_futures"  # what an incomplete installation lacks
_FOLDER = "CONFORMANCE_FOLDER"  # in the environment: a folder with what has to be found
_MODULE = "tests_of_multiprocessing"  # there

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
NOT_APPLICABLE, DEVIATING, EITHER = "not applicable", "deviating", "either way"
NOT_IN_ALL = "not in all versions"


# ---- ours in the place of theirs; also in the scripts that the tests run


def substitute(suite: str) -> None:
    """From now on the suite's package has our pool. To be called before its tests are imported."""
    if suite == "futures":
        import concurrent.futures

        import pool

        class ProcessPoolExecutor(pool.Pool):  # the tests make scripts with the class's name
            pass

        concurrent.futures.ProcessPoolExecutor = ProcessPoolExecutor  # type: ignore[misc]
        return
    import multiprocessing.managers

    from pool.compat.multiprocessing import Pool

    package: types.ModuleType = multiprocessing
    if suite == "multiprocess":
        import multiprocess.managers

        package = multiprocess
        package.TimeoutError = multiprocessing.TimeoutError  # it has its own copies of these classes
        for name in ("RemoteTraceback", "MaybeEncodingError"):
            setattr(package.pool, name, getattr(multiprocessing.pool, name))
    package.Pool = package.pool.Pool = Pool
    package.managers.SyncManager.register("Pool", Pool, package.managers.PoolProxy)


def _substitute_in_scripts(suite: str) -> None:
    from test.support import script_helper

    theirs = script_helper.assert_python_ok
    ours = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import conformance; "
    ours += f"sys.path[0] = {os.environ[_FOLDER]!r}; conformance.substitute({suite!r})\n"

    def assert_python_ok(*args: str, **env: str) -> object:
        assert args[0] == "-c"
        return theirs("-c", ours + args[1], *args[2:], **env)

    script_helper.assert_python_ok = assert_python_ok  # type: ignore[assignment]


# ---- one suite, in its own process


def load(suite: str, method: str) -> Iterator[unittest.TestCase]:
    """The tests of the suite, with ours in the place of theirs. ImportError if they are not installed."""
    substitute(suite)
    _substitute_in_scripts(suite)
    if suite == "futures":
        modules = _with_submodules(importlib.import_module(_THEIRS))
        wanted = f"*ProcessPool{method}[!s]*" if method == "Fork" else f"*ProcessPool{method}*"
    else:
        if suite == "multiprocess":
            _make_up_for_old_support()
        modules = [importlib.import_module(_MODULE)]
        wanted = "*TestPool*"
    for module in modules:
        for case in unittest.defaultTestLoader.loadTestsFromModule(module):
            for one in case:
                if fnmatch.fnmatch(type(one).__name__, wanted):
                    yield one


def _with_submodules(module: types.ModuleType) -> list[types.ModuleType]:
    """A module of tests became a package in later versions, 3.11 among them."""
    if not hasattr(module, "__path__"):
        return [module]
    names = [found.name for found in pkgutil.iter_modules(module.__path__, f"{module.__name__}.")]
    return [importlib.import_module(name) for name in names if name.rpartition(".")[2].startswith("test_")]


def _make_up_for_old_support() -> None:
    """multiprocess' copy of the tests may be of a later release than this Python, whose `test.support` has less."""
    from test import support

    if not hasattr(support, "subTests"):  # it decorates a test of the resource tracker only
        skip = unittest.skip("this Python's test.support has no subTests")
        support.subTests = lambda *_: skip  # type: ignore[attr-defined]


class _Report(unittest.TestResult):
    """Writes a line of JSON for each test that has ended."""

    def __init__(self, suite: str, method: str, file: int) -> None:
        super().__init__()
        self._run = suite, method
        self._file = file
        self._outcome: tuple[str, str] = (PASSED, "")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._outcome = (PASSED, "")

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        gc.collect()  # what a failed test has left is in a cycle with its traceback; a pool there would live on
        self._write(_name(test, *self._run), *self._outcome)

    def _write(self, name: str, outcome: str, text: str) -> None:
        os.write(self._file, json.dumps([name, outcome, text]).encode() + b"\n")

    def addFailure(self, test: unittest.TestCase, err: object) -> None:
        super().addFailure(test, err)  # type: ignore[arg-type]
        self._outcome = (FAILED, self.failures[-1][1])

    def addError(self, test: unittest.TestCase, err: object) -> None:
        super().addError(test, err)  # type: ignore[arg-type]
        self._outcome = (FAILED, self.errors[-1][1])
        if not isinstance(test, unittest.TestCase):  # setUpModule and its like
            self._write(str(test), *self._outcome)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        self._outcome = (SKIPPED, reason)


def _name(test: unittest.TestCase, suite: str, method: str) -> str:
    name = f"{type(test).__name__}.{test._testMethodName}"
    return name if suite == "futures" else f"{method}.{name}"


def run_here(suite: str, method: str, left_out: list[str], file: int) -> None:
    """Run the suite in this process, but for what matches ``left_out``."""
    faulthandler.dump_traceback_later(SECONDS[suite] - 5, exit=True)
    cases = list(load(suite, method))
    names = [_name(case, suite, method) for case in cases]
    chosen = unittest.TestSuite(case for case, name in zip(cases, names, strict=True) if not _matching(name, left_out))
    cases.clear()  # the suite forgets each test that has run, and its queues go before their module is cleaned up
    os.write(file, json.dumps(names).encode() + b"\n")
    chosen.run(_Report(suite, method, file))
    faulthandler.cancel_dump_traceback_later()


# ---- the list, and what is compared with it


def deviations(suite: str) -> dict[str, dict[str, str]]:
    """{DEVIATING: {pattern: reason}, NOT_APPLICABLE: ..., EITHER: ...} of the suite, by the headings of
    docs/conformance.md; and again under NOT_IN_ALL what is marked so there."""
    found: dict[str, dict[str, str]] = {DEVIATING: {}, NOT_APPLICABLE: {}, EITHER: {}, NOT_IN_ALL: {}}
    section = ""
    for line in LIST.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:].lower()
        row = re.match(rf"\| `{suite}: ([^`]+)`( \({NOT_IN_ALL}\))? \| (.+) \|$", line)
        if row and section in found:
            found[section][row[1]] = row[3]
            if row[2]:
                found[NOT_IN_ALL][row[1]] = row[3]
    return found


def _matching(name: str, patterns: list[str]) -> list[str]:
    return [pattern for pattern in patterns if fnmatch.fnmatchcase(name, pattern)]


def judge(
    suite: str, names: list[str], outcomes: dict[str, tuple[str, str]], listed: dict[str, dict[str, str]]
) -> tuple[Counter[str], list[str]]:
    """(how many passed, deviate and are not applicable, what is wrong)."""
    figure: Counter[str] = Counter()
    wrong = []
    for name in names:
        outcome, text = outcomes.get(name, (FAILED, "it has not ended, or never began"))
        if _matching(name, list(listed[NOT_APPLICABLE])) or outcome == SKIPPED:
            figure[NOT_APPLICABLE] += 1
        elif _matching(name, list(listed[DEVIATING])):
            figure[DEVIATING] += 1
            if outcome == PASSED:
                wrong.append(f"{suite}: {name} passes, but is listed as deviating")
        elif _matching(name, list(listed[EITHER])):
            figure[DEVIATING] += 1
        elif outcome == PASSED:
            figure[PASSED] += 1
        else:
            wrong.append(f"{suite}: {name} failed\n{text}")
    for name in set(outcomes) - set(names):
        wrong.append(f"{suite}: {name}\n{outcomes[name][1]}")
    for pattern in {pattern: None for patterns in listed.values() for pattern in patterns}:
        if pattern not in listed[NOT_IN_ALL] and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            wrong.append(f"{suite}: no test is called {pattern}, but it is listed")
    return figure, wrong


def run(suite: str) -> tuple[Counter[str], list[str]]:
    """Run the suite, the start methods beside each other, for its tests mostly wait; and judge it."""
    listed = deviations(suite)
    methods = METHODS.get(suite, ("Fork",))
    names: list[str] = []
    outcomes: dict[str, tuple[str, str]] = {}
    failed = []
    with ThreadPoolExecutor(len(methods)) as threads:
        for lines, code, said in threads.map(lambda method: _run_apart(suite, method, listed), methods):
            if not lines:
                return Counter(), [f"{suite} could not be run{_why_not(suite, said)}\n{said}"]
            names += lines[0]
            outcomes.update((name, (outcome, text)) for name, outcome, text in lines[1:])
            if code != 0:
                failed.append(f"{suite} ended with exit code {code}\n{said}")
    figure, wrong = judge(suite, names, outcomes, listed)
    return figure, wrong + failed


def _why_not(suite: str, said: str) -> str:
    if suite == "futures" and f"No module named '{_THEIRS}'" in said:
        return f": Python {platform.python_version()} came without {_THEIRS}; CPYTHON_TESTS can name its Lib/test"
    return ""


def _run_apart(suite: str, method: str, listed: dict[str, dict[str, str]]) -> tuple[list[Any], int, str]:
    """Run the tests in a process of their own: (lines of its report, exit code, what it said)."""
    with (
        tempfile.TemporaryFile() as report,
        tempfile.TemporaryFile() as log,
        _environment(suite, method) as environment,
    ):
        command = [sys.executable, __file__, "--here", suite, method, str(report.fileno()), *listed[NOT_APPLICABLE]]
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[report.fileno()],
            timeout=SECONDS[suite], check=False, env=environment,
        )  # fmt: skip
        report.seek(0)
        lines = [json.loads(line) for line in report]
        log.seek(0)
        return lines, ran.returncode, log.read().decode(errors="replace")[-5000:]


@contextlib.contextmanager
def _environment(suite: str, method: str) -> Iterator[dict[str, str]]:
    """Of a process that finds the tests, and of all that it starts: workers that are not forked import them too.

    Some builds of Python come without their tests; Debian has them in a package, at its own place. Others come with a
    part: of the sources of 3.11.7 and 3.12.1 not all is installed (https://github.com/python/cpython/issues/115421)."""
    apart = os.environ.get("CPYTHON_TESTS") or f"/usr/lib/python{sysconfig.get_python_version()}/test"
    theirs = "test._test_multiprocessing" if suite == "multiprocessing" else "multiprocess.tests"
    with tempfile.TemporaryDirectory() as folder:
        if os.path.isdir(apart) and not importlib.util.find_spec(_THEIRS):
            os.symlink(apart, os.path.join(folder, "test"))
        call = f"install_tests_in_module_dict(globals(), {method.lower()!r})"
        Path(folder, f"{_MODULE}.py").write_text(f"import {theirs}\n{theirs}.{call}\n")
        path = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        yield {**os.environ, _FOLDER: folder, "PYTHONPATH": path}


def show(figure: Counter[str]) -> str:
    return ", ".join(f"{figure[what]} {what}" for what in (PASSED, DEVIATING, NOT_APPLICABLE))


def main() -> int:
    if sys.argv[1:2] == ["--here"]:
        run_here(sys.argv[2], sys.argv[3], sys.argv[5:], int(sys.argv[4]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", choices=[*SECONDS, []], metavar="SUITE")
    suites = parser.parse_args().suites or list(SECONDS)
    total: Counter[str] = Counter()
    all_wrong = []
    for suite in suites:
        figure, wrong = run(suite)
        print(f"{suite:16} {show(figure)}", flush=True)
        total += figure
        all_wrong += wrong
    print(f"{'together':16} {show(total)}")
    # Figures are those of a version to the last digit, for each brings other tests.
    _, known, figures = LIST.read_text().partition(f"\nWith CPython {platform.python_version()}")
    if known and len(suites) == len(SECONDS) and show(total) not in figures.split("```")[1]:
        all_wrong.append(f"{LIST} shows other figures")
    for text in all_wrong:
        print(f"\n{text}", file=sys.stderr)
    return 1 if all_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
