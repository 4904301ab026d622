"""What callers pass, checked: the texts are those of the standard library where it has them."""

from __future__ import annotations

from ipc.sizes import parse_size
from pool.retry import Backoff

_MOST_RETRIES = 65_000  # an attempt's number has 16 bits


def positive(name: str, value: float | None) -> float | None:
    """The value, if it is above 0, or None. Raises ValueError."""
    if value is not None and not value > 0:
        raise ValueError(f"{name} must be greater than 0")
    return value


def size(name: str, value: int | str | None) -> int:
    """Bytes; 0 for None. Raises what ``parse_size`` raises."""
    return 0 if value is None else parse_size(name, value)


def backoff_of(value: float | Backoff | None) -> Backoff | None:
    """A number of seconds is that of the first wait. Raises TypeError, or what Backoff raises."""
    if value is None or isinstance(value, Backoff):
        return value
    if not isinstance(value, int | float):
        raise TypeError(f"backoff must be a number of seconds, a Backoff or None, not {value!r}")
    return Backoff(value) if value else None


def count(name: str, value: int) -> int:
    """The value, if it is a whole number from 0 to the most that an attempt's number can be. Raises TypeError or
    ValueError."""
    if not isinstance(value, int):
        raise TypeError(f"{name} must be an integer")
    if value < 0:
        raise ValueError(f"{name} must not be negative")
    if value > _MOST_RETRIES:
        raise ValueError(f"{name} must be <= {_MOST_RETRIES}")
    return value


def check_buffersize(buffersize: int | None) -> None:
    """Raises what ``Executor.map`` raises."""
    if buffersize is not None and not isinstance(buffersize, int):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")


def check_map_options(chunksize: int | str, on_error: str, buffersize: int | None, progress: object) -> int | None:
    """The chunk size (None: automatic). Raises ValueError or TypeError for what is not allowed."""
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"progress must be True, False or a callable, not {progress!r}")
    if on_error not in ("raise", "return", "skip"):
        raise ValueError(f'on_error must be "raise", "return" or "skip", not {on_error!r}')
    check_buffersize(buffersize)
    if chunksize == "auto":
        return None
    if not isinstance(chunksize, int):
        raise TypeError(f'chunksize must be an integer or "auto", not {chunksize!r}')
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    return chunksize
