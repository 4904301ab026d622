"""The outputs of ``pool map --out``: where the output of an input goes, and that no two inputs have the same."""

from __future__ import annotations

import enum
import os

from pool.cli import Stopped


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
        self._claimed: dict[int, int] = {}  # hash of an output → of its input: names of millions would take much memory

    def of(self, path: str) -> str:
        """Where its output goes, always inside of the folder. Raises ValueError for what can have no name there,
        Stopped if the output would be the input."""
        relative = os.path.relpath(path, self.base)
        if relative == ".." or relative.startswith("../"):  # not below the base: its whole path
            relative = os.path.abspath(path).lstrip("/")
        if relative in ("", "."):
            raise ValueError(f"its output would have no name: it is the folder of all inputs, {self.base!r}")
        if self.suffix is not None:
            relative = os.path.splitext(relative)[0] + self.suffix
        final = os.path.join(self.folder, relative)
        if final == os.path.abspath(path):
            raise Stopped(f"the output of {path!r} would overwrite it: choose another --out or --suffix")
        return final

    def claim(self, path: str, final: str) -> Claim:
        """Note that ``final`` is the output of ``path``."""
        mine, before = hash(path), len(self._claimed)
        first = self._claimed.setdefault(hash(final), mine)
        if len(self._claimed) > before:
            return Claim.NEW
        return Claim.AGAIN if first == mine else Claim.TAKEN


__all__ = ["Claim", "Outputs"]
