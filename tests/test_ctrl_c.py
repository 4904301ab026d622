"""Ctrl-C at any moment loses no task: every future that submit has returned comes to its end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import scripts

from pool.interrupts import PutOff

STORM = """
import os, random, signal, threading, time
import pool
from pool import Pool, errors
import tasks

def interrupting(main, stop):
    random.seed(1)
    while not stop.wait(random.uniform(0.0001, 0.002)):
        signal.pthread_kill(main, signal.SIGINT)

def interrupt(number, frame):
    if frame.f_code.co_filename.startswith(os.path.dirname(pool.__file__)):  # nowhere else, least of all here
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
interrupts = 0

def insist(call):
    global interrupts
    while True:
        try:
            return call()
        except KeyboardInterrupt:
            interrupts += 1

def outcome(future):
    try:
        return future.result(60)
    except errors.WorkerCrashed:
        return "crashed"

def main():
    stop = threading.Event()
    workers = Pool(2, retries=2).start()
    thread = threading.Thread(target=interrupting, args=(threading.get_ident(), stop))
    futures = {}
    thread.start()
    end = time.monotonic() + 4
    number = 0
    while time.monotonic() < end:
        for _ in range(1500):  # more than there are rows: some wait in the queue
            number += 1
            try:
                futures[number] = workers.submit(tasks.die_now_and_then, number, 500)
            except KeyboardInterrupt:
                pass
        for n in list(futures):
            got = insist(lambda: outcome(futures[n]))
            assert got in (n, "crashed"), (n, got)
            insist(lambda: futures.pop(n, None))
    stop.set()
    insist(thread.join)
    insist(workers.shutdown)
    print("interrupts", interrupts > 100, "tasks", number > 1000)

main()
"""


def test_every_future_ends_in_a_rain_of_interrupts(tmp_path: Path) -> None:
    out = scripts.run(tmp_path, STORM).stdout
    assert out.strip() == "interrupts True tasks True"


def test_put_off_hands_the_signal_over_at_the_end() -> None:
    seen = []

    def put_off() -> None:
        with PutOff():
            signal.raise_signal(signal.SIGINT)
            seen.append("the block goes on")

    with pytest.raises(KeyboardInterrupt):
        put_off()
    assert seen == ["the block goes on"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
