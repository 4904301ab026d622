"""Sizes in bytes, as people write and read them. Units are binary: a K is 1024, whether it is called K, KB or KiB."""

from __future__ import annotations

import re

__all__ = ["parse_size", "show_size"]

_UNITS = "KMGTPE"
_SIZE = rf"([0-9]+(?:\.[0-9]+)?)\s*(?:([{_UNITS}])(?:i?B)?|B)?"


def parse_size(name: str, value: int | str) -> int:
    """Bytes: a number of them, or a text such as `"200M"`, `"1.5GiB"`, `"64 KiB"`.

    `name` is what the value is called in errors: `TypeError` for what is neither, `ValueError` for a text that is no
    size, and for less than one byte or more than 8 EiB.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f'{name} must be a number of bytes or a text such as "200M", not {type(value).__name__}')
    size = value if isinstance(value, int) else _parse(name, value)
    if size < 1:
        raise ValueError(f"{name} must be at least 1 byte")
    if size >= 1 << 63:
        raise ValueError(f"{name} must be less than 8 EiB")
    return size


def _parse(name: str, text: str) -> int:
    match = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f'{name} must be a size such as "200M", "1.5GiB" or "64 KiB", not {text!r}')
    number, unit = match.groups()
    return int(float(number) * 1024 ** (_UNITS.index(unit.upper()) + 1)) if unit else int(float(number))


def show_size(size: float) -> str:
    """`3.5 MiB`"""
    number, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{number:.4g} {unit}"
