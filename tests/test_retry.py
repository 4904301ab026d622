"""pool.retry and pool.delayed: decisions and a table, without processes and without a clock."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool import Backoff
from pool.delayed import Delayed
from pool.retry import ASKED, CRASHED, DEFERRED, FIRST, LIMIT, MOST_CRASHES, RAISED, Again, Tries, after, chance

NONE = Backoff(1.0, factor=3.0, longest=20.0, jitter=0.0)
SECONDS = st.floats(1e-6, 1e6)


@pytest.mark.parametrize(
    ("tries", "retries", "why", "expected"),
    [
        (FIRST, 0, RAISED, None),
        (FIRST, 1, RAISED, Again(Tries(2, 0, 0), 1.0, False)),
        (Tries(2, 0, 0), 1, RAISED, None),
        (Tries(2, 0, 0), 9, LIMIT, Again(Tries(3, 0, 0), 3.0, False)),
        (Tries(3, 1, 5), 9, CRASHED, Again(Tries(4, 2, 5), 9.0, False)),
        (Tries(4, 1, 0), 9, RAISED, Again(Tries(5, 1, 0), 20.0, False)),
        (Tries(3, MOST_CRASHES - 1, 0), 9, CRASHED, None),
        (Tries(3, MOST_CRASHES - 1, 0), 9, RAISED, Again(Tries(4, MOST_CRASHES - 1, 0), 9.0, False)),
        (FIRST, 1, ASKED, Again(Tries(2, 0, 0), 7.5, False)),
        (FIRST, 0, ASKED, None),
        (FIRST, 0, DEFERRED, Again(Tries(1, 0, 1), 0.0, True)),
        (Tries(1, 0, 2), 0, DEFERRED, Again(Tries(1, 0, 3), 0.0, True)),
        (Tries(1, 0, 3), 0, DEFERRED, Again(Tries(1, 0, 4), 0.01, True)),
        (Tries(1, 0, 4), 0, DEFERRED, Again(Tries(1, 0, 5), 0.02, True)),
        (Tries(1, 0, 10**6), 0, DEFERRED, Again(Tries(1, 0, 10**6 + 1), 1.0, True)),
    ],
)
def test_what_becomes_of_an_attempt(tries: Tries, retries: int, why: int, expected: Again | None) -> None:
    assert after(tries, retries, NONE, why, 7.5) == expected


def test_without_a_backoff_it_runs_again_at_once() -> None:
    assert after(FIRST, 1, None, RAISED) == Again(Tries(2, 0, 0), 0.0, False)


@given(retries=st.integers(0, 50), story=st.lists(st.sampled_from([RAISED, CRASHED, LIMIT, ASKED, DEFERRED])))
def test_attempts_and_crashes_have_an_end(retries: int, story: list[int]) -> None:
    """However a task fails: as many attempts as it has, three crashes, and of time what was asked for."""
    tries, done, crashed = FIRST, 1, 0
    for why in story:
        crashed += why == CRASHED
        again = after(tries, retries, NONE, why, 0.5)
        if again is None:
            assert done == retries + 1 or crashed == MOST_CRASHES
            return
        assert again.last == (why == DEFERRED)
        assert 0 <= again.seconds <= 20
        assert why != ASKED or again.seconds == 0.5
        done += why != DEFERRED
        tries = again.tries
        assert (tries.attempt, tries.crashes) == (done, crashed)
        assert done <= retries + 1
        assert crashed < MOST_CRASHES


@given(
    first=SECONDS,
    factor=st.floats(1, 1e6),
    longest=SECONDS,
    jitter=st.floats(0, 1),
    failures=st.integers(1, 70_000),
    luck=st.floats(0, 1),
)
def test_a_wait_is_never_longer_than_its_share(
    first: float, factor: float, longest: float, jitter: float, failures: int, luck: float
) -> None:
    backoff = Backoff(first, factor=factor, longest=longest, jitter=jitter)
    whole = Backoff(first, factor=factor, longest=longest, jitter=0)
    seconds, most = backoff.seconds(failures, luck), whole.seconds(failures, luck)
    assert min(first, longest) * (1 - 1e-9) <= most <= longest
    assert most * (1 - jitter) - 1e-9 * most <= seconds <= most
    assert whole.seconds(failures + 1, 0) >= most
    assert backoff.seconds(failures, 0) == most


def test_waits_double_up_to_a_minute_by_default() -> None:
    assert [Backoff(10, jitter=0).seconds(n, 0.7) for n in (1, 2, 3, 4, 70_000)] == [10, 20, 40, 60, 60]
    assert repr(Backoff(0.5)) == "Backoff(0.5, factor=2, longest=60, jitter=1)"


@pytest.mark.parametrize(
    ("first", "options"),
    [
        (0, {}),
        (-1, {}),
        (math.nan, {}),
        (math.inf, {}),
        (1, {"factor": 0.5}),
        (1, {"factor": math.nan}),
        (1, {"longest": 0}),
        (1, {"longest": math.inf}),
        (1, {"jitter": -0.1}),
        (1, {"jitter": 1.1}),
    ],
)
def test_a_backoff_that_makes_no_sense_is_refused(first: float, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="backoff must be"):
        Backoff(first, **options)


def test_chance_is_nobodys() -> None:
    random.seed(7)
    state = random.getstate()
    drawn = [chance() for _ in range(1000)]
    assert random.getstate() == state, "the program's own random numbers stay what they are"
    assert len(set(drawn)) == 1000
    assert all(0 <= x < 1 for x in drawn)
    assert 0.4 < sum(drawn) / 1000 < 0.6


STEPS = st.lists(st.one_of(st.tuples(st.just("add"), SECONDS), st.tuples(st.sampled_from(["remove", "take"]), SECONDS)))


@given(STEPS)
def test_things_come_at_their_time_each_once_in_order(steps: list[tuple[str, float]]) -> None:
    delayed, model, now = Delayed(), dict[int, float](), 0.0
    for what, x in steps:
        if what == "add":
            ticket = delayed.add(x, x)
            assert ticket
            assert ticket not in model
            model[ticket] = x
        elif what == "remove" and model:
            ticket = list(model)[int(x) % len(model)]
            del model[ticket]
            assert delayed.remove(ticket)
            assert not delayed.remove(ticket)
        elif what == "take":
            now = max(now, x)
            due = sorted(d for d in model.values() if d <= now)
            assert delayed.take(now) == due
            model = {t: d for t, d in model.items() if d > now}
        assert delayed.waiting == model
        assert delayed.next_due() == min(model.values(), default=None)
    assert not delayed.remove(0)
