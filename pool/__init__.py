"""A prefork worker pool for CPU-bound Python.

::

    from pool import Pool

    with Pool() as pool:
        for thumbnail in pool.imap_unordered(make_thumbnail, paths):
            ...

``Pool`` is a ``concurrent.futures.Executor``; a worker that crashes, hangs or is killed costs one attempt of one task.
See README.md.
"""

from pool.context import worker
from pool.executor import Pool
from pool.futures import Future
from pool.mapping import Failure, NotYet
from pool.output import output
from pool.retry import Backoff

TYPE_CHECKING = False  # type checkers know the name; importing `typing` for it, here and elsewhere, takes 3 ms
if TYPE_CHECKING:
    from pool import errors, progress
    from pool.progress import Progress
    from pool.share import Shared

__all__ = [
    "Backoff",
    "Failure",
    "Future",
    "NotYet",
    "Pool",
    "Progress",
    "Shared",
    "errors",
    "output",
    "progress",
    "worker",
]


def __getattr__(name: str) -> object:
    """`errors`, when it is asked for: its import costs twice as much as all the rest, and most runs need no error. So
    with the others here."""
    if name == "errors":
        import pool.errors

        return pool.errors
    if name in ("Progress", "progress"):
        import pool.progress

        return pool.progress if name == "progress" else pool.progress.Progress
    if name == "Shared":
        from pool.share import Shared

        return Shared
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
