"""When to start a worker again, and when to stop trying.

A worker that had been ready and then died says something about its task, so its slot gets a new worker at once. A
*failed start*, a death before the worker was ready, says something about the pool: an import that fails, an
initializer that raises, no memory. Such a slot waits, twice as long each time; and too many of them end the pool,
with a reason, instead of forking for ever (the restart intensity of OTP's supervisor, plus back-off).

Only decisions, no clock: the monitor passes the time in, and tests pass any time they like.
"""

from collections import deque

__all__ = ["RestartPolicy", "Restarts"]


class RestartPolicy:  # not a dataclass: importing `dataclasses` takes 5 ms
    """How failed starts are met.

    Arguments, which are attributes too:
        intensity: so many failed starts of the whole pool within `period` are tolerated, one more gives up.
        period: length of that window in seconds.
        backoff_first: wait before a slot's first retry in seconds, doubled with every further failed start.
        backoff_max: longest wait in seconds.

    Raises:
        ValueError: a negative intensity, a period or first wait not above 0, or a longest wait below the first.
    """

    def __init__(
        self, *, intensity: int = 5, period: float = 30.0, backoff_first: float = 0.1, backoff_max: float = 30.0
    ) -> None:
        if intensity < 0:
            raise ValueError("intensity must not be negative")
        if not period > 0:
            raise ValueError("period must be greater than 0")
        if not 0 < backoff_first <= backoff_max:
            raise ValueError("backoff_first must be greater than 0 and at most backoff_max")
        self.intensity = intensity
        self.period = period
        self.backoff_first = backoff_first
        self.backoff_max = backoff_max

    def backoff(self, failures: int) -> float:
        """Seconds to wait after this many failed starts in a row (from 1)."""
        doublings = min(failures - 1, 1000)  # more would not fit in a float, and is beyond any backoff_max
        return min(self.backoff_first * 2.0**doublings, self.backoff_max)


class Restarts:
    """What a monitor remembers about the starts of its workers. Slots are numbered from 0.

    Tell it `ready` when a worker becomes ready, and `died` when one is gone. A worker that became ready and died before
    the monitor looked needs both calls, in this order.

    Attributes:
        give_up: why the pool has to end instead of starting another worker, as half a sentence; `None` to go on. Once
            set it stays.
    """

    def __init__(self, slots: int, policy: RestartPolicy | None = None) -> None:
        self.give_up: str | None = None
        self._policy = policy or RestartPolicy()
        self._is_ready = [False] * slots  # the present worker of the slot
        self._failures = [0] * slots  # failed starts in a row
        self._recent: deque[float] = deque()  # when starts failed: inside the period, and since a worker became ready
        self._ever_ready = False

    def ready(self, slot: int) -> None:
        """The worker of `slot` is ready: the slot is sound, the pool's window starts anew. Repeating is harmless."""
        if self._is_ready[slot]:
            return  # else a worker that has been ready for an hour would excuse failed starts of now
        self._is_ready[slot] = True
        self._ever_ready = True
        self._failures[slot] = 0
        self._recent.clear()

    def died(self, slot: int, now: float) -> float:
        """The worker of `slot` is gone, at `now` (seconds, of any clock that never runs backwards).

        Returns the seconds to wait before the slot gets its next worker, 0 for at once. Look at `give_up` first.
        """
        if self._is_ready[slot]:
            self._is_ready[slot] = False
            return 0.0
        self._failures[slot] += 1
        self._recent.append(now)
        while self._recent[0] < now - self._policy.period:
            self._recent.popleft()
        if not self._ever_ready and all(self._failures):
            self.give_up = "no worker has become ready, every first start failed"
        elif len(self._recent) > self._policy.intensity:
            self.give_up = f"{len(self._recent)} failed starts of workers within {self._policy.period:g} s"
        return self._policy.backoff(self._failures[slot])
