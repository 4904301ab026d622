"""One pool that lives long, under load, while its workers are killed: does anything grow?

``python -m chaos.soak [--seconds S] [--every S]`` lets a client work, kills its workers from outside, and every so many
seconds has it rest, with all deaths settled and all workers there again. Then the file descriptors, mappings and memory
of client and monitor, the workers that live, the children of either that nobody has waited for (zombies), the client's
Python objects (blocks of memory), the units of shared memory that are in use for anything but the pool's functions, and
the files, are counted. Exit code 0: no value was wrong, at rest there were always as many workers as configured, no
zombies, no units in use, and as many descriptors and files as at first; and of blocks, mappings and anonymous memory
(KiB) there are, with 95 % confidence, fewer than one more for each thousand kills.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import processes

from chaos import figures
from chaos.killer import Killer
from chaos.observer import Observer
from chaos.sources import surroundings
from ipc import _core
from pool import Failure, Pool, errors, retry

WORKERS = 3
BATCH = 300
LENGTHS = (10, 1000, 100_000)
KILL_EVERY = 0.012
FEWEST = 8  # samples that have a slope
LONG = 4000  # kills: after the half of so many, nothing is made for the first time
HOUR = 3600.0  # seconds: what does not grow in less may yet
UNJUDGED = ("RSS, KiB", "shared, KiB")
"""RSS has pages of libraries in it that come when their code runs for the first time, and of shared memory as much as
was touched last and not given back yet. What of it is in use are the units, which are judged."""
WARM_UP = 0.5  # of the samples: what is made once and kept is there by then


def work(number: int) -> bytes:
    return bytes((number % 251,)) * LENGTHS[number % len(LENGTHS)]


def _be_client() -> None:
    """Works until it is told to rest; then says what it has seen, and goes on when it is told so."""
    retry.MOST_CRASHES = 1 << 30  # whoever is killed here is innocent, however often
    seen: Counter[str] = Counter()
    with Pool(WORKERS).start() as pool:
        print(flush=True)
        first = 0
        while True:
            _batch(pool, first, seen)
            first += BATCH
            if select.select([sys.stdin], [], [], 0)[0]:
                if not sys.stdin.readline():
                    return
                gc.collect()
                # It keeps up to 4,096 names that attributes were looked up by: each new string `repr_int` that reprlib
                # makes for the text of a death takes a place, so the blocks would grow by it until it is full.
                sys._clear_type_cache()
                print(json.dumps({"tasks": seen, "blocks": sys.getallocatedblocks()}), flush=True)
                while not select.select([sys.stdin], [], [], 0.02)[0]:
                    pool.submit(int, "7").result()  # the last deaths are settled by who uses the pool
                if not sys.stdin.readline():
                    return
                counters = _core.counters(pool._client.segment)
                print(counters["units"] - counters["functions"] - counters["kept"], flush=True)


def _batch(pool: Any, first: int, seen: Counter[str]) -> None:
    numbers = range(first, first + BATCH)
    way = first // BATCH % 3
    chosen = pool.options(retries=0 if way else 1000)
    if way == 1:
        futures = [chosen.submit(work, number) for number in numbers]
        outcomes = [future.exception(60) or future.result() for future in futures]
    else:
        results = chosen.imap(work, numbers, chunksize=1 if way else 16, on_error="return")
        outcomes = [result.error if isinstance(result, Failure) else result for result in results]
    for number, outcome in zip(numbers, outcomes, strict=True):
        if isinstance(outcome, errors.WorkerCrashed) and way:
            seen["crashed"] += 1
        else:
            seen["values" if outcome == work(number) else "wrong"] += 1


# ---- outside


def soak(seconds: float, every: float, seed: int) -> dict[str, Any]:
    """What was counted at each rest, and what became of the tasks."""
    samples: list[dict[str, int]] = []
    records, kills, seen, began = 0, 0, {}, time.monotonic()
    end = began + seconds
    with tempfile.TemporaryDirectory(prefix="soak-") as folder, processes.nothing_left():
        command = [sys.executable, "-m", "chaos.soak", "--client"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=surroundings(TMPDIR=folder), stdin=pipe, stdout=pipe, text=True) as client:
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdout.readline()
            lucky = random.Random(seed)
            while not samples or time.monotonic() < end:
                killer = Killer(client.pid, KILL_EVERY, lucky.getrandbits(32), lambda *_: None)
                killer.start()
                time.sleep(min(every, max(0.0, end - time.monotonic()) + 0.1))
                killer.stop()
                kills += killer.counts.total()
                records += killer.records
                assert not killer.wrong_records, killer.wrong_records
                print(file=client.stdin, flush=True)
                told = json.loads(client.stdout.readline())
                seen = told["tasks"]
                at_rest = _at_rest(client.pid, folder)
                print(file=client.stdin, flush=True)
                units = int(client.stdout.readline())
                samples.append({"kills": kills, "client: blocks": told["blocks"], "units in use": units, **at_rest})
            client.stdin.close()
            assert client.wait(60) == 0
        files = sum(len(found) for _, _, found in os.walk(folder))
        took = time.monotonic() - began
    return {"samples": samples, "tasks": seen, "records": records, "files left": files, "seconds": round(took)}


def _at_rest(client: int, folder: str) -> dict[str, int]:
    pool = Observer(client)
    slots = range(pool.slots)

    def is_at_rest(slot: int) -> bool:
        found = pool.slot(slot)  # of somebody who was killed a moment ago it still says that he is there
        return pool.is_ready(slot) and processes.runs(found.pid) and pool.settled(slot) == found.reaped

    processes.wait_until(lambda: all(map(is_at_rest, slots)), "all workers are there again, and the deaths settled")
    monitor = processes.parent_of(pool.slot(0).pid)
    workers, zombies = processes.living_and_zombies(monitor)
    _, more_zombies = processes.living_and_zombies(client)
    pool.close()
    files = sum(len(found) for _, _, found in os.walk(folder))
    return {
        "workers": workers,
        "client: zombies": more_zombies,
        "monitor: zombies": zombies,
        **{f"client: {name}": count for name, count in _used(client).items()},
        **{f"monitor: {name}": count for name, count in _used(monitor).items()},
        "files": files + len(processes.shared_files()),
    }


def _used(pid: int) -> dict[str, int]:
    with open(f"/proc/{pid}/maps") as file:
        maps = sum(1 for _ in file)
    with open(f"/proc/{pid}/smaps_rollup") as file, open(f"/proc/{pid}/status") as status:
        lines = [*file, *status]
        sizes = dict(line.split()[:2] for line in lines if line.startswith(("Rss:", "Anonymous:", "RssShmem:")))
    fds = len(os.listdir(f"/proc/{pid}/fd"))
    return {
        "descriptors": fds,
        "mappings": maps,
        "RSS, KiB": int(sizes["Rss:"]),
        "anonymous, KiB": int(sizes["Anonymous:"]),
        "shared, KiB": int(sizes["RssShmem:"]),
    }


def grown(samples: list[dict[str, int]]) -> dict[str, figures.Slope]:
    """By what was counted: how much more it is per 1,000 kills, after the warm-up."""
    late = samples[int(len(samples) * WARM_UP) :]
    names = [name for name in samples[0] if name != "kills"]
    return {name: figures.slope([(at["kills"], at[name]) for at in late]) for name in names}


def main() -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two rests")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 20), help="by default a new one")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.client:
        _be_client()
        return 0
    print(f"seed {options.seed}, {options.seconds:g} s", flush=True)
    found = soak(options.seconds, options.every, options.seed)
    samples = found["samples"]
    print(figures.table(list(samples[0]), [at.values() for at in samples]))
    print(f"{samples[-1]['kills']:,} kills, tasks: {found['tasks']}; per 1,000 kills:")
    for name, more in grown(samples).items() if len(samples) >= FEWEST else ():
        print(f"{name:>26}: {more}")
    return 0 if sound(found) else 1


def is_long(found: dict[str, Any]) -> bool:
    """Long enough for slopes to be judged."""
    kills, samples = found["samples"][-1]["kills"], len(found["samples"])
    return kills >= LONG and samples >= FEWEST and found["seconds"] >= HOUR


def sound(found: dict[str, Any]) -> bool:
    samples = found["samples"]
    steady = [name for name in samples[0] if name == "files" or name.endswith("descriptors")]
    flat = all(at[name] <= samples[0][name] for at in samples for name in steady)
    flat = flat and not any(at["units in use"] for at in samples)
    whole = all(at.get("workers") == WORKERS and at["client: zombies"] == at["monitor: zombies"] == 0 for at in samples)
    if is_long(found):
        own = {name: more for name, more in grown(samples).items() if not name.endswith(UNJUDGED)}
        flat = flat and all(more.per_thousand + more.error < 1 for more in own.values())
    return (
        flat
        and whole
        and not found["files left"]
        and not found["tasks"].get("wrong", 0)
        and found["tasks"].get("values", 0) > 0
    )


if __name__ == "__main__":
    sys.exit(main())
