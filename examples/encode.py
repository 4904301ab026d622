"""Photos become video clips that zoom in on them, on all cores: `python examples/encode.py [PHOTO...]`.

Without arguments it takes the images inside the scikit-image package. Each clip is encoded by one core: through PyAV,
through the program ffmpeg, or as animated WebP if neither is there. What concerns the pool is in `encode_whole` and in
`encode_all`. For your own photos the command line has more to offer; it calls `encode` with names of files:
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
    """The frames of a clip: at first as much of the photo as has its shape, at last the middle of that."""
    with Image.open(photo) as opened:
        image = ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), (2 * WIDTH, 2 * HEIGHT))
    count = max(1, round(seconds * RATE))
    for k in range(count):
        x, y = k / count * WIDTH / 2, k / count * HEIGHT / 2
        yield image.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, (x, y, image.width - x, image.height - y))


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
    """A task may start programs. They end with it, even if its worker is killed."""
    raw = f"-f rawvideo -pix_fmt rgb24 -s {WIDTH}x{HEIGHT} -r {RATE} -i - -filter_threads 1 -threads 1".split()
    command = ["ffmpeg", "-v", "error", "-y", *raw, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(clip)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as ffmpeg:
        with suppress(BrokenPipeError):  # it ended early; below it says why
            for frame in frames:
                ffmpeg.stdin.write(frame.tobytes())
        _, complaints = ffmpeg.communicate()
    if ffmpeg.returncode:
        raise RuntimeError(complaints.decode(errors="replace").strip())


def through_webp(frames: Frames, clip: Path) -> None:
    next(frames).save(clip, "WEBP", save_all=True, append_images=frames, duration=1000 // RATE)


ENCODERS = {"av": through_av, "ffmpeg": through_ffmpeg, "webp": through_webp}
BEST = "av" if importlib.util.find_spec("av") else "ffmpeg" if shutil.which("ffmpeg") else "webp"


def encode(photo: Path, clip: Path, seconds: float = 2, encoder: str = BEST) -> None:
    """The task: an ordinary function. It runs in a worker, and again if that is killed."""
    ENCODERS[encoder](zoom(photo, seconds), clip)


def encode_whole(photo: Path, clip: Path, seconds: float, encoder: str) -> Path:
    """The same, but a worker that is killed leaves no half: the temporary file becomes `clip` after the block."""
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


def rate_of_one_core(jobs: list[Job]) -> float:
    """Seconds of video in a second, in this process, without any pool; NaN if no photo can be read."""
    done, start = 0.0, time.perf_counter()
    for job in jobs:
        with suppress(Exception):
            encode_whole(*job)
            done += job[2]
    return done / (time.perf_counter() - start) or float("nan")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Encode photos into video clips with a pool of worker processes.")
    images = sorted(Path(data_dir).glob("*.[jp][pn]g"))
    parser.add_argument(
        "photos", nargs="*", type=Path, default=images, metavar="PHOTO", help="default: the images of scikit-image"
    )
    parser.add_argument("--with", dest="encoder", choices=ENCODERS, default=BEST, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=2, metavar="S", help="of a clip (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=available_cpus(), metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: a new temporary folder, kept)")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    out = options.out or Path(tempfile.mkdtemp(prefix="clips-"))
    out.mkdir(parents=True, exist_ok=True)
    suffix = ".webp" if options.encoder == "webp" else ".mp4"
    clips = [out / f"{k:03}-{photo.stem}{suffix}" for k, photo in enumerate(options.photos)]
    jobs = [(photo, clip, options.seconds, options.encoder) for photo, clip in zip(options.photos, clips, strict=True)]
    try:
        one_core = rate_of_one_core(jobs[::8])
        start = time.perf_counter()
        with Pool(options.workers) as pool:
            failures = encode_all(pool, jobs)
            seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        print(f"interrupted: the clips in {out} are whole")
        return 130
    made = len(jobs) - len(failures)
    rate = made * options.seconds / seconds
    print(f"""{made} of {len(jobs)} clips in {seconds:.1f} s
speed      {rate:.1f} s of video a second, {rate / one_core:.2f} times as fast as one core
one core   {one_core:.1f} s of video a second: every 8th clip, in this process, before the workers started
workers    {options.workers}, crashes survived: {pool.crashes}
files      {out}""")
    for failure in failures:
        print(f"failed     {failure.item[0]}: {failure.error}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
