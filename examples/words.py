"""Which words people use in the names of Python code, counted on all cores: `python examples/words.py [FOLDER...]`.

Without arguments it reads the standard library and the installed packages: thousands of files on every machine, and
some of them, made for tests, cannot be decoded. A file is a small task, of a millisecond or ten. `imap_unordered` gives
a worker several at once, as many as their measured run time allows, and goes through the folders no further ahead than
keeps the workers busy. What the workers have counted is added up here, in the script.
"""

import argparse
import os
import re
import sys
import sysconfig
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from keyword import iskeyword

from pool import Failure, Pool
from pool.cpus import available_cpus

WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+(?![a-z])")  # getHTTPError and get_http_error are the same three words
SAMPLE = 20  # every so many files are also read without the pool


def count_words(path: str) -> tuple[Counter[str], int]:
    """The task: the words inside the names of a file, and the bytes of the file."""
    with tokenize.open(path) as file:
        tokens = tokenize.generate_tokens(file.readline)
        names = Counter(token.string for token in tokens if token.type == tokenize.NAME)
    words = Counter[str]()
    for name, times in names.items():
        if not iskeyword(name):
            for word in WORD.findall(name):
                words[word.lower()] += times
    return words, os.path.getsize(path)


def find_files(folders: list[str]) -> Iterator[str]:
    for folder in folders:
        for parent, below, names in os.walk(folder):
            below[:] = sorted({*below} - {"site-packages", "dist-packages"})  # maybe of another environment
            yield from (os.path.join(parent, name) for name in sorted(names) if name.endswith(".py"))


def count_all(pool: Pool, paths: Iterator[str]) -> tuple[Counter[str], list[int], list[Failure]]:
    """The words of all files, the sizes of those that could be read, and those that could not."""
    total, sizes, failures = Counter[str](), [], []
    for result in pool.imap_unordered(count_words, paths, on_error="return"):
        if isinstance(result, Failure):
            failures.append(result)
        else:
            words, size = result
            total.update(words)
            sizes.append(size)
    return total, sizes, failures


def rate_of_one_core(paths: Iterator[str]) -> float:
    """Bytes a second in this process, without any pool."""
    total, read, start = Counter[str](), 0, time.perf_counter()
    for path in paths:
        with suppress(Exception):
            words, size = count_words(path)
            total.update(words)
            read += size
    return read / (time.perf_counter() - start)


def print_bars(words: Counter[str], top: int) -> None:
    most = words.most_common(top)
    for word, times in most:
        print(f"{word:>16} {times:9,} {'▇' * round(40 * times / most[0][1])}")


def print_failures(failures: list[Failure]) -> None:
    kinds = Counter(type(failure.error).__name__ for failure in failures)
    print("failed    ", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none")
    for failure in failures[:5]:
        print(f"           {failure.item}: {failure.error}")


def parse_options() -> argparse.Namespace:
    installed = [sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]
    parser = argparse.ArgumentParser(description="Count the words in names of Python code with a pool of processes.")
    parser.add_argument("folders", nargs="*", default=installed, metavar="FOLDER", help=f"default: {installed}")
    parser.add_argument("--files", type=int, default=5000, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=available_cpus(), metavar="N", help="default: %(default)s")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="words to print (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    try:
        one_core = rate_of_one_core(islice(find_files(options.folders), 0, options.files, SAMPLE))
        start = time.perf_counter()
        with Pool(options.workers) as pool:
            words, sizes, failures = count_all(pool, islice(find_files(options.folders), options.files))
            seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    rate = sum(sizes) / seconds
    faster = f", {rate / one_core:.2f} times as fast as one core" if one_core else ""
    print_bars(words, options.top)
    print(f"""{len(sizes):,} of {len(sizes) + len(failures):,} files in {seconds:.1f} s
words      {words.total():,}, {len(words):,} of them different
speed      {rate / 1e6:.2f} MB/s{faster}
one core   {one_core / 1e6:.2f} MB/s: every {SAMPLE}th file, in this process, before the workers started
workers    {options.workers}""")
    print_failures(failures)
    return int(not sizes)


if __name__ == "__main__":
    sys.exit(main())
