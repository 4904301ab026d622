"""The versions of Python that this project supports, and where on this machine they are.

::

    python tests/interpreters.py             a line for each version: what was found
    python tests/interpreters.py 3.12        the path of that interpreter; without one, exit code 1 and the reason
    python tests/interpreters.py --others    the versions that are installed, but for that of this interpreter

An interpreter counts if it runs and can make a venv that builds the extension. Programs that only stand for one that
is chosen elsewhere (pyenv's shims) may be first on PATH and not run, so everything of that name is tried.
"""

import argparse
import configparser
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_SETTINGS = Path(__file__).parent.parent / "setup.cfg"
_PROBE = """
import ensurepip, os, sys, sysconfig, venv
if not os.path.exists(sysconfig.get_path("include") + "/Python.h"):
    sys.exit("its header Python.h is missing")
print("%d.%d" % sys.version_info[:2])
"""


def supported() -> list[str]:
    """The versions that setup.cfg names."""
    settings = configparser.ConfigParser()
    settings.read(_SETTINGS)
    return re.findall(r"^Programming Language :: Python :: (3\.\d+)$", settings["metadata"]["classifiers"], re.M)


def find(version: str) -> tuple[str, str]:
    """(path, "") of an interpreter of that version that can be used, or ("", why there is none)."""
    reasons = []
    for path in _candidates(version):
        reason = _why_not(path, version)
        if not reason:
            return path, ""
        reasons.append(f"{path}: {reason}")
    return "", "; ".join(reasons) or "not installed"


def _candidates(version: str) -> Iterator[str]:
    """What may be that interpreter: this one, then what is on PATH, then what pyenv has, the newest first."""
    if version == _version_of_this():
        yield sys.executable
    folders = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    releases = [path for path in pyenv.glob(f"{version}.*") if re.fullmatch(r"[\d.]+", path.name)]
    releases.sort(key=lambda path: [int(number) for number in path.name.split(".")], reverse=True)
    for folder in dict.fromkeys([*folders, *(release / "bin" for release in releases)]):
        if os.access(path := folder / f"python{version}", os.X_OK):
            yield str(path)


def _why_not(path: str, version: str) -> str:
    try:
        ran = subprocess.run([path, "-c", _PROBE], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if ran.returncode != 0:
        said = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
        return said[-1] if said[0].startswith("Traceback") else said[0]
    return "" if ran.stdout.strip() == version else f"it is Python {ran.stdout.strip()}"


def _version_of_this() -> str:
    return "{}.{}".format(*sys.version_info)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("version", nargs="?")
    which.add_argument("--others", action="store_true")
    arguments = parser.parse_args()
    if arguments.version:
        path, reason = find(arguments.version)
        print(path or f"Python {arguments.version}: {reason}", file=sys.stdout if path else sys.stderr)
        return 0 if path else 1
    for version in supported():
        path, reason = find(version)
        if not arguments.others:
            print(f"Python {version}: {path or reason}")
        elif path and version != _version_of_this():
            print(version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
