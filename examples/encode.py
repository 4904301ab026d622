"""Photos into video clips that zoom in on them, on all cores: `python examples/encode.py [PHOTO...]`.

Without arguments the photos are those inside the scikit-image package. A clip is encoded by the libraries of FFmpeg
through PyAV, or by the program `ffmpeg`, or, when neither is there, by Pillow as an animated WebP; by one core in each
case, for the pool has a worker for each core. What concerns the pool is in `encode_all`.

`encode` is an ordinary function, so the command line of the pool can call it, too:
`python -m pool map examples/encode.py:encode 'photos/*.jpg' --out clips --suffix .mp4 -a seconds=5`
"""

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from PIL import Image, ImageOps
from skimage import data_dir

from pool import Failure, Pool
from pool.cpus import available_cpus

WIDTH, HEIGHT, RATE = 640, 360, 25  # pixels, and frames of a second
Frames = Iterator[Image.Image]
Job = tuple[Path, Path, float, str]  # photo, clip, seconds, encoder


def zoom(photo: Path, seconds: float) -> Frames:
    """The frames of the clip: from the widest view that has its shape to the middle half of that."""
    with Image.open(photo) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")
    widest = min(image.width, image.height * WIDTH / HEIGHT)
    count = max(1, round(seconds * RATE))
    for k in range(count):
        width = widest * (1 - k / count / 2)
        height = width * HEIGHT / WIDTH
        left, top = (image.width - width) / 2, (image.height - height) / 2
        yield image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (left, top, left + width, top + height))


def through_av(frames: Frames, clip: Path) -> None:
    import av

    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.thread_count, stream.thread_type = 1, "NONE"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


def through_ffmpeg(frames: Frames, clip: Path) -> None:
    """A task may start programs: they end with it, also if its worker is killed."""
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(RATE), "-i", "-"]
    one_core = ["-filter_threads", "1", "-threads", "1"]
    command = ["ffmpeg", "-v", "error", "-y", *raw, *one_core, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(clip)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as ffmpeg:
        assert ffmpeg.stdin is not None
        with suppress(BrokenPipeError):  # it ended early; below it says why
            for frame in frames:
                ffmpeg.stdin.write(frame.tobytes())
        _, complaints = ffmpeg.communicate()
    if ffmpeg.returncode:
        raise RuntimeError(f"ffmpeg: {complaints.decode(errors='replace').strip()}")


def through_webp(frames: Frames, clip: Path) -> None:
    next(frames).save(clip, "WEBP", save_all=True, append_images=frames, duration=1000 // RATE)


ENCODERS = {"av": through_av, "ffmpeg": through_ffmpeg, "webp": through_webp}
BEST = "av" if importlib.util.find_spec("av") else "ffmpeg" if shutil.which("ffmpeg") else "webp"


def encode(photo: Path, clip: Path, seconds: float = 2, encoder: str = BEST) -> None:
    """The task: make a clip of a photo."""
    ENCODERS[encoder](zoom(photo, seconds), clip)


def encode_whole(photo: Path, clip: Path, seconds: float, encoder: str) -> Path:
    """The task of this script: the clip is there when it is whole, and not before. Killed workers leave no half of it."""
    with Pool.output(clip) as temporary:
        encode(photo, Path(temporary), seconds, encoder)
    return clip


def encode_all(pool: Pool, jobs: list[Job]) -> list[Failure]:
    """Encode, and print what is done. A clip whose worker dies gets two more attempts; what fails is returned."""
    failures = []
    for result in pool.options(retries=2).istarmap_unordered(encode_whole, jobs, on_error="return"):
        if isinstance(result, Failure):
            failures.append(result)
        else:
            print(f"{result.stat().st_size / 1000:7.0f} kB  {result.name}", flush=True)
    return failures


def rate_of_one_core(jobs: list[Job], folder: str) -> float:
    """Seconds of video in a second, in this process, without any pool. Photos that fail are left out."""
    done, start = 0.0, time.perf_counter()
    for photo, clip, seconds, encoder in jobs:
        with suppress(Exception):
            encode(photo, Path(folder, clip.name), seconds, encoder)
            done += seconds
    return done / (time.perf_counter() - start)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Encode photos into video clips with a pool of worker processes.")
    parser.add_argument("photos", nargs="*", type=Path, metavar="PHOTO", help="default: those of scikit-image")
    parser.add_argument("--with", dest="encoder", choices=ENCODERS, default=BEST, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="of a clip (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=available_cpus(), metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: a new temporary folder, kept)")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    photos = options.photos or sorted(Path(data_dir).glob("*.[jp][pn]g"))
    out = options.out or Path(tempfile.mkdtemp(prefix="clips-"))
    out.mkdir(parents=True, exist_ok=True)
    suffix = ".webp" if options.encoder == "webp" else ".mp4"
    jobs = [(p, out / f"{k:03}-{p.stem}{suffix}", options.seconds, options.encoder) for k, p in enumerate(photos)]
    sample = jobs[::8]
    try:
        with tempfile.TemporaryDirectory() as folder:
            one_core = rate_of_one_core(sample, folder)
        start = time.perf_counter()
        with Pool(options.workers) as pool:
            failures = encode_all(pool, jobs)
            seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        print(f"interrupted: {sum(job[1].exists() for job in jobs)} of {len(jobs)} clips are in {out}")
        return 130
    made = len(jobs) - len(failures)
    rate = made * options.seconds / seconds
    faster = f", {rate / one_core:.2f} times as fast as one core" if one_core else ""
    print(f"""{made} of {len(jobs)} clips, {made * options.seconds:g} s of video in {seconds:.1f} s
speed      {rate:.1f} s of video a second{faster}
one core   {one_core:.1f} s of video a second: {len(sample)} of the clips, in this process, before the workers started
workers    {options.workers}, crashes survived: {pool.crashes}
files      {out}""")
    for failure in failures:
        print(f"failed     {failure.item[0]}: {failure.error}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
