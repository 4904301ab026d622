"""Ctrl-C put off while something is in nobody's hands.

Python runs signal handlers between any two bytecodes of the main thread. A KeyboardInterrupt between taking a task out
of one place and putting it into the next would lose it, and whoever waits for it would wait for ever. Handlers of other
signals that raise are not covered.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the enums of `signal` make each call ten times as expensive
import _thread
import threading
from types import TracebackType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SIGINT = 2


class PutOff:
    """``with PutOff():`` a SIGINT that comes meanwhile is handled at the end of the block. In other threads than the
    main one, where no handler runs, it does nothing."""

    __slots__ = ("_before", "_came")

    def __init__(self) -> None:
        self._before: Any = None
        self._came: Any = None

    def _note(self, number: int, frame: Any) -> None:
        self._came = (number, frame)

    def __enter__(self) -> None:
        if _thread.get_ident() == threading.main_thread().ident and callable(before := _signal.getsignal(_SIGINT)):
            self._before = before
            _signal.signal(_SIGINT, self._note)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            _signal.signal(_SIGINT, self._before)
            if self._came is not None:
                self._before(*self._came)
