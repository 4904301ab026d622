"""The items of a chunk on their way: as they were when they were read from the input, and each for itself.

A generator may yield one and the same list or array again and again, changed in between. So an item that anybody could
change is encoded at the moment it is read, and the chunk is a list of *parts*, decoded one by one when their turn
comes: what cannot be encoded or decoded costs only its own item. Numbers and strings, which nobody can change, go as
one plain list: that is several times as fast.
"""

from __future__ import annotations

import itertools
import pickle
import time

from ipc import _core
from pool import codec, spill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from pool.codec import Inherited

PARTS = 16
"""A flag of a row, beside the core's: the chunk is a list of encoded items."""

_MOST_BYTES = 1 << 18  # of parts: large ones gain nothing by being handed over together
_FILL_SECONDS = 0.001  # a slow producer does not make a chunk wait for longer
_dumps, _loads = pickle.dumps, pickle.loads


class Chunk:
    """Up to ``count`` items of ``source``, read now. ``inherited``: see ``codec.by_value``.

    Attributes:
        items: what was read and can be encoded.
        failed: the item after these and its error, if it cannot.
        alone: or the item after these, encoded, with itself: it is so large that it should go without others.
        buffered: buffers were copied into it.
        ended: the input is exhausted.
        error: what the input raised; what it gave before still counts.
    """

    def __init__(self, source: Iterator[Any], count: int, inherited: Inherited) -> None:
        self.items: list[Any] = []
        self.failed: tuple[Any, Exception] | None = None
        self.alone: tuple[Any, Any] | None = None
        self.buffered = False
        self.ended = True
        self.error: Exception | None = None
        self._parts: list[bytes | bytearray] | None = None
        self._inherited = inherited
        try:
            self._fill(source, count)
        except Exception as error:
            self.error = error

    def _fill(self, source: Iterator[Any], count: int) -> None:
        stopped = _core.fill(self.items, source, count)
        if isinstance(stopped, int):
            self.ended = stopped == 1
            return
        self._parts = [_dumps(before, 5) for before in self.items]
        items, end, size = self.items, time.monotonic() + _FILL_SECONDS, 0
        for item in itertools.chain(stopped, source):
            try:
                data: Any = codec.encode_args(item, self._inherited)
            except Exception as error:
                self.failed, self.ended = (item, error), False
                return
            if type(data) is tuple and spill.size(data) > _MOST_BYTES:
                self.alone, self.ended = (data, item), False
                return
            if type(data) is tuple:
                self.buffered = True
                data = codec.join(data)
            self._parts.append(data)
            size += len(data)
            data = None  # the input may resize its bytearray, which it cannot while we look into it
            items.append(item)
            full = len(items) >= count or size > _MOST_BYTES
            if full or (len(items) & 15 == 0 and time.monotonic() > end):  # a slow source is not waited for
                self.ended = False
                return

    def encoded(self) -> tuple[bytes, int]:
        """The chunk as (bytes, flags)."""
        return (_dumps(self.items, 5), 0) if self._parts is None else (_dumps(self._parts, 5), PARTS)


def decode_part(part: bytes | bytearray) -> Any:
    return _loads(part) if type(part) is bytes else codec.loads_packed(part)


def sent(data: Any, flags: int) -> list[bytes | bytearray]:
    """The parts of a chunk that was given away: nothing of the caller's runs for it."""
    if flags & codec.IN_FILE:
        data = spill.read(bytes(data).decode())
    batch = _loads(data)
    return batch if flags & PARTS else [_dumps(item, 5) for item in batch]
