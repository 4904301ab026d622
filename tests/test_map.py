"""What `map`, `imap` and their forms promise: values, order, laziness, bounds, failures, nothing left behind."""

import itertools
import os
import signal
import threading
import time
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import processes
import pytest
import tasks

from pool import Failure, Pool, errors, map_run

pytestmark = [pytest.mark.timeout(60), pytest.mark.usefixtures("idle_afterwards")]
FORMS = ["imap", "imap_unordered"]


class Counted:
    """An endless input that knows how far it was read."""

    def __init__(self, end: int | None = None) -> None:
        self.read = 0
        self._end = end

    def __iter__(self) -> Iterator[int]:
        while self._end is None or self.read < self._end:
            self.read += 1
            yield self.read - 1


# ---- map


def test_map_gives_values_in_order_and_stops_at_the_shortest_input(pool: Pool) -> None:
    assert list(pool.map(tasks.add, range(1000), range(500))) == [2 * x for x in range(500)]
    assert list(pool.map(tasks.square, [])) == []
    assert list(pool.map(tasks.pid)) == []


@pytest.mark.parametrize("chunksize", [2, 7, 1000, 10**9])
def test_map_in_chunks_gives_the_same(pool: Pool, chunksize: int) -> None:
    assert list(pool.map(tasks.add, range(500), itertools.count(), chunksize=chunksize)) == [2 * x for x in range(500)]


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_reads_its_whole_input_before_it_returns(pool: Pool, chunksize: int) -> None:
    source = Counted(3000)
    results = pool.map(tasks.square, source, chunksize=chunksize)
    assert source.read == 3000
    assert list(results) == [x * x for x in range(3000)]


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_runs_everything_even_if_nobody_iterates(pool: Pool, tmp_path: Path, chunksize: int) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for _ in range(3):  # also when the collector thread is there and has nothing to do
        pool.map(tasks.touch, [str(folder)] * 3000, range(3000), chunksize=chunksize)  # more than there are rows
        processes.wait_until(lambda: pool._client.unfinished == 0, "all came back")
    assert len(list(folder.iterdir())) == 3000


@pytest.mark.parametrize("chunksize", [1, 4])
def test_map_with_buffersize_is_lazy_and_bounded(pool: Pool, chunksize: int) -> None:
    source = Counted()
    results = pool.map(tasks.square, source, buffersize=5, chunksize=chunksize)
    for x in range(40):
        assert next(results) == x * x
        assert source.read <= (x // chunksize + 1 + 5 + 1) * chunksize
    results.close()  # type: ignore[attr-defined]


def test_map_refuses_wrong_sizes_with_the_texts_of_the_standard_library(pool: Pool) -> None:
    with pytest.raises(ValueError, match=r"^chunksize must be >= 1.$"):
        pool.map(tasks.square, [1], chunksize=0)
    with pytest.raises(ValueError, match=r"^buffersize must be None or > 0$"):
        pool.map(tasks.square, [1], buffersize=0)
    with pytest.raises(TypeError, match=r"^buffersize must be an integer or None$"):
        pool.map(tasks.square, [1], buffersize="5")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be callable"):
        list(pool.map(5, [1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("chunksize", [1, 2])
def test_the_timeout_of_map_is_how_long_the_caller_waits(pool: Pool, gate: tasks.Gate, chunksize: int) -> None:
    results = pool.map(tasks.hold_if_first, [1, 1, 0, 1], [gate.path] * 4, timeout=2.0, chunksize=chunksize)
    assert [next(results), next(results)] == [1, 1]
    gate.await_start()
    with pytest.raises(TimeoutError) as caught:
        next(results)
    assert type(caught.value) is TimeoutError
    gate.open()


def test_map_raises_the_error_at_its_place_and_cancels_the_rest(pool: Pool, gate: tasks.Gate) -> None:
    results = pool.map(tasks.fail_if, [1, 2, 5, 6])
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(ValueError, match="5 is bad"):
        next(results)
    assert list(results) == []


@pytest.mark.parametrize("chunksize", [1, 10])
def test_an_abandoned_map_takes_back_what_has_not_started(pool: Pool, gate: tasks.Gate, chunksize: int) -> None:
    paths = [gate.path] * 3000
    results = pool.map(
        tasks.hold_if_first, itertools.chain([1] * chunksize, itertools.repeat(0)), paths, chunksize=chunksize
    )
    assert next(results) == 1
    gate.await_start(2)
    results.close()  # type: ignore[attr-defined]
    gate.open(2 * chunksize)  # what runs, or stands in a chunk that runs, goes on; no other


@pytest.mark.parametrize("closed", ["before", "afterwards"])
@pytest.mark.parametrize("end", ["returns", "raises", "crashes", "hangs", "killed at decoding", "fails at decoding"])
def test_however_a_chunk_of_an_abandoned_map_ends_nothing_is_left_to_wait_for(
    gate: tasks.Gate, end: str, closed: str
) -> None:
    pool = Pool(1, retries=2, timeout=0.5 if end == "hangs" else None)
    client = pool._client
    bad = tasks.Held(gate.path, "cannot be decoded") if end == "fails at decoding" else tasks.Held(gate.path, "")
    items = [0] * 4 + ([0, bad, 0, 0] if "decoding" in end else [0, 1, 0, 0]) + [0] * 4000  # more than there are rows
    results = pool.map(_end, items, itertools.repeat(gate.path), itertools.repeat(end), chunksize=4)
    assert next(results) == 0
    (worker,) = gate.await_start()  # at the second chunk
    if closed == "before":
        results.close()  # type: ignore[attr-defined]
        assert client.unfinished == 4  # what runs; the others were taken back
    if end == "killed at decoding":
        os.kill(worker, signal.SIGKILL)
    gate.open(3)  # for each attempt
    if closed == "afterwards":
        processes.wait_until(lambda: pool.crashes or client.unfinished < 3000, "it has ended")
        results.close()  # type: ignore[attr-defined]
    processes.wait_until(lambda: client.unfinished == 0, "nothing is unfinished")
    assert client.idle_or_closed()
    pool.shutdown()


def _end(item: int, path: str, end: str) -> int:
    if item:
        tasks.hold(path)
        if end == "raises":
            raise ValueError(item)
        if end == "crashes":
            tasks.die()
        if end == "hangs":
            tasks.sleep(1000)
    return item


@pytest.mark.parametrize("form", ["map", "map in chunks", "imap", "imap_unordered"])
def test_maps_drop_their_references_to_results_that_were_taken(pool: Pool, form: str) -> None:
    class Value:
        pass

    make = {
        "map": lambda: pool.map(lambda _: Value(), range(10)),
        "map in chunks": lambda: pool.map(lambda _: Value(), range(10), chunksize=3),
        "imap": lambda: pool.imap(lambda _: Value(), range(10)),
        "imap_unordered": lambda: pool.imap_unordered(lambda _: Value(), range(10)),
    }[form]
    last = None
    for value in make():
        assert isinstance(value, Value)
        assert last is None or last() is None
        last = weakref.ref(value)
        del value
        assert last() is None or form.startswith("imap")  # a generator may hold the one that it has just yielded


# ---- imap and its forms


@pytest.mark.parametrize("chunksize", ["auto", 1, 2, 5, 4096, 10**9])
@pytest.mark.parametrize("count", [0, 1, 100, 5000])
def test_imap_gives_values_in_order_and_unordered_gives_the_same_ones(
    pool: Pool, chunksize: int | str, count: int
) -> None:
    expected = [x * x for x in range(count)]
    assert list(pool.imap(tasks.square, range(count), chunksize=chunksize)) == expected
    assert sorted(pool.imap_unordered(tasks.square, range(count), chunksize=chunksize)) == expected


def test_starmap_forms_unpack_their_items(pool: Pool) -> None:
    pairs = [(x, x + 1) for x in range(50)]
    expected = [2 * x + 1 for x in range(50)]
    assert pool.starmap(tasks.add, pairs) == expected
    assert pool.starmap(tasks.add, pairs, chunksize=7) == expected
    assert list(pool.istarmap(tasks.add, iter(pairs))) == expected
    assert sorted(pool.istarmap_unordered(tasks.add, pairs)) == expected
    with pytest.raises(TypeError):
        pool.starmap(tasks.add, [1])


def test_imap_refuses_wrong_options_at_once(pool: Pool) -> None:
    for options, error in (
        ({"chunksize": 0}, ValueError),
        ({"chunksize": "many"}, TypeError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": 1.5}, TypeError),
        ({"on_error": "ignore"}, ValueError),
        ({"nonsense": 1}, TypeError),
    ):
        with pytest.raises(error):
            pool.imap(tasks.square, [1], **options)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be callable"):
        pool.imap(5, [1])  # type: ignore[arg-type]


@pytest.mark.parametrize("form", FORMS)
def test_imap_takes_an_endless_input(pool: Pool, form: str) -> None:
    results = getattr(pool, form)(tasks.identity, itertools.count())
    first = list(itertools.islice(results, 5000))
    assert form == "imap_unordered" or first == list(range(5000))
    results.close()


@pytest.mark.parametrize("chunksize", [1, "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_imap_reads_no_further_ahead_than_buffersize(pool: Pool, form: str, chunksize: int | str) -> None:
    source = Counted()
    results = getattr(pool, form)(tasks.identity, source, buffersize=10, chunksize=chunksize)
    assert source.read == 0
    for taken in range(1, 300):
        next(results)
        assert source.read <= taken + 10
    results.close()


def test_an_ordered_imap_whose_first_item_is_slow_is_bounded(pool: Pool, gate: tasks.Gate) -> None:
    source = Counted()
    results = pool.imap(_hold_first, ((x, gate.path) for x in source))
    first: list[int] = []
    reader = threading.Thread(target=lambda: first.append(next(results)))
    reader.start()
    gate.await_start()
    processes.wait_until(lambda: source.read > 1000, "it reads ahead")
    seen, since = source.read, time.monotonic()
    while time.monotonic() < since + 0.3:  # it has stopped reading
        if source.read != seen:
            seen, since = source.read, time.monotonic()
    assert seen <= 8192
    gate.open()
    reader.join()
    assert first == [0]
    assert list(itertools.islice(results, 6000)) == list(range(1, 6001))
    results.close()  # type: ignore[attr-defined]


def _hold_first(item: tuple[int, str]) -> int:
    return tasks.hold_if_first(*item)


@pytest.mark.parametrize("chunksize", [1, 3, "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_an_input_that_raises_half_way_delivers_what_came_before(pool: Pool, form: str, chunksize: int | str) -> None:
    def source() -> Iterator[int]:
        for x in range(250):
            yield x
            if x % 10 == 0:  # another iteration on the same pool meanwhile
                assert list(pool.imap(tasks.square, range(3))) == [0, 1, 4]
        raise LookupError("the input is broken")

    taken = []
    with pytest.raises(LookupError, match="the input is broken"):
        taken.extend(_collect(getattr(pool, form)(tasks.identity, source(), chunksize=chunksize), taken))
    assert sorted(taken) == list(range(250))


def _collect(results: Iterator[Any], into: list[Any]) -> list[Any]:
    for value in results:
        into.append(value)
    return []


@pytest.mark.parametrize("form", FORMS)
def test_an_abandoned_imap_takes_back_what_has_not_started(pool: Pool, form: str, gate: tasks.Gate) -> None:
    results = getattr(pool, form)(_hold_first, ((x, gate.path) for x in [1, *[0] * 500]), chunksize=1)
    assert next(results) == 1
    gate.await_start(2)
    del results
    client = pool._client
    processes.wait_until(lambda: sum(task is not None for task in client.tasks) == 2, "only the running ones are left")
    gate.open(2)


# ---- failures


@pytest.mark.parametrize("chunksize", [1, 7, "auto"])
@pytest.mark.parametrize("form", FORMS)
def test_on_error_says_what_becomes_of_a_failure(pool: Pool, form: str, chunksize: int | str) -> None:
    call = getattr(pool, form)
    good = [x for x in range(100) if x % 5]
    returned = list(call(tasks.fail_if, range(100), on_error="return", chunksize=chunksize))
    assert sorted(x for x in returned if not isinstance(x, Failure)) == good
    failures = [x for x in returned if isinstance(x, Failure)]
    assert sorted(f.index for f in failures) == list(range(0, 100, 5))
    for failure in failures:
        assert failure.item == failure.index
        assert isinstance(failure.error, ValueError)
        assert str(failure.error) == f"{failure.item} is bad"
        assert "tasks.py" in str(failure.error.__cause__)
    if form == "imap":
        assert [x.index if isinstance(x, Failure) else x for x in returned] == list(range(100))
    assert sorted(call(tasks.fail_if, range(100), on_error="skip", chunksize=chunksize)) == good
    with pytest.raises(ValueError, match="is bad"):
        list(call(tasks.fail_if, range(1, 100), chunksize=chunksize))


def test_a_failure_shows_its_item_index_and_error() -> None:
    assert repr(Failure("a.jpg", 3, ValueError("x"))) == "Failure(item='a.jpg', index=3, error=ValueError('x'))"


def test_a_failure_that_a_task_returns_is_a_value(pool: Pool) -> None:
    inner = list(pool.imap(_make_failure, range(3), chunksize=1))
    assert [f.index for f in inner] == [0, 1, 2]
    assert len(list(pool.imap_unordered(_make_failure, range(3), on_error="skip"))) == 3


def _make_failure(x: int) -> Failure:
    return Failure(x, x, ValueError(x))


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize(
    "bad", [tasks.Locked(), tasks.AtPickle("error"), tasks.Undecodable()], ids=["lock", "pickle", "unpickle"]
)
def test_an_item_that_cannot_travel_fails_alone_also_in_a_chunk(pool: Pool, bad: Any, chunksize: int) -> None:
    items = [1, 2, bad, 4, 5, 6]
    results = list(pool.imap(tasks.unless_bad, items, on_error="return", chunksize=chunksize))
    assert [x for x in results if not isinstance(x, Failure)] == [1, 2, 4, 5, 6]
    assert results[2].item is bad
    assert results[2].index == 2


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("how", ["c exit", "SEGV"])
def test_a_crash_costs_only_its_item(pool: Pool, how: str, chunksize: int) -> None:
    results = list(pool.imap(_misbehave_at_5, [(x, how) for x in range(10)], on_error="return", chunksize=chunksize))
    assert [x for x in results if not isinstance(x, Failure)] == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    error = results[5].error
    assert isinstance(error, errors.WorkerCrashed)
    assert "_misbehave_at_5" in str(error)
    assert f"(5, {how!r})" in error.args_repr


def _misbehave_at_5(item: tuple[int, str]) -> int:
    if item[0] == 5:
        tasks.misbehave(item[1])
    return item[0]


@pytest.mark.parametrize("chunksize", [1, 4])
def test_a_result_that_cannot_be_rebuilt_fails_alone(pool: Pool, chunksize: int) -> None:
    results = list(pool.imap(tasks.make_bad_result, range(6), on_error="return", chunksize=chunksize))
    assert results[1:] == [1, 2, 3, 4, 5]
    assert isinstance(results[0].error, errors.ResultNotPicklable)
    assert "make_bad_result" in str(results[0].error)


# ---- several at once


def test_imaps_nest_over_two_pools_and_over_one(pool: Pool) -> None:
    with Pool(1) as other:
        squares = other.imap(tasks.square, range(300))
        assert list(pool.imap(tasks.square, squares)) == [x**4 for x in range(300)]
    assert list(pool.imap(tasks.square, pool.imap(tasks.square, range(300)))) == [x**4 for x in range(300)]


def test_the_body_of_an_imap_may_submit(pool: Pool) -> None:
    futures = [pool.submit(tasks.square, x) for x in pool.imap(tasks.identity, range(500))]
    assert [future.result() for future in futures] == [x * x for x in range(500)]
    for x in pool.imap(tasks.identity, range(200)):
        assert pool.submit(tasks.square, x).result() == x * x


def test_two_imaps_of_one_thread_interleave(pool: Pool) -> None:
    first, second = pool.imap(tasks.identity, range(3000)), pool.imap(tasks.square, range(3000))
    assert list(zip(first, second, strict=True)) == [(x, x * x) for x in range(3000)]


@pytest.mark.parametrize("chunksize", [1, "auto"])
def test_imaps_of_many_threads_do_not_mix(pool: Pool, chunksize: int | str) -> None:
    results: dict[int, list[int]] = {}

    def run(number: int) -> None:
        results[number] = list(pool.imap(tasks.identity, range(number, 3000 + number), chunksize=chunksize))

    threads = [threading.Thread(target=run, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: list(range(number, 3000 + number)) for number in range(4)}


def test_shutdown_inside_an_imap_delivers_what_was_given_and_then_refuses() -> None:
    source, taken = Counted(), []
    pool = Pool(1)
    results = pool.imap(tasks.identity, source, chunksize=1)
    taken.append(next(results))
    pool.shutdown()
    with pytest.raises(errors.PoolClosed):
        _collect(results, taken)
    assert taken == list(range(source.read))


@pytest.mark.parametrize(
    ("flying", "rate", "nap"),
    [
        (200, 20_000.0, 0.002),  # tasks of 0.1 ms: forty at a time
        (700, 1_000_000.0, 0.000175),  # a quarter of what there is to do
        (200, 2_000_000.0, 0.0),  # so little that the workers could run dry
        (200, 800.0, 0.0),  # tasks of 2.5 ms: one will have come
        (7, 100_000.0, 0.0),  # the end of the map
        (200, 0.0, 0.0),  # nothing is known yet
    ],
)
def test_the_caller_looks_away_while_short_tasks_have_enough_to_do(flying: int, rate: float, nap: float) -> None:
    run: Any = types.SimpleNamespace(
        given=1000, flying=flying, _rate=rate, _looked=-1, client=types.SimpleNamespace(workers=2)
    )
    assert map_run.MapRun.nap(run) == pytest.approx(nap)
    assert map_run.MapRun.nap(run) == 0.0  # nothing has come since: they have become slow, and it must be woken
    run.flying -= 1
    assert map_run.MapRun.nap(run) == pytest.approx(nap, rel=0.02)
