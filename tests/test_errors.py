"""pool.errors: what each error says, what else it is, and that it survives pickle."""

import copy
import pickle
import signal
import traceback
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest

from pool import errors

PLACE: dict[str, Any] = {"task": "app.resize", "slot": 3, "pid": 4711, "attempt": 2}

# error, its message, classes it also has to be
CASES: list[tuple[errors.PoolError, str, tuple[type, ...]]] = [
    (
        errors.WorkerCrashed(**PLACE, args_repr="'a.jpg', size=5", signal=signal.SIGSEGV, stack="frame 1\nframe 2"),
        "worker died in app.resize('a.jpg', size=5): SIGSEGV (slot 3, pid 4711, attempt 2)",
        (BrokenProcessPool, RuntimeError),
    ),
    (
        errors.WorkerCrashed(**PLACE, signal=9, oom=True),
        "worker died in app.resize: killed by the kernel for want of memory (OOM) (slot 3, pid 4711, attempt 2)",
        (BrokenProcessPool,),
    ),
    (
        errors.WorkerCrashed(**PLACE, signal=signal.SIGRTMIN + 5),
        f"worker died in app.resize: signal {signal.SIGRTMIN + 5} (slot 3, pid 4711, attempt 2)",
        (BrokenProcessPool,),
    ),
    (
        errors.WorkerCrashed(**PLACE, exitcode=0),
        "worker died in app.resize: exit code 0 (slot 3, pid 4711, attempt 2)",
        (BrokenProcessPool,),
    ),
    (
        errors.WorkerCrashed(task="f", slot=0, pid=1),
        "worker died in f: reason unknown (slot 0, pid 1, attempt 1)",
        (BrokenProcessPool,),
    ),
    (
        errors.TaskTimeout(**PLACE, timeout=0.25, stack="line 7 in loop"),
        "app.resize ran longer than its timeout of 0.25 s (slot 3, pid 4711, attempt 2)",
        (TimeoutError,),
    ),
    (
        errors.MemoryLimitExceeded(**PLACE, limit=200 << 20, peak=231 << 20),
        "app.resize took 231 MiB of memory, more than its limit of 200 MiB (slot 3, pid 4711, attempt 2)",
        (MemoryError,),
    ),
    (errors.TaskKilled(**PLACE), "app.resize was killed (slot 3, pid 4711, attempt 2)", ()),
    (
        errors.TaskTimeout(**PLACE, timeout=1, args_repr="7, 'x'", output="said"),
        "app.resize(7, 'x') ran longer than its timeout of 1 s (slot 3, pid 4711, attempt 2)",
        (TimeoutError,),
    ),
    (
        errors.MemoryLimitExceeded(**PLACE, limit=1 << 20, peak=2 << 20, args_repr="7", output="said"),
        "app.resize(7) took 2 MiB of memory, more than its limit of 1 MiB (slot 3, pid 4711, attempt 2)",
        (MemoryError,),
    ),
    (
        errors.TaskKilled(**PLACE, args_repr="size=5", output="said"),
        "app.resize(size=5) was killed (slot 3, pid 4711, attempt 2)",
        (),
    ),
    (
        errors.RemoteError(type_name="app.BadImage", message="no header", traceback="Traceback ...\napp.BadImage"),
        "app.BadImage: no header",
        (),
    ),
    (errors.RemoteError(type_name="app.BadImage", message=""), "app.BadImage", ()),
    (
        errors.ResultNotPicklable(task="f", type_name="generator", reason="cannot pickle 'generator' object"),
        "f returned a generator that can't be pickled: cannot pickle 'generator' object",
        (pickle.PicklingError,),
    ),
    (
        errors.PayloadTooLarge(what="result of f", size=2**40, limit=2**30),
        "result of f is too large: 1,099,511,627,776 bytes, the limit is 1,073,741,824",
        (),
    ),
    (errors.PoolClosed(), "cannot schedule new futures after shutdown", (RuntimeError,)),
    (errors.PoolStartError(), "the pool could not be started", (BrokenProcessPool,)),
    (
        errors.PoolStartError("initializer failed", traceback="Traceback ...\n  raise\nValueError: no model\n"),
        "initializer failed: ValueError: no model",
        (BrokenProcessPool,),
    ),
    (errors.PoolBroken("the monitor died"), "the monitor died", (BrokenProcessPool,)),
    (errors.SegmentCorrupt("row 7 is in state 9"), "row 7 is in state 9", ()),
    (errors.Abort("wrong format", 7), "('wrong format', 7)", ()),
    (
        errors.WorkerCrashed(**PLACE, exitcode=3, crashes=3, poison=True),
        "worker died in app.resize: exit code 3 (slot 3, pid 4711, attempt 2); not run again after 3 crashes",
        (BrokenProcessPool,),
    ),
    (errors.RetryAfter(2.5), "again in 2.5 s", ()),
    (errors.RetryAfter(60, "too many requests"), "again in 60 s: too many requests", ()),
    (errors.Defer("no frame yet"), "no frame yet", ()),
]
IDS = [f"{type(case[0]).__name__}-{number}" for number, case in enumerate(CASES)]


class Own(errors.TaskTimeout):
    """As a user might derive one: a constructor of another shape, one attribute more."""

    def __init__(self, first: int, second: str) -> None:
        super().__init__(timeout=first, task=second, slot=0, pid=1)
        self.extra = [first, second]


class OwnAbort(errors.Abort):
    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


def same(a: BaseException, b: BaseException) -> bool:
    return type(a) is type(b) and a.args == b.args and str(a) == str(b) and vars(a) == vars(b)


def test_every_error_is_in_the_table() -> None:
    assert {type(case[0]).__name__ for case in CASES} | {"PoolError"} == set(errors.__all__)


@pytest.mark.parametrize(("error", "message", "bases"), CASES, ids=IDS)
def test_message_and_bases(error: errors.PoolError, message: str, bases: tuple[type, ...]) -> None:
    assert str(error) == message
    assert "\n" not in str(error)
    assert isinstance(error, (errors.PoolError, *bases))
    assert all(isinstance(error, base) for base in bases)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "error", [case[0] for case in CASES] + [Own(5, "g"), OwnAbort(3, hint="x")], ids=[*IDS, "Own", "OwnAbort"]
)
def test_pickles_with_all_attributes(error: errors.PoolError, protocol: int) -> None:
    assert same(error, pickle.loads(pickle.dumps(error, protocol)))
    assert same(error, copy.copy(error))


def test_attributes() -> None:
    crash = CASES[0][0]
    assert isinstance(crash, errors.WorkerCrashed)
    assert (crash.task, crash.args_repr) == ("app.resize", "'a.jpg', size=5")
    assert (crash.slot, crash.pid, crash.attempt) == (3, 4711, 2)
    assert (crash.signal, crash.exitcode, crash.oom) == (signal.SIGSEGV, None, False)
    assert crash.stack == "frame 1\nframe 2"
    late = errors.TaskTimeout(**PLACE, timeout=5, stack="s")
    assert (late.timeout, late.task, late.stack, late.slot, late.pid, late.attempt) == (
        5,
        "app.resize",
        "s",
        3,
        4711,
        2,
    )
    large = errors.MemoryLimitExceeded(**PLACE, limit=3, peak=4)
    assert (large.limit, large.peak, large.task, large.slot, large.pid, large.attempt) == (
        3,
        4,
        "app.resize",
        3,
        4711,
        2,
    )
    for error in (
        errors.TaskTimeout(**PLACE, timeout=1, args_repr="7", output="said"),
        errors.MemoryLimitExceeded(**PLACE, limit=1, peak=2, args_repr="7", output="said"),
        errors.TaskKilled(**PLACE, args_repr="7", output="said"),
        errors.WorkerCrashed(**PLACE, args_repr="7", output="said"),
    ):
        assert (error.args_repr, error.output) == ("7", "said")
    assert late.errno is None  # an OSError, but not one of the kernel's


def test_stack_is_printed_with_the_traceback_also_after_pickle() -> None:
    for error, text in [
        (CASES[0][0], "Stack of the worker when it died:\nframe 1\nframe 2\n"),
        (errors.TaskTimeout(**PLACE, timeout=1, stack="line 7 in loop"), "line 7 in loop\n"),
        (errors.RemoteError(type_name="E", message="m", traceback="Traceback ...\nE: m"), "Traceback ...\nE: m\n"),
        (errors.PoolStartError(traceback="Traceback ...\nE: m"), "Traceback ...\nE: m\n"),
    ]:
        printed = "".join(traceback.format_exception(pickle.loads(pickle.dumps(error))))
        assert printed.count(text) == 1
    assert not hasattr(CASES[1][0], "__notes__")


def test_code_for_the_standard_library_catches_a_crash() -> None:
    with pytest.raises(BrokenProcessPool, match="SIGSEGV"):
        raise CASES[0][0]
