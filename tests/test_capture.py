"""capture_output: what tasks print arrives with them, and nowhere else; a dead worker's too."""

import ctypes
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import scripts
import tasks

from pool import Pool
from pool.errors import TaskKilled, TaskTimeout, WorkerCrashed

MIB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


@pytest.fixture(scope="module")
def catching() -> Iterator[Pool]:
    with Pool(2, capture_output=True) as pool:
        yield pool


def output_of(pool: Any, fn: Any, *args: Any) -> str:
    future = pool.submit(fn, *args)
    future.exception()
    assert future.account is not None
    assert type(future.account.output) is str
    return future.account.output


# ---- tasks


def say(text: str) -> str:
    print(text)
    return text


def say_in_all_ways(_: object = None) -> None:
    print("print")
    print("error", file=sys.stderr)
    sys.stdout.write("no newline,")
    os.write(1, b"write 1\n")
    os.write(2, b"write 2\n")
    logging.warning("logged")
    subprocess.run(["sh", "-c", "echo program; echo its error >&2"], check=True)
    thread = threading.Thread(target=print, args=("thread",))
    thread.start()
    thread.join()
    if os.fork() == 0:
        print("child")
        os._exit(0)
    os.wait()
    ctypes.CDLL(None).puts(b"C")


def say_and(how: str, text: str) -> None:
    print(text, end="")  # no newline, so nothing flushes it
    if how == "raise":
        raise ValueError(how)
    if how == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "exit":
        os._exit(3)
    tasks.sleep(60)


def say_much(size: int) -> None:
    line = "x" * 99 + "\n"
    print("first")
    sys.stdout.write(line * (size // 100))
    print("last")


def say_bytes(data: bytes) -> None:
    os.write(1, data)


def say_more_than_memory(_: object = None) -> int:
    """Returns how many bytes of it are in memory when somebody has looked."""
    for _ in range(8):
        os.write(1, bytes(MIB))
    return processes.wait_until(lambda: os.fstat(1).st_blocks * 512 <= MIB, "it is kept small") and 1


def say_and_return(value: Any) -> Any:
    print("said")
    return value


def close_everything() -> None:
    os.closerange(0, 65536)


def in_a_pool_of_its_own(text: str) -> list[str]:
    with Pool(1) as pool:
        pool.submit(say, "inner " + text).result()
        inner = pool.options(capture_output=True).submit(say, "caught " + text)
        inner.result()
        assert inner.account is not None
        assert inner.account.output is not None
        return [inner.account.output]


# ---- what is caught


def test_everything_is_caught(catching: Pool) -> None:
    said = output_of(catching, say_in_all_ways).splitlines()
    expected = ["print", "error", "no newline,write 1", "write 2", "program", "its error"]
    assert said == [*expected, "thread", "child", "C"]  # and not what is logged: pytest has taken that away


def test_nothing_said_is_empty_and_not_asked_for_is_none(catching: Pool) -> None:
    assert output_of(catching, tasks.square, 2) == ""
    quiet = catching.options(capture_output=False).submit(tasks.square, 2)
    quiet.result()
    assert quiet.account is not None
    assert quiet.account.output is None


def test_options_keep_it(catching: Pool) -> None:
    assert output_of(catching.options(timeout=60).options(retries=1), say, "kept") == "kept\n"


def test_each_task_has_its_own(catching: Pool) -> None:
    futures = [catching.submit(say, str(k)) for k in range(200)]
    for k, future in enumerate(futures):
        assert future.result() == str(k)
        assert future.account is not None
        assert future.account.output == f"{k}\n"


def test_an_exception_has_it_in_a_note(catching: Pool) -> None:
    future = catching.submit(say_and, "raise", "so far")
    error = future.exception()
    assert isinstance(error, ValueError)
    assert error.__notes__ == ["Output of the task:\nso far"]
    long = catching.submit(say_and, "raise", "x" * 10_000).exception()
    assert long is not None
    assert long.__notes__ == ["Output of the task:\n[...]" + "x" * 2000]


@pytest.mark.parametrize("chunksize", [1, 4])
def test_items_of_a_map(catching: Pool, chunksize: int) -> None:
    calls = [("raise", f"item {k}") for k in range(8)]
    failures = list(catching.istarmap(say_and, calls, chunksize=chunksize, on_error="return"))
    assert [failure.account.output for failure in failures] == [f"item {k}" for k in range(8)]
    assert [failure.error.__notes__ for failure in failures] == [[f"Output of the task:\nitem {k}"] for k in range(8)]
    assert list(catching.imap(say, list("abcdefgh"), chunksize=chunksize)) == list("abcdefgh")
    assert sorted(catching.imap_unordered(say, list("abcdefgh"), chunksize=chunksize)) == list("abcdefgh")


@pytest.mark.parametrize("size", [0, 64 * 1024 - 11, 64 * 1024 + 5, 3 * MIB])
def test_the_last_of_it_is_kept(catching: Pool, size: int) -> None:
    size = size // 100 * 100
    whole = "first\n" + ("x" * 99 + "\n") * (size // 100) + "last\n"
    said = output_of(catching, say_much, size)
    cut = len(whole) - 64 * 1024
    assert said == (whole if cut <= 0 else f"[{cut:,} bytes before this were cut]\n{whole[-64 * 1024 :]}")


def test_what_is_no_text(catching: Pool) -> None:
    assert output_of(catching, say_bytes, b"\xff\x00ok\xc3") == "\N{REPLACEMENT CHARACTER}\0ok\N{REPLACEMENT CHARACTER}"


def test_a_task_that_prints_without_end_takes_no_memory(catching: Pool) -> None:
    future = catching.submit(say_more_than_memory)
    assert future.result() == 1
    assert future.account is not None
    assert future.account.output is not None
    assert f"[{8 * MIB - 64 * 1024:,} bytes before" in future.account.output


@pytest.mark.parametrize(
    "value", [None, b"x" * 100, "x" * 5000, b"x" * 100_000, np.arange(50_000), [np.arange(50_000), "x" * 300]]
)
@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_results_are_whole(catching: Pool, value: Any, chunksize: int | None) -> None:
    if chunksize is None:
        future = catching.submit(say_and_return, value)
        values = [future.result()]
        assert future.account is not None
        assert future.account.output == "said\n"
        plain = catching.options(capture_output=False).submit(say_and_return, value)
        plain.result()
        assert plain.account is not None
        if type(value) in (str, bytes):  # the first array of a worker has a longer head than the others
            assert 0 <= future.account.bytes_out - plain.account.bytes_out < 64
    else:
        values = list(catching.imap(say_and_return, [value] * 5, chunksize=chunksize))
    for found in values:
        assert pickle.dumps(found) == pickle.dumps(value)


def _say_and_fail(_: int) -> None:
    print("x" * 10_000)
    raise ValueError


@pytest.mark.parametrize("chunksize", [1, 3])
def test_the_size_of_a_failure_is_without_what_was_printed(catching: Pool, chunksize: int) -> None:
    for failure in catching.imap(_say_and_fail, range(3), on_error="return", chunksize=chunksize):
        assert len(failure.account.output) == 10_001
        assert 0 < failure.account.bytes_out < 5000


def test_a_result_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """So large that it does not fit into the room."""
    monkeypatch.setattr("ipc.segment.default_room", lambda *_: 4 * MIB)
    with Pool(1, capture_output=True) as pool:
        room = pool.start()._client.room
        future = pool.submit(say_and_return, 1)
        future.result()
        large = pool.submit(_say_and_return_zeros, room)
        array = large.result()
        assert array.nbytes == room
        assert large.account is not None
        assert (large.account.output, large.account.received) == ("said\n", "file")
        assert not array[:: room // 100].any()


def _say_and_return_zeros(size: int) -> Any:
    return say_and_return(np.zeros(size, np.uint8))


class SaysAndFails:
    """A function that prints while it is decoded in the worker, and cannot be."""

    def __reduce__(self) -> tuple[object, ...]:
        return say_and, ("raise", "decoding")

    def __call__(self, x: int) -> int:
        return x


def test_what_is_said_while_the_function_is_decoded(catching: Pool) -> None:
    failures = list(catching.imap(SaysAndFails(), range(4), chunksize=2, on_error="return"))
    assert [failure.account.output for failure in failures] == ["decoding"] * 4
    assert [str(failure.error) for failure in failures] == ["raise"] * 4


# ---- last words


@pytest.mark.parametrize("how", ["segfault", "exit"])
def test_last_words_of_a_crash(how: str) -> None:
    with Pool(1, capture_output=True) as pool:
        future = pool.submit(say_and, how, "last words")
        error = future.exception()
        assert isinstance(error, WorkerCrashed)
        assert error.output == "last words"
        assert error.__notes__[-1] == "Output of the task:\nlast words"
        assert future.account is not None
        assert future.account.output == "last words"
        assert pickle.loads(pickle.dumps(error)).output == "last words"
        assert output_of(pool, say, "next") == "next\n"
        silent = pool.submit(os._exit, 3).exception()
        assert isinstance(silent, WorkerCrashed)
        assert silent.output == ""
        long = pool.submit(say_and, how, "x" * MIB).exception()
        assert isinstance(long, WorkerCrashed)
        assert long.output == f"[{MIB - 16 * 1024:,} bytes before this were cut]\n" + "x" * 16 * 1024


def test_last_words_of_a_task_that_is_stopped() -> None:
    with Pool(1, capture_output=True) as pool:
        late = pool.options(timeout=1).submit(say_and, "hang", "late")
        error = late.exception()
        assert isinstance(error, TaskTimeout)
        assert (error.output, error.args_repr) == ("late", "'hang', 'late'")
        killed = pool.submit(say_and, "hang", "killed")
        segment = pool._client.segment
        processes.wait_until(lambda: killed.running() and segment, "it runs")
        processes.wait_until(lambda: _printed(pool), "it has printed")
        assert killed.kill()
        error = killed.exception()
        assert isinstance(error, TaskKilled)
        assert error.output == "killed"


def _printed(pool: Pool) -> bool:
    """Whether standard output of the one worker is a file that is not empty."""
    (pid,) = processes.worker_pids(pool)
    try:
        return os.stat(f"/proc/{pid}/fd/1").st_size > 0 and "pool-said" in os.readlink(f"/proc/{pid}/fd/1")
    except FileNotFoundError:
        return False


def test_last_words_in_a_chunk_are_those_of_the_item() -> None:
    calls = [("raise", "0"), ("raise", "1"), ("segfault", "2"), ("raise", "3")]
    with Pool(1, capture_output=True) as pool:
        failures = list(pool.istarmap(say_and, calls, chunksize=4, on_error="return"))
    assert [failure.account.output for failure in failures] == ["0", "1", "2", "3"]
    assert isinstance(failures[2].error, WorkerCrashed)


# ---- what is not caught, and what is there afterwards


def test_nothing_appears_and_others_print_as_before(tmp_path: Path) -> None:
    script = scripts.run(
        tmp_path,
        """
        import logging, os, sys, test_capture
        from pool import Pool
        logging.basicConfig()  # its handler holds stderr as it is now
        with Pool(1) as pool:
            catching = pool.options(capture_output=True)
            pool.submit(test_capture.say, "before").result()
            future = catching.submit(test_capture.say_in_all_ways)
            future.result()
            assert len(future.account.output.splitlines()) == 10, future.account.output
            list(catching.imap(test_capture.say, "abc", chunksize=2))
            list(catching.imap(test_capture.SaysAndFails(), "abcd", chunksize=2, on_error="skip"))
            pool.submit(test_capture.say, "after").result()
            pool.submit(os.write, 2, b"error\\n").result()
            pool.submit(logging.warning, "log").result()
        """,
    )
    assert (script.stdout, script.stderr) == ("before\nafter\n", "error\nWARNING:root:log\n")


def test_a_stream_that_is_no_file_as_in_a_notebook(tmp_path: Path) -> None:
    script = scripts.run(
        tmp_path,
        """
        import io, logging, os, sys, test_capture
        from pool import Pool
        class Stream(io.StringIO):
            def write(self, text):
                return os.write(real, text.encode())
        real = os.dup(1)
        sys.stdout = sys.stderr = Stream()
        logging.basicConfig()
        with Pool(1) as pool:
            future = pool.options(capture_output=True).submit(test_capture.say_in_all_ways)
            future.result()
            pool.submit(test_capture.say, "after").result()
            pool.submit(logging.warning, "log").result()
        lines = future.account.output.splitlines()
        assert sorted(lines)[0] == "C" and len(lines) == 10, lines
        """,
    )
    assert (script.stdout, script.stderr) == ("after\nWARNING:root:log\n", "")


def test_a_task_that_closes_all_files() -> None:
    with Pool(1, capture_output=True) as pool:
        pid = pool.submit(tasks.pid).result()
        pool.submit(close_everything).result()
        assert output_of(pool, say, "still") == "still\n"
        assert processes.worker_pids(pool) == [pid]


def test_a_pool_in_a_task(catching: Pool) -> None:
    future = catching.submit(in_a_pool_of_its_own, "x")
    assert future.result() == ["caught x\n"]
    assert future.account is not None
    assert future.account.output == "inner x\n"


def test_without_workers(capfd: pytest.CaptureFixture[str]) -> None:
    with Pool(0, capture_output=True) as pool:
        assert output_of(pool, say, "here") == "here\n"
        error = pool.submit(say_and, "raise", "so far").exception()
        assert error is not None
        assert error.__notes__ == ["Output of the task:\nso far"]
        assert np.array_equal(pool.submit(say_and_return, np.arange(50_000)).result(), np.arange(50_000))
        (failure,) = pool.imap(tasks.fail, [3], on_error="return")
        assert failure.account.output == ""
    assert capfd.readouterr() == ("", "")
