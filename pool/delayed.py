"""What waits for its time. Only a table, no clock."""

from __future__ import annotations

import heapq
import itertools

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Delayed:
    """Things that are not to be had before their time, which is a number of any clock that never runs backwards.

    Attributes:
        waiting: ticket → thing, of all that waits. For looking only.
    """

    def __init__(self) -> None:
        self.waiting: dict[int, Any] = {}
        self._heap: list[tuple[float, int]] = []  # (due, ticket), also of what was removed
        self._tickets = itertools.count(1)

    def add(self, thing: Any, due: float) -> int:
        """Its ticket, which is never 0."""
        ticket = next(self._tickets)
        self.waiting[ticket] = thing
        heapq.heappush(self._heap, (due, ticket))
        return ticket

    def remove(self, ticket: int) -> bool:
        """Whether it was still waiting."""
        return self.waiting.pop(ticket, None) is not None

    def next_due(self) -> float | None:
        """When the first of what waits is due."""
        heap = self._heap
        while heap and heap[0][1] not in self.waiting:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: float) -> list[Any]:
        """All that is due, in this order, and then waits no more."""
        taken = []
        while (due := self.next_due()) is not None and due <= now:
            taken.append(self.waiting.pop(heapq.heappop(self._heap)[1]))
        return taken


__all__ = ["Delayed"]
