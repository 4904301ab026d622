"""Functions travel once to each worker, by (id, generation); tasks carry the key.

The client stores a function's pickle in the payload segment; a worker that meets an unknown key reads it from there. A
function whose pickle can change between two submissions (by value: lambdas, closures, ``__main__``) gets a new
generation when it has changed.
"""

from __future__ import annotations

import types
import weakref
from collections import deque
from collections.abc import Callable

from ipc import _core
from pool import codec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.codec import Inherited

_MANY = 512  # callables that are remembered, in the client and in each worker; above that the oldest are forgotten
_MANY_BYTES = 64 << 20  # and so much of their pickles, at most an eighth of the room
_ATOMS = (int, float, complex, str, bytes, bool, type(None), types.ModuleType)


class Function:
    """A callable as tasks name it. ``id`` 0: not stored, the arguments carry it.

    Tasks and maps hold it as long as a row may name it, and so does the store while the callable is in use. Its bytes
    in the segment live as long as it does.
    """

    __slots__ = (
        "__weakref__",
        "_unused",
        "callable",
        "data",
        "generation",
        "handles",
        "id",
        "length",
        "name",
        "number",
        "segment",
        "unit",
    )

    def __init__(
        self,
        id: int,
        generation: int,
        data: bytes,
        name: str,
        segment: object = None,
        unit: int = 0,
        unused: deque[tuple[object, int, int]] | None = None,
        number: int = 0,
    ) -> None:
        self.id = id
        self.generation = generation
        self.data = data
        self.length = len(data)
        self.name = name
        self.number = number  # what its runs are counted as, see pool/tally.py
        self.segment = segment
        self.unit = unit
        self._unused = unused
        self.callable: object = None  # held by tasks that carry it
        self.handles: list[Any] = []  # on shared objects inside: they live as long as a task needs them

    def __del__(self) -> None:
        if self._unused is not None:  # this may run anywhere, so it only leaves a note
            self._unused.append((self.segment, self.unit, self.length))


def _names(code: types.CodeType) -> frozenset[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return frozenset(names)


def _plain(fn: Any) -> bool:
    """True for what travels by name or has a fingerprint. A builtin bound to an object (``d.get``) has state."""
    if isinstance(fn, types.BuiltinFunctionType):
        return fn.__self__ is None or isinstance(fn.__self__, types.ModuleType)
    return isinstance(fn, types.FunctionType | type)


def _fixed(value: Any) -> bool:
    """True if nobody can change what ``value`` pickles to without binding another object."""
    if isinstance(value, _ATOMS) or (isinstance(value, types.BuiltinFunctionType) and _plain(value)):
        return True
    if isinstance(value, tuple):
        return all(map(_fixed, value))
    module = getattr(value, "__module__", None)
    return (
        isinstance(value, type | types.FunctionType)
        and module not in (None, "__main__")
        and "<" not in value.__qualname__
    )


class _Fingerprint:
    """Whether a by-value function still pickles to what it did: the identity of everything it refers to, all of it
    immutable."""

    def __init__(self, fn: types.FunctionType) -> None:
        self.code = fn.__code__
        self.names = _names(fn.__code__)
        self.parts = self._parts(fn)

    def _parts(self, fn: types.FunctionType) -> tuple[Any, ...] | None:
        cells = []
        for cell in fn.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:
                return None
        scope = fn.__globals__
        parts = (fn.__code__, fn.__defaults__, fn.__kwdefaults__, *cells, *(scope.get(n) for n in self.names))
        if fn.__kwdefaults__ or fn.__dict__ or not all(_fixed(p) or p is fn or p is self.code for p in parts):
            return None
        return parts

    def still(self, fn: types.FunctionType) -> bool:
        if self.parts is None or fn.__code__ is not self.code:
            return False
        now = self._parts(fn)
        return now is not None and all(map(_same, now, self.parts))


def _same(a: Any, b: Any) -> bool:
    return a is b


def _room_of(function: Function) -> int:
    return -(-function.length // _core.UNIT_SIZE) * _core.UNIT_SIZE


class FunctionStore:
    """The client's side: callable → key. Not thread-safe; the client's ``functions_lock`` is held."""

    def __init__(self, segment: object, inherited: Inherited, number: Callable[[str], int]) -> None:
        self.segment = segment
        self._inherited = inherited  # functions of __main__ that go by name, for the workers' own globals count
        self._number = number
        self._unused: deque[tuple[object, int, int]] = deque()  # (segment, unit, length) to be freed
        self._next = 1
        self._stored: dict[Any, tuple[Function, _Fingerprint | None, bool]] = {}
        self._bytes = 0
        self._alive: weakref.WeakSet[Function] = weakref.WeakSet()

    def key(self, fn: Callable[..., Any], *, once: bool) -> Function:
        """The key of ``fn`` as it is now. ``once``: pickle it now for many tasks (a map); else a callable with state
        is carried by each task.

        Raises what pickling raised.
        """
        try:
            known = self._stored.get(fn)
        except TypeError:  # unhashable callable
            return self._store(None, fn, *codec.encode_function(fn, self._inherited)) if once else self.carried(fn)
        if known is not None:
            function, fingerprint, by_reference = known
            if by_reference or (fingerprint is not None and fingerprint.still(fn)):  # type: ignore[arg-type]
                return function
        elif not once and not _plain(fn):
            return self.carried(fn)  # partial, bound method, callable object: its state is part of each task
        fingerprint = self._fingerprint(fn)
        fresh, handles = codec.encode_function(fn, self._inherited)
        if known is not None and fresh == known[0].data:
            self._stored[fn] = (known[0], fingerprint, known[2])
            return known[0]
        function = self._store(known[0] if known else None, fn, fresh, handles)
        if function.id:
            self._forget(fn)
            # By reference means two short names and nothing of ours inside: such a pickle never changes.
            by_reference = len(fresh) < 512 and b"cloudpickle" not in fresh and _plain(fn)
            self._stored[fn] = (function, None if by_reference else fingerprint, by_reference)
            self._bytes += _room_of(function)
            self._trim()
        return function

    def by_reference(self, fn: Callable[..., Any]) -> Function | None:
        """The key of a function that travels as its name. Without any lock."""
        known = self._stored.get(fn)
        return known[0] if known is not None and known[2] else None

    def carried(self, fn: Callable[..., Any]) -> Function:
        name = codec.task_name(fn)
        function = Function(0, 0, b"", name, number=self._number(name))
        function.callable = fn
        return function

    def _fingerprint(self, fn: Callable[..., Any]) -> _Fingerprint | None:
        return _Fingerprint(fn) if isinstance(fn, types.FunctionType) else None

    def _store(self, old: Function | None, fn: Callable[..., Any], data: bytes, handles: list[Any]) -> Function:
        while self._unused:
            segment, unit, length = self._unused.popleft()
            if segment is self.segment:
                _core.free_function(segment, unit, length)
        unit = _core.store_function(self.segment, data)
        if unit < 0:
            return self.carried(fn)  # no room: the task carries it
        if old is None:
            name = codec.task_name(fn)
            function = Function(self._next, 1, data, name, self.segment, unit, self._unused, self._number(name))
            self._next += 1
        else:
            function = Function(
                old.id, old.generation + 1, data, old.name, self.segment, unit, self._unused, old.number
            )
        function.handles = handles
        self._alive.add(function)
        return function

    def _forget(self, fn: Any) -> None:
        if (known := self._stored.pop(fn, None)) is not None:
            self._bytes -= _room_of(known[0])

    def _trim(self) -> None:
        """Forget the oldest callables when there are many; what is in flight stays where it is until it is done."""
        most = min(_MANY_BYTES, _core.room(self.segment) // 8)
        while len(self._stored) > _MANY or (self._bytes > most and len(self._stored) > 1):
            self._forget(next(iter(self._stored)))

    def forget_shared(self) -> None:
        """Let go of callables with shared objects inside: they are stored again if they are used again."""
        for fn in [fn for fn, (function, _, _) in self._stored.items() if function.handles]:
            self._forget(fn)

    def close(self) -> None:
        """Let go of all callables, and of what they hold."""
        self._stored.clear()

    def move(self, segment: object) -> None:
        """Store everything again in a fresh segment; tasks that wait keep their keys."""
        self.segment = segment
        for function in list(self._alive):
            unit = _core.store_function(segment, function.data)
            if unit < 0:
                raise MemoryError(f"no room in the payload segment to store {function.name} again")
            function.segment, function.unit = segment, unit


class FunctionCache:
    """The worker's side: key → callable."""

    def __init__(self, segment: object) -> None:
        self._segment = segment
        self._known: dict[int, tuple[int, Callable[..., Any]]] = {}

    def get(self, id: int, generation: int) -> Callable[..., Any]:
        """The function of the claimed row. Raises what unpickling raised; then nothing is remembered."""
        known = self._known.get(id)
        if known is not None and known[0] == generation:
            return known[1]
        fn: Callable[..., Any] = codec.loads(_core.claimed_function(self._segment))
        self._known.pop(id, None)
        self._known[id] = (generation, fn)
        if len(self._known) > _MANY:
            del self._known[next(iter(self._known))]
        return fn

    def known(self, id: int, generation: int) -> tuple[Callable[..., Any] | None, int, int]:
        """The same with its key; without it (None) if it is not remembered."""
        found = self._known.get(id)
        return (found[1] if found is not None and found[0] == generation else None), id, generation

    def clear(self) -> None:
        """Forget all; what is needed again is still where it was."""
        self._known.clear()
