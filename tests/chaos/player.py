"""Plays a plan: the client process of an episode. What it is told goes into files; judging them is the oracle's.

``python -m chaos.player FOLDER`` reads ``plan.json`` there and writes, line by line,

``outcomes``
    ``batch {...}`` what is given next · ``end NUMBER NS OUTCOME DETAIL`` how a task has ended, and when that was told ·
    ``death NUMBER PID NS WHY`` an attempt that ended with its worker, as it was settled (``-``: of a task without a
    number) · ``decoding PID NS`` the same before a chunk's first item · ``cancelled NUMBER NS`` it will not begin ·
    ``asked NUMBER`` it was to be killed · ``refused FIRST COUNT ERROR`` of that batch the last so many were not taken
``kills``
    ``PID NS STATE``, with the time before the signal; whoever kills from outside writes it too
``final.json``
    what there is to see of the pool when everything has ended. It is missing if the player was to be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import itertools
import json
import multiprocessing
import operator
import os
import random
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any
from unittest import mock

import processes
from tasks import SlowToDecode

from chaos import work
from chaos.killer import Killer
from chaos.observer import UNSEEN
from chaos.plan import HARMLESS, MANY, SHIPPED, Plan, batch
from chaos.witness import Witness, listening
from ipc import _core, segment
from pool import Failure, Pool, errors, retry
from pool.futures import Future

DECODING_SECONDS = 0.003  # of one item of a chunk that is slow to decode: such a chunk is decoded longer than it runs
WINDOW = 1500  # futures that nobody has asked for yet: more than there are rows
MOST_KILLED = 20  # futures of one event
MORE_ROUNDS, MORE_TASKS = 20, 100  # at most, if no kill has met a worker in some state
_NAMES = {
    errors.TaskTimeout: "late", errors.MemoryLimitExceeded: "memory", errors.TaskKilled: "killed",
    errors.PoolBroken: "broken", errors.PoolClosed: "broken", errors.SegmentCorrupt: "corrupt",
    errors.ResultNotPicklable: "corrupt", CancelledError: "cancelled", ValueError: "raised",
}  # fmt: skip


class Player:
    """One episode. Each event of a plan is a method."""

    def __init__(self, folder: str, plan: Plan, hang: float) -> None:
        self.plan = plan
        self.folder = folder
        self.hang = hang
        self.lucky = random.Random(plan.seed)
        self.ledger = os.path.join(folder, "ledger")
        self.pending: deque[tuple[int, Future]] = deque()
        self._outcomes = open(os.path.join(folder, "outcomes"), "a", 1 << 16)  # noqa: SIM115 - as long as we live
        self._kills = open(os.path.join(folder, "kills"), "a", 1)  # noqa: SIM115
        signal.signal(signal.SIGUSR1, lambda *_: None)
        marker = os.path.basename(folder)
        self.files = len(processes.open_files())
        self.pool = Pool(
            plan.workers, multiprocessing.get_context(plan.start_method),
            initializer=work.open_ledger, initargs=(self.ledger, marker), name=marker,
            max_tasks_per_child=plan.tasks_per_worker or None, teardown=work.leave,
        )  # fmt: skip
        with contextlib.ExitStack() as stack:
            if plan.units:
                room = plan.units * _core.UNIT_SIZE
                stack.enter_context(mock.patch.object(segment, "default_room", return_value=room))
            self.pool.start()
        # For the last loop that was closed the pool keeps a descriptor until the next one comes.
        assert asyncio.run(self.pool.run(int, "7")) == 7
        self.witness = Witness(self.pool, plan.workers, hang)
        self.renewals = 0
        self.signalled: list[int] = []  # workers, with what is deadly unless it was ignored while they started
        self.killer = Killer(os.getpid(), plan.kill_every, plan.seed, self._killed)

    # ---- notes

    def note(self, *words: object) -> None:
        self._outcomes.write(" ".join(map(str, words)) + "\n")

    def _killed(self, pid: int, now: int, state: str) -> None:
        self._kills.write(f"{pid} {now} {state}\n")

    def _end(self, number: int, outcome: object) -> None:
        """The end of a task: its value, or its error."""
        now = time.monotonic_ns()
        if not isinstance(outcome, BaseException):
            self.note("end", number, now, "value", work.digest(outcome))
        elif isinstance(outcome, errors.WorkerCrashed):
            self.note("end", number, now, "crashed", outcome.args_repr)
        else:
            name = next((name for kind, name in _NAMES.items() if isinstance(outcome, kind)), "other")
            self.note("end", number, now, name, json.dumps(f"{type(outcome).__name__}: {outcome}"))

    # ---- events

    def play(self) -> dict[str, Any]:
        with listening(self.note):
            self._load()
        self._outcomes.flush()
        return self._final()

    def _load(self) -> None:
        plan = self.plan
        if plan.kill_every and not plan.outside:
            self.killer.start()
        try:
            with self.pool:
                if plan.outside:
                    _agree(BEGIN)
                for event in plan.events:
                    getattr(self, event.what.replace(" ", "_"))(**event.details)
                    if plan.profile != "rogue":
                        self.witness.look()
                if plan.hunt and not plan.outside:
                    self._hunt()
                if plan.end == "shutdown":
                    self._collect(0)
                    self.killer.stop()
                    if plan.outside:
                        _agree(REST)
                    processes.await_deaths(self.signalled, 1.0)
                    sound = plan.profile != "rogue"
                    self.seen = self.witness.at_rest(self.renewals, sound)
                else:
                    getattr(self, "end_by_" + plan.end)()
        except KeyboardInterrupt:
            if plan.end != "interrupt":
                raise
        finally:
            self.killer.stop()
        self._collect(0)

    def _hunt(self) -> None:
        """Small rounds until kills have met workers in every state."""
        self.killer.hunting = True
        first = max(e.details["first"] + e.details["count"] for e in self.plan.events if "first" in e.details)
        for way in itertools.islice(itertools.cycle(("submit", "chunks", "imap", "slow chunks")), 4 * MORE_ROUNDS):
            if not self.killer.missed():
                return
            self.batch(**batch(way, first, MORE_TASKS, retries=MANY).details)
            first += MORE_TASKS

    def batch(self, way: str, first: int, count: int, mix: str, retries: int, **options: Any) -> list[int]:
        numbers = work.numbers(first, count, mix)
        known = {"way": way, "first": first, "count": count, "mix": mix, "retries": retries, **options}
        self.note("batch", json.dumps({**known, "ns": time.monotonic_ns()}))
        pool: Any = self.pool.options(retries=retries, **options)
        source = iter(numbers)
        try:
            if way == "submit":
                for number in source:
                    self.pending.append((number, pool.submit(work.execute, number)))
                    self._collect(WINDOW)
                return numbers
            if way == "run":
                asyncio.run(self._run_all(pool, numbers))
                return numbers
            if way == "map":
                for number, value in zip(numbers, pool.map(work.execute, source), strict=True):
                    self._end(number, value)
                return numbers
            if way == "amap":
                asyncio.run(self._iterate(pool, numbers, source))
                return numbers
            function: Any = SlowToDecode(work.execute, DECODING_SECONDS) if way == "slow chunks" else work.execute
            chunksize = {"imap": 1, "chunks": 8, "slow chunks": 4}[way]
            results = pool.imap(function, source, chunksize=chunksize, on_error="return")
            for number, result in zip(numbers, results, strict=True):
                self._end(number, result.error if isinstance(result, Failure) else result)
        except errors.PoolBroken as error:
            if self.plan.end == "shutdown":
                raise
            left = operator.length_hint(source) + (way == "submit")  # a map has taken what it has accepted
            self.note("refused", first, left, type(error).__name__)
        return numbers

    async def _run_all(self, pool: Any, numbers: list[int]) -> None:
        async def one(number: int) -> None:
            try:
                outcome = await pool.run(work.execute, number)
            except (Exception, CancelledError) as error:
                outcome = error
            self._end(number, outcome)

        await asyncio.gather(*map(one, numbers))

    async def _iterate(self, pool: Any, numbers: list[int], source: Iterator[int]) -> None:
        rest = iter(numbers)
        async for result in pool.amap(work.execute, source, on_error="return"):
            self._end(next(rest), result.error if isinstance(result, Failure) else result)
        assert next(rest, None) is None

    def _collect(self, most: int) -> None:
        while len(self.pending) > most:
            number, future = self.pending.popleft()
            try:
                error = future.exception(self.hang)
            except CancelledError as cancelled:
                error = cancelled
            self._end(number, future.result() if error is None else error)

    def cancel(self, first: int, count: int, share: float, retries: int) -> None:
        self.batch("submit", first, count, "plain", retries)
        for number, future in list(self.pending)[-count:]:
            if self.lucky.random() < share and future.cancel():
                self.note("cancelled", number, time.monotonic_ns())

    def kill_futures(self, first: int, count: int, share: float, retries: int) -> None:
        self.batch("submit", first, count, "plain", retries)
        for number, future in self.lucky.sample(list(self.pending)[-count:], min(MOST_KILLED, int(count * share))):
            processes.wait_until(lambda f=future: f.done() or f.running(), "it runs", self.hang)  # type: ignore[misc]
            if future.kill():
                self.note("asked", number)

    def signal(self, who: str, number: int, chance: float) -> None:
        pid = {"client": os.getpid, "monitor": lambda: processes.monitor_pid(self.pool)}.get(
            who, self._a_worker(chance)
        )()
        if pid:
            self._send(pid, number)

    def kill_all(self) -> None:
        for pid in processes.worker_pids(self.pool):
            self._send(pid, signal.SIGKILL)

    def stop_monitor(self, first: int, count: int, chance: float) -> None:
        """Deaths meanwhile are noticed by nobody."""
        self._stop(processes.monitor_pid(self.pool), first, count, self._a_worker(chance)())

    def stop_worker(self, first: int, count: int, chance: float) -> None:
        """A worker that stands still, not dead, is no reason to do anything twice."""
        self._stop(self._a_worker(chance)(), first, count, 0)

    def _stop(self, pid: int, first: int, count: int, victim: int) -> None:
        if not pid:
            return
        self._collect(WINDOW - count)  # for nothing can be waited for while it stands still
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            processes.wait_until(
                lambda: processes.is_stopped(pid) or not processes.runs(pid), "it is stopped", self.hang
            )
        try:
            if victim:
                self._send(victim, signal.SIGKILL)
            self.batch("submit", first, count, "plain", MANY)
        finally:
            self.note("continued", pid)  # perhaps between the killer's look at it and its death
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def restart(self) -> None:
        self.pool.restart(wait=False)
        self.renewals += 1

    def load(self, first: int, count: int, seen: float) -> None:
        """The last load before a bad end: tasks are given, and so many (a share of them) have begun."""
        before = self._begun()
        self.batch("submit", first, count, "plain", 0)
        self._outcomes.flush()
        enough = before + count * seen * 2 / 3  # some may be killed before they have begun
        processes.wait_until(lambda: self._begun() > enough, "tasks run", self.hang)

    def _begun(self) -> int:
        """So many executions."""
        with open(self.ledger, "rb") as file:
            return file.read().count(b" run ")

    def hidden(self) -> None:
        """A task has hidden four processes."""
        processes.wait_until(lambda: os.path.exists(self.ledger + ".hidden"), "they are hidden", self.hang)

    def _a_worker(self, chance: float) -> Callable[[], int]:
        pids = processes.worker_pids(self.pool)
        return lambda: pids[int(chance * len(pids))] if pids else 0

    def _send(self, pid: int, number: int) -> None:
        now, is_worker = time.monotonic_ns(), pid in processes.worker_pids(self.pool)  # it may be replaced at once
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            if number not in HARMLESS and is_worker:
                self._killed(pid, now, UNSEEN)
                self.signalled.append(pid)

    # ---- ends

    def end_by_client(self) -> None:
        self._outcomes.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    def end_by_monitor(self) -> None:
        os.kill(processes.monitor_pid(self.pool), signal.SIGKILL)
        self._collect(0)

    def end_by_terminate(self) -> None:
        self.pool.terminate_workers()

    def end_by_interrupt(self) -> None:
        signal.raise_signal(signal.SIGINT)

    # ---- at rest

    seen: dict[str, Any] = {}  # noqa: RUF012 - nothing to see after a bad end

    def _final(self) -> dict[str, Any]:
        return {
            "unfinished": self.pool._client.unfinished,
            "files left": _left(self.files + 2),  # ours: outcomes and kills
            "missed": self.killer.missed() if self.plan.hunt else [],
            "falls": self.witness.falls,
            **self.seen,
        }


BEGIN, REST = "begin", "rest"


def _agree(word: str) -> None:
    """Tell whoever kills from outside that it may begin, or must rest, and wait for the answer."""
    print(word, flush=True)
    sys.stdin.readline()


def _left(files: int) -> list[str]:
    """What is open, if that is more than so many files."""
    with contextlib.suppress(AssertionError):
        processes.wait_until(lambda: len(processes.open_files()) <= files, "files are closed", 2)
        return []
    return sorted(processes.open_files().values())


def _arrays(folder: str, plan: Plan) -> dict[str, Any]:
    from chaos import arrays  # numpy only for these

    files = len(processes.open_files())
    seen = arrays.storm(plan.events[0].details["kills"], plan.seed, folder)
    return {"files left": _left(files), "missed": [], **seen}


def main(folder: str, hang: float) -> None:
    faulthandler.dump_traceback_later(2 * hang, exit=True)  # a hang is a failure
    signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs in a shell's background has it ignored
    with open(os.path.join(folder, "plan.json")) as file:
        plan = Plan.of(file.read())
    if plan.most_crashes != SHIPPED:
        retry.MOST_CRASHES = plan.most_crashes
    began = time.monotonic()
    final = _arrays(folder, plan) if plan.profile == "arrays" else Player(folder, plan, hang).play()
    final["seconds"] = round(time.monotonic() - began, 3)
    with open(os.path.join(folder, "final.json"), "w") as file:
        json.dump(final, file)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
