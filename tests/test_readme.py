"""Every Python block of README.md and of docs/ is a whole script that prints what stands in the block under it, or a
module (its first line is its name) for the commands of that page; and these print what stands under them.

Blocks of `py` are what one writes for another pool: those run whose pool is installed here. Commands without a prompt
take long, or change files: of these the targets and options are looked up."""

import functools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
ROOT = README.parent
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ALL = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "DESIGN.md", "SECURITY.md")),
    *ROOT.glob("benchmarks/results/*.md"),
]
_MODULE = re.compile(r"# (\w+\.py)\n")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _examples(page: Path) -> list[tuple[str, str]]:
    """(script, what it prints, on stderr at the end) for each Python block that is no module."""
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
    assert _without_what_varies(ran.stdout + ran.stderr) == _without_what_varies(printed)
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


def _told() -> list[str]:
    """Commands that are told without a prompt: in blocks of `sh`, and within sentences."""
    found: set[str] = set()
    for text in (page.read_text() for page in ALL):
        for line in "".join(block for language, block in _BLOCK.findall(text) if language == "sh").splitlines():
            found |= {part.strip() for part in re.split(r"#(?: or:)?", line) if _COMMAND.match(part.strip())}
        found |= {
            " ".join(words.split()) for words in re.findall(r"`([^`]+)`", _BLOCK.sub("", text)) if _COMMAND.match(words)
        }
    return sorted(found)


_COMMAND = re.compile(r"make\s|pool [a-z]|python (-m (pool|benchmarks)|tests/)")


def test_commands_are_told() -> None:
    commands = _told()
    assert len(commands) >= 30
    assert {"make run", "make peers", "make faults", "python -m benchmarks micro --save"} <= set(commands)


@pytest.mark.parametrize("command", _told())
def test_a_command_that_is_told_has_such_targets_and_options(command: str, require: Callable[[str], str]) -> None:
    program, *words = shlex.split(command)
    if program == "make":
        targets = [word for word in words if not re.match(r"-C$|build/|\w+=", word)]
        other = [target for target in targets if re.search(r"3\.\d+$", target)]  # on other versions of Python
        texts = (ROOT / "Makefile").read_text()
        assert all(f"\n{re.sub(r'3[.][0-9]+$', '3.%', target)}:" in texts for target in other)
        ran = subprocess.run(
            [require("make"), "-n", *(target for target in targets if target not in other)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return
    if program == "python" and words[0] != "-m":
        assert (ROOT / words[0]).exists()
        return
    module, words = (words[1], words[2:]) if program == "python" else ("pool", words)
    before = words[: next((k for k, word in enumerate(words) if word.startswith("-")), len(words))][:1]
    ran = subprocess.run([sys.executable, "-m", module, *before, "--help"], cwd=ROOT, capture_output=True, text=True)
    if "pyperf is not installed" in ran.stdout:  # its options are pyperf's
        return
    assert ran.returncode == 0, ran.stderr
    for word in words[len(before) :]:
        assert not word.startswith("-") or re.search(rf"(^|\s){word}\b", ran.stdout), ran.stdout
    for workloads in [words[k + 1] for k, word in enumerate(words) if word == "--only"]:
        assert set(workloads.split(",")) <= set(re.findall(r"\w+", ran.stdout))


def test_callgrind_can_be_asked_as_the_page_says(tmp_path: Path, require: Callable[[str], str]) -> None:
    require("valgrind")
    commands = [
        line.partition("#")[0].strip() for line in re.findall(r"^(?:valgrind|callgrind).*$", _performance(), re.M)
    ]
    assert len(commands) == 2
    (tmp_path / "your_script.py").write_text(
        "from pool import Pool\nwith Pool(1) as pool: print(*pool.imap(abs, [-7]))\n"
    )
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run = functools.partial(subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run(shlex.split(commands[0])).stdout == "7\n"
    files = sorted(tmp_path.glob("callgrind.out.*"))
    assert len(files) == 3  # the script, the monitor, a worker
    assert "PyEval" in run([*shlex.split(commands[1])[:-1], files[-1].name]).stdout


def _performance() -> str:
    return (ROOT / "docs" / "performance.md").read_text()


OTHERS = [text for page in PAGES for language, text in _BLOCK.findall(page.read_text()) if language == "py"]


@pytest.mark.parametrize("script", OTHERS)
def test_what_one_writes_for_another_pool_is_python(script: str, tmp_path: Path) -> None:
    compile(script, "script.py", "exec")
    if re.search("^import multiprocessing|^from concurrent|^from joblib", script) and "asyncio" not in script:
        ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (ran.returncode, ran.stderr) == (0, "")


def test_it_can_be_installed(tmp_path: Path) -> None:
    """As `pip install .` does it: not editable, so with what setup.cfg names and nothing else."""
    ours, installed = tmp_path / "checkout", tmp_path / "installed"
    for name in ("pool", "ipc"):
        shutil.copytree(ROOT / name, ours / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, ours)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        installed,
        ".",
    ]
    subprocess.run(pip, cwd=ours, check=True, timeout=100)
    of = {
        path.relative_to(ours) for path in [*ours.glob("pool/**/*.py"), *ours.glob("ipc/*.py"), *ours.glob("ipc/*.pyi")]
    }
    assert not [path for path in of if not (installed / path).exists()]
    assert (installed / "pool" / "py.typed").exists()
    script = "import sys, pool; assert sys.path[0] in pool.__file__; print(pool.Pool(1).submit(abs, -7).result())"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (ran.stdout, ran.stderr) == ("7\n", "")


def test_every_fault_has_a_row_and_a_test() -> None:
    text = (README.parent / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 34))
    assert [number for number, row in rows if "::test_" not in row] == []
