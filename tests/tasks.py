"""Functions and classes that tests send to workers. Importable, so they travel by name."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def identity(x: Any) -> Any:
    return x


def square(x: int) -> int:
    return x * x


def add(a: int, b: int, c: int = 0) -> int:
    return a + b + c


def capture(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs


def pid(_: object = None) -> int:
    return os.getpid()


def fail(x: Any) -> None:
    raise ValueError(x)


def fail_if(x: int, bad: int = 5) -> int:
    """`x`, but ValueError for `bad` and its multiples."""
    if x % bad == 0:
        raise ValueError(f"{x} is bad")
    return x


def die_now_and_then(x: int, each: int) -> int:
    """`x`; the worker dies for every so many-th."""
    if x % each == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def crash_once(marker: str, x: int) -> int:
    """`x`; the first worker that comes here dies."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return x
    os._exit(1)


def leave(code: int) -> None:
    sys.exit(code)


# ---- waiting without sleeping: a task holds until its gate, a pipe or a file, is opened by the test


class Gate:
    """`hold(gate)` in a task tells that it has started, and returns when the test calls `open()`, or is collected."""

    def __init__(self, folder: Path, name: str = "gate") -> None:
        self.path = str(folder / name)
        os.mkfifo(self.path)
        os.mkfifo(self.path + ".started")
        self._started = os.open(self.path + ".started", os.O_RDWR)
        self._write = os.open(self.path, os.O_RDWR)

    def await_start(self, count: int = 1) -> list[int]:
        """The pids of so many holders, each of which runs."""
        return [int.from_bytes(os.read(self._started, 4), "little") for _ in range(count)]

    def open(self, count: int = 1) -> None:
        os.write(self._write, b"x" * count)

    def close(self) -> None:
        os.close(self._started)
        os.close(self._write)


def hold(path: str, value: Any = None) -> Any:
    """Say that this task has started, then wait for its gate. Returns `value`."""
    with open(path + ".started", "wb", buffering=0) as started:
        started.write(os.getpid().to_bytes(4, "little"))
    with open(path, "rb", buffering=0) as gate:
        gate.read(1)
    return value


def hold_if_first(x: int, path: str) -> int:
    return hold(path, x) if x == 0 else x


def sleep(seconds: float) -> float:
    """For tasks that are to be stopped: it never comes to its end."""
    time.sleep(seconds)
    return seconds


def touch(folder: str, name: object) -> None:
    Path(folder, str(name)).touch()


class Box:
    """An object that can be referred to weakly."""

    def __init__(self, content: Any) -> None:
        self.content = content


# ---- things that resist travelling


class Locked:
    """Cannot be pickled, not even by cloudpickle."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def make_locked() -> Locked:
    return Locked()


class LockedError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


def raise_locked() -> None:
    raise LockedError("holds a lock")


class TwoArguments(Exception):
    """Pickles, but cannot be rebuilt: unpickling calls it with one argument."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def raise_two_arguments() -> None:
    raise TwoArguments("two arguments", 2)


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def raise_bad_text() -> None:
    raise BadText


def raise_cycle() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    raise first


def raise_long(size: int) -> None:
    raise ValueError("x" * size)


def misbehave(how: str) -> Any:
    """One of the four ways of loky's crash tests."""
    if how == "exit":
        sys.exit(7)
    if how == "c exit":
        os._exit(7)
    if how == "error":
        raise RuntimeError("misbehaved")
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)


class AtPickle:
    """Misbehaves while it is pickled."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        misbehave(self.how)


class AtUnpickle:
    """Misbehaves while it is unpickled, but only in a process that is not `maker`."""

    def __init__(self, how: str, spared: int = 0) -> None:
        self.how = how
        self.spared = spared

    def __reduce__(self) -> Any:
        return _misbehave_unless, (self.how, self.spared)


def _misbehave_unless(how: str, spared: int) -> Any:
    if os.getpid() == spared:
        raise AssertionError("unpickled in the client, where it was made")
    misbehave(how)


def make_at_pickle(how: str) -> AtPickle:
    return AtPickle(how)


class BadResult:
    """Unpickles nowhere."""

    def __reduce__(self) -> Any:
        return fail, ("cannot be rebuilt",)


def make_bad_result(x: int = 0, bad: int = 0) -> Any:
    return BadResult() if x == bad else x


class BadExit:
    """Unpickling it is an exit."""

    def __reduce__(self) -> Any:
        return leave, (5,)


def make_bad_exit() -> BadExit:
    return BadExit()


def unless_bad(x: Any) -> Any:
    return x if isinstance(x, int) else "came through"


def _broken(*_: object) -> None:
    raise RuntimeError("cannot be unpickled")


class Undecodable:
    def __reduce__(self) -> Any:
        return _broken, ()


class Held:
    """Waits for its gate when it is unpickled. Then it is 0, or an error."""

    def __init__(self, path: str, error: str) -> None:
        self.path = path
        self.error = error

    def __reduce__(self) -> Any:
        return _decode_held, (self.path, self.error)


def _decode_held(path: str, error: str) -> int:
    hold(path)
    if error:
        raise RuntimeError(error)
    return 0


class SlowToDecode:
    """A callable that arrives as ``fn``, after keeping the worker busy for a while."""

    def __init__(self, fn: Callable[..., Any], seconds: float) -> None:
        self.fn = fn
        self.seconds = seconds

    def __call__(self, *args: Any) -> Any:
        return self.fn(*args)

    def __reduce__(self) -> Any:
        return _decode_slowly, (self.fn, self.seconds)


def _decode_slowly(fn: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return fn


# ---- callables


class Scale:
    """A callable object with state."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        return self.factor * x

    def method(self, x: int) -> int:
        return self.factor * x


class UnhashableScale(Scale):
    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


def nested(x: int) -> list[int]:
    """A task that has a pool of its own."""
    from pool import Pool

    with Pool(1) as inner:
        return list(inner.map(square, range(x)))


def random_numbers(_: object = None) -> tuple[int, float, int]:
    import random

    import numpy

    return os.getpid(), random.random(), int(numpy.random.randint(1 << 30))


def threads_of_blas(_: object = None) -> tuple[list[int], str]:
    import numpy  # noqa: F401
    import threadpoolctl

    return [lib["num_threads"] for lib in threadpoolctl.threadpool_info()], os.environ.get("OMP_NUM_THREADS", "")


def about_me(_: object = None) -> dict[str, Any]:
    with open("/proc/self/cmdline", "rb") as file:
        title = file.read().rstrip(b"\0").decode()
    with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
        monitor = file.read().rstrip(b"\0").decode()
    with open("/proc/self/comm") as file:
        short = file.read().rstrip("\n")
    return {
        "pid": os.getpid(),
        "cpus": os.sched_getaffinity(0),
        "nice": os.nice(0),
        "title": title,
        "short title": short,
        "monitor": monitor,
        "session": os.getsid(0),
        "stdin": os.readlink("/proc/self/fd/0"),
    }


STATE: dict[str, Any] = {}


def remember_positional(key: str, value: Any) -> None:
    STATE[key] = value


def recall(key: str) -> Any:
    return STATE.get(key)


def die(*args: Any) -> None:
    """Crash the worker, whatever the arguments."""
    os._exit(9)
