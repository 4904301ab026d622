"""What a task has cost: put together from what its row says, when somebody asks.

A worker notes when an item began and how long it took, for each; how much CPU time and memory it had, only for those of
1 ms or more. That comes with the result as *facts*, a few bytes that nobody looks into until then. If the worker dies,
the monitor notes the same.
"""

from __future__ import annotations

import struct
from collections import namedtuple

from ipc import _core
from pool import codec, spill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pool.task import Task

FACTS = struct.Struct("=QQQQQiI")
"""Of an item: ns it ran, ns it waited, ns of CPU time (user, system), bytes of memory (0: nobody has looked, so the CPU
times mean nothing), process id, slot. Of a chunk: of the whole, and then of each item if any has failed."""

_RUN = struct.Struct("=Q")
_RECEIVED = {"Run": "view", "mmap": "file"}


class Account(
    namedtuple(
        "Account",
        "attempts bytes_in bytes_out sent received queue_wait encode run cpu_user cpu_system peak_rss slot pid output",
    )
):
    """What a task has cost; times in seconds, of its last attempt.

    Attributes:
        attempts: executions, from 1.
        bytes_in: encoded size of the arguments; of an item in a chunk, its share.
        bytes_out: encoded size of the result or error; 0 if its worker died.
        sent: how the arguments went: ``"row"`` (small, beside the task's data), ``"memory"`` (through shared memory) or
            ``"file"``.
        received: what the result is: a private ``"copy"``, a ``"view"`` into shared memory, or a mapped ``"file"``.
            None if there is none, because the worker died.
        queue_wait: from the moment it was ready to go until a worker began with it.
        encode: what ``submit`` took to encode the arguments. None for an item of a map.
        run: from there until its result was encoded, or its worker was dead. To 0.05 %.
        cpu_user, cpu_system: CPU time, also that of processes which it started and waited for. To about 1 ms; how the
            kernel divides it between the two is an estimate. None if it ran for less than 1 ms: nobody has looked.
        peak_rss: most bytes of memory that the worker had, as far as is known: the kernel's peak if it rose meanwhile,
            else what it had at the end; of a worker that died, the most it ever had. None as above.
        slot: number of the worker, from 0.
        pid: process id of the worker.
        output: what it printed, see ``capture_output`` of ``Pool``. None if that was not asked for.
    """

    __slots__ = ()
    attempts: int
    bytes_in: int
    bytes_out: int
    sent: str
    received: str | None
    queue_wait: float
    encode: float | None
    run: float
    cpu_user: float | None
    cpu_system: float | None
    peak_rss: int | None
    slot: int
    pid: int
    output: str | None


def run_us(facts: bytes) -> int:
    """Microseconds that a task, or the items of a chunk together, ran."""
    return int(_RUN.unpack_from(facts)[0]) // 1000


def account_of(
    attempt: int,
    flags: int,
    bytes_in: int,
    received: type | None,
    bytes_out: int,
    facts: bytes,
    item: int = 0,
    encode_ns: int | None = None,
    output: str | None = None,
) -> Account:
    """``received``: the type of the encoded result. ``item``: which of the facts are meant."""
    run, wait, user, system, resident, pid, slot = FACTS.unpack_from(facts, item * FACTS.size)
    sent = "file" if flags & codec.IN_FILE else "row" if bytes_in <= _core.INLINE else "memory"
    return Account(
        attempt,
        bytes_in,
        bytes_out,
        sent,
        None if received is None else _RECEIVED.get(received.__name__, "copy"),
        wait / 1e9,
        None if encode_ns is None else encode_ns / 1e9,
        run / 1e9,
        user / 1e9 if resident else None,
        system / 1e9 if resident else None,
        resident or None,
        slot,
        pid,
        "" if output is None and flags & _core.CAPTURE else output,
    )


def bytes_in(task: Task) -> int:
    """Encoded size of the arguments; of a chunk, of all its items."""
    data = task.data
    return data if type(data) is int else len(data) if type(data) is bytes else spill.length(data)


def account_in_map(
    task: Task, facts: bytes, k: int | None, data: Any, output: str | None = None, extra: int = 0
) -> Account:
    """Of the ``k``-th item of a chunk, or of a task by itself (None). ``data``: the encoded outcome, of which so many
    bytes (``extra``) are the output."""
    each, item = (bytes_in(task), 0) if k is None else (bytes_in(task) // task.items, k + 1)
    length = 0 if data is None else len(data) - extra
    received = None if data is None else type(data)
    return account_of(task.attempt, task.flags, each, received, length, facts, item, None, output)


__all__ = ["FACTS", "Account", "account_in_map", "account_of", "bytes_in", "run_us"]
