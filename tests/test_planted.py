"""The chaos runner finds bugs: some are planted, and it must. All of them: `make faults`."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import campaign, plan, planted
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
    broken, _ = planted.hunt(bug, objects)
    assert broken, "no episode has failed as it must"


def test_without_a_bug_the_same_episodes_pass(objects: Path, tmp_path: Path) -> None:
    """Else it might be the copy, or the shorter patience, that was caught."""
    planted.build(None, tmp_path, objects)
    for profile in sorted({bug.profile for bug in QUICK}):
        verdict, said = campaign.play(plan.draw(profile, 0), str(tmp_path), planted.HANG)
        assert not verdict.wrong, said
