"""The examples as their user runs them: with real input, with workers killed, interrupted, with input that is bad."""

import http.client
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import ANY

import processes
import psutil
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

try:
    import av
    from PIL import Image, ImageChops, ImageOps, ImageStat
    from skimage import data_dir
except ImportError as error:  # a skip would hide that nobody runs the example
    pytest.fail(f"the examples need their packages, pip install '.[examples]': {error}", pytrace=False)

PHOTOS = [Path(data_dir, name) for name in ("astronaut.png", "camera.png", "logo.png", "rocket.jpg")]


@contextmanager
def example(*options: object, script: str = "thumbnails.py") -> Iterator[subprocess.Popen[str]]:
    """The running example; whatever the test does, no process of it is left at the end."""
    command = [sys.executable, EXAMPLES / script, "--workers", "2", *options]
    ran = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    family = psutil.Process(ran.pid)
    try:
        yield ran
    finally:
        for process in [*family.children(recursive=True), family] if ran.poll() is None else []:
            process.kill()
        ran.communicate()


def run(*options: object, script: str = "thumbnails.py") -> tuple[int, str]:
    with example(*options, script=script) as ran:
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


def from_the_command_line(function: str, *options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pool", "map", EXAMPLES / function, *options, "--workers", "2"]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=90)


def test_thumbnails_from_the_command_line(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for photo in PHOTOS:
        shutil.copy(photo, photos)
    (photos / "bad.jpg").write_bytes(b"this is no photo")
    out = ("--out", tmp_path / "thumbs", "--suffix", ".jpg", "-a", "size=128")
    ran = from_the_command_line("thumbnails.py:thumbnail", f"{photos}/*", *out)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert re.search(r"^failed +\S*bad\.jpg +UnidentifiedImageError: ", ran.stderr, re.M)
    check_whole(tmp_path / "thumbs", 4)


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
    code, printed = run("--images", 5, "--side", 300, "--bits", 5, script="arrays.py")
    assert code == 0
    titles = re.findall(r"^(\S.*)$", printed, re.M)
    assert titles == ["unsharp mask", "colour table of 0.1 MiB, in memory once for 2 workers"]
    assert printed.count("  results  the same as in this process\n") == 2
    assert len(re.findall(r"^  speed    \d+ MiB/s of arguments and results, [\d.]+ times", printed, re.M)) == 2


def encode(folder: Path, *options: object) -> tuple[int, str]:
    return run("--out", folder, *options, script="encode.py")


def frames_of(clip: Path) -> list[Image.Image]:
    """All frames of a clip, decoded."""
    if clip.suffix == ".webp":
        with Image.open(clip) as image:
            return [image.seek(k) or image.convert("RGB") for k in range(image.n_frames)]
    with av.open(str(clip)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def check_clips(folder: Path, photos: list[Path], suffix: str, count: int) -> None:
    """A clip of so many frames for each photo, which begins with that photo, and nothing else."""
    clips = sorted(folder.iterdir())
    assert [clip.name for clip in clips] == [f"{k:03}-{photo.stem}{suffix}" for k, photo in enumerate(photos)]
    for clip, photo in zip(clips, photos, strict=True):
        frames = frames_of(clip)
        assert (len(frames), {frame.size for frame in frames}) == (count, {(640, 360)})
        with Image.open(photo) as opened:
            wanted = ImageOps.fit(opened.convert("RGB"), (640, 360))
        differences = ImageStat.Stat(ImageChops.difference(frames[0], wanted)).mean
        assert max(differences) < 10, f"{clip}: {differences}"
        assert max(ImageStat.Stat(ImageChops.difference(frames[0], frames[-1])).mean) > 5  # it moves


@pytest.mark.parametrize(("encoder", "suffix"), [("av", ".mp4"), ("ffmpeg", ".mp4"), ("webp", ".webp")])
def test_encodes_photos(tmp_path: Path, encoder: str, suffix: str, require: Callable[[str], str]) -> None:
    if encoder == "ffmpeg":
        require("ffmpeg")
    code, printed = encode(tmp_path / "new", "--with", encoder, "--seconds", 0.4, *PHOTOS)
    assert code == 0
    assert re.search(r"^4 of 4 clips in [\d.]+ s$", printed, re.M)
    assert re.search(r"^speed +[\d.]+ s of video a second, [\d.]+ times as fast as one core$", printed, re.M)
    assert "workers    2, crashes survived: 0\n" in printed
    check_clips(tmp_path / "new", PHOTOS, suffix, 10)


def test_encodes_from_the_command_line(tmp_path: Path) -> None:
    out = ("--out", tmp_path, "--suffix", ".mp4", "-a", "seconds=0.2")
    ran = from_the_command_line("encode.py:encode", f"{data_dir}/motorcycle_*.png", *out)
    assert (ran.returncode, ran.stdout) == (0, "")
    assert [len(frames_of(clip)) for clip in sorted(tmp_path.iterdir())] == [5, 5]


def test_encodes_images_of_a_package_by_default(tmp_path: Path) -> None:
    code, _ = encode(tmp_path, "--seconds", 0.04)
    assert code == 0
    assert len(list(tmp_path.glob("*.mp4"))) > 20


@pytest.mark.parametrize(
    ("hidden", "path", "best"), [("", "", "av"), ("av", "", "webp"), ("av", os.environ["PATH"], "ffmpeg")]
)
def test_encodes_with_what_is_there(hidden: str, path: str, best: str, require: Callable[[str], str]) -> None:
    if best == "ffmpeg":
        require("ffmpeg")
    script = f"import sys; sys.modules[{hidden!r}] = None; import encode; print(encode.BEST)"
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=EXAMPLES, env={"PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert (found.stdout, found.stderr) == (f"{best}\n", "")


def stop_a_worker(ran: subprocess.Popen[str], folder: Path) -> int:
    """The pid of a worker that was stopped in the middle of a clip."""

    def stopped() -> int | None:
        for file in folder.glob(".*.part-*"):
            pid = int(file.name.split(".part-")[1].split("-")[0])
            if pid == ran.pid:  # it works itself at first, to have a figure of one core
                continue
            os.kill(pid, signal.SIGSTOP)
            processes.wait_until(lambda pid=pid: processes.is_stopped(pid), "it is stopped")
            if file.exists():
                return pid
            os.kill(pid, signal.SIGCONT)
        return None

    return processes.wait_until(stopped, "a worker is encoding", 60)


def test_clips_are_whole_although_a_worker_is_killed(tmp_path: Path) -> None:
    # Of the encoders this one makes its file first, so the file tells for how long it is at work.
    with example("--with", "webp", "--seconds", 1, "--out", tmp_path, *PHOTOS, script="encode.py") as ran:
        os.kill(stop_a_worker(ran, tmp_path), signal.SIGKILL)
        printed, errors = ran.communicate(timeout=90)
    assert (ran.returncode, errors) == (0, "")
    assert "crashes survived: 1\n" in printed
    check_clips(tmp_path, PHOTOS, ".webp", 25)


def test_ffmpeg_ends_with_its_worker(tmp_path: Path, require: Callable[[str], str]) -> None:
    require("ffmpeg")
    with example("--with", "ffmpeg", "--seconds", 1, "--out", tmp_path, *PHOTOS, script="encode.py") as ran:

        def stop_a_program() -> tuple[int, int] | None:
            for child in psutil.Process(ran.pid).children(recursive=True):
                try:
                    if child.name() == "ffmpeg" and child.ppid() != ran.pid:
                        worker = child.ppid()
                        child.suspend()
                        processes.wait_until(lambda pid=child.pid: processes.is_stopped(pid), "it is stopped")
                        return child.pid, worker
                except psutil.NoSuchProcess:
                    continue
            return None

        program, worker = processes.wait_until(stop_a_program, "a worker has started ffmpeg", 60)
        os.kill(worker, signal.SIGKILL)
        processes.wait_until(lambda: not processes.runs(program), "ffmpeg has ended")
        printed, errors = ran.communicate(timeout=90)
    assert (ran.returncode, errors) == (0, "")
    assert "crashes survived: 1\n" in printed
    check_clips(tmp_path, PHOTOS, ".mp4", 25)


def test_photo_that_is_none_costs_no_other(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"this is no photo")
    code, printed = encode(tmp_path / "clips", "--seconds", 0.2, bad, *PHOTOS[:2])
    assert code == 1
    assert f"failed     {bad}: cannot identify image file" in printed
    assert "2 of 3 clips" in printed
    assert [clip.name for clip in sorted((tmp_path / "clips").iterdir())] == ["001-astronaut.mp4", "002-camera.mp4"]


def test_program_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text("""#!/bin/sh\necho "Unknown encoder 'libx264'" >&2; exit 1""")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    code, printed = encode(tmp_path / "clips", "--with", "ffmpeg", PHOTOS[0])
    assert code == 1
    assert f"failed     {PHOTOS[0]}: Unknown encoder 'libx264'\n" in printed
    assert not list((tmp_path / "clips").iterdir())


def test_encoding_can_be_interrupted(tmp_path: Path) -> None:
    with example("--seconds", 1, "--out", tmp_path, *PHOTOS * 6, script="encode.py") as ran:
        processes.wait_until((tmp_path / "001-camera.mp4").exists, "a worker has made a clip", 60)
        others = psutil.Process(ran.pid).children(recursive=True)
        ran.send_signal(signal.SIGINT)
        printed, errors = ran.communicate(timeout=30)
    assert (ran.returncode, errors) == (130, "")
    assert printed.endswith(f"interrupted: the clips in {tmp_path} are whole\n")
    assert others
    assert not any(other.is_running() for other in others)
    assert {len(frames_of(clip)) for clip in tmp_path.iterdir()} == {25}


def count_words(*options: object) -> tuple[int, str]:
    return run(*options, script="words.py")


def test_counts_words_in_names(tmp_path: Path) -> None:
    files = {
        "one.py": b"def getHTTPError(x_1): return get_http_error\n",
        "folder/two.py": b"# no name\nerror = 'get'\n",
        "folder/late.py": b"a = 1\nb = 2\nc = '\xff'\n",
        "early.py": b"a = '\xff'\n",
        "none.txt": b"get",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    code, printed = count_words(tmp_path, "--top", 2)
    assert code == 0
    assert re.findall(r"^ +(\w+) +(\d+) ▇+$", printed, re.M) == [("error", "3"), ("get", "2")]
    assert re.search(r"^2 of 4 files in [\d.]+ s$", printed, re.M)
    assert re.search(r"^words +8, 4 of them different$", printed, re.M)
    assert re.search(
        r"^failed +1 (UnicodeDecodeError, 1 SyntaxError|SyntaxError, 1 UnicodeDecodeError)$", printed, re.M
    )
    assert f"{tmp_path}/early.py: " in printed
    assert f"{tmp_path}/folder/late.py: 'utf-8' codec can't decode" in printed


def test_words_of_the_standard_library() -> None:
    code, printed = count_words("--files", 200)
    assert code == 0
    assert re.search(r"^ +self +[\d,]+ ▇{40}$", printed, re.M)
    assert re.search(r"^speed +[\d.]+ MB/s, [\d.]+ times as fast as one core$", printed, re.M)
    assert "200 of 200 files" in printed


def test_no_words_are_a_failure(tmp_path: Path) -> None:
    code, printed = count_words(tmp_path)
    assert code == 1
    assert "0 of 0 files" in printed


def test_script_lists_its_failures() -> None:
    ran = subprocess.run([sys.executable, EXAMPLES / "failures.py"], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (1, "")
    *found, wrong, slow, crashed = ran.stdout.splitlines()
    assert [re.match(r"(\S+) +found [1-9]\d* times$", line)[1] for line in found] == [
        "\\w+", "[A-Z]\\w+", "\\bin\\b", "\\d+",
    ]  # fmt: skip
    assert wrong == "(unclosed    wrong: missing ), unterminated subpattern at position 0"
    assert re.match(r"\(.* too slow: __main__\.count\(.*\) ran longer than its timeout of 1 s \(.*, attempt 2\)$", slow)
    assert re.match(r"crash +crashed: worker died in __main__\.count\('crash'\): SIGSEGV \(.*, attempt 2\)$", crashed)


class Server:
    """The running server."""

    def __init__(self, ran: subprocess.Popen[str]) -> None:
        self.ran = ran
        assert ran.stdout is not None
        self.said = ran.stdout
        self.port = int(re.match(r"http://127.0.0.1:(\d+)/, with 2 workers", self.said.readline())[1])

    def workers(self) -> list[psutil.Process]:
        (monitor,) = psutil.Process(self.ran.pid).children()
        return monitor.children()

    def post(self, photo: bytes, path: str = "/?size=64", **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", path, photo, headers)
        return connection

    def thumbnail(self, photo: bytes, path: str = "/?size=64", **headers: str) -> tuple[int, bytes]:
        with closing(self.post(photo, path, **headers)) as connection:
            answer = connection.getresponse()
            return answer.status, answer.read()

    def decoding(self) -> psutil.Process:
        """The worker that is about to have a huge photo in its memory."""
        large = 100 << 20
        return processes.wait_until(
            lambda: next((w for w in self.workers() if w.memory_info().rss > large), None), "a worker decodes", 60
        )


@contextmanager
def server(*options: object) -> Iterator[Server]:
    with example("--port", 0, *options, script="server.py") as ran:
        serving = Server(ran)
        yield serving
        ran.send_signal(signal.SIGTERM)
        _, errors = ran.communicate(timeout=30)
        assert (ran.returncode, errors) == (0, "")


@pytest.fixture(scope="module")
def huge() -> bytes:
    """Small as a file, and seconds of work."""
    out = io.BytesIO()
    Image.new("RGB", (9400, 9400)).save(out, "PNG")
    return out.getvalue()


def test_server_makes_thumbnails() -> None:
    with server() as serving:
        for photo in PHOTOS:
            status, body = serving.thumbnail(photo.read_bytes())
            assert status == 200
            with Image.open(io.BytesIO(body)) as small:
                small.load()
                assert (small.format, max(small.size)) == ("WEBP", 64)
        assert all(re.fullmatch(r"POST /\?size=64 200 \d+ ms\n", serving.said.readline()) for _ in PHOTOS)
        status, body = serving.thumbnail(PHOTOS[0].read_bytes(), "/", Expect="100-continue")
        assert (status, body[:4]) == (200, b"RIFF")


def test_server_says_what_it_cannot_do() -> None:
    photo = PHOTOS[0].read_bytes()
    with server() as serving:
        assert serving.thumbnail(b"no photo") == (415, ANY)
        assert serving.thumbnail(photo[: len(photo) // 2]) == (415, ANY)
        assert serving.thumbnail(photo, "/?size=large") == (400, b"size and Content-Length are numbers\n")
        assert serving.thumbnail(photo, "/?size=0") == (400, b"a size is 1 to 4096\n")
        with closing(http.client.HTTPConnection("127.0.0.1", serving.port, timeout=60)) as connection:
            connection.request("GET", "/")
            assert connection.getresponse().status == 405
        assert serving.thumbnail(photo)[0] == 200


def test_server_gives_up_a_photo_at_its_deadline(huge: bytes) -> None:
    with server("--timeout", 0.5) as serving:
        status, body = serving.thumbnail(huge, "/?size=4096")  # some seconds of work
        assert status == 504
        assert body == b"it took longer than 0.5 s\n"
        assert serving.thumbnail(PHOTOS[1].read_bytes())[0] == 200


def test_server_stops_the_work_for_a_client_that_hangs_up(huge: bytes) -> None:
    with server("--most", 1, "--timeout", 60) as serving:
        connection = serving.post(huge)
        worker = serving.decoding()
        worker.suspend()  # it does not end by itself
        assert serving.thumbnail(PHOTOS[0].read_bytes()) == (503, b"too many photos at a time\n")
        connection.close()
        processes.wait_until(lambda: not worker.is_running(), "its worker is gone")
        assert [serving.said.readline().split()[2] for _ in range(2)] == ["503", "gone"]  # the loop knows it too
        assert serving.thumbnail(PHOTOS[0].read_bytes())[0] == 200
        assert serving.said.readline().split()[2] == "200"


def test_server_that_is_told_to_end_answers_who_has_come(huge: bytes) -> None:
    with server("--timeout", 60) as serving, closing(serving.post(huge)) as connection:
        serving.decoding()
        serving.ran.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:4]) == (200, b"RIFF")


def test_grid_search_names_what_crashed() -> None:
    command = [sys.executable, EXAMPLES / "gridsearch.py", "--workers", "2", "--images", "300"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert (ran.returncode, ran.stderr) == (0, "")
    best, seconds, crash, scores = ran.stdout.splitlines()
    assert re.fullmatch(r"best of 9: \{'C': \d+\.0, 'gamma': 0\.\d+\}, 9\d\.\d% are right", best)
    assert seconds.endswith(" s with 2 workers")
    assert re.fullmatch(r"worker died in __main__\.score\(.*, gamma=0\): SIGSEGV \(.*\)", crash)
    assert re.fullmatch(r"\[0\.9\d+, 0\.9\d+\]", scores)
