"""How other versions of Python are found."""

import sys
from pathlib import Path

import interpreters
import pytest

VERSION = "{}.{}".format(*sys.version_info)
OTHER = "3.999"  # the name of a program proves nothing


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any Python: `bin` is on its PATH, and `pyenv` is pyenv's root."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin/nowhere")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setattr(interpreters, "_version_of_this", lambda: "3.0")
    return tmp_path


def test_this_version_is_supported_and_found() -> None:
    assert VERSION in interpreters.supported()
    assert interpreters.find(VERSION) == (sys.executable, "")


def test_one_that_does_not_run_is_passed_over(machine: Path) -> None:
    program(machine / "bin" / f"python{VERSION}", "echo 'no version is chosen' >&2; echo 'try help' >&2; exit 127")
    assert interpreters.find(VERSION) == ("", f"{machine}/bin/python{VERSION}: no version is chosen")
    older = program(machine / f"pyenv/versions/{VERSION}.9/bin/python{VERSION}", f'exec {sys.executable} "$@"')
    assert interpreters.find(VERSION) == (str(older), "")
    newer = program(machine / f"pyenv/versions/{VERSION}.10/bin/python{VERSION}", f'exec {sys.executable} "$@"')
    assert interpreters.find(VERSION) == (str(newer), "")


def test_one_of_another_version_does_not_count(machine: Path) -> None:
    path = program(machine / "bin" / f"python{OTHER}", f'exec {sys.executable} "$@"')
    assert interpreters.find(OTHER) == ("", f"{path}: it is Python {VERSION}")


def test_what_is_missing_is_said(
    machine: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interpreters, "supported", lambda: [OTHER])
    monkeypatch.setattr(sys, "argv", ["interpreters.py"])
    assert interpreters.main() == 0
    assert capsys.readouterr().out == f"Python {OTHER}: not installed\n"
    monkeypatch.setattr(sys, "argv", ["interpreters.py", OTHER])
    assert interpreters.main() == 1
    assert capsys.readouterr() == ("", f"Python {OTHER}: not installed\n")
