"""``imap`` and its forms: the dispatch loop in the caller's own thread, lazy and bounded. It drives a ``MapRun``."""

from __future__ import annotations

import contextlib
import operator
import pickle
import reprlib
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial

from pool import codec
from pool.client import OPEN
from pool.map_run import Failure, MapRun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.account import Account
    from pool.progress import Progress
    from pool.ticker import Ticker

_BATCH = 64  # items given away between two looks at what has come back
_loads = pickle.loads
_NEVER = sys.maxsize
_ASK_SECONDS = 0.020  # how long an input that has nothing now is left alone
_FEW = 16  # results in a turn
_SLOW_SECONDS = 0.020  # an input that takes so long for a batch is read one by one where somebody watches


class NotYet(Exception):
    """For an input of ``imap`` and its forms to raise in its ``__next__``: it has nothing now, ask again later.

    The map goes on with what it has: what was read is given to the workers at once, results are delivered. The input is
    asked again after the next result, after 20 ms at the latest. Not for generators, which an exception ends."""


class Aside:
    """What ``run_map`` yields, instead of waiting, to who waits by itself: an event loop.

    Attributes:
        seconds: when to go on at the latest, even if nothing has come; None: no need to.
        resting: for ``MapRun.has_news``.
        tells: the input tells that loop when it has more, so nobody has to ask.
    """

    __slots__ = ("resting", "seconds", "tells")

    def __init__(self, tells: bool) -> None:
        self.seconds: float | None = None
        self.resting = 0
        self.tells = tells


def run_map(
    run: MapRun,
    iterable: Iterable[Any],
    ordered: bool,
    on_error: str,
    end: float | None = None,
    progress: bool | Callable[[Progress], object] = False,
    aside: Aside | None = None,
) -> Generator[Any, None, None]:
    """The dispatch loop: give while the window has room, collect, yield what has come, wait.

    ``end``: time.monotonic() after which waiting for a result raises TimeoutError. ``progress``: see ``imap``.
    ``aside``: never wait, but yield this."""
    client, ready = run.client, run.ready
    ticker = _ticker(run, iterable, progress) if progress else None
    source = iter(iterable)
    taken = before = 0
    look = _NEVER if ticker is None else 0  # the number of taken results at which the ticker looks at the clock
    watch: Ticker | None = None  # the ticker, unless so much comes that it need not look at each turn
    ended = run.eager  # the input is exhausted, or has raised
    dry = False  # it has nothing now
    late = -1  # so many results were taken when the time was over, and everything was collected once more
    failed: BaseException | None = None
    early: dict[int, tuple[int, Any, Any, Account | None]] = {}
    own: list[Any] = []
    hand: list[Any] = []  # a value on its way to the caller: no name of ours may hold it while the caller has it
    straight = not ordered and not run.numbered  # values may be yielded straight from what was collected,
    plain = straight and not run.auto  # if nobody has to know how long the tasks take
    values: list[Any] | None = [] if plain else None  # decoded
    try:
        while True:
            if not ended and client.state != OPEN:
                try:
                    client.check_open()
                except Exception as error:  # what was given before still counts
                    failed, ended = error, True
            if ticker is not None:
                watch = ticker if taken - before < _FEW else None  # in a rain of results, a look now and then will do
                before = taken
            dry = False
            if not ended and (room := run.wants(run.landed - taken)) > 0:
                try:
                    ended = give_batch(run, source, room) if watch is None else _give_watched(watch, run, source, room)
                except NotYet:
                    dry = True
                except Exception as error:  # the input raised: what it gave before still counts
                    failed, ended = error, True
                if ended and ticker is not None:
                    ticker.total = run.given
            with client.lock:
                client.pump(run, own, values)
                if values:
                    run.came(len(values))
                    run.landed += len(values)
                own = run.take(own, plain or (straight and run.buffered))
            if client.to_notify or client.to_call or client._followers:
                client.announce()
            run.measure()
            if watch is not None:
                look = watch.look(taken)
            if values:
                if ticker is None:
                    taken += len(values)
                    yield from values
                else:
                    for value in values:
                        taken += 1
                        if taken >= look:
                            look = ticker.look(taken)
                        yield value
                values.clear()
            for task, kind, data, _, _ in own:
                try:
                    hand.append(codec.loads_packed(data) if kind else _loads(data))
                except (Exception, SystemExit):
                    run.ready_again(task, kind, data)
                    continue
                data = None
                taken += 1
                if taken >= look and ticker is not None:
                    look = ticker.look(taken)
                yield hand.pop()
            own.clear()
            while ready:
                index, kind, data, item, account = ready.popleft()
                if ordered and index != taken:
                    early[index] = (kind, data, item, account)
                    continue
                while True:
                    if kind == codec.BLOCK and ticker is None and not run.numbered:
                        taken += len(data)
                        yield from data
                    elif kind == codec.BLOCK:
                        for run.index, value in enumerate(data, index):
                            taken += 1
                            if taken >= look and ticker is not None:
                                look = ticker.look(taken)
                            yield value
                    else:
                        taken += 1
                        run.index = index
                        if taken >= look and ticker is not None:
                            look = ticker.look(taken)
                        failure = run.outcome(index, kind, data, item, account, hand)
                        if failure is None:
                            yield hand.pop()
                        elif on_error == "return":
                            yield failure
                        elif on_error == "raise":
                            raise _with_item(failure)
                    if not early or taken not in early:
                        break
                    index = taken
                    kind, data, item, account = early.pop(taken)
            failure = data = item = task = value = None  # what is the caller's is not ours to keep
            left = pause = None if end is None else end - time.monotonic()
            if left is not None and left <= 0 and taken < run.given:  # other results, and input, may come without end
                if late == taken:
                    raise TimeoutError
                late = taken
                client.collect_all()  # what is done by now still counts
                continue
            if not ended and not dry and run.wants(run.landed - taken) > 0:
                continue
            if ended and taken == run.given:
                if failed is not None:
                    raise failed
                return
            if client.segment is None and not ready:  # in this order: when a pool ends, all sinks are told before
                client.check_open()  # it has ended, and what was given too late never comes back
            if dry and aside is None and client.segment is None:  # without workers there is nothing to wait for
                time.sleep(_ASK_SECONDS)
                continue
            if ticker is not None or dry:
                tick = _NEVER if ticker is None else ticker.seconds()
                ask = _ASK_SECONDS if dry and not (aside is not None and aside.tells) else _NEVER
                pause = min(_NEVER if left is None else left, tick, ask)
            if aside is not None:
                aside.seconds, aside.resting = pause, run.resting
                yield aside
                continue
            if (nap := run.nap()) > 0:
                time.sleep(nap)
                continue
            news = partial(_has_news, run, run.resting, own, values)
            if not client.wait_for(news, pause, (run, own, values)) and pause is None:
                client.check_open()  # it has ended
    finally:
        try:
            if ticker is not None:
                ticker.end()
        finally:
            if run.flying:
                client.drop(run)
            client.tidy()


def _has_news(run: MapRun, resting: int, own: list[Any], values: list[Any] | None) -> bool:
    """Whether the loop has something to do."""
    return bool(own or values) or run.has_news(resting)


def _ticker(run: MapRun, iterable: Iterable[Any], progress: bool | Callable[[Progress], object]) -> Ticker:
    from pool.progress import display
    from pool.ticker import Ticker

    try:
        total = operator.length_hint(iterable, -1)
    except Exception:  # it is the caller's code, or says more than fits into a number
        total = -1
    return Ticker(run, display() if progress is True else progress, None if total < 0 else total)  # type: ignore[arg-type]


def _with_item(failure: Failure) -> BaseException:
    """The error of an item, with a note that says which one it was."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    with contextlib.suppress(Exception):  # a repr that raises must not hide the error
        failure.error.add_note(f"item {failure.index} of the input: {short.repr(failure.item)}")
    return failure.error


def give_batch(run: MapRun, source: Iterator[Any], room: int) -> bool:
    """Give away one batch. True if the input is exhausted. Raises what the input raises."""
    give, most = (run.give_singles, _BATCH) if run.chunksize == 1 else (run.give_chunk, run.chunksize)
    if not codec.handles.used:
        return give(source, min(room, most))
    (ended, error), handles = codec.handles.of(_caught, give, source, min(room, most))
    run.handles.update(handles)
    try:
        if error is not None:
            raise error
    finally:
        del error  # no cycle through the traceback's frame: it would keep the input
    return bool(ended)


def _give_watched(ticker: Ticker, run: MapRun, source: Iterator[Any], room: int) -> bool:
    """The same, one item at a time if the input has taken long for the last batch: somebody waits for the ticks."""
    began = time.monotonic()
    try:
        return give_batch(run, source, room if ticker.quick else 1)
    finally:
        ticker.quick = time.monotonic() - began < _SLOW_SECONDS


def _caught(give: Callable[[Iterator[Any], int], bool], source: Iterator[Any], count: int) -> Any:
    """(ended, what the input raised): what it gave before may name shared objects."""
    try:
        return give(source, count), None
    except Exception as error:
        return False, error


__all__ = ["Aside", "Failure", "MapRun", "NotYet", "give_batch", "run_map"]
