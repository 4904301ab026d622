"""What is put to the proof and what judges it, as digests of files; and how programs of ours find their modules."""

from __future__ import annotations

import ast
import hashlib
import os
from pathlib import Path

TESTS = Path(__file__).parent.parent
ROOT = TESTS.parent
SOURCES = ("pool/**/*.py", "ipc/*.py", "ipc/*.[ch]", "ipc/core/*.[ch]")
"""What is put to the proof."""


def surroundings(path: str = "", **variables: str) -> dict[str, str]:
    """The environment of a program of ours. ``path``: where its modules are looked for first."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, str(TESTS)))), **variables}


def judges(*modules: str) -> tuple[str, ...]:
    """Paths of these modules of the tests, and of all that they import of them: sums of a lax judge and of a strict
    one shall not be mixed."""
    found: set[Path] = set()
    names = {"chaos", *modules}
    while names:
        path = TESTS.joinpath(*names.pop().split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if path in found or not path.exists():  # it is no module of the tests
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return tuple(sorted(str(path.relative_to(ROOT)) for path in found))


def digest(*patterns: str, more: str = "") -> str:
    """Of all files that they match, and of something more."""
    found = hashlib.sha256(more.encode())
    for source in sorted({path for pattern in patterns for path in ROOT.glob(pattern)}):
        found.update(str(source.relative_to(ROOT)).encode() + b"\0" + source.read_bytes())
    return found.hexdigest()[:12]
