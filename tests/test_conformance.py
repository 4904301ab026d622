"""The runner of other people's tests, and one of its suites. All of them: `make conformance`."""

from collections.abc import Callable
from typing import NoReturn

import conformance
import pytest
from conformance import DEVIATING, EITHER, FAILED, NOT_APPLICABLE, NOT_IN_ALL, PASSED, SKIPPED


def judge(
    outcomes: dict[str, str],
    deviating: str = "",
    not_applicable: str = "",
    either: str = "",
    names: str = "",
    not_in_all: str = "",
) -> tuple[dict[str, int], list[str]]:
    listed = {
        DEVIATING: {pattern: "why" for pattern in deviating.split()},
        NOT_APPLICABLE: {pattern: "why" for pattern in not_applicable.split()},
        EITHER: {pattern: "why" for pattern in either.split()},
        NOT_IN_ALL: {pattern: "why" for pattern in not_in_all.split()},
    }
    texts = {name: (outcome, "its traceback") for name, outcome in outcomes.items()}
    figure, wrong = conformance.judge("suite", names.split() or list(outcomes), texts, listed)
    return dict(figure), wrong


def test_what_is_listed_is_counted_and_the_rest_has_to_pass() -> None:
    outcomes = {"A.ok": PASSED, "A.other": FAILED, "A.skip": SKIPPED, "B.x": PASSED}
    assert judge(outcomes, "A.other") == ({PASSED: 2, DEVIATING: 1, NOT_APPLICABLE: 1}, [])
    assert judge(outcomes, either="A.other B.x") == ({PASSED: 1, DEVIATING: 2, NOT_APPLICABLE: 1}, [])
    figure, wrong = judge(outcomes, "", "B.*")
    assert figure == {PASSED: 1, NOT_APPLICABLE: 2}
    assert wrong == ["suite: A.other failed\nits traceback"]


def test_a_list_that_is_not_true_is_wrong() -> None:
    assert judge({"A.ok": PASSED}, "A.ok")[1] == ["suite: A.ok passes, but is listed as deviating"]
    assert judge({"A.ok": PASSED}, "A.gone")[1] == ["suite: no test is called A.gone, but it is listed"]
    assert judge({"A.ok": PASSED}, "A.gone", not_in_all="A.gone") == ({PASSED: 1}, [])
    assert judge({"A.ok": PASSED}, "A.ok", not_in_all="A.ok")[1] == ["suite: A.ok passes, but is listed as deviating"]
    assert "never began" in judge({}, names="A.hangs")[1][0]
    assert judge({"A.ok": PASSED, "setUpModule": FAILED}, names="A.ok")[1] == ["suite: setUpModule\nits traceback"]


def test_the_page_has_reasons_for_all_suites() -> None:
    for suite in conformance.SECONDS:
        listed = conformance.deviations(suite)
        assert listed[DEVIATING]
        assert all(reason.strip() for patterns in listed.values() for reason in patterns.values())
    futures = conformance.deviations("futures")
    assert len(futures[DEVIATING]) >= 10
    assert 1 <= len(futures[NOT_IN_ALL]) < len(futures[DEVIATING])
    assert futures[NOT_IN_ALL].items() <= futures[DEVIATING].items()


def test_the_tests_of_multiprocess_run_against_ours(lack: Callable[[str], NoReturn]) -> None:
    figure, wrong = conformance.run("multiprocess")
    if wrong and "No module named 'test" in wrong[0]:
        lack("this Python came without its tests, which those of multiprocess need")
    assert wrong == []
    assert figure[PASSED] >= 40


def test_a_suite_that_cannot_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(conformance.SECONDS, "nonsense", 30)
    _, (wrong,) = conformance.run("nonsense")
    assert wrong.startswith("nonsense could not be run\nTraceback")
