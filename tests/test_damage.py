"""A task that writes into the shared memory hurts what was published, and nothing else."""

import contextlib
import ctypes
import itertools
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import tasks

from ipc import _core
from pool import Pool, errors
from pool.client import Client

HEADER_WORDS = slice(128, 640)  # tail, head, done map's summary and the client's bell


def overwrite(part: str) -> str:
    """The task: native code gone wild."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "pool-control" in line:
            start, end = (int(x, 16) for x in re.split("[- ]", line)[:2])
            if part == "header":
                ctypes.memset(start + HEADER_WORDS.start, 0xFF, HEADER_WORDS.stop - HEADER_WORDS.start)
            else:
                ctypes.memset(start, 0xFF, end - start)
    return part


@pytest.mark.parametrize("part", ["header", "all"])
def test_every_task_ends_and_the_pool_goes_on(part: str) -> None:
    with Pool(2) as pool:
        bad = pool.submit(overwrite, part)
        futures = [bad, *(pool.submit(tasks.square, x) for x in range(3000))]
        kinds = Counter(type(future.exception(timeout=30)) for future in futures)
        # A result may be hurt in the very moment in which it is read, after its row was found to be right.
        assert set(kinds) <= {type(None), errors.SegmentCorrupt, errors.ResultNotPicklable}
        assert kinds[errors.SegmentCorrupt] <= 1024  # no more than there are rows: the others were not published
        assert pool._client.unfinished == 0
        # If the task that did it was the last to end, nobody has looked since: what is published now may be hurt too.
        last = type(pool.submit(tasks.square, 1).exception(timeout=30))
        assert last in {type(None), errors.SegmentCorrupt}
        if errors.SegmentCorrupt not in {*kinds, last}:
            with contextlib.suppress(errors.SegmentCorrupt):  # nor was that found by the one: now it is
                list(pool.imap(tasks.square, range(100)))
        assert list(pool.imap(tasks.square, range(100))) == [x * x for x in range(100)]


def test_a_fork_in_place_of_damaged_memory_warns_of_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could have made it before he started them; and where warnings are errors, it would end the pool."""
    monkeypatch.setattr("pool.launch._warned", False)
    end = threading.Event()
    other = threading.Thread(target=end.wait)
    with Pool(1) as pool:
        pool.start()
        other.start()
        try:
            assert type(pool.submit(overwrite, "all").exception(timeout=30)) is errors.SegmentCorrupt
            assert list(pool.imap(tasks.square, range(100))) == [x * x for x in range(100)]
        finally:
            end.set()
            other.join()


def test_what_was_collected_before_the_damage_was_found_counts() -> None:
    """One result points outside of its room; those that stand before it in the same sweep are delivered."""
    with Pool(2) as pool:
        futures = [pool.submit(tasks.square, x) for x in range(6)]
        client = pool._client
        real, calls = _core.collect, 0

        def damaged_after_some(segment: object, tasks: object, inbox: object, most: int, *more: object) -> int:
            nonlocal calls
            calls += 1
            done = real(segment, tasks, inbox, min(most, 2), *more)  # type: ignore[arg-type]
            if done and calls:
                raise _core.Damaged("planted")
            return done

        try:
            _core.collect = damaged_after_some
            kinds = Counter(type(future.exception(timeout=30)) for future in futures[:1])
        finally:
            _core.collect = real
        kinds += Counter(type(future.exception(timeout=30)) for future in futures[1:])
        assert set(kinds) <= {type(None), errors.SegmentCorrupt}
        assert kinds[type(None)] >= 1
        assert client.unfinished == 0


@pytest.mark.filterwarnings("ignore:the pool forks while other threads run")
def test_what_a_map_gives_while_the_segment_is_replaced_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps publish without the lock: also behind the look at what was published, which then fails."""
    asked = threading.Semaphore(0)
    stop = threading.Event()

    def source() -> Iterator[int]:
        for k in itertools.count():
            if stop.is_set():
                return
            asked.release()
            yield k

    def leave(client: Client) -> None:
        while asked.acquire(blocking=False):
            pass
        asked.acquire(timeout=0.2)  # the map goes on meanwhile, if it can
        asked.acquire(timeout=0.2)
        leave_at_once(client)

    leave_at_once = Client._leave_segment
    results: list[object] = []
    with Pool(2) as pool:
        run = pool.imap_unordered(tasks.identity, source(), chunksize=1, on_error="return")
        results.append(next(run))
        reader = threading.Thread(target=lambda: results.extend(run))
        reader.start()
        monkeypatch.setattr(Client, "_leave_segment", leave)
        for _ in range(3):
            with pool._client.lock:
                pool._client._replace_segment(_core.Damaged("planted"))
        monkeypatch.undo()
        stop.set()
        reader.join(20)
        assert not reader.is_alive()
    found = Counter(x if isinstance(x, int) else x.item for x in results)  # type: ignore[attr-defined]
    assert found == Counter(range(len(results)))
