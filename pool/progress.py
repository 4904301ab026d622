"""How far a running map is: the counts (``Progress``), and ways to show them (``display``).

::

    run_map ── at most 50 ms apart ──▶ Ticker ── Progress ──▶ your callable, or a display
                 (pool/ticker.py)        └ rate, ETA, memory       └ bar · notebook · log lines · nothing

rich is not used: its live display redraws only after what its own process prints, but here others print (see
pool/terminal.py), and what is left is one line of text; its import takes longer than the whole pool's.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import sys
import time
from collections import namedtuple
from collections.abc import Callable

from pool import context, terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Literal, TextIO


_BAR_SECONDS, _NOTEBOOK_SECONDS, _LOG_SECONDS = 0.1, 0.25, 60.0
_LEAST_BAR, _MOST_BAR = 10, 40  # columns; it grows in steps, or it would twitch with each digit more or less beside it


class Progress(
    namedtuple(
        "Progress",
        "done total failed crashes before elapsed rate eta busy workers memory parts ended",
        defaults=(0, None, 0, 0, 0, 0.0, 0.0, None, 0, 0, 0, (), False),
    )
):
    """The counts of a running map at one moment.

    Attributes:
        done: items that ended, failed ones included.
        total: items of this map; None as long as nobody knows: its input has no length and has not ended.
        failed: items that ended in an error.
        crashes: attempts at items of this map whose worker died. A retry may have succeeded since.
        before: items done in an earlier run, counted neither in ``done`` nor in ``total``. 0 unless who calls says so.
        elapsed: seconds since the iteration began.
        rate: items a second: lately (10 s or 10 items, whichever is longer), and at the end over all.
        eta: seconds until the end at that rate; None if it cannot be told.
        busy: workers of the pool that run something now, for this map or another one. workers: how many there are.
        memory: bytes of memory of this program with its workers, what they share counted once (PSS); 0: not known yet.
            Each process is looked at once a second at most.
        parts: ((slot, x), ...) of running tasks that have called ``worker().progress(x)``.
        ended: this is the last call of the map: it is finished, or was abandoned, or has raised.
    """

    __slots__ = ()
    done: int
    total: int | None
    failed: int
    crashes: int
    before: int
    elapsed: float
    rate: float
    eta: float | None
    busy: int
    workers: int
    memory: int
    parts: tuple[tuple[int, float], ...]
    ended: bool


def eta_of(done: int, total: int | None, rate: float) -> float | None:
    """Seconds until the end at ``rate`` items a second; None if it cannot be told."""
    if total is None or rate <= 0:
        return None
    return max(0, total - done) / rate


# ---- displays


def display(
    total: int | None = None,
    *,
    kind: Literal["auto", "bar", "log", "none"] = "auto",
    stream: TextIO | None = None,
    label: str | None = None,
) -> Display:
    """Something that shows a Progress: pass it as ``progress=`` to ``imap`` and its forms, or call it yourself.

    Args:
        total: how many items there will be, where the map cannot know. Default: what the map knows.
        kind: ``"bar"``: one line at the bottom of the terminal, below what tasks and their programs print. ``"log"``:
            one line a minute, and one at the end. ``"none"``: nothing. ``"auto"`` (default): in a notebook an output
            that changes in place; a bar if ``stream`` is a terminal, and TERM neither missing nor ``dumb``; else log
            lines. Where no bar is possible (no terminal, or one without a size), ``"bar"`` is ``"log"``.
        stream: where to. Default: ``sys.stderr``.
        label: stands before it. Default: nothing, in log lines "pool".

    It ends with the map. As a context manager it ends with the block at the latest, and gives the terminal back.
    Colours only if NO_COLOR is unset or empty. It never raises: who cannot be written to is left alone."""
    if kind not in ("auto", "bar", "log", "none"):
        raise ValueError(f'kind must be "auto", "bar", "log" or "none", not {kind!r}')
    stream = stream or sys.stderr
    if kind == "none" or stream is None:  # a daemon may have no stderr
        return Display(total)
    if kind == "auto" and not context.in_worker() and (show := _notebook()) is not None:
        return _Notebook(total, show, label)
    if kind != "log" and not (kind == "auto" and context.in_worker()):  # the terminal is the client's
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if terminal.is_fit(fd := stream.fileno()):
                return _Bar(total, fd, getattr(stream, "encoding", None) or "ascii", label)
    return Log(total, stream, label)


class Display:
    """What ``display()`` returns; this one shows nothing.

    ``__call__(progress)`` shows it, if it is time. With ``progress.ended``, or at the end of the ``with`` block, the
    last line is written; a call afterwards begins anew."""

    _pause = math.inf  # seconds between two drawings
    _last: Progress | None = None
    _shown = 0.0
    _spoilt = False

    def __init__(self, total: int | None) -> None:
        self._total = total

    def __call__(self, progress: Progress) -> None:
        if progress.total is None and self._total is not None:
            eta = eta_of(progress.done, self._total, progress.rate)
            progress = progress._replace(total=max(self._total, progress.done), eta=eta)
        now = time.monotonic()
        if self._last is None:
            self._shown = self._first(now)
        self._last = progress
        if progress.ended:
            self.close()
        elif now >= self._shown + self._pause:
            self._shown = now
            self._try(self._show, progress)

    def close(self) -> None:
        """Write the last line, if there is one. Idempotent."""
        last, self._last = self._last, None
        if last is not None:
            self._try(self._finish, last._replace(ended=True))

    def pause(self) -> None:
        """Give the terminal back until the next call."""

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, show: Callable[[Any], object], progress: Progress | None) -> None:
        if not self._spoilt:
            try:
                show(progress)
            except (OSError, ValueError):  # the terminal is gone, the file is closed
                self._spoilt = True

    def _first(self, now: float) -> float:
        """When something was shown last, at the first call of a map."""
        return -math.inf

    def _show(self, progress: Progress) -> None:
        pass

    def _finish(self, progress: Progress) -> None:
        pass


class _Bar(Display):
    _pause = _BAR_SECONDS

    def __init__(self, total: int | None, fd: int, encoding: str, label: str | None) -> None:
        super().__init__(total)
        self._line = terminal.LastLine(fd, encoding)
        self._label = label
        self._unicode = _can_encode("━╸─", encoding)
        self._colours = not os.environ.get("NO_COLOR")

    def _first(self, now: float) -> float:
        atexit.register(self.close)  # an iteration that an error has left lives as long as the error's traceback
        return -math.inf

    def _show(self, progress: Progress) -> None:
        if self._line.take():
            self._line.draw(lambda columns: self._text(progress, columns))
        else:  # draw at the next call: the monitor, which gives it back should we be killed, is told in between
            self._shown = -math.inf

    def pause(self) -> None:
        self._try(lambda _: self._line.close(), None)

    def _finish(self, progress: Progress) -> None:
        atexit.unregister(self.close)
        self._line.close(lambda columns: self._text(progress, columns))

    def _text(self, progress: Progress, columns: int) -> str:
        return bar_line(progress, columns, self._label, unicode=self._unicode, colours=self._colours)


class Log(Display):
    _pause = _LOG_SECONDS

    def __init__(self, total: int | None, stream: TextIO, label: str | None) -> None:
        super().__init__(total)
        self._stream = stream
        self._label = label or "pool"

    def _first(self, now: float) -> float:
        return now  # the first line after a minute

    def _show(self, progress: Progress) -> None:
        self._stream.write(f"{self._label}: {log_line(progress)}\n")
        self._stream.flush()

    _finish = _show


class _Notebook(Display):
    """An output of the running cell, changed in place."""

    _pause = _NOTEBOOK_SECONDS
    _COLUMNS = 100

    def __init__(self, total: int | None, show: Callable[..., Any], label: str | None) -> None:
        super().__init__(total)
        self._display = show
        self._label = label
        self._handle: Any = None

    def _first(self, now: float) -> float:
        self._handle = None  # each map has an output of its own
        return -math.inf

    def _show(self, progress: Progress) -> None:
        data = {"text/plain": bar_line(progress, self._COLUMNS, self._label, unicode=True, colours=False)}
        if self._handle is None:
            self._handle = self._display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    _finish = _show


def _notebook() -> Callable[..., Any] | None:
    """``IPython.display.display``, if this is an IPython kernel and not a terminal."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import display as show

    return show  # type: ignore[no-any-return]


def _can_encode(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# ---- the text of a line


def bar_line(
    p: Progress, columns: int, label: str | None = None, *, unicode: bool = True, colours: bool = False
) -> str:
    """One line, narrower than ``columns``: what matters less is left out where there is no room for all of it."""
    percent = None if not p.total else (p.before + p.done) / (p.before + p.total)
    # (what goes first where there is no room, text, its colour), in the order of the line
    fields = [
        (6, label, ""),
        (1, _percent(percent), ""),
        (5, "", ""),
        (0, _counts(p), ""),
        (7, _per_second(p.rate), ""),
    ]
    fields += [(4, _time(p), ""), (8, _busy(p), ""), (2, f"{p.failed:,} failed" if p.failed else "", "31")]
    fields += [(3, _crashes(p.crashes), "31"), (10, _size(p.memory), ""), (9, parts_text(p, columns), "")]
    shown = [f for f in fields if f[1] or (f[0] == 5 and percent is not None)]
    while (room := columns - 1 - _needed(shown)) < 0 and len(shown) > 1:
        shown.remove(max(shown))
    return "  ".join(
        _bar(percent or 0.0, min(_MOST_BAR, _LEAST_BAR + room // _LEAST_BAR * _LEAST_BAR), unicode, colours)
        if rank == 5
        else _coloured(str(text)[: columns - 1], colour if colours else "")
        for rank, text, colour in shown
    )


def log_line(p: Progress) -> str:
    """The same for a log: all of it, without a bar."""
    counts = _counts(p, " of ")
    if p.total:
        counts += f" ({_percent((p.before + p.done) / (p.before + p.total)).strip()})"
    texts = [counts, _per_second(p.rate), _time(p), _busy(p), f"{p.failed:,} failed" if p.failed else ""]
    texts += [_crashes(p.crashes), _size(p.memory), parts_text(p, 100)]
    return ", ".join(text for text in texts if text)


def parts_text(p: Progress, columns: int) -> str:
    """``[0: 35 %, 1: 80 %]``; the mean, if that is longer than a third of the columns."""
    parts = () if p.ended else p.parts
    text = ", ".join(f"{slot}: {_part(x)}" for slot, x in parts)
    if text and len(text) + 2 > columns // 3:
        text = f"{len(parts)} tasks: {_part(sum(x for _, x in parts) / len(parts))} on average"
    return f"[{text}]" if text else ""


def _part(x: float) -> str:
    if 0 <= x <= 1:
        return f"{100 * x:.0f} %"
    return f"{x:,.0f}" if abs(x) >= 100 else f"{x:.3g}"


def _needed(fields: list[tuple[int, str | None, str]]) -> int:
    return sum(_LEAST_BAR if rank == 5 else _cells(text or "") for rank, text, _ in fields) + 2 * (len(fields) - 1)


def _cells(text: str) -> int:
    """Columns that a text takes."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(c) else 2 if east_asian_width(c) in "WF" else 1 for c in text)


def _coloured(text: str, colour: str) -> str:
    return f"\033[{colour}m{text}\033[m" if colour else text


def _bar(fraction: float, width: int, unicode: bool, colours: bool) -> str:
    halves = int(2 * width * min(1.0, fraction))
    full, half = divmod(halves, 2)
    if not unicode:
        return "#" * full + "." * (width - full)
    rest = "─" * (width - full - half)
    return _coloured("━" * full + "╸" * half, "36" if colours else "") + _coloured(rest, "2" if colours else "")


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{int(100 * fraction):3d}%"  # 100 only at the end


def _counts(p: Progress, of: str = "/") -> str:
    done = f"{p.before + p.done:,}"
    return f"{done} items" if p.total is None else f"{done}{of}{p.before + p.total:,}"


def _busy(p: Progress) -> str:
    return "" if p.ended else f"{p.busy}/{p.workers} busy"


def _per_second(rate: float) -> str:
    if rate <= 0:
        return ""
    for unit, seconds in (("s", 1), ("min", 60)):
        if rate * seconds >= 1:
            return f"{rate * seconds:,.0f}/{unit}" if rate * seconds >= 10 else f"{rate * seconds:.1f}/{unit}"
    return f"{rate * 3600:.1f}/h"


def _time(p: Progress) -> str:
    """What is left; where that is not known, or is nothing, what has passed."""
    if p.ended or (p.eta is None and p.total is None):
        passed = f"{p.elapsed:.1f} s" if p.elapsed < 10 else _seconds(p.elapsed)
        return f"in {passed}" if p.ended else passed
    return "" if p.eta is None else f"eta {_seconds(math.ceil(p.eta))}"


def _seconds(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _crashes(count: int) -> str:
    return "" if not count else "1 crash" if count == 1 else f"{count:,} crashes"


def _size(size: int) -> str:
    if not size:
        return ""
    return f"{size / (1 << 20):,.0f} MiB" if size < 10 << 30 else f"{size / (1 << 30):,.1f} GiB"


__all__ = ["Display", "Log", "Progress", "bar_line", "display", "eta_of", "log_line", "parts_text"]
