"""The outputs of ``pool map --out``: where the output of an input goes, and that no two inputs have the same."""

from __future__ import annotations

import contextlib
import enum
import os

from pool.cli import Mistake, Stopped


class Claim(enum.Enum):
    """What ``Outputs.claim`` has found."""

    NEW = enum.auto()
    TAKEN = enum.auto()
    """By another input."""
    AGAIN = enum.auto()
    """By the same input, which was given before."""


class Outputs:
    """Names of outputs: below a folder, as their inputs are below another one.

    Args:
        folder: of the outputs.
        base: folder that is left out of the names of the inputs; None: the current one.
        suffix: of the outputs, in place of that of the input. None: as it is.
    """

    def __init__(self, folder: str, base: str | None, suffix: str | None) -> None:
        self.folder = os.path.abspath(folder)
        self.base = os.path.abspath(base or ".")
        self.suffix = suffix
        # Hashes, because names of millions would take much memory: of outputs, with those of their inputs; and of what
        # the kernel calls the files that are inputs.
        self._claimed: dict[int, int] = {}
        self._inputs: set[int] = set()

    def of(self, path: str) -> str:
        """Where its output goes, always inside of the folder. Raises ValueError for what can have no name there."""
        relative = os.path.relpath(path, self.base)
        if relative == ".." or relative.startswith("../"):  # not below the base: its whole path
            relative = os.path.abspath(path).lstrip("/")
        if relative in ("", "."):
            raise ValueError(f"its output would have no name: it is the folder of all inputs, {self.base!r}")
        if self.suffix is not None:
            relative = os.path.splitext(relative)[0] + self.suffix
        return os.path.join(self.folder, relative)

    def check(self, paths: list[str]) -> None:
        """Raises Mistake if the output of one of these inputs is one of them."""
        for path in paths:
            self._note(path)
        for path in paths:
            with contextlib.suppress(ValueError):  # it will fail alone
                if self._is_input(self.of(path)):
                    raise Mistake(_overwrites(path))

    def _note(self, path: str) -> None:
        if (file := _file(path)) is not None:
            self._inputs.add(file)

    def _is_input(self, final: str) -> bool:
        return (file := _file(final)) is not None and file in self._inputs

    def claim(self, path: str, final: str) -> Claim:
        """Note that ``final`` is the output of ``path``. Raises Stopped if it is an input that we know of."""
        self._note(path)
        if self._is_input(final):
            raise Stopped(_overwrites(path))
        mine, before = hash(os.path.abspath(path)), len(self._claimed)
        first = self._claimed.setdefault(hash(final), mine)
        if len(self._claimed) > before:
            return Claim.NEW
        return Claim.AGAIN if first == mine else Claim.TAKEN


def _file(path: str) -> int | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return hash((found.st_dev, found.st_ino))


def _overwrites(path: str) -> str:
    return f"the output of {path!r} would overwrite an input: choose another --out or --suffix"


__all__ = ["Claim", "Outputs"]
