"""The chaos runner finds bugs: some are planted, and it must. All of them: `make faults`."""

import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import campaign, planted
from chaos.oracle import Verdict
from chaos.planted import PLANTED, Planted

pytestmark = pytest.mark.timeout(2 * planted.LIMIT)
QUICK = [bug for bug in PLANTED if bug.quick]


@pytest.fixture(scope="module")
def objects() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        planted.compile_all(Path(folder))
        yield Path(folder)


@pytest.mark.parametrize("bug", QUICK, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Planted, objects: Path) -> None:
    found = planted.hunt(bug, objects)
    assert found.broken, "no episode has failed as it must"
    assert not found.anyway, "the copy, or the shorter patience, was caught"


def test_what_is_broken_without_the_bug_too_is_not_caught(objects: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = Verdict(["I6: always"], Counter())
    monkeypatch.setattr(campaign, "play", lambda *_: (said, ""))
    found = planted.hunt(next(bug for bug in PLANTED if bug.breaks == "I6"), objects)
    assert found == (["I6: always"], 0, ["I6: always"])
    assert not found.caught
