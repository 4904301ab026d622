"""The work of one ``pool map``: what is given to workers, what they run, what becomes of its results."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
from collections import deque
from pathlib import Path

from pool.cli import Stopped, target
from pool.cli.inputs import Inputs
from pool.cli.journal import NO_FILE, Journal, Recorded, Stamp, stamp
from pool.cli.target import Target
from pool.errors import PoolBroken
from pool.mapping import Failure, NotYet
from pool.output import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_AHEAD = 256  # inputs that are looked up in the journal at a time
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
        self._takes_output = found.takes_output
        self._output_type = found.output_type
        self._has_outputs = has_outputs

    def __call__(self, item: Any) -> Any:
        """Its seconds; as (seconds, value) if the value is not None."""
        began = time.perf_counter()
        word, final = item if self._has_outputs else (item, "")
        path = word if self._input_type is None else target.convert(word, self._input_type)
        value = self._with_output(path, final) if self._has_outputs else self._function(path, **self._keywords)
        seconds = time.perf_counter() - began
        return seconds if value is None else (seconds, value)

    def _with_output(self, path: Any, final: str) -> Any:
        os.makedirs(os.path.dirname(final), exist_ok=True)
        with output(final) as temporary:
            if not self._takes_output:
                return self._write(self._function(path, **self._keywords), temporary)
            where = temporary if self._output_type is None else target.convert(temporary, self._output_type)
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
            return {**record, "error": type(self.error).__name__, "message": str(self.error)}
        record |= {"value": self.value, "seconds": round(self.seconds, 6)}
        return record if self.output is None else {**record, "output": self.output}


class Batch:
    """The source of a map, and the end of its results.

    ``report`` is called with each input that has ended in this run.

    Attributes:
        call: what workers run.
        out: the folder of the outputs, or None.
        journal: may be set before the iteration begins.
        done, failed, before: inputs that have succeeded, that have failed, and how many of both were recorded by
            earlier runs.
        failures: (input, reason) of the first of those that failed.
    """

    def __init__(
        self, found: Target, source: Inputs, out: str | None, base: str | None, suffix: str | None,
        report: Callable[[Ended], None],
    ) -> None:  # fmt: skip
        self.call = Call(found, out is not None)
        self.out = None if out is None else os.path.abspath(out)
        self.journal: Journal | None = None
        self.done = self.failed = self.before = 0
        self.failures: list[tuple[str, str]] = []
        self._report = report
        self._keywords = found.keywords
        self._source = source
        self._base = os.path.abspath(base or ".")
        self._suffix = suffix
        self._given = 0
        self._running: dict[int, tuple[str, Stamp, str | None]] = {}
        self._outputs: set[int] = set()
        self._ahead: deque[tuple[str, Stamp, Recorded | None]] = deque()
        self._began = time.monotonic()

    def key(self) -> str:
        """Beside the function, what makes this another piece of work for the journal."""
        words = {key: str(value) for key, value in sorted(self._keywords.items())}
        where = {} if self.out is None else {"--base": self._base, "--out": self.out, "--suffix": self._suffix}
        return json.dumps({**words, **{k: v for k, v in where.items() if v is not None}}, ensure_ascii=False)

    # ---- what is given away

    def __iter__(self) -> Batch:
        return self

    def __next__(self) -> str | tuple[str, str]:
        while True:
            path, then = (next(self._source), NO_FILE) if self.journal is None else self._unrecorded(self.journal)
            final = None if self.out is None else self._output(path)
            if final is not None and not self._is_new(path, final):
                error = ValueError(f"an earlier input has the same output {final!r}")
                self._ended(Ended(path, final, 0.0, None, error), then)
                continue
            self._running[self._given] = path, then, final
            self._given += 1
            return path if final is None else (path, final)

    def _unrecorded(self, journal: Journal) -> tuple[str, Stamp]:
        """The next input that is not recorded as it is now, and what it is now."""
        while True:
            while self._ahead:
                path, then, known = self._ahead.popleft()
                if known is None or known[0] != then or (known[1] is not None and journal.retry_failed):
                    return path, then
                self.before += 1
                if self.out is not None:
                    self._is_new(path, self._output(path))
                if known[1] is None:
                    self.done += 1
                else:
                    self._failed(path, known[1])
            self._look_ahead(journal)

    def _look_ahead(self, journal: Journal) -> None:
        """Some more inputs, and what is recorded of them: one query for all costs a fraction. Raises StopIteration, and
        what the source raises if it has none at all."""
        paths: list[str] = []
        with contextlib.suppress(NotYet):
            for path in itertools.islice(self._source, _AHEAD):
                paths.append(path)  # one by one: what was read before an exception counts
        if not paths:
            paths.append(next(self._source))
        known = journal.find(paths)
        self._ahead.extend((path, stamp(path), known.get(path)) for path in paths)

    def _output(self, path: str) -> str:
        """Where its output goes: always inside of ``out``."""
        assert self.out is not None
        relative = os.path.relpath(path, self._base)
        if relative == ".." or relative.startswith("../"):  # not below the base: its whole path
            relative = os.path.abspath(path).lstrip("/")
        if self._suffix is not None:
            relative = os.path.splitext(relative)[0] + self._suffix
        return os.path.join(self.out, relative)

    def _is_new(self, path: str, final: str) -> bool:
        """Whether no earlier input has this output."""
        if final == os.path.abspath(path):
            raise Stopped(f"the output of {path!r} would overwrite it: choose another --out or --suffix")
        mark, before = hash(final), len(self._outputs)
        self._outputs.add(mark)
        return len(self._outputs) > before

    # ---- what comes back

    def end(self, index: int, result: Any) -> None:
        """Take the result of the input that was given away as number ``index``. Raises PoolBroken if it has none
        because the pool has ended."""
        path, then, final = self._running.pop(index)
        if not isinstance(result, Failure):
            seconds, value = result if type(result) is tuple else (result, None)
            self._ended(Ended(path, final, seconds, value, None), then)
        elif isinstance(result.error, PoolBroken):
            raise result.error
        else:
            self._ended(Ended(path, final, 0.0, None, result.error), then)

    def _ended(self, ended: Ended, then: Stamp) -> None:
        reason = None
        if ended.error is None:
            self.done += 1
        else:
            reason = describe(ended.error)
            self._failed(ended.path, reason)
        if self.journal is not None:
            self.journal.record(ended.path, then, reason, ended.seconds)
        self._report(ended)

    def _failed(self, path: str, reason: str) -> None:
        self.failed += 1
        if len(self.failures) < _KEPT:
            self.failures.append((path, reason))

    def commit(self) -> None:
        if self.journal is not None:
            self.journal.commit()

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def summary(self) -> dict[str, Any]:
        return {
            "done": self.done, "failed": self.failed, "before": self.before,
            "seconds": round(time.monotonic() - self._began, 3),
        }  # fmt: skip


def describe(error: BaseException) -> str:
    """An error in one line, without the input, beside which it will stand."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if arguments := getattr(error, "args_repr", ""):
        text = text.replace(f"({arguments})", "", 1)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


__all__ = ["Batch", "Call", "Ended", "describe"]
