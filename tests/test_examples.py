"""The examples as their user runs them: the thumbnails whole, with workers killed, interrupted, with a bad photo."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import processes
import psutil
import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "thumbnails.py"

try:
    import skimage  # noqa: F401
    from PIL import Image
except ImportError as error:  # a skip would hide that nobody runs the example
    pytest.fail(f"the examples need their packages, pip install '.[examples]': {error}", pytrace=False)


@contextmanager
def example(*options: object) -> Iterator[subprocess.Popen[str]]:
    """The running example; whatever the test does, no process of it is left at the end."""
    command = [sys.executable, EXAMPLE, "--workers", "2", *options]
    ran = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    family = psutil.Process(ran.pid)
    try:
        yield ran
    finally:
        for process in [*family.children(recursive=True), family] if ran.poll() is None else []:
            process.kill()
        ran.communicate()


def run(*options: object) -> tuple[int, str]:
    with example(*options) as ran:
        printed, errors = ran.communicate(timeout=90)
    assert errors == ""
    assert ran.returncode is not None
    return ran.returncode, printed


def next_worker(ran: subprocess.Popen[str]) -> int:
    """The pid of the next worker that says that it has started."""
    assert ran.stdout is not None
    for line in ran.stdout:
        if found := re.match(r"worker (\d+) started", line):
            return int(found[1])
    pytest.fail("the example ended before its workers had started")


def wait_for_more(folder: Path, count: int) -> None:
    """Until there are `count` more thumbnails."""
    enough = len(list(folder.glob("0*.jpg"))) + count
    processes.wait_until(lambda: len(list(folder.glob("0*.jpg"))) >= enough, f"{count} more thumbnails", 60)


def check_whole(folder: Path, count: int) -> None:
    """`count` thumbnails that can be decoded to their last byte, and nothing else."""
    files = sorted(folder.iterdir())
    assert len(files) == count
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert max(image.size) == 128


def test_makes_all_thumbnails(tmp_path: Path) -> None:
    code, printed = run("--photos", 30, "--size", 128, "--out", tmp_path)
    assert code == 0
    assert re.search(r"^this is process \d+; kill -9 one of its workers and see$", printed, re.M)
    assert len(re.findall(r"^worker \d+ started$", printed, re.M)) == 2
    assert re.search(r"^30 of 30 photos in [\d.]+ s$", printed, re.M)
    assert re.search(r"^speed +\d+ photos/s, [\d.]+ times as fast as one core$", printed, re.M)
    assert "workers    2, crashes survived: 0\n" in printed
    assert f"files      {tmp_path}\n" in printed
    check_whole(tmp_path, 30)


def test_survives_killed_workers(tmp_path: Path) -> None:
    with example("--photos", 200, "--size", 128, "--out", tmp_path) as ran:
        next_worker(ran)
        for _ in range(4):  # the youngest, just after its start
            os.kill(next_worker(ran), signal.SIGKILL)
            wait_for_more(tmp_path, 6)  # else the same photo may be hit three times, which is more than it is allowed
        printed, errors = ran.communicate(timeout=90)
    assert errors == ""
    assert ran.returncode == 0
    assert "200 of 200 photos" in printed
    check_whole(tmp_path, 200)


def test_counts_the_crashes_it_survived(tmp_path: Path) -> None:
    with example("--photos", 100, "--size", 128, "--out", tmp_path) as ran:
        worker = next_worker(ran)
        wait_for_more(tmp_path, 6)
        os.kill(worker, signal.SIGKILL)
        printed, _ = ran.communicate(timeout=90)
    assert ran.returncode == 0
    # 0 only if it hit the microseconds between two photos
    assert re.search(r"crashes survived: [01]$", printed, re.M)
    check_whole(tmp_path, 100)


def test_interrupt_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    with example("--photos", 2000, "--size", 128, "--out", tmp_path) as ran:
        family = psutil.Process(ran.pid)
        next_worker(ran)
        next_worker(ran)
        wait_for_more(tmp_path, 6)
        others = family.children(recursive=True)
        assert len(others) == 3  # the monitor and two workers
        ran.send_signal(signal.SIGINT)
        printed, errors = ran.communicate(timeout=30)
    assert ran.returncode == 130
    assert errors == ""
    count = len(list(tmp_path.iterdir()))
    assert printed == f"interrupted: {count} of 2000 thumbnails are in {tmp_path}\n"
    assert not any(other.is_running() for other in others)
    check_whole(tmp_path, count)


def test_interrupt_before_the_start_is_as_clean(tmp_path: Path) -> None:
    with example("--photos", 2000, "--out", tmp_path / "new") as ran:
        processes.wait_until((tmp_path / "new").exists, "it has begun", 60)
        ran.send_signal(signal.SIGINT)
        printed, errors = ran.communicate(timeout=30)
    assert (ran.returncode, errors) == (130, "")
    assert printed.startswith("interrupted: 0 of ")


@pytest.mark.parametrize(
    ("on_error", "reported"),
    [
        ("return", r"^failed     broken.jpg: image file is truncated"),
        ("skip", r"^20 of 21 photos"),
        ("raise", r"^ended by the first failure: image file is truncated"),
    ],
)
def test_bad_photo_is_reported(tmp_path: Path, on_error: str, reported: str) -> None:
    code, printed = run("--photos", 20, "--size", 128, "--out", tmp_path, "--broken", "--on-error", on_error)
    assert code == 1
    assert re.search(reported, printed, re.M)
    if on_error != "raise":
        check_whole(tmp_path, 20)


def test_arrays_are_filtered_as_in_one_process() -> None:
    command = [sys.executable, EXAMPLE.with_name("arrays.py"), "--workers", "2", "--images", "5"]
    ran = subprocess.run([*command, "--side", "300", "--bits", "5"], capture_output=True, text=True, timeout=90)
    assert (ran.returncode, ran.stderr) == (0, "")
    titles = re.findall(r"^(\S.*)$", ran.stdout, re.M)
    assert titles == ["unsharp mask", "colour table of 0.1 MiB, in memory once for 2 workers"]
    assert ran.stdout.count("  results  the same as in this process\n") == 2
    assert len(re.findall(r"^  speed    \d+ MiB/s of arguments and results, [\d.]+ times", ran.stdout, re.M)) == 2
