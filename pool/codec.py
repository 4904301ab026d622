"""How tasks, values and errors become bytes and back.

Arguments, values and exceptions travel as pickle protocol 5. What plain pickle cannot take (lambdas, closures, local
classes), and functions of ``__main__``, go by value through cloudpickle, which also keeps class identity: an instance
of a class sent by value comes back as an instance of the very class it left from. (dill, the alternative, makes a new
class at each load.)
"""

from __future__ import annotations

import array as arrays
import contextlib
import functools
import io
import pickle
import struct
import sys
import threading
import traceback
import types
from collections.abc import Callable

from ipc import _core
from pool import spill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Inherited: TypeAlias = frozenset[type | types.FunctionType]  # what of __main__ goes by name, see `by_value`

# What a result is (the `kind` of a row or of a frame in a chunk).
VALUE, ERROR, ABORT, UNPICKLABLE, TOO_LARGE, FAILED, DEATH, DECODED, BLOCK, RETRY_AFTER, DEFER = range(11)
"""FAILED and DEATH come from no worker: an exception object, a Death."""
PACKED = _core.PACKED_KIND | VALUE
VALUES = (VALUE, PACKED)
REPEATABLE = frozenset({ERROR, RETRY_AFTER, DEFER})
"""After one of these the task may run again."""
SPILLED = 0x40
"""A bit of the kind: the data is the path of a file with what would be here if it were smaller."""
SAID = 0x20
"""A bit of the kind: behind the data stands what the task has printed (pool/capture.py)."""
MORE = SPILLED | SAID

# How a row's arguments are called.
CALL_ARGS, CALL_ONE, CALL_STAR, CALL_SELF = range(4)
"""``fn(*args, **kwargs)`` · ``fn(item)`` · ``fn(*item)`` · the arguments carry the function: ``item[0](*item[1],
**item[2])``."""

IN_FILE = 8
"""A flag of a row, beside the core's: the arguments are the path of a file."""

_TEXT_LIMIT = 64 * 1024
_MAIN = b"__main__"
_dumps = pickle.dumps
loads = pickle.loads
_WORD = struct.Struct("<QQ")
_BARE = 1 << 63  # in place of the number of buffers: one object without a pickle
SCALARS = frozenset({int, float, bool, complex, type(None)})
"""Types whose pickles are plain, and never raise."""
_LONG = 32 * 1024  # bytes that are worth it
_NUMBERS = frozenset("?bBhHiIlLqQefdgFDG")  # dtype.char


@functools.cache
def keep_freed_memory() -> None:
    """Large arguments come and go in the caller's heap. glibc gives its top back to the system with each that goes, and
    maps each of the largest by itself, until the process has freed a mapped block that was larger; then each page of
    the next argument costs a fault, which took up to a third of the time of arrays of 1 MiB. This is such a block,
    never touched: from then on what is smaller comes from the heap, of which up to 16 MiB of free top are kept, and
    what is free below something that lives."""
    with contextlib.suppress(MemoryError):
        bytes(8 << 20)


class _MainNames:
    """What travels by reference where nobody says for which pool."""

    classes: frozenset[type] = frozenset()
    """The classes that ``__main__`` had when workers were last started. In a forked worker: the client has them too."""
    missing: frozenset[str] | None = frozenset()
    """Names of ``__main__`` that workers of some pool do not have. None: all of them."""


def snapshot_main(missing: frozenset[str] | None, *, functions: bool) -> Inherited:
    """What workers that are started now have of ``__main__`` under the same names: its classes, and if ``functions``
    its functions too. ``missing``: names that they do not have, because they import ``__main__`` for themselves; None:
    all."""
    before = _MainNames.missing
    if missing is None or "__main__" not in sys.modules:
        _MainNames.classes, _MainNames.missing = frozenset(), None
        return frozenset()
    main = vars(sys.modules["__main__"]).items()
    _MainNames.classes = frozenset(v for name, v in main if isinstance(v, type) and name not in missing)
    _MainNames.missing = None if before is None else before | missing
    if not functions:
        return _MainNames.classes
    return _MainNames.classes | {fn for fn in main_functions() if fn.__name__ not in missing}


def in_all_workers() -> Inherited:
    """Classes of ``__main__`` that every pool's workers have, as far as they are started."""
    missing = _MainNames.missing
    return frozenset() if missing is None else frozenset(c for c in _MainNames.classes if c.__name__ not in missing)


def main_functions() -> frozenset[types.FunctionType]:
    """The functions that ``__main__`` has now under their own names."""
    names = vars(sys.modules["__main__"]) if "__main__" in sys.modules else {}
    functions = [fn for fn in names.values() if isinstance(fn, types.FunctionType)]
    return frozenset(fn for fn in functions if fn.__module__ == "__main__" and names.get(fn.__qualname__) is fn)


@functools.cache
def pickler() -> type[Any]:
    """cloudpickle's pickler, but what is ``inherited`` goes by reference. Made at first use: the import costs."""
    import cloudpickle

    class ByValue(cloudpickle.Pickler):  # type: ignore[misc]
        inherited: Inherited | None = None

        def reducer_override(self, obj: Any) -> Any:
            inherited = _MainNames.classes if self.inherited is None else self.inherited
            if isinstance(obj, type) and obj in inherited:
                return NotImplemented
            if isinstance(obj, types.FunctionType) and obj in inherited and obj in main_functions():
                return NotImplemented
            return super().reducer_override(obj)

    return ByValue


def by_value(
    obj: Any,
    buffer_callback: Callable[[Any], object] | None = None,
    inherited: Inherited | None = None,
) -> bytes:
    """Pickle with functions and classes of ``__main__`` by value, their globals resolved as they are now; but what is
    ``inherited``, which the workers have too, by name. None: the classes that ``__main__`` had when workers were last
    started."""
    out = io.BytesIO()
    by = pickler()(out, protocol=5, buffer_callback=buffer_callback)
    by.inherited = inherited
    by.dump(obj)
    return out.getvalue()


def encode_args(obj: Any, inherited: Inherited | None = None) -> bytes | tuple[Any, ...]:
    """Arguments for a worker: bytes, or pieces if there are buffers in them (see ``pack``). ``inherited``: see
    ``by_value``. Raises what pickling raised if nothing can take them."""
    if type(obj) in SCALARS:
        return _dumps(obj, 5)
    bare = PACKERS.get(type(obj))
    if bare is not None and (packed := bare(obj)) is not None:
        return packed
    buffers: list[Any] = []
    data = _encode(obj, buffers, inherited)
    return pack(data, buffers) if buffers else data


class Handles(threading.local):
    """Notes the handles on shared objects that are pickled: they have to live as long as the bytes that name them,
    whatever the caller does with its objects meanwhile."""

    used = False  # somebody shares objects, so it is worth while
    _now: dict[int, Any] | None = None

    def note(self, handle: Any) -> None:
        """Called by a handle that is pickled."""
        if self._now is not None:
            self._now[id(handle)] = handle

    def of(self, call: Callable[..., Any], *args: Any) -> tuple[Any, list[Any]]:
        """What ``call(*args)`` returns, and the handles that were pickled in it."""
        before, self._now = self._now, {}
        try:
            return call(*args), list(self._now.values())
        finally:
            self._now = before


handles = Handles()


def encode_function(fn: Any, inherited: Inherited | None) -> tuple[bytes, list[Any]]:
    """A callable, which travels as one string of bytes, and the handles on shared objects in it. ``inherited``: see
    ``by_value``. Raises what pickling raised if nothing can take it."""
    return handles.of(_encode, fn, None, inherited)


def _encode(obj: Any, buffers: list[Any] | None, inherited: Inherited | None = None) -> bytes:
    note = None if buffers is None else buffers.append
    try:
        data = _dumps(obj, 5, buffer_callback=note)
    except Exception:
        data = b""
    if data and data.find(_MAIN) < 0:  # `in` is slower: it first fails to make an int of the bytes
        return data
    noted: list[Any] = []
    try:
        by = by_value(obj, noted.append if buffers is not None else None, inherited)
    except Exception:
        if not data:
            raise  # its own error: plain pickle may complain about what this way can do
        return data
    if buffers is not None:
        buffers[:] = noted
    return by


def encode_value(value: Any) -> tuple[int, Any]:
    """A task's result: (kind, bytes or pieces). By reference where possible, so that the client finds its own classes
    again."""
    if type(value) in SCALARS:
        return VALUE, _dumps(value, 5)
    bare = PACKERS.get(type(value))
    if bare is not None and (packed := bare(value)) is not None:
        return PACKED, packed
    buffers: list[Any] = []
    try:
        try:
            data = _dumps(value, 5, buffer_callback=buffers.append)
        except Exception:
            buffers.clear()
            data = by_value(value, buffers.append)
        return (PACKED, pack(data, buffers)) if buffers else (VALUE, data)
    except (Exception, SystemExit) as error:
        return UNPICKLABLE, _dumps((type(value).__qualname__, f"{type(error).__name__}: {text_of(error)}"), 5)


def pack(data: bytes, buffers: list[Any]) -> tuple[Any, ...]:
    """Pieces of a pickle with out-of-band buffers (protocol 5): (head with the pickle, buffer, ...), which are copied
    one behind the other, each at a multiple of ALIGN. The head: number of buffers, length of the pickle, lengths of the
    buffers, all of 64 bits; then the pickle.

    Raises BufferError for a buffer that is not contiguous."""
    if (numpy := sys.modules.get("numpy")) is not None:
        PACKERS.setdefault(numpy.ndarray, _pack_array)  # from now on
    raws = [buffer.raw() for buffer in buffers]
    lengths = struct.pack(f"<{len(raws)}Q", *map(len, raws))
    return _WORD.pack(len(raws), len(data)) + lengths + data, *raws


def _pack_bytes(data: bytes | bytearray) -> tuple[Any, ...] | None:
    """As ``pack`` for one long string of bytes, which its pickle would copy. The head: BARE, length of a pickled
    ("bytes" | "bytearray", length), that pickle."""
    if len(data) < _LONG:
        return None
    meta = _dumps((type(data).__name__, len(data)), 5)
    return _WORD.pack(_BARE, len(meta)) + meta, memoryview(data)


def _pack_buffer(data: memoryview | arrays.array[Any]) -> tuple[Any, ...] | None:
    """The same for an array of the standard library, and for a memoryview, which arrives as bytes. The pickle in the
    head is that of ("array", length, type code), or of ("bytes", length). None: short, or not contiguous."""
    view = memoryview(data)
    if view.nbytes < _LONG or not view.c_contiguous:
        return None
    what = ("bytes", view.nbytes) if type(data) is memoryview else ("array", view.nbytes, data.typecode)
    meta = _dumps(what, 5)
    return _WORD.pack(_BARE, len(meta)) + meta, pickle.PickleBuffer(data).raw()


def _pack_array(array: Any) -> tuple[Any, ...] | None:
    """As ``pack`` for one plain array of numbers, in a third of the time that its pickle takes. None: it is not that
    plain. The head: BARE, length of a pickled (type, shape, order, writeable), that pickle."""
    dtype, flags = array.dtype, array.flags
    if dtype.char not in _NUMBERS or not dtype.isnative:
        return None
    order = "C" if flags.c_contiguous else "F" if flags.f_contiguous else None
    if order is None:
        return None
    meta = _dumps((dtype.char, array.shape, order, flags.writeable), 5)
    return _WORD.pack(_BARE, len(meta)) + meta, pickle.PickleBuffer(array).raw()


PACKERS: dict[type, Callable[[Any], tuple[Any, ...] | None]] = {
    bytes: _pack_bytes,
    bytearray: _pack_bytes,
    memoryview: _pack_buffer,
    arrays.array: _pack_buffer,
}
"""How objects of exactly these types are packed, by themselves; None: as everything else. numpy's array joins when the
first one has come."""


def _loads_bare(packed: Any, length: int) -> Any:
    view = memoryview(packed)
    kind, *more = loads(view[16 : 16 + length])
    at = -(-(16 + length) // _core.ALIGN) * _core.ALIGN
    if kind == "bytes":
        return bytes(view[at : at + more[0]])
    if kind == "bytearray":
        return bytearray(view[at : at + more[0]])
    if kind == "array":
        plain = arrays.array(more[1])
        plain.frombytes(view[at : at + more[0]])
        return plain
    import numpy

    shape, order, writeable = more
    array = numpy.ndarray(shape, kind, packed, at, order=order)
    if not writeable:
        array.flags.writeable = False
    return array


def snapshot(pieces: tuple[Any, ...]) -> tuple[bytes, ...]:
    """A private copy."""
    return tuple(map(bytes, pieces))


def join(pieces: tuple[Any, ...]) -> bytearray:
    """The pieces as they stand in the payload."""
    out = bytearray()
    for piece in pieces:
        out += bytes(-len(out) % _core.ALIGN)
        out += piece
    return out


def loads_packed(packed: Any) -> Any:
    """The object; its buffers are views into ``packed``, and hold it."""
    count, length = _WORD.unpack_from(packed)
    if count == _BARE:
        return _loads_bare(packed, length)
    view = memoryview(packed)
    at = 16 + 8 * count
    lengths = struct.unpack_from(f"<{count}Q", view, 16)
    data = view[at : at + length]
    at += length
    buffers = []
    for length in lengths:
        at = -(-at // _core.ALIGN) * _core.ALIGN
        buffers.append(view[at : at + length])
        at += length
    return loads(data, buffers=buffers)


def text_of(error: BaseException) -> str:
    """An exception's text, shortened, whatever its own code does."""
    try:
        return str(error)[:_TEXT_LIMIT]
    except (Exception, SystemExit) as failed:  # a __str__ that raises must not cost us the report
        return f"<str() raised {type(failed).__name__}>"


def trace(error: BaseException, skip: int) -> str:
    """The traceback as text, without its first ``skip`` frames."""
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
    try:
        inner = _dumps(error, 5)
    except Exception:
        try:
            inner = by_value(error)
        except MemoryError:  # the caller has something ready for that
            raise
        except (Exception, SystemExit):
            inner = None
    kind, *wish = _wish(error)
    return kind, _dumps((inner, type(error).__qualname__, text_of(error), trace(error, skip), *wish), 5)


def _wish(error: BaseException) -> tuple[Any, ...]:
    """The kind of a task's exception; for RETRY_AFTER, then the seconds."""
    # Whoever raised one of ours has imported it; here the import would cost more than the rest of the report.
    errors = sys.modules.get("pool.errors")
    if errors is None or not isinstance(error, errors.PoolError):
        return (ERROR,)
    if isinstance(error, errors.RetryAfter):
        try:
            return RETRY_AFTER, errors.delay_of(error)
        except Exception:  # a subclass, or somebody who has changed it
            return (ERROR,)
    return (ABORT if isinstance(error, errors.Abort) else DEFER if isinstance(error, errors.Defer) else ERROR,)


def wished_delay(data: bytes) -> float:
    """The seconds in the report of a RetryAfter."""
    return float(loads(data)[4])


EMERGENCY = _dumps(
    (_dumps(MemoryError("while the error was reported"), 5), "MemoryError", "while the error was reported", ""), 5
)
"""Made beforehand: an error record for the moment in which no memory is left to make one."""


def fetch(kind: int, data: Any) -> tuple[int, Any]:
    """The outcome behind a SPILLED one: its bytes mapped, and their file without a name from now on."""
    try:
        return kind & ~SPILLED, spill.read(bytes(data).decode(), remove=True)
    except OSError as error:
        return FAILED, error


def encode_too_large(size: int, reason: str) -> tuple[int, bytes]:
    """The result of a task whose value of ``size`` bytes fits neither into the payload room nor into a file."""
    return TOO_LARGE, _dumps((size, reason), 5)


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
        size, reason = loads(data)
        return too_large(f"the result of {task}", size, room, reason)
    inner, name, message, trace, *_ = loads(data)
    error: BaseException | None = None
    if inner is not None:
        try:
            error = loads(inner)
        except (Exception, SystemExit) as failed:
            message = f"{message} (the exception itself cannot be rebuilt: {type(failed).__name__}: {text_of(failed)})"
    if not isinstance(error, BaseException):
        from pool.errors import RemoteError

        error = RemoteError(type_name=name, message=message, traceback=trace)
    error.__cause__ = RemoteTraceback(trace)
    return error


def too_large(what: str, size: int, room: int, reason: object) -> BaseException:
    """PayloadTooLarge; ``reason``: why there could be no file either."""
    why = f"It does not fit into shared memory, and no file could be made for it: {reason}"
    try:
        from pool.errors import PayloadTooLarge
    except (ImportError, OSError):  # no file descriptor is left to import it with; the task has to end nonetheless
        return OSError(f"{what}: {size:,} bytes are too large. {why}")
    error = PayloadTooLarge(what=what, size=size, limit=room // 2)
    error.add_note(why)
    return error


def decode_value(kind: int, data: Any, task: str) -> Any:
    """A task's value. Raises ResultNotPicklable, naming the task, if it cannot be rebuilt here."""
    try:
        return loads(data) if kind == VALUE else loads_packed(data)
    except (Exception, SystemExit) as failed:
        from pool.errors import ResultNotPicklable

        reason = f"it cannot be rebuilt here: {type(failed).__name__}: {text_of(failed)}"
        raise ResultNotPicklable(task=task, type_name="value", reason=reason) from failed


def task_name(fn: Callable[..., Any]) -> str:
    """A function's name for people: ``module.qualname``."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    return f"{getattr(fn, '__module__', None) or '?'}.{name}"
