"""``process_map`` in the style of ``tqdm.contrib.concurrent``. Where you hold a pool already, tqdm wraps it as it is:
``tqdm(pool.imap(fn, items), total=len(items))``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized

from pool.executor import Pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal


def process_map(
    fn: Callable[..., Any],
    *iterables: Iterable[Any],
    max_workers: int | None = None,
    chunksize: int | Literal["auto"] = "auto",
    tqdm_class: Any = None,
    **tqdm_kwargs: Any,
) -> list[Any]:
    """The list of ``fn(*items)`` over the iterables, which ends with the shortest, with a bar that counts items.

    Args:
        max_workers: as in ``Pool``. chunksize: as in ``Pool.imap``; the bar counts items, whatever it is.
        tqdm_class: default ``tqdm.auto.tqdm``. tqdm_kwargs: for the bar, for instance ``desc``, ``unit``, ``disable``;
            ``total`` is the length of the shortest iterable that has one.

    Raises the first error, as ``Pool.imap`` does; ImportError if tqdm is not installed."""
    if tqdm_class is None:
        try:
            from tqdm.auto import tqdm
        except ImportError as error:
            raise ImportError("pool.compat.tqdm needs tqdm: pip install tqdm") from error
        tqdm_class = tqdm
    lengths = [len(iterable) for iterable in iterables if isinstance(iterable, Sized)]
    tqdm_kwargs.setdefault("total", min(lengths, default=None))
    with Pool(max_workers) as pool:  # before the bar, which starts a thread
        results = pool.istarmap(fn, zip(*iterables, strict=False), chunksize=chunksize)
        return list(tqdm_class(results, **tqdm_kwargs))


__all__ = ["process_map"]
