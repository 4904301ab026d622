"""Thumbnails of many photos on all cores, with workers that may be killed at any time: `make run`.

The photos are those inside the scikit-image package, enlarged to 2000 pixels. What concerns the pool is in
`whole_thumbnail` and in `make_thumbnails`; the rest is input and print.

For your own photos there is the command line, which calls `thumbnail` with names of files, and does the rest itself:
`python -m pool map examples/thumbnails.py:thumbnail 'photos/*.jpg' --out thumbs -a size=512`
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import cycle
from pathlib import Path

from PIL import Image, ImageOps
from skimage import data_dir

from pool import Failure, Pool
from pool.cpus import available_cpus

PHOTOS = ["astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "rocket.jpg"]
CLEAR = "\r\033[K" if sys.stdout.isatty() else ""  # a progress line is overwritten on a terminal only
Job = tuple[Path, Path, int]  # original, thumbnail, pixels


def thumbnail(original: Path, target: Path, size: int = 256) -> None:
    """The task: an ordinary function. It runs in a worker, and again if that is killed."""
    with Image.open(original) as photo:
        small = ImageOps.contain(photo, (size, size), Image.Resampling.LANCZOS)
    small.convert("RGB").save(target, "JPEG")


def whole_thumbnail(original: Path, target: Path, size: int) -> None:
    """The same, but a worker that is killed leaves no half: the temporary file becomes `target` after the block."""
    with Pool.output(target) as temporary:
        thumbnail(original, Path(temporary), size)


def make_thumbnails(pool: Pool, jobs: list[Job], on_error: str) -> list[Failure]:
    """Have all thumbnails made. A photo whose worker dies gets two more attempts; what fails is returned."""
    results = pool.options(retries=2).istarmap_unordered(whole_thumbnail, jobs, on_error=on_error)
    return [result for result in with_progress(results, len(jobs)) if isinstance(result, Failure)]


def introduce_worker() -> None:
    print(f"{CLEAR}worker {os.getpid()} started\n", end="", flush=True)  # in one piece: others print at the same time


def with_progress(results: Iterable[object], total: int) -> Iterator[object]:
    """Pass the results on and show how many there were: ten times a second on a terminal, else every five seconds."""
    start = shown = time.monotonic()
    for count, result in enumerate(results, 1):
        if time.monotonic() - shown > (0.1 if CLEAR else 5):
            shown = time.monotonic()
            rate = count / (shown - start)
            print(f"{CLEAR}{count:6} of {total} photos, {rate:.0f} photos/s", end="" if CLEAR else "\n", flush=True)
        yield result
    print(CLEAR, end="", flush=True)


def make_jobs(count: int, folder: str, out: Path, size: int, broken: bool) -> list[Job]:
    """Write the enlarged photos into the folder, and name `count` thumbnails of them."""
    originals = [Path(folder, name).with_suffix(".jpg") for name in PHOTOS]
    for name, original in zip(PHOTOS, originals, strict=True):
        with Image.open(Path(data_dir, name)) as photo:
            ImageOps.contain(photo, (2000, 2000)).save(original, quality=92)
    jobs = [(path, out / f"{k:05}-{path.name}", size) for k, path in zip(range(count), cycle(originals), strict=False)]
    if broken:
        Path(folder, "broken.jpg").write_bytes(originals[0].read_bytes()[:50_000])
        jobs.insert(count // 2, (Path(folder, "broken.jpg"), out / "broken.jpg", size))
    for _, target, _ in jobs:
        target.unlink(missing_ok=True)  # of an earlier run: what is there at the end was made in this one
    return jobs


def seconds_on_one_core(jobs: list[Job], folder: str) -> float:
    """Seconds for one photo in this process, without any pool: the mean of these jobs."""
    start = time.perf_counter()
    for original, target, size in jobs:
        thumbnail(original, Path(folder, f"alone-{target.name}"), size)
    return (time.perf_counter() - start) / len(jobs)


def count_made(jobs: list[Job]) -> int:
    return sum(target.exists() for _, target, _ in jobs)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make thumbnails of photos with a pool of worker processes.")
    parser.add_argument("--photos", type=int, default=400, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=available_cpus(), metavar="N", help="default: %(default)s")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: a new temporary folder, kept)")
    parser.add_argument("--size", type=int, default=256, metavar="N", help="pixels, longer side (default: %(default)s)")
    parser.add_argument("--on-error", choices=("return", "skip", "raise"), default="return", help="see Pool.imap")
    parser.add_argument("--broken", action="store_true", help="add a photo that is cut off in the middle")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    out = options.out or Path(tempfile.mkdtemp(prefix="thumbnails-"))
    jobs: list[Job] = []
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            jobs = make_jobs(options.photos, folder, out, options.size, options.broken)
            sample = [job for job in jobs if job[0].name != "broken.jpg"][:24]
            alone = seconds_on_one_core(sample, folder)
            print(f"this is process {os.getpid()}; kill -9 one of its workers and see", flush=True)
            start = time.perf_counter()
            with Pool(options.workers, initializer=introduce_worker) as pool:
                failures = make_thumbnails(pool, jobs, options.on_error)
                seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        print(f"{CLEAR}interrupted: {count_made(jobs)} of {len(jobs)} thumbnails are in {out}")
        return 130
    except Exception as error:
        if options.on_error != "raise":
            raise
        print(f"{CLEAR}ended by the first failure: {error}")
        return 1
    made = count_made(jobs)
    print(f"""{made} of {len(jobs)} photos in {seconds:.1f} s
speed      {made / seconds:.0f} photos/s, {made * alone / seconds:.2f} times as fast as one core
one core   {1 / alone:.0f} photos/s: {len(sample)} of them, in this process, before the workers started
workers    {options.workers}, crashes survived: {pool.crashes}
files      {out}""")
    for failure in failures:
        print(f"failed     {failure.item[0].name}: {failure.error}")
    return int(made < len(jobs))


if __name__ == "__main__":
    sys.exit(main())
