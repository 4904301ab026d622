"""A script in which tasks raise, hang and crash, and all others are done all the same: `python examples/failures.py`.

It counts what regular expressions find in its own text. One of them would take years, inside a single call into C,
where nothing but the end of the process stops it. The crash stands for a bug in a native library.
"""

import ctypes
import re
import sys
from pathlib import Path

from pool import Failure, Pool, errors

TEXT = Path(__file__).read_text()
PATTERNS = [r"\w+", r"[A-Z]\w+", r"(unclosed", r"(\w+\s?)+!", r"crash", r"\bin\b", r"\d+"]


def count(pattern: str) -> int:
    if pattern == "crash":
        ctypes.string_at(0)  # reads where no memory is
    return len(re.findall(pattern, TEXT))


def kind(failure: Failure) -> str:
    match failure.error:
        case errors.WorkerCrashed():
            return "crashed"
        case errors.TaskTimeout():
            return "too slow"
        case _:  # the task's own exception
            return "wrong"


def main() -> int:
    found: dict[str, int] = {}
    failures: list[Failure] = []
    with Pool(timeout=1, retries=1) as pool:  # for each attempt, in seconds; and one more attempt
        for pattern, result in zip(PATTERNS, pool.imap(count, PATTERNS, on_error="return"), strict=True):
            if isinstance(result, Failure):
                failures.append(result)
            else:
                found[pattern] = result
    for pattern, times in found.items():
        print(f"{pattern:12} found {times} times")
    for failure in failures:
        print(f"{failure.item:12} {kind(failure)}: {failure.error}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
