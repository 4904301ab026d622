"""Every Python block of README.md and of docs/ is a whole script that prints what stands in the block under it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _examples(page: Path) -> list[tuple[str, str]]:
    """(script, what it prints) for each Python block."""
    blocks = _BLOCK.findall(page.read_text())
    return [(text, blocks[k + 1][1]) for k, (language, text) in enumerate(blocks) if language == "python"]


def _links() -> list[tuple[Path, str]]:
    """(page, target) for each link to another file."""
    return [(page, to) for page in PAGES for to in sorted(set(re.findall(r"\]\(([^)#]+)\)", page.read_text())))]


def _without_numbers_of_processes(text: str) -> str:
    return re.sub(r"(slot|pid) \d+", r"\1 N", text)


def test_readme_has_examples() -> None:
    assert len(_examples(README)) >= 8
    pages = {page.name: len(_examples(page)) for page in PAGES}
    assert (pages["payloads.md"], pages["migrating.md"], pages["how-it-works.md"], pages["faq.md"]) == (4, 6, 1, 3)


@pytest.mark.parametrize(("script", "printed"), [example for page in PAGES for example in _examples(page)])
def test_example_prints_what_the_page_says(script: str, printed: str, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(script)
    ran = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stderr == ""
    assert _without_numbers_of_processes(ran.stdout) == _without_numbers_of_processes(printed)
    assert ran.returncode == 0


@pytest.mark.parametrize(("page", "target"), _links())
def test_link_leads_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_to_a_heading_leads_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        text = (page.parent / target if target else page).read_text()
        headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
        assert heading in headings


def test_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), re.M))
    commands = set(re.findall(r"(?:`|^)make ([a-z-]+)", README.read_text(), re.M))
    assert len(commands) >= 3
    assert commands <= targets
