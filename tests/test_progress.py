"""`progress=` of the maps, inputs that have nothing yet, the displays, and `worker()` in tasks."""

import importlib
import io
import itertools
import math
import os
import statistics
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

import processes
import pytest
import tasks

import pool as package
from pool import Failure, NotYet, Pool, Progress, errors, mapping, progress, ticker, worker
from pool.progress import bar_line, display, log_line

pytestmark = pytest.mark.timeout(60)
FORMS = ["imap", "imap_unordered"]


# ---- worker()


def _about(_: object = None) -> tuple[int, int, int, float | None, int]:
    me = worker()
    return me.slot, me.generation, me.attempt, me.deadline_left, os.getpid()


def test_a_task_knows_its_worker(pool: Pool) -> None:
    for about in pool.imap(_about, range(20), chunksize=1):
        slot, generation, attempt, left, pid = about
        assert pid == processes.worker_pids(pool)[slot]
        assert (generation, attempt, left) == (0, 1, None)
    left = pool.options(timeout=100).submit(_about).result()[3]
    assert left is not None
    assert 90 < left < 100


def _die_at_first() -> tuple[int, int]:
    if worker().attempt == 1:
        tasks.die()
    return worker().attempt, worker().generation


def test_a_task_knows_which_attempt_it_is_and_that_its_slot_had_another_worker() -> None:
    with Pool(1, retries=2) as pool:
        assert pool.submit(_die_at_first).result() == (2, 1)
        assert list(pool.imap(_fail_once, [1, 2, 3], chunksize=3)) == [2, 2, 2]


def _fail_once(_: int) -> int:
    if worker().attempt == 1:
        raise ValueError
    return worker().attempt


def _count(_: object = None) -> tuple[int, int]:
    state = worker().state
    state["count"] = state.get("count", 0) + 1
    return os.getpid(), state["count"]


def _prepare(count: int) -> None:
    worker().state["count"] = count


@pytest.mark.parametrize("workers", [0, 1])
def test_state_lives_as_long_as_the_worker_and_the_initializer_can_fill_it(workers: int) -> None:
    with Pool(workers, initializer=_prepare, initargs=(10,)) as pool:
        assert [count for _, count in pool.imap(_count, range(3), chunksize=1)] == [11, 12, 13]
        if workers:
            pool.submit(tasks.die).exception()
            assert pool.submit(_count).result()[1] == 11


def test_outside_of_a_task_there_is_no_worker() -> None:
    with pytest.raises(RuntimeError, match="outside of a task"):
        worker()
    with Pool(0) as pool:
        assert pool.submit(lambda: worker().slot).result() == 0
    with pytest.raises(RuntimeError, match="outside of a task"):
        worker()


def _in_a_thread() -> tuple[int, str]:
    seen: list[Any] = []

    def run() -> None:
        worker().progress(0.5)
        seen.append(worker().slot)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen[0], ""


def _in_a_child() -> tuple[int, str]:
    read, write = os.pipe()
    worker().progress(0.25)
    if os.fork() == 0:
        try:
            worker().progress(0.75)
            left = worker().deadline_left
            os.write(write, f"{worker().slot} {worker().attempt} {left is not None and left > 0}".encode())
        finally:
            os._exit(0)
    os.close(write)
    slot, _, rest = os.read(read, 100).decode().partition(" ")
    os.wait()
    return int(slot), rest


@pytest.mark.parametrize("workers", [0, 1])
def test_it_works_in_threads_of_a_task_and_in_children(workers: int) -> None:
    with Pool(workers, timeout=100) as pool:
        assert pool.submit(_in_a_thread).result() == (0, "")
        assert pool.submit(_in_a_child).result() == (0, "1 True")


def _own_pool() -> tuple[int, int, int]:
    worker().state["outer"] = True
    with Pool(0) as here:
        inner = here.submit(lambda: (len(worker().state), worker().attempt)).result()
    with Pool(1) as forked:
        other = forked.submit(_count).result()[1]
    return (*inner, other) if worker().state["outer"] else (-1, -1, -1)


def test_a_pool_in_a_task_has_workers_of_its_own() -> None:
    with Pool(1) as pool:
        assert pool.submit(_own_pool).result() == (0, 1, 1)


def test_pool_worker_is_the_function_whatever_is_imported() -> None:
    for module in ("pool.context", "pool.worker_process", "pool.monitor", "pool.progress"):
        importlib.import_module(module)
        assert package.worker is worker


@pytest.mark.parametrize("workers", [0, 1])
def test_progress_takes_numbers_only(workers: int) -> None:
    with Pool(workers) as pool:
        assert pool.submit(lambda: [worker().progress(x) for x in (1, 0.5, True, math.inf, math.nan)]).result()
        for wrong in ("half", None):
            with pytest.raises(TypeError):
                pool.submit(lambda x: worker().progress(x), wrong).result()


# ---- what a callable gets


def _tell_and_hold(path: str, x: float) -> None:
    worker().progress(x)
    tasks.hold(path)


def test_a_callable_is_called_while_the_map_only_waits_and_sees_what_the_tasks_say(
    pool: Pool, gate: tasks.Gate
) -> None:
    seen: list[Progress] = []
    opened: list[None] = []

    def note(p: Progress) -> None:
        seen.append(p)
        if not opened and p.memory and sum(len(p.parts) == 2 for p in seen) >= 20:
            opened.append(gate.open(2))

    calls = [(gate.path, 0.25), (gate.path, 7)]
    assert pool.starmap(_tell_and_hold, calls, chunksize=1, progress=note) == [None, None]
    full = next(p for p in seen if len(p.parts) == 2)
    assert sorted(x for _, x in full.parts) == [0.25, 7]
    assert sorted(slot for slot, _ in full.parts) == [0, 1]
    assert (full.busy, full.workers, full.done, full.total) == (2, 2, 0, 2)
    assert full.eta is None
    gaps = [b.elapsed - a.elapsed for a, b in itertools.pairwise(seen[:-1])]
    assert statistics.median(gaps) < 0.15  # 0.05, but for other programs
    assert seen[-1].memory > 1 << 20
    assert [p.ended for p in seen] == [False] * (len(seen) - 1) + [True]
    assert (seen[-1].done, seen[-1].total, seen[-1].eta) == (2, 2, 0)


def test_what_a_task_says_is_not_said_of_the_next_one(pool: Pool, gate: tasks.Gate) -> None:
    def note(p: Progress) -> None:
        if p.done == 4 and p.busy == 2:
            parts.append(p.parts)
            gate.open(2)

    def tell(x: int) -> None:
        if x < 4:
            worker().progress(x)
        else:
            tasks.hold(gate.path)

    parts: list[Any] = []
    list(pool.imap(tell, range(6), chunksize=1, buffersize=4, progress=note))
    assert parts
    assert set(parts) == {()}


class _Stop(Exception):
    pass


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("chunksize", [1, "auto"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("end", ["all", "abandoned", "raises", "stopped", "source raises"])
def test_the_last_call_is_made_once_however_the_map_ends(
    workers: int, chunksize: int | str, form: str, end: str
) -> None:
    seen: list[Progress] = []

    def note(p: Progress) -> None:
        seen.append(p)
        if end == "stopped":
            raise _Stop

    def source() -> Iterator[int]:
        for x in itertools.count(1):
            if end == "all" and x == 5000:
                return
            if end == "source raises" and x == 5000:
                raise LookupError
            yield x

    fn = tasks.fail_if if end == "raises" else tasks.identity
    with Pool(workers) as pool:
        results = getattr(pool, form)(fn, source(), chunksize=chunksize, progress=note)
        if end == "all":
            assert sorted(results) == list(range(1, 5000))
            assert (seen[-1].done, seen[-1].total) == (4999, 4999)
        elif end == "abandoned":
            assert next(results) in range(1, 100)
            results.close()
        else:
            with pytest.raises({"raises": ValueError, "stopped": _Stop, "source raises": LookupError}[end]):
                for _ in results:
                    pass
            assert (seen[-1].failed > 0) == (end == "raises")
        assert sum(p.ended for p in seen) == 1
        assert seen[-1].ended
        assert pool.submit(tasks.square, 3).result() == 9
        assert list(pool.imap(tasks.square, range(3))) == [0, 1, 4]


def test_a_last_call_that_raises_is_heard_if_nothing_else_has_raised(pool: Pool) -> None:
    def note(p: Progress) -> None:
        if p.ended:
            raise _Stop

    with pytest.raises(_Stop):
        list(pool.imap(tasks.identity, range(10), progress=note))
    assert pool.submit(tasks.square, 3).result() == 9


def test_a_map_that_is_never_iterated_calls_nobody(pool: Pool) -> None:
    seen: list[Progress] = []
    results = pool.imap(tasks.identity, range(10), progress=seen.append)
    del results
    assert seen == []


def test_failures_and_crashes_are_counted() -> None:
    seen: list[Progress] = []
    with Pool(2) as pool:
        pool.submit(tasks.die).exception()  # not the map's
        for on_error in ("return", "skip"):
            results = list(
                pool.imap(_misbehave, range(60), chunksize=6, on_error=on_error, progress=seen.append)  # type: ignore[arg-type]
            )
            last = seen[-1]
            assert (last.done, last.total, last.failed, last.crashes) == (60, 60, 6 + 3 + 3, 3)
            if on_error == "return":
                assert sum(isinstance(x, Failure) for x in results) == last.failed
        list(pool.options(retries=1).imap(_die_first, range(3), progress=seen.append))
        assert (seen[-1].done, seen[-1].failed, seen[-1].crashes) == (3, 0, 3)


def _misbehave(x: int) -> Any:
    if x % 10 == 5:
        raise ValueError(x)
    if x % 20 == 7:
        tasks.die()
    return tasks.BadResult() if x % 20 == 11 else x  # which the client cannot rebuild


def _die_first(x: int) -> None:
    if worker().attempt == 1:
        tasks.die()


class _BadLength:
    def __iter__(self) -> Iterator[int]:
        return iter([1, 2])

    def __length_hint__(self) -> int:
        raise ZeroDivisionError


class _WrongLength(_BadLength):
    def __length_hint__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("items", "first", "last"),
    [
        ([1, 2], 2, 2),
        ([], 0, 0),
        (iter([1, 2]), 2, 2),
        ((x for x in [1, 2]), None, 2),
        (_BadLength(), None, 2),
        (_WrongLength(), 1, 2),
    ],
)
def test_total_is_the_length_of_the_input_or_what_it_was_in_the_end(
    pool: Pool, items: Any, first: int | None, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Progress] = []
    totals: list[int | None] = []
    make = mapping._ticker

    def spy(*args: Any) -> Any:
        ticker = make(*args)
        totals.append(ticker.total)
        return ticker

    monkeypatch.setattr(mapping, "_ticker", spy)
    list(pool.imap(tasks.identity, items, progress=seen.append))
    assert (totals, seen[-1].total, seen[-1].done) == ([first], last, last)


def test_progress_is_refused_at_once_if_it_cannot_be_called(pool: Pool) -> None:
    with pytest.raises(TypeError, match="progress must be True, False or a callable, not 'bar'"):
        pool.imap(tasks.identity, [1], progress="bar")  # type: ignore[arg-type]


def test_a_slow_body_and_a_slow_input_do_not_keep_the_calls_away(pool: Pool) -> None:
    """Results that lie there, and items that could be read, do not come before a call that is due."""
    clock = time.monotonic
    seen: list[Progress] = []

    def spin(seconds: float) -> None:
        end = clock() + seconds
        while clock() < end:
            pass

    for n, _ in enumerate(pool.imap_unordered(tasks.identity, range(300), chunksize=50, progress=seen.append)):
        if n > 200:
            spin(0.01)
    assert len(seen) >= 8  # in one second, while all results are there

    def slow() -> Iterator[int]:
        for x in range(30):
            spin(0.03)
            yield x

    seen.clear()
    assert len(list(pool.imap(tasks.identity, slow(), chunksize=30, progress=seen.append))) == 30
    assert len(seen) >= 8


def test_the_rate_is_that_of_late_and_at_the_end_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(ticker, "time", types.SimpleNamespace(monotonic=lambda: now))
    client = types.SimpleNamespace(
        at_work=lambda: (1, ()), processes=list, workers=2, segment=None, tell_terminal=lambda path: None
    )
    run: Any = types.SimpleNamespace(client=client, given=0, flying=0, failed=0, crashes=0)
    seen: list[Progress] = []
    it = ticker.Ticker(run, seen.append, 10_000)
    for step in range(1, 1001):  # 100 s: first 10 items a second, then 40
        now = step / 10
        run.given += 1 if step <= 500 else 4
        it.look(run.given)
    assert seen[499].rate == pytest.approx(10, rel=0.1)
    assert seen[999].rate == pytest.approx(40, rel=0.1)
    assert seen[999].eta == pytest.approx((10_000 - 2500) / 40, rel=0.1)
    it.end()
    assert seen[-1].rate == pytest.approx(2500 / 100)
    assert seen[-1].ended


# ---- inputs that have nothing yet


class Lines:
    """Numbers from a pipe, one a line; NotYet while there is none."""

    def __init__(self) -> None:
        read, self.write_fd = os.pipe()
        os.set_blocking(read, False)
        self.file = os.fdopen(read, "rb", buffering=0)
        self.dry = 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> int:
        line = self.file.read(2)
        if line is None:
            self.dry += 1
            raise NotYet
        if line == b".\n":
            raise StopIteration
        return int(line)

    def give(self, x: int | str) -> None:
        os.write(self.write_fd, f"{x}\n".encode())

    def end(self) -> None:  # not the end of the file: workers have inherited the pipe
        self.give(".")

    def close(self) -> None:
        self.file.close()
        os.close(self.write_fd)


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_out_while_the_input_has_nothing(
    workers: int, chunksize: int | str, form: str, lines: Lines
) -> None:
    with Pool(workers) as pool:
        results = getattr(pool, form)(tasks.square, lines, chunksize=chunksize)
        for x in range(5):  # one at a time: each is given to a worker before the next one is there
            lines.give(x)
            assert next(results) == x * x
        for x in range(5, 8):
            lines.give(x)
        lines.end()
        assert sorted(results) == [25, 36, 49]
        assert lines.dry or not workers


@pytest.mark.parametrize("workers", [0, 2])
def test_the_calls_go_on_while_the_input_has_nothing(workers: int, lines: Lines) -> None:
    ticks = 0

    def note(p: Progress) -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 10:
            lines.give(3)
            lines.end()

    with Pool(workers) as pool:
        assert list(pool.imap(tasks.square, lines, progress=note)) == [9]
    assert ticks > 10
    assert lines.dry > 3


def test_an_input_that_has_nothing_is_asked_at_leisure(pool: Pool, lines: Lines) -> None:
    began = time.monotonic()
    calls = itertools.count(1)

    def note(p: Progress) -> None:
        if next(calls) == 5:
            lines.end()

    assert list(pool.imap(tasks.square, lines, progress=note)) == []
    assert 2 <= lines.dry <= (time.monotonic() - began) / 0.01  # every 20 ms, and after each call


class _Shares:
    """Gives a handle that nobody else holds, and then has nothing until its task has ended."""

    def __init__(self, gate: tasks.Gate) -> None:
        self.gate = gate
        self.asked = 0

    def __iter__(self) -> "_Shares":
        return self

    def __next__(self) -> Any:
        self.asked += 1
        if self.asked == 1:
            return (Pool.share(b"x" * 100_000), self.gate.path)
        if self.asked < 5:
            raise NotYet
        if self.asked == 5:
            self.gate.open()
        raise StopIteration


@pytest.mark.parametrize("chunksize", [1, 2])
def test_what_was_read_before_nothing_came_keeps_its_shared_objects(
    pool: Pool, gate: tasks.Gate, chunksize: int
) -> None:
    blocker = pool.submit(tasks.hold, gate.path)  # both workers are busy: the item is decoded later
    other = pool.submit(tasks.hold, gate.path)
    gate.await_start(2)
    results = pool.imap(_length_after, _Shares(gate), chunksize=chunksize)
    gate.open(2)
    assert list(results) == [100_000]
    assert blocker.result() is other.result() is None


def _length_after(item: tuple[bytes, str]) -> int:
    return len(item[0])


def test_an_input_that_has_nothing_when_the_pool_closes(lines: Lines) -> None:
    with Pool(1) as pool:
        results = pool.imap(tasks.square, lines)
        lines.give(1)
        assert next(results) == 1
        pool.shutdown()
        with pytest.raises(errors.PoolClosed):
            next(results)


# ---- the text


FULL = Progress(
    done=820, total=2000, failed=1, crashes=1, elapsed=5.0, rate=163.2, eta=6.5, busy=2, workers=2, memory=312 << 20,
    parts=((0, 0.35), (1, 0.8)),
)  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            120,
            " 41%  ━━━━━━━━────────────  820/2,000  163/s  eta 7 s  2/2 busy  1 failed  1 crash  312 MiB"
            "  [0: 35 %, 1: 80 %]",
        ),
        (100, " 41%  ━━━━──────  820/2,000  163/s  eta 7 s  2/2 busy  1 failed  1 crash  [0: 35 %, 1: 80 %]"),
        (80, " 41%  ━━━━──────  820/2,000  163/s  eta 7 s  2/2 busy  1 failed  1 crash"),
        (40, " 41%  820/2,000  1 failed  1 crash"),
        (16, " 41%  820/2,000"),
        (15, "820/2,000"),
        (8, "820/2,0"),
    ],
)
def test_a_bar_says_what_matters_most_in_the_room_there_is(columns: int, line: str) -> None:
    assert bar_line(FULL, columns) == line
    assert len(line) < columns


@pytest.mark.parametrize("columns", range(5, 200))
def test_no_bar_is_as_wide_as_the_terminal(columns: int) -> None:
    many = tuple((slot, slot) for slot in range(99))
    for label in (None, "thumbnails", "図" * 10):
        for p in (FULL, FULL._replace(done=10**12, total=10**12, parts=many), Progress()):
            line = bar_line(p, columns, label)
            assert sum(2 if c == "図" else 1 for c in line) < columns
            assert "\033" not in line


def test_bars_without_total_without_unicode_in_colours_and_at_the_end() -> None:
    assert bar_line(FULL._replace(total=None, eta=None, parts=()), 80) == (
        "820 items  163/s  5.0 s  2/2 busy  1 failed  1 crash  312 MiB"
    )
    assert bar_line(FULL, 80, unicode=False).startswith(" 41%  ####......  820/2,000")
    coloured = bar_line(FULL, 80, colours=True)
    assert "\033[31m1 failed\033[m  \033[31m1 crash\033[m" in coloured
    assert "\033[36m━━━━\033[m\033[2m──────\033[m" in coloured
    ended = FULL._replace(ended=True, done=2000, eta=0.0, elapsed=75.0, failed=0, crashes=2)
    assert bar_line(ended, 80) == "100%  ━━━━━━━━━━  2,000/2,000  163/s  in 1 min 15 s  2 crashes  312 MiB"
    assert bar_line(FULL._replace(before=6000), 80).startswith(" 85%  ━━━━━━━━╸─  6,820/8,000")
    assert bar_line(FULL, 80, "photos").startswith("photos   41%")
    assert log_line(FULL) == (
        "820 of 2,000 (41%), 163/s, eta 7 s, 2/2 busy, 1 failed, 1 crash, 312 MiB, [0: 35 %, 1: 80 %]"
    )
    assert log_line(ended) == "2,000 of 2,000 (100%), 163/s, in 1 min 15 s, 2 crashes, 312 MiB"
    assert log_line(Progress(workers=2)) == "0 items, 0.0 s, 0/2 busy"


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (((0, 0.5),), "[0: 50 %]"),
        (((3, 1500.0), (4, 2.5)), "[3: 1,500, 4: 2.5]"),
        (((0, math.inf),), "[0: inf]"),
        (tuple((slot, slot / 10) for slot in range(10)), "[10 tasks: 45 % on average]"),
        ((), ""),
    ],
)
def test_what_running_tasks_say_is_shown_or_its_mean(parts: Any, text: str) -> None:
    assert progress.parts_text(Progress(parts=parts), 100) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, ""), (25_000, "25,000/s"), (2.44, "2.4/s"), (0.5, "30/min"), (0.02, "1.2/min"), (0.01, "36.0/h")],
)
def test_rates_are_read_easily(rate: float, text: str) -> None:
    assert bar_line(Progress(rate=rate, workers=1), 80).split("  ")[1:-2] == [text] * bool(text)


# ---- displays


def test_elsewhere_there_is_a_line_a_minute_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now))
    out = io.StringIO()
    with display(stream=out, label="photos") as show:
        for _ in range(1800):  # three minutes
            now += 0.1
            show(FULL)
        assert out.getvalue().count("\n") == 2
        show(FULL._replace(ended=True))
        assert out.getvalue().count("\n") == 3
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[0] == f"photos: {log_line(FULL)}"
    assert lines[2] == f"photos: {log_line(FULL._replace(ended=True))}"


def test_a_display_knows_a_total_that_the_map_does_not() -> None:
    out = io.StringIO()
    with display(100, stream=out) as show:
        show(Progress(done=50, rate=10.0, elapsed=5.0, workers=2))  # and the block ends it
    assert out.getvalue() == "pool: 50 of 100 (50%), 10/s, in 5.0 s\n"


def test_nothing_is_shown_where_that_is_wanted_or_nobody_could_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    with display(kind="none", stream=out) as show:
        show(FULL._replace(ended=True))
    assert out.getvalue() == ""
    out.close()
    with display(kind="log", stream=out) as show:  # the stream is closed: the map does not care
        show(FULL._replace(ended=True))
    monkeypatch.setattr(sys, "stderr", None)
    with display() as show:
        show(FULL._replace(ended=True))
    with pytest.raises(ValueError, match='kind must be "auto", "bar", "log" or "none"'):
        display(kind="plain")  # type: ignore[arg-type]


def test_true_shows_it_on_stderr(pool: Pool, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(pool.imap(tasks.square, range(3), progress=True)) == [0, 1, 4]
    assert capsys.readouterr().err.startswith("pool: 3 of 3 (100%), ")


def test_a_notebook_gets_an_output_that_changes_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for IPython; a real kernel was looked at by hand."""
    shown: list[Any] = []

    class Handle:
        def update(self, data: Any, raw: bool) -> None:
            shown.append(("update", data["text/plain"], raw))

    def show(data: Any, raw: bool, display_id: bool) -> Handle:
        shown.append(("display", data["text/plain"], raw and display_id))
        return Handle()

    module = types.ModuleType("IPython.display")
    module.display = show  # type: ignore[attr-defined]
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    for _ in range(2):
        with display() as show_it:
            show_it(FULL)
            show_it(FULL)  # too soon
            show_it(FULL._replace(ended=True))
    assert [(how, flag) for how, _, flag in shown] == [("display", True), ("update", True)] * 2
    assert shown[0][1] == bar_line(FULL, 100)
    ipython.get_ipython = lambda: types.SimpleNamespace()  # type: ignore[attr-defined]  # IPython in a terminal
    assert isinstance(display(stream=io.StringIO()), progress.Log)


def _kind_of_display() -> str:
    return type(display()).__name__


def test_a_task_that_shows_progress_itself_leaves_the_terminal_to_the_client(pool: Pool) -> None:
    assert pool.submit(_kind_of_display).result() == "Log"
