"""The work of one ``pool map``: what is given to workers, what they run, what becomes of its results."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from pathlib import Path

from pool.cli import printable, target
from pool.cli.inputs import Inputs
from pool.cli.journal import NO_FILE, Journal, Recorded, Stamp, stamp
from pool.cli.outputs import Claim, Outputs
from pool.cli.target import Target
from pool.codec import text_of
from pool.errors import Abort, PoolBroken, ResultNotPicklable
from pool.mapping import Failure, NotYet
from pool.output import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Printer(Protocol):
        def text(self, ended: Ended) -> str: ...
        def write(self, text: str) -> None: ...
        def flush(self) -> None: ...


_AHEAD = 256  # inputs that are looked up in the journal at a time
_MOST_EARLY, _MOST_HELD = 4096, 1 << 26  # results, and characters of them, that wait for that of an earlier input
_KEPT = 1000  # failures, for the list at the end
_LONGEST = 300  # characters of a reason in it


class Call:
    """What a worker runs for one input; with outputs for (input, output)."""

    def __init__(self, found: Target, has_outputs: bool) -> None:
        self._function = found.function
        self._name = found.name
        # errors name the function, not us
        self.__module__, _, self.__qualname__ = found.name.partition(".")
        self._keywords = found.keywords
        self._input_type = found.input_type
        self._output = found.output
        self._output_by_name = found.output_by_name
        self._output_type = found.output_type
        self._has_outputs = has_outputs

    def __call__(self, item: Any) -> Any:
        """Its seconds; as (seconds, value) if the value is not None. An exception as the item is raised: it has failed
        before, and comes out in its turn."""
        if isinstance(item, Exception):
            raise item
        began = time.perf_counter()
        word, final = item if self._has_outputs else (item, "")
        path = word if self._input_type is None else target.convert(word, self._input_type)
        value = self._with_output(path, final) if self._has_outputs else self._function(path, **self._keywords)
        seconds = time.perf_counter() - began
        return seconds if value is None else (seconds, value)

    def _with_output(self, path: Any, final: str) -> Any:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        with output(final) as temporary:
            if self._output is None:
                return self._write(self._function(path, **self._keywords), temporary)
            where = temporary if self._output_type is None else target.convert(temporary, self._output_type)
            if self._output_by_name:
                value = self._function(path, **{self._output: where}, **self._keywords)
            else:
                value = self._function(path, where, **self._keywords)
            if not os.path.lexists(temporary):
                raise FileNotFoundError(f"{self._name} wrote nothing to the path that it was given")
            return value

    def _write(self, value: Any, temporary: str) -> None:
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(
                f"{self._name} takes no path to write to and returned {type(value).__name__}, not bytes or str"
            )
        Path(temporary).write_bytes(value)


class Ended:
    """What became of one input: ``value``, or ``error``."""

    __slots__ = ("error", "output", "path", "seconds", "value")

    def __init__(self, path: str, output: str | None, seconds: float, value: Any, error: BaseException | None) -> None:
        self.path = path
        self.output = output
        self.seconds = seconds
        self.value = value
        self.error = error

    def record(self) -> dict[str, Any]:
        """For ``--json``."""
        record: dict[str, Any] = {"input": self.path, "ok": self.error is None}
        if self.error is not None:
            return {**record, "error": type(self.error).__name__, "message": text_of(self.error)}
        record |= {"value": self.value, "seconds": round(self.seconds, 6)}
        return record if self.output is None else {**record, "output": self.output}


class Batch:
    """The source of a map, and the end of its results.

    What each input has come to is printed, and recorded behind ``printer.flush``: nobody misses a result that will not
    come again. If a value cannot be shown, its input has failed. ``ordered``: results are printed in the order of the
    inputs; what prints nothing need not wait for that.

    Attributes:
        call: what workers run.
        outputs: where the outputs go, or None.
        journal: may be set before the iteration begins. retry_failed: what it has as failed is to be done again.
        done, failed: inputs that have succeeded, and that have failed; both with those that earlier runs recorded.
        before, failed_before: how many of both were recorded, how many of them as failed.
        repeated: inputs with an output that were given more than once: one time is enough.
    """

    def __init__(
        self, found: Target, source: Inputs, outputs: Outputs | None, printer: Printer,
        retry_failed: bool = False, ordered: bool = False,
    ) -> None:  # fmt: skip
        self.call = Call(found, outputs is not None)
        self.outputs = outputs
        self.journal: Journal | None = None
        self.retry_failed = retry_failed
        self.done = self.failed = self.before = self.failed_before = self.repeated = 0
        self._failures: list[tuple[int, str, str]] = []
        self._printer = printer
        self._ordered = ordered
        self._early: dict[int, tuple[Ended, Stamp | None, str] | None] = {}  # what has ended before its turn
        self._held = 0  # characters
        self._turn = 0
        self._found = found
        self._source = source
        self._given = 0
        self._running: dict[int, tuple[str, Stamp | None, str | None]] = {}  # Stamp None: not to be recorded
        self._ahead: deque[tuple[str, Stamp, Recorded | None]] = deque()
        self._began = time.monotonic()

    def key(self) -> dict[str, str]:
        """Beside the function, what makes this another piece of work for the journal."""
        key = dict(sorted(self._found.texts.items()))
        if self.outputs is not None:
            key |= {"--base": self.outputs.base, "--out": self.outputs.folder}
            if self.outputs.suffix is not None:
                key["--suffix"] = self.outputs.suffix
        return key

    # ---- what is given away

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> str | tuple[str, str] | Exception:
        if len(self._early) >= _MOST_EARLY or self._held >= _MOST_HELD:
            raise NotYet
        while True:
            path, then, known = (next(self._source), NO_FILE, None) if self.journal is None else self._looked_up()
            final = None
            if self.outputs is not None:
                try:
                    final = self.outputs.of(path)
                except ValueError as error:
                    return self._fails(path, str(error))
                claim = self.outputs.claim(path, final)
                if claim is Claim.AGAIN:
                    self.repeated += 1
                    continue
                if claim is Claim.TAKEN:  # not recorded: it depends on what else there is
                    return self._fails(path, f"an earlier input has the same output {final!r}")
            if known is not None and self._is_done(known, then, final):
                self._count_recorded(path, known)
                continue
            self._give(path, then, final)
            return path if final is None else (path, final)

    def _give(self, path: str, then: Stamp | None, final: str | None) -> None:
        self._running[self._given] = path, then, final
        self._given += 1

    def _fails(self, path: str, reason: str) -> NoOutput:
        self._give(path, None, None)
        return NoOutput(reason)

    def _looked_up(self) -> tuple[str, Stamp, Recorded | None]:
        """The next input, what it is now, and what is recorded of it."""
        if not self._ahead:
            self._look_ahead()
        return self._ahead.popleft()

    def _look_ahead(self) -> None:
        """Some more inputs, and what is recorded of them: one query for all costs a fraction. Raises StopIteration, and
        what the source raises if it has none at all."""
        assert self.journal is not None
        paths: list[str] = []
        with contextlib.suppress(NotYet):
            for path in itertools.islice(self._source, _AHEAD):
                paths.append(path)  # one by one: what was read before an exception counts
        if not paths:
            paths.append(next(self._source))
        stamps = [stamp(path) for path in paths]
        known = self.journal.find(list(zip(paths, stamps, strict=True)))
        self._ahead.extend(zip(paths, stamps, known, strict=True))

    def _is_done(self, known: Recorded, then: Stamp, final: str | None) -> bool:
        """Whether what is recorded still holds: the same input, and its output is there."""
        if known.stamp != then:
            return False
        if known.error is not None:
            return not self.retry_failed
        return final is None or os.path.lexists(final)

    def _count_recorded(self, path: str, known: Recorded) -> None:
        self.before += 1
        if known.error is None:
            self.done += 1
        else:
            self.failed_before += 1
            self._failed(self._given, path, known.error)

    # ---- what comes back

    def end(self, index: int, result: Any) -> None:
        """Take the result of the input that was given away as number ``index``. Raises PoolBroken if it has none
        because the pool has ended."""
        path, then, final = self._running.pop(index)
        if not isinstance(result, Failure):
            seconds, value = result if type(result) is tuple else (result, None)
            ended = Ended(path, final, seconds, value, None)
        elif isinstance(result.error, PoolBroken):
            raise result.error
        else:
            ended = Ended(path, final, 0.0, None, _of_the_value(result.error))
        try:
            text = self._printer.text(ended)
        except Exception as error:
            ended = Ended(ended.path, ended.output, ended.seconds, None, NotShown(error))
            text = self._printer.text(ended)
        if not self._ordered:
            self._settle(index, ended, then, text)
            return
        if not text:  # nobody will miss it: it is recorded at once
            self._settle(index, ended, then, text)
        ended.value = None  # it is in the text
        self._early[index] = (ended, then, text) if text else None
        self._held += len(text)
        while self._turn in self._early:
            held = self._early.pop(self._turn)
            if held is not None:
                self._settle(self._turn, *held)
                self._held -= len(held[-1])
            self._turn += 1

    def _settle(self, index: int, ended: Ended, then: Stamp | None, text: str) -> None:
        """Print, count and record it. ``then``: what the input was; None: it is not to be recorded."""
        if text:
            self._printer.write(text)
        reason = None
        if ended.error is None:
            self.done += 1
        else:
            reason = describe(ended.error)
            self._failed(index, ended.path, reason)
        if self.journal is not None and then is not None:
            self.journal.record(ended.path, then, reason, ended.seconds)
            if self.journal.full:
                self.commit()

    def _failed(self, index: int, path: str, reason: str) -> None:
        self.failed += 1
        if len(self._failures) < _KEPT:
            self._failures.append((index, path, reason))

    def failures(self) -> list[tuple[str, str]]:
        """(input, reason) of the first of those that failed."""
        found = sorted(self._failures, key=lambda failure: failure[0]) if self._ordered else self._failures
        return [(path, reason) for _, path, reason in found]

    def commit(self) -> None:
        """Write results and records out."""
        self._printer.flush()
        if self.journal is not None:
            self.journal.commit()

    def close(self) -> None:
        if self.journal is not None:
            try:
                self.commit()
            finally:
                self.journal.close()

    def inputs(self) -> int | None:
        """How many there are, each counted once; None if it is not known yet."""
        return None if self._source.total is None else self._source.total - self.repeated

    def summary(self) -> dict[str, Any]:
        return {
            "inputs": self.inputs(), "done": self.done, "failed": self.failed, "before": self.before,
            "repeated": self.repeated, "seconds": round(time.monotonic() - self._began, 3),
        }  # fmt: skip


class NoOutput(Abort):
    """An input has no output of its own; no further attempt would change that."""


class NotShown(ValueError):
    """The function has returned something that cannot be printed."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(f"its value cannot be shown: {type(reason).__name__}: {text_of(reason)}")


def _of_the_value(error: BaseException) -> BaseException:
    """The same without our own type, which is around the value."""
    if isinstance(error, ResultNotPicklable) and error.type_name == "tuple":
        return ResultNotPicklable(task=error.task, type_name="value", reason=error.reason)
    return error


def describe(error: BaseException) -> str:
    """An error in one line, without the input, beside which it will stand."""
    text = " ".join(f"{type(error).__name__}: {text_of(error)}".split())
    if arguments := getattr(error, "args_repr", ""):
        text = text.replace(f"({arguments})", "", 1)
    return printable(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ...")


__all__ = ["Batch", "Call", "Ended", "describe"]
