"""pool.restart: tables of what happens to the workers, and what the monitor is told to do."""

from typing import Any

import pytest

from pool.restart import RestartPolicy, Restarts

EVERY = "no worker has become ready, every first start failed"

# slots, then steps: (now, "ready" or "died", slot, expected delay or reason to give up)
STORIES: dict[str, tuple[int, list[tuple[float, str, int, float | str | None]]]] = {
    "a worker that had been ready is replaced at once, however often": (
        1,
        [step for n in range(100) for step in ((n * 0.01, "ready", 0, None), (n * 0.01, "died", 0, 0.0))],
    ),
    "one slot, first start fails": (1, [(0, "died", 0, EVERY)]),
    "all slots fail at first boot: the last one decides": (
        3,
        [(0, "died", 0, 0.1), (0, "died", 2, 0.1), (0.2, "died", 2, 0.2), (0.3, "died", 1, EVERY)],
    ),
    "one worker was ready once: failures of every slot are not a failed boot": (
        2,
        [(0, "ready", 0, None), (1, "died", 1, 0.1), (1, "died", 0, 0.0), (2, "died", 0, 0.1)],
    ),
    "one slot keeps failing, six within the period": (
        2,
        [
            (0.0, "ready", 0, None),
            (0.0, "died", 1, 0.1),
            (0.1, "died", 1, 0.2),
            (0.3, "died", 1, 0.4),
            (0.7, "died", 1, 0.8),
            (1.5, "died", 1, 1.6),
            (3.1, "died", 1, "6 failed starts of workers within 30 s"),
        ],
    ),
    "the window is the pool's, the back-off is the slot's": (
        8,
        [
            (0, "ready", 7, None),
            *((1.0, "died", slot, 0.1) for slot in range(5)),
            (2, "died", 5, "6 failed starts of workers within 30 s"),
        ],
    ),
    "a worker that becomes ready starts the window anew, for its slot the back-off too": (
        3,
        [
            (0, "ready", 0, None),
            *((1.0, "died", 1, 0.1 * 2**n) for n in range(5)),
            (2, "ready", 2, None),
            (3, "died", 1, 3.2),
            (4, "ready", 1, None),
            (5, "died", 1, 0.0),
            (6, "died", 1, 0.1),
        ],
    ),
    "one that has been ready all along does not, even if it is told again, nor does its death": (
        2,
        [
            (0, "ready", 0, None),
            *((1.0, "died", 1, 0.1 * 2**n) for n in range(5)),
            (2, "ready", 0, None),
            (2, "died", 0, 0.0),
            (3, "died", 1, "6 failed starts of workers within 30 s"),
        ],
    ),
    "failed starts older than the period are forgotten, the back-off is not": (
        2,
        [
            (0, "ready", 0, None),
            *((0.0, "died", 1, 0.1 * 2**n) for n in range(5)),
            (30.001, "died", 1, 3.2),
        ],
    ),
    "exactly one period ago still counts": (
        2,
        [
            (0, "ready", 0, None),
            *((0.0, "died", 1, 0.1 * 2**n) for n in range(5)),
            (30.0, "died", 1, "6 failed starts of workers within 30 s"),
        ],
    ),
    "slow failures go on for ever, at the longest wait": (
        2,
        [
            (0, "ready", 0, None),
            *((n * 40.0, "died", 1, min(0.1 * 2.0**n, 30.0)) for n in range(500)),
        ],
    ),
}


@pytest.mark.parametrize(("slots", "steps"), STORIES.values(), ids=STORIES.keys())
def test_story(slots: int, steps: list[tuple[float, str, int, float | str | None]]) -> None:
    restarts = Restarts(slots)
    for now, event, slot, expected in steps:
        if event == "ready":
            restarts.ready(slot)
        else:
            delay = restarts.died(slot, now)
            if isinstance(expected, str):
                assert restarts.give_up == expected
            else:
                assert restarts.give_up is None
                assert delay == pytest.approx(expected)


def test_policy_is_used() -> None:
    restarts = Restarts(2, RestartPolicy(intensity=1, period=5, backoff_first=1, backoff_max=1.5))
    restarts.ready(0)
    assert [restarts.died(1, 0), restarts.died(1, 6)] == [1, 1.5]
    assert restarts.give_up is None
    restarts.died(1, 11)
    assert restarts.give_up == "2 failed starts of workers within 5 s"
    restarts.ready(1)
    assert restarts.give_up == "2 failed starts of workers within 5 s"  # too late


def test_no_failure_tolerated() -> None:
    restarts = Restarts(2, RestartPolicy(intensity=0))
    restarts.ready(0)
    assert restarts.died(0, 1) == 0
    assert restarts.give_up is None
    restarts.died(0, 2)
    assert restarts.give_up is not None


def test_backoff_doubles_up_to_the_longest_wait_and_never_overflows() -> None:
    policy = RestartPolicy()
    assert [policy.backoff(n) for n in (1, 2, 3, 9, 10, 10**6)] == pytest.approx([0.1, 0.2, 0.4, 25.6, 30, 30])


@pytest.mark.parametrize(
    "wrong",
    [
        {"intensity": -1},
        {"period": 0},
        {"backoff_first": 0},
        {"backoff_first": 31},
        {"backoff_max": 0.05},
        {"period": float("nan")},
    ],
)
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        RestartPolicy(**wrong)
