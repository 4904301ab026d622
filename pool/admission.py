"""Whether one more task may be given out when memory is to be kept free: ``Pool(memory_reserve=)``. Only decisions."""

from __future__ import annotations

from collections.abc import Callable


def may_begin(alone: bool, running: int, beside_alone: bool, workers: int, is_short: Callable[[], bool]) -> bool:
    """Whether a task may be given out beside ``running`` others. One always may, so there is always an end for which
    the rest can wait.

    ``alone``: its last attempt failed for want of memory. ``beside_alone``: one that runs is such a task. ``workers``:
    no more than these, for what is given out cannot be held back any more. ``is_short``: looks whether less memory is
    available than shall be kept free; asked last, because that takes longer."""
    if running == 0:
        return True
    return not alone and not beside_alone and running < workers and not is_short()


__all__ = ["may_begin"]
