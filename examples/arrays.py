"""Large images through a filter on all cores, and one large table for all workers: `python examples/arrays.py`.

The images are photographs inside the scikit-image package, tiled up to 16 megapixels. Nothing here is special to a pool
but `pool.imap(sharpen, ...)` and `pool.share(table)`: arrays go to the workers and back through shared memory, and the
workers look at them in place.
"""

import argparse
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy
import psutil
from skimage import data

from pool import Pool
from pool.cpus import available_cpus

MIB = 2**20
Array = numpy.ndarray[Any, Any]


def sharpen(image: Array, radius: int = 8, amount: float = 0.8) -> Array:
    """Unsharp mask. `image` is a view into shared memory; the array that is returned goes there in one copy."""
    return numpy.clip(image + amount * (image - blur(blur(image, radius, 0), radius, 1)), 0, 1)


def blur(image: Array, radius: int, axis: int) -> Array:
    """The mean of 2 * radius + 1 neighbours, from cumulative sums: no slower for a larger radius."""
    border = [(0, 0), (0, 0)]
    border[axis] = (radius + 1, radius)
    sums = numpy.cumsum(numpy.pad(image, border, mode="edge"), axis, dtype=numpy.float64)
    width = 2 * radius + 1
    wide = sums[width:] - sums[:-width] if axis == 0 else sums[:, width:] - sums[:, :-width]
    return (wide / width).astype(numpy.float32)


def recolour(table: Array, photo: Array) -> Array:
    """Look each pixel up. `table` is one read-only copy for all workers."""
    red, green, blue = (photo[:, :, channel] >> (8 - (len(table) - 1).bit_length()) for channel in range(3))
    return table[red, green, blue]


def make_table(bits: int) -> Array:
    """What each colour becomes, as RGBA: more contrast, warm lights, cold shadows. 8 bits a channel make 64 MiB."""
    x = numpy.linspace(0, 1, 2**bits, dtype=numpy.float32)
    curve = x * x * (3 - 2 * x)
    light = (0.3 * x[:, None, None] + 0.6 * x[:, None] + 0.1 * x)[..., None]
    toned = numpy.stack(numpy.meshgrid(curve, curve, curve, indexing="ij"), axis=-1)
    toned += (light - 0.5) * numpy.array([0.1, 0, -0.1], numpy.float32)
    table = numpy.full((*light.shape[:3], 4), 255, numpy.uint8)
    table[..., :3] = numpy.clip(255 * toned, 0, 255)
    return table


def tiled(photo: Array, side: int) -> Array:
    """The photograph beside itself until it is large enough."""
    down, right = (-(-side // length) for length in photo.shape[:2])
    return numpy.tile(photo, (down, right) + (1,) * (photo.ndim - 2))[:side, :side]


def variants(image: Array, count: int) -> Iterator[Array]:
    """New arrays, made when they are asked for: `imap` asks only so far ahead as keeps the workers busy."""
    for k in range(count):
        yield numpy.roll(image, 97 * k, axis=1)


def memory() -> int:
    """Bytes of this process and all its children; what they share is counted once."""
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True)))


def compare(
    what: str, pool: Pool, fn: Callable[[Array], Array], alone: Callable[[Array], Array], image: Array, count: int
) -> bool:
    """Do it in this process, then with the pool, and print what came of it. False: the results are not the same."""
    start = time.perf_counter()
    expected = [zlib.crc32(alone(one)) for one in variants(image, count)]
    one_core = time.perf_counter() - start

    most = moved = 0
    found = []
    start = time.perf_counter()
    for result in pool.imap(fn, variants(image, count)):
        found.append(zlib.crc32(result))  # a view into shared memory, for as long as somebody holds it
        moved += image.nbytes + result.nbytes
        most = max(most, memory())
    seconds = time.perf_counter() - start

    rate = moved / MIB / seconds
    print(f"""{what}
  speed    {rate:.0f} MiB/s of arguments and results, {one_core / seconds:.2f} times as fast as one core
  images   {count} of {image.nbytes / MIB:.1f} MiB in {seconds:.1f} s, in this process {one_core:.1f} s
  memory   {most / MIB:.0f} MiB at most, of all processes together
  results  {"the same as in this process" if found == expected else "NOT the same as in this process"}""")
    return found == expected


def check_positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Filter large images with a pool of worker processes.")
    parser.add_argument("--images", type=check_positive, default=8, metavar="N", help="default: %(default)s")
    parser.add_argument("--side", type=check_positive, default=4096, metavar="N", help="pixels (default: %(default)s)")
    parser.add_argument(
        "--bits",
        type=int,
        choices=range(1, 9),
        default=8,
        help="of a channel in the colour table (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=check_positive, default=available_cpus(), metavar="N", help="default: %(default)s"
    )
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    grey = tiled(data.camera().astype(numpy.float32) / 255, options.side)
    colour = tiled(data.astronaut(), options.side)
    table = make_table(options.bits)
    with Pool(options.workers) as pool:
        same = compare("unsharp mask", pool, sharpen, sharpen, grey, options.images)
        shared = pool.share(table)
        title = f"colour table of {shared.nbytes / MIB:.1f} MiB, in memory once for {options.workers} workers"
        same &= compare(title, pool, partial(recolour, shared), partial(recolour, table), colour, options.images)
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())
