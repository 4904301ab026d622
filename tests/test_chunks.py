"""Chunks of numbers and short strings, which take no step in Python between two items: they must be what they would be
with pickle, and as exact as one by one when something goes wrong."""

import math
import os
import pickle
import signal
import struct
from typing import Any

import pytest
import tasks
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_images import Image, claim

from ipc import _core
from pool import Failure, Pool, errors

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**65), 2**65)
    | st.sampled_from([n + d for n in (0, 2**8, 2**16, 2**31, -(2**31), 2**63, -(2**63)) for d in (-1, 0, 1)])
    | st.floats()
    | st.text(max_size=300)
    | st.text(st.characters(), max_size=3)  # with lone surrogates
    | st.binary(max_size=300)
)


def same(a: Any, b: Any) -> bool:
    """Also NaN, the sign of zero, and the type."""
    if type(a) is float and type(b) is float:
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and bool(a == b)


@pytest.fixture(scope="module")
def pool() -> Any:
    with Pool(2) as made:
        yield made


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(SCALARS | st.tuples(SCALARS) | st.lists(SCALARS, max_size=2), max_size=40), st.integers(2, 9))
@example(["x" * 255, "x" * 256, "ä" * 127, "ä" * 128, b"x" * 255, b"x" * 256, "\ud800", 2**63 - 1, 2**63, -0.0], 5)
def test_values_come_back_as_they_were(pool: Pool, values: list[Any], chunksize: int) -> None:
    came = list(pool.imap(tasks.identity, values, chunksize=chunksize))
    assert len(came) == len(values)
    for a, b in zip(came, values, strict=True):
        assert same(a, b) or repr(a) == repr(b)


@settings(max_examples=300, deadline=None)
@given(st.lists(SCALARS.map(lambda x: pickle.dumps(x, 5)) | st.binary(max_size=270), min_size=1, max_size=5))
@example([b"\x80\x05K."])
@example([b"\x80\x05\x8c\xffx."])
@example([b"\x80\x05\x8c\x02\xff\xfe."])
@example([b"\x80\x05C\x00."])
@example([b"\x80\x05NN."])
def test_whatever_a_chunk_holds_is_handed_over_as_bytes_or_as_what_pickle_makes_of_it(results: list[bytes]) -> None:
    image = Image()
    worker = image.worker()
    image.publish("chunk", items=len(results))
    claim(worker)
    _core.begin_items(worker)
    for data in results:
        assert _core.commit(worker, 0, data) == 0
    (entry,) = image.collect()
    data = entry[2]
    if type(data) is list:
        assert data == [part for result in results for part in (0, result)]
    else:
        assert len(data) == len(results)
        assert all(same(value, pickle.loads(result)) for value, result in zip(data, results, strict=True))
    assert image.at_rest()
    image.bytes.close()
    image.segment.close()


def misbehave(x: Any) -> Any:
    """Every 7th item does something else than to return a number."""
    if x % 7 == 3:
        how = x // 7 % 5
        if how == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if how == 1:
            raise ValueError(x)
        if how == 2:
            return [x]
        if how == 3:
            return lambda: x
        if os.fork() == 0:
            return x  # the child: it must not go on with our chunk
        os.wait()
    return x


@pytest.mark.parametrize("chunksize", [2, 10, 64, 500])
@pytest.mark.parametrize("form", ["imap", "imap_unordered"])
def test_each_item_is_exact_whatever_its_neighbours_do(form: str, chunksize: int) -> None:
    with Pool(2) as pool:
        results = getattr(pool, form)(misbehave, range(500), chunksize=chunksize, on_error="return")
        came = list(results)
    if form == "imap_unordered":
        came.sort(key=_number)
    for x, result in enumerate(came):
        assert _number(result) == x
        if x % 7 != 3 or x // 7 % 5 == 4:
            assert result == x
        elif isinstance(result, Failure):
            assert type(result.error) is (errors.WorkerCrashed if x // 7 % 5 == 0 else ValueError)
    assert len(came) == 500


def _number(result: Any) -> int:
    if isinstance(result, Failure):
        return int(result.item)
    value = result() if callable(result) else result
    return int(value[0] if type(value) is list else value)


def test_an_error_shows_the_tasks_frames_and_none_of_ours() -> None:
    with Pool(1) as pool:
        failure = list(pool.imap(misbehave, range(11), chunksize=11, on_error="return"))[10]
    text = str(failure.error.__cause__)
    assert ", in misbehave\n" in text
    assert "worker_process" not in text


def test_an_interrupt_hits_the_item_that_runs_also_in_c() -> None:
    """A builtin never looks for signals: its item has to be interrupted all the same, and no other."""
    with Pool(1) as alone:
        pid = alone.submit(os.getpid).result()
        failures = [
            result
            for result in alone.imap(signal.raise_signal, [signal.SIGINT, signal.SIGCONT] * 20, on_error="return")
            if isinstance(result, Failure)
        ]
        assert [type(failure.error) for failure in failures] == [KeyboardInterrupt] * 20
        assert {failure.item for failure in failures} == {signal.SIGINT}
        assert alone.submit(os.getpid).result() == pid


def test_what_was_read_before_an_item_that_could_change_is_what_it_was() -> None:
    def items() -> Any:
        kept = [0]
        for x in range(100):
            yield x
            kept[0] = x
            yield kept

    with Pool(2) as pool:
        came = list(pool.imap(tasks.identity, items(), chunksize=16))
    assert came == [y for x in range(100) for y in (x, [x])]


def test_values_in_parts_keep_their_order(pool: Pool) -> None:
    """Long strings among numbers: some chunks come decoded, others do not, and the first of all is the slowest."""
    source = [("x" * (400 if x % 90 == 5 else 1)) for x in range(3000)]
    assert list(pool.imap(tasks.identity, source, chunksize=7)) == source
    seen = []
    assert list(pool.imap(tasks.identity, source, chunksize=7, progress=seen.append)) == source
    assert seen[-1].done == len(source)
