"""Every Python block of README.md and of docs/ is a whole script that prints what stands in the block under it, or a
module (its first line is its name) for the commands of that page; and these print what stands under them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
PAGES = [README, *sorted((README.parent / "docs").glob("*.md"))]
_MODULE = re.compile(r"# (\w+\.py)\n")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _examples(page: Path) -> list[tuple[str, str]]:
    """(script, what it prints) for each Python block that is no module."""
    blocks = _BLOCK.findall(page.read_text())
    return [
        (text, blocks[k + 1][1])
        for k, (language, text) in enumerate(blocks)
        if language == "python" and not _MODULE.match(text)
    ]


def _commands(page: Path) -> list[tuple[str, str]]:
    """(command, what it prints) for each line that begins with a prompt in a console block."""
    blocks = [text for language, text in _BLOCK.findall(page.read_text()) if language == "console"]
    parts = [part.partition("\n") for text in blocks for part in ("\n" + text).split("\n$ ")[1:]]
    return [(command, printed.rstrip("\n")) for command, _, printed in parts]


def _links() -> list[tuple[Path, str]]:
    """(page, target) for each link to another file."""
    return [(page, to) for page in PAGES for to in sorted(set(re.findall(r"\]\(([^)#]+)\)", page.read_text())))]


def _without_what_varies(text: str) -> str:
    """Numbers of processes, times and rates are others in each run."""
    text = re.sub(r"(slot|pid|process) \d+", r"\1 N", text)
    return re.sub(r"[\d.]+ s\b|(\"seconds\": )[\d.]+", r"\1N", text)


def test_readme_has_examples() -> None:
    assert len(_examples(README)) >= 8
    pages = {page.name: len(_examples(page)) for page in PAGES}
    assert (pages["payloads.md"], pages["migrating.md"], pages["how-it-works.md"], pages["faq.md"]) == (4, 9, 1, 3)
    assert (pages["limits.md"], pages["insights.md"], pages["asyncio.md"]) == (4, 2, 3)


@pytest.mark.parametrize(("script", "printed"), [example for page in PAGES for example in _examples(page)])
def test_example_prints_what_the_page_says(script: str, printed: str, tmp_path: Path) -> None:
    file = tmp_path / "script.py"
    file.write_text(script)
    ran = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stderr == ""
    assert _without_what_varies(ran.stdout) == _without_what_varies(printed)
    assert ran.returncode == 0


@pytest.mark.parametrize("page", [page for page in PAGES if _commands(page)], ids=lambda page: page.name)
def test_commands_print_what_the_page_says(page: Path, tmp_path: Path) -> None:
    for _, text in _BLOCK.findall(page.read_text()):
        if module := _MODULE.match(text):
            (tmp_path / module[1]).write_text(text)
    commands, end = _commands(page), "--- end of command ---"
    script = "".join(f"{command}\necho '{end}'\n" for command, _ in commands)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "80"}
    shell = ["bash", "-c", f"exec 2>&1\n{script}"]
    ran = subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    printed = [part.strip("\n") for part in ran.stdout.replace(str(tmp_path), "/home/me").split(f"{end}\n")]
    assert len(printed) == len(commands) + 1
    for (command, expected), found in zip(commands, printed, strict=False):
        assert (command, _without_what_varies(found)) == (command, _without_what_varies(expected))


@pytest.mark.parametrize(("page", "target"), _links())
def test_link_leads_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_link_to_a_heading_leads_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\(([^)#]*)#([^)]+)\)", page.read_text()):
        text = (page.parent / target if target else page).read_text()
        headings = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in re.findall(r"^#+ (.+)$", text, re.M)}
        assert heading in headings


def _named_tests() -> list[str]:
    return re.findall(r"`(test_\w+\.py::test_\w+)`", "".join(page.read_text() for page in PAGES))


def test_pages_name_tests() -> None:
    assert len(_named_tests()) > 90


@pytest.mark.parametrize("name", _named_tests())
def test_a_test_that_a_page_names_exists(name: str) -> None:
    file, _, function = name.partition("::")
    assert f"\ndef {function}(" in Path(__file__).with_name(file).read_text()


def test_commands_are_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (README.parent / "Makefile").read_text(), re.M))
    commands = set(re.findall(r"(?:`|^)make ([a-z-]+)", README.read_text(), re.M))
    assert len(commands) >= 3
    assert commands <= targets


def test_every_fault_has_a_row_and_a_test() -> None:
    text = (README.parent / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 34))
    assert [number for number, row in rows if "::test_" not in row] == []
