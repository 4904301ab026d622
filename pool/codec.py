"""How tasks, values and errors become bytes and back.

Arguments, values and exceptions travel as pickle protocol 5. What plain pickle cannot take (lambdas, closures, local
classes), and functions of ``__main__``, go by value through cloudpickle, which also keeps class identity: an instance
of a class sent by value comes back as an instance of the very class it left from. (dill, the alternative, makes a new
class at each load.)
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import traceback
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What a result is (the `kind` of a row or of a frame in a chunk).
VALUE, ERROR, ABORT, UNPICKLABLE, TOO_LARGE, UNDECODED = range(6)
"""UNDECODED: an item of a chunk whose arguments could not be decoded together; it has not run."""

# How a row's arguments are called.
CALL_ARGS, CALL_ONE, CALL_STAR, CALL_SELF = range(4)
"""``fn(*args, **kwargs)`` · ``fn(item)`` · ``fn(*item)`` · the arguments carry the function: ``item[0](*item[1],
**item[2])``."""

_TEXT_LIMIT = 64 * 1024
_MAIN = b"__main__"
_dumps = pickle.dumps
loads = pickle.loads


class _MainNames:
    """The classes that ``__main__`` had when the workers were forked: they exist there too, so they may travel by
    reference."""

    classes: frozenset[type] = frozenset()


def snapshot_main() -> None:
    """Remember the classes of ``__main__``; called just before the monitor is forked."""
    main = sys.modules.get("__main__")
    _MainNames.classes = frozenset(v for v in vars(main).values() if isinstance(v, type)) if main else frozenset()


@functools.cache
def _pickler() -> type[Any]:
    """cloudpickle's pickler, but classes that the workers have inherited go by reference. Made at first use: the
    import costs."""
    import cloudpickle

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type) and obj in _MainNames.classes:
                return NotImplemented
            return super().reducer_override(obj)

    return ByValue


def by_value(obj: Any) -> bytes:
    """Pickle with functions and new classes of ``__main__`` by value, their globals resolved as they are now."""
    out = io.BytesIO()
    _pickler()(out, protocol=5).dump(obj)
    return out.getvalue()


def encode_args(obj: Any) -> bytes:
    """Arguments for a worker. Raises what pickling raised if nothing can take them."""
    try:
        data = _dumps(obj, 5)
    except Exception:
        return by_value(obj)  # raises its own error: the first may complain about what the second way can do
    if data.find(_MAIN) < 0:  # `in` is slower: it first fails to make an int of the bytes
        return data
    try:
        return by_value(obj)
    except Exception:
        return data


def encode_value(value: Any) -> tuple[int, bytes]:
    """A task's result: (kind, bytes). By reference where possible, so that the client finds its own classes again."""
    try:
        try:
            return VALUE, _dumps(value, 5)
        except Exception:
            return VALUE, by_value(value)
    except (Exception, SystemExit) as error:
        return UNPICKLABLE, _dumps((type(value).__qualname__, f"{type(error).__name__}: {_text(error)}"), 5)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_TEXT_LIMIT]
    except (Exception, SystemExit) as failed:  # a __str__ that raises must not cost us the report
        return f"<str() raised {type(failed).__name__}>"


def _trace(error: BaseException, skip: int) -> str:
    tb = error.__traceback__
    for _ in range(skip):
        tb = tb.tb_next if tb else None
    try:
        text = "".join(traceback.format_exception(type(error), error, tb))
    except Exception as failed:
        text = f"{type(error).__qualname__}: <traceback cannot be formatted: {type(failed).__name__}>\n"
    if len(text) > _TEXT_LIMIT:
        half = _TEXT_LIMIT // 2
        text = f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"
    return text


def encode_error(error: BaseException, skip: int = 1) -> tuple[int, bytes]:
    """A task's exception: (kind, bytes). ``skip`` frames of our own are left out of the traceback.

    The exception is pickled inside an envelope of plain strings, so that one that cannot be rebuilt still reports its
    type, text and traceback."""
    kind, data = encode_value(error)
    inner = data if kind == VALUE else None
    # Whoever raised Abort has imported it; here the import would cost more than the rest of the report.
    kind = ABORT if isinstance(error, getattr(sys.modules.get("pool.errors"), "Abort", ())) else ERROR
    return kind, _dumps((inner, type(error).__qualname__, _text(error), _trace(error, skip)), 5)


EMERGENCY = _dumps(
    (_dumps(MemoryError("while the error was reported"), 5), "MemoryError", "while the error was reported", ""), 5
)
"""Made beforehand: an error record for the moment in which no memory is left to make one."""


def encode_too_large(size: int) -> tuple[int, bytes]:
    """The result of a task whose value of ``size`` bytes does not fit into the payload room."""
    return TOO_LARGE, _dumps(size, 5)


class RemoteTraceback(Exception):
    """The traceback in the worker, as text: the `__cause__` of an exception that a task raised."""


def decode_error(kind: int, data: bytes, task: str, room: int) -> BaseException:
    """The exception that a failed task raises in the caller; its ``__cause__`` carries the remote traceback.

    ``room`` is the size of the payload segment in bytes."""
    if kind == UNPICKLABLE:
        from pool.errors import ResultNotPicklable

        type_name, reason = loads(data)
        return ResultNotPicklable(task=task, type_name=type_name, reason=reason)
    if kind == TOO_LARGE:
        from pool.errors import PayloadTooLarge

        return PayloadTooLarge(what=f"the result of {task}", size=loads(data), limit=room // 2)
    inner, name, message, trace = loads(data)
    error: BaseException | None = None
    if inner is not None:
        try:
            error = loads(inner)
        except (Exception, SystemExit) as failed:
            message = f"{message} (the exception itself cannot be rebuilt: {type(failed).__name__}: {_text(failed)})"
    if not isinstance(error, BaseException):
        from pool.errors import RemoteError

        error = RemoteError(type_name=name, message=message, traceback=trace)
    error.__cause__ = RemoteTraceback(trace)
    return error


def decode_value(data: bytes, task: str) -> Any:
    """A task's value. Raises ResultNotPicklable, naming the task, if it cannot be rebuilt here."""
    try:
        return loads(data)
    except (Exception, SystemExit) as failed:
        from pool.errors import ResultNotPicklable

        reason = f"it cannot be rebuilt here: {type(failed).__name__}: {_text(failed)}"
        raise ResultNotPicklable(task=task, type_name="value", reason=reason) from failed


def task_name(fn: Callable[..., Any]) -> str:
    """A function's name for people: ``module.qualname``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    return f"{getattr(fn, '__module__', None) or '?'}.{name}"
