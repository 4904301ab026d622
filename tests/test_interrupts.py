"""A KeyboardInterrupt is the affair of the thread that gets it: what it was doing for others goes on."""

import concurrent.futures
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import processes
import pytest
import tasks

import pool as package
from pool import Future, Pool

pytestmark = pytest.mark.timeout(60)
OURS = os.path.dirname(package.__file__) + os.sep
POINTS = 100  # more than there are in one wait
LEADERS = {"_lead", "pump", "_deliver", "announce"}  # what only a leader runs
SOON = 20.0  # seconds: else it waits for somebody who has left


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    with processes.nothing_left():
        yield


class Interrupt:
    """Raises KeyboardInterrupt at the n-th point at which the interpreter looks for signals while our code runs: where
    a function begins, and where a call of C has returned. With a name: in functions of that name only."""

    def __init__(self, n: int, name: str = "") -> None:
        self.left, self.name = n, name
        self.place = ""

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event in ("call", "c_return") and code.co_filename.startswith(OURS) and self.name in ("", code.co_name):
            self.left -= 1
            if self.left == 0:
                sys.setprofile(None)
                self.place = code.co_name
                raise KeyboardInterrupt


def _interrupted(interrupt: Interrupt, call: Callable[[], object]) -> str:
    """Where the call was interrupted; empty if it had fewer points."""
    sys.setprofile(interrupt)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return interrupt.place


def _wait_outside(future: Future) -> object:
    return concurrent.futures.wait([future], SOON).not_done or future.result()


OTHERS: dict[str, Callable[[Future], object]] = {"in result()": lambda f: f.result(SOON), "in wait()": _wait_outside}


@pytest.mark.parametrize("how", OTHERS)
@pytest.mark.parametrize("when", ["before", "while it leads", "afterwards"])
def test_wherever_one_is_interrupted_who_waits_with_it_the_others_get_their_results(when: str, how: str) -> None:
    places = set()
    with Pool(1) as pool:
        client, me = pool._client, threading.get_ident()

        def check(interrupt: Interrupt) -> None:
            # Both wait for the same task: then nothing is left that a collector would have to lead for.
            future, results, over = pool.submit(tasks.sleep, 0.005), [], threading.Event()

            def wait() -> None:
                if when == "while it leads":
                    processes.wait_until(lambda: over.is_set() or (client._leading and client._leader == me), "leads")
                results.append(OTHERS[how](future))

            other = threading.Thread(target=wait)
            if when != "afterwards":
                other.start()
            if when == "before":
                processes.wait_until(lambda: client._leading or future.done(), "somebody else leads")
            places.add(place := _interrupted(interrupt, future.result))
            over.set()
            if when == "afterwards":
                other.start()
            other.join()
            assert results == [0.005], f"interrupted in {place}"
            assert not client._followers

        for n in range(1, POINTS):
            check(Interrupt(n))
        assert "" in places, "more points than were tried"
        # The number of points differs from one wait to the next, so that counting may have stepped over a function;
        # and who leads when the result comes is up to the threads.
        for name in {"wait_for", "_take_lead", "_leave"} | (set() if when == "before" else LEADERS):
            for _ in range(POINTS):
                if name in places:
                    break
                check(Interrupt(1, name))
            assert name in places
        assert client.unfinished == 0


def test_an_interrupt_of_the_leader_by_a_signal_lets_the_next_one_lead(gate: tasks.Gate) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    results: list[object] = []
    try:
        with Pool(1) as pool:
            client, me = pool._client, threading.get_ident()
            future = pool.submit(tasks.hold, gate.path, 5)
            other = threading.Thread(target=lambda: results.append(future.result(SOON)))

            def act() -> None:
                processes.wait_until(lambda: client._leading and client._leader == me, "the first one leads")
                other.start()
                processes.wait_until(lambda: client._followers, "the other one follows")
                signal.pthread_kill(me, signal.SIGUSR1)

            actor = threading.Thread(target=act)
            actor.start()
            with pytest.raises(KeyboardInterrupt):
                future.result()
            actor.join()
            processes.wait_until(lambda: client._leader == other.ident, "the other one leads")
            gate.open()
            other.join()
            assert results == [5]
    finally:
        signal.signal(signal.SIGUSR1, before)
