"""A prefork worker pool for CPU-bound Python.

::

    from pool import Pool

    with Pool() as pool:
        for thumbnail in pool.imap_unordered(make_thumbnail, paths):
            ...

``Pool`` is a ``concurrent.futures.Executor``; a worker that crashes, hangs or is killed costs one attempt of one task.
See README.md.
"""

from pool import errors
from pool.executor import Pool
from pool.futures import Future
from pool.mapping import Failure
from pool.output import output

__all__ = ["Failure", "Future", "Pool", "errors", "output"]
