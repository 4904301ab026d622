"""Whether a task that has failed runs again, and when. Only decisions: no clock, and chance can be passed in."""

from __future__ import annotations

import math
import os
from collections import namedtuple
from collections.abc import Callable

MOST_CRASHES = 3
"""A task that has crashed its worker so often is not given out again, however many retries are left."""

RAISED, CRASHED, LIMIT, ASKED, DEFERRED = range(5)
"""Why an attempt came to nothing: the task raised; its worker died; it was over its time or memory; it raised
RetryAfter; it raised Defer."""

_FREE_DEFERS = 3  # at once; then a pause, so that a task which always defers does not keep a core busy
_DEFER_FIRST, _DEFER_LONGEST = 0.01, 1.0
_DOUBLINGS = 1000  # more would not fit into a float


class Backoff:
    """How long a failed task waits before its next attempt: ``first`` seconds, then ``factor`` times as long after each
    further failure, at most ``longest``; of that a random part, so that what failed together does not come back
    together.

    Args:
        first: seconds before the second attempt. factor: at least 1, default 2. longest: seconds, default 60.
        jitter: which part of the wait is left to chance, from 0 (none of it) to 1 (all of it: anything between no wait
            and the whole). Default 1.

    Raises ValueError for numbers out of these ranges, and for waits that are not positive and finite.
    """

    def __init__(self, first: float, *, factor: float = 2.0, longest: float = 60.0, jitter: float = 1.0) -> None:
        if not 0 < first < math.inf:
            raise ValueError("the first wait of a backoff must be greater than 0")
        if not 1 <= factor < math.inf:
            raise ValueError("the factor of a backoff must be at least 1")
        if not 0 < longest < math.inf:
            raise ValueError("the longest wait of a backoff must be greater than 0")
        if not 0 <= jitter <= 1:
            raise ValueError("the jitter of a backoff must be from 0 to 1")
        self.first = first
        self.factor = factor
        self.longest = longest
        self.jitter = jitter

    def seconds(self, failures: int, chance: float) -> float:
        """How long to wait after so many failed attempts, from 1; ``chance`` is from 0 to 1."""
        try:
            whole = min(self.first * self.factor ** min(failures - 1, _DOUBLINGS), self.longest)
        except OverflowError:
            whole = self.longest
        return whole * (1 - self.jitter * chance)

    def __repr__(self) -> str:
        return f"Backoff({self.first:g}, factor={self.factor:g}, longest={self.longest:g}, jitter={self.jitter:g})"


class Tries(namedtuple("Tries", "attempt crashes deferred alone", defaults=(False,))):
    """What a task has behind it: the number of this attempt, from 1; how many attempts have crashed their worker; how
    often it has deferred itself; whether an attempt has failed for want of memory (see pool/admission.py)."""

    __slots__ = ()
    attempt: int
    crashes: int
    deferred: int
    alone: bool


FIRST = Tries(1, 0, 0)


class Again(namedtuple("Again", "tries seconds last")):
    """A further attempt: not before so many seconds; ``last``: behind what waits then, else before it."""

    __slots__ = ()
    tries: Tries
    seconds: float
    last: bool


def chance() -> float:
    """From 0 to 1. The kernel's, so that processes which were forked from one another do not wait equally long, and so
    that the program's own random numbers stay what they are."""
    return int.from_bytes(os.urandom(6), "little") / 2**48


def after(
    tries: Tries,
    retries: int,
    backoff: Backoff | None,
    why: int,
    asked: float = 0.0,
    chance: Callable[[], float] = chance,
    alone: bool = False,
) -> Again | None:
    """The next attempt of a task that has failed; None: it has failed for good. ``asked``: the seconds of
    RetryAfter. ``alone``: it was for want of memory."""
    attempt, crashes, deferred, before = tries
    if why == DEFERRED:
        pauses = deferred + 1 - _FREE_DEFERS
        pause = min(_DEFER_FIRST * 2.0 ** min(pauses - 1, _DOUBLINGS), _DEFER_LONGEST) if pauses > 0 else 0.0
        return Again(Tries(attempt, crashes, deferred + 1, before), pause, True)
    crashes += why == CRASHED
    if attempt > retries or crashes >= MOST_CRASHES:
        return None
    if why != ASKED:
        asked = 0.0 if backoff is None else backoff.seconds(attempt, chance())
    return Again(Tries(attempt + 1, crashes, deferred, before or alone), asked, False)


__all__ = [
    "ASKED", "CRASHED", "DEFERRED", "FIRST", "LIMIT", "MOST_CRASHES", "RAISED", "Again", "Backoff", "Tries", "after",
    "chance",
]  # fmt: skip
