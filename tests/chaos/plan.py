"""Plans: what is done to a pool in one episode. Drawn from a seed; the same seed gives the same plan."""

from __future__ import annotations

import json
import random
import signal
from typing import Any, NamedTuple

from chaos import work

MANY = 1000  # retries that nobody uses up
FEW = 2  # crashes that make a task poison in some episodes of hail
SHIPPED = 3  # that make it so if nobody changes the number
WAYS = {"submit": 8, "chunks": 8, "imap": 8, "slow chunks": 1, "map": 3, "run": 3, "amap": 3}
"""And their shares of the tasks. ``map`` raises at the first failure, so only what cannot fail goes through it."""
START_METHODS = {"fork": 8, "forkserver": 1, "spawn": 1}
PROFILES = {
    "storm": 6,
    "hail": 2,
    "mixed": 8,
    "calm": 1,
    "rogue": 2,
    "ends": 4,
    "racing": 1,
    "arrays": 1,
}  # and their shares of a campaign
TIMINGS = ("even", "poisson", "bursts")
"""A kill every so many seconds; as often, but as chance will have it; all workers at once, and then a pause."""
ENDS = ("client", "monitor", "terminate", "interrupt")
SIGNALS = {
    # What a worker dies of is a death that nobody has looked at; HARMLESS ones change nothing.
    "worker": (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGWINCH, signal.SIGCHLD),
    "monitor": (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCHLD, signal.SIGWINCH),
    "client": (signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH),
}
HARMLESS = (signal.SIGCHLD, signal.SIGWINCH)


class Event(NamedTuple):
    """One thing to do, with what it takes (all of it JSON): see the methods of ``player.Player`` of these names."""

    what: str
    details: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.what} " + " ".join(f"{name}={value!r}" for name, value in self.details.items())


class Plan(NamedTuple):
    """``kill_every``: seconds between two kills of workers; 0: nobody is killed but by an event. ``hunt``: go on until
    kills have met workers in every state; from ``outside``: look for rare ones with every kill. ``outside``: who kills
    is not the client but who has started it, in one of TIMINGS, and looks for what was ``met`` least so far, by the
    kills of earlier episodes. ``tasks_per_worker``, ``units`` (of payload): 0: as many as there are.
    ``start_method``: how workers come to be. ``most_crashes``: of one task, until it is poison. MANY in
    every storm, and in half of the hail: who is killed here is innocent, however often."""

    profile: str
    seed: int
    workers: int
    kill_every: float
    hunt: bool
    events: list[Event]
    end: str
    outside: bool = False
    timing: str = "even"
    tasks_per_worker: int = 0
    units: int = 0
    met: dict[str, int] | None = None
    start_method: str = "fork"
    most_crashes: int = MANY

    def text(self) -> str:
        return json.dumps(self._asdict())

    @staticmethod
    def of(text: str) -> Plan:
        fields = json.loads(text)
        fields["events"] = [Event(*event) for event in fields["events"]]
        return Plan(**fields)

    def slice(self, keep: list[int]) -> Plan:
        """The same with only these of its events."""
        return self._replace(events=[self.events[k] for k in keep])


def batch(way: str, first: int, count: int, mix: str = "plain", retries: int = 0, **options: Any) -> Event:
    """Tasks from serial number `first` on."""
    return Event("batch", {"way": way, "first": first, "count": count, "mix": mix, "retries": retries, **options})


def storm(tasks: int, seed: int, kill_every: float = 0.05, hunt: bool = False, first: int = 0) -> Plan:
    """Each way without retries and with more than enough, about so many tasks in all."""
    events, share = [], tasks // (2 * sum(WAYS.values()))
    for retries in (0, MANY):
        for way, times in WAYS.items():
            if way == "map" and not retries:
                continue
            events.append(batch(way, first, share * times, retries=retries))
            first += share * times
    return Plan("storm", seed, 3, kill_every, hunt, events, "shutdown")


def hail(seed: int, rounds: int, kill_every: float, timing: str, workers: int = 4) -> Plan:
    """As many kills as possible, which meet workers in every state there is: from outside, in every kind of load by
    turns. Results of 3 MiB in a small room let storing take its time; short limits condemn."""
    events, first, most = [], 0, {1: FEW, 3: SHIPPED}.get(seed % 4, MANY)
    for k in range(rounds):
        retries = MANY if most != MANY or k % 2 else 0
        for way, count, mix, options in (
            ("submit", 200, "plain", {}),
            ("imap", 150, "plain", {}),
            ("chunks", 200, "plain", {}),
            ("chunks", 32, "large", {}),
            ("slow chunks", 160, "plain", {}),
            ("submit", 30, "large", {}),
            ("imap", 40, "late", {"timeout": 0.03}),
        ):
            events.append(batch(way, first, count, mix, min(retries, 2) if options else retries, **options))
            first += count
        if k % 4 == 3:
            events.append(Event("restart", {}))
    hunt, share = seed % 2 == 0, 5 if seed % 3 else 0
    return Plan(
        "hail",
        seed,
        workers,
        kill_every,
        hunt,
        events,
        "shutdown",
        True,
        timing,
        share,
        320,
        most_crashes=most,
    )


def draw(profile: str, seed: int) -> Plan:
    """The plan of a seed."""
    lucky = random.Random(f"{profile} {seed}")
    if profile == "storm":
        return storm(lucky.choice((1000, 2000)), seed, lucky.choice((0.01, 0.02, 0.03)))
    if profile == "hail":
        return hail(seed, 10, lucky.choice((0.004, 0.008, 0.012)), lucky.choice((*TIMINGS, "bursts")))
    if profile == "arrays":
        return Plan(profile, seed, 3, 0.0, False, [Event("arrays", {"kills": 60})], "shutdown")
    if profile == "racing":
        limit = {"timeout": work.RACE_SECONDS}
        ways = lucky.choices(("submit", "chunks", "imap"), k=6)
        events = [batch(way, 80 * k, 80, "racing", lucky.randint(0, 2), **limit) for k, way in enumerate(ways)]
        return Plan(profile, seed, 2, 0.0, False, events, "shutdown")
    workers = lucky.choice((1, 2, 3))
    kill_every = 0.0 if profile == "calm" else lucky.choice((0.0, 0.02, 0.05))
    start_method = lucky.choices(list(START_METHODS), list(START_METHODS.values()))[0]
    if start_method != "fork":
        kill_every *= 10  # a start takes a tenth of a second and more: else there would be hardly anybody who works
    events = []
    first = 0
    for _ in range(lucky.randint(6, 14)):
        event, used = _event(lucky, profile, first)
        events.append(event)
        first += used
    end = "shutdown"
    if profile == "ends":
        end = lucky.choice(ENDS)
        if workers > 1 and lucky.random() < 0.3:  # it never ends, and its worker does nothing else
            events += [batch("submit", first, 1, "hiding", MANY), Event("hidden", {})]
            first += 1
        events.append(Event("load", {"first": first, "count": lucky.randint(50, 400), "seen": lucky.random()}))
    elif profile == "rogue":
        events.append(batch("submit", first, 300, "rogue"))
        first += 300
        events.append(batch("imap", first, 200))
    may_fail = all(event.details.get("way") != "map" for event in events)
    most = SHIPPED if may_fail and lucky.random() < 0.5 else MANY
    return Plan(profile, seed, workers, kill_every, False, events, end, start_method=start_method, most_crashes=most)


_CALM = ("batch", "batch", "batch", "mixed", "cancel")
_WILD = (
    *_CALM, "lethal", "deadline", "racing", "racing", "hogs", "kill futures", "signal", "signal", "kill all",
    "stop monitor", "stop worker", "restart",
)  # fmt: skip


def _event(lucky: random.Random, profile: str, first: int) -> tuple[Event, int]:
    """One event, and how many serial numbers it takes."""
    what = lucky.choice(_CALM if profile == "calm" else _WILD)
    way, few = lucky.choices(list(WAYS), list(WAYS.values()))[0], lucky.randint(0, 2)
    count = lucky.randint(20, 300) if way != "slow chunks" else 20
    if what == "signal":
        who = lucky.choice(list(SIGNALS))
        return Event(what, {"who": who, "number": int(lucky.choice(SIGNALS[who])), "chance": lucky.random()}), 0
    if what in ("kill all", "restart"):
        return Event(what, {}), 0
    if what in ("cancel", "kill futures"):
        return Event(what, {"first": first, "count": count, "share": lucky.uniform(0.1, 0.6), "retries": few}), count
    if what in ("stop monitor", "stop worker"):
        return Event(what, {"first": first, "count": 40, "chance": lucky.random()}), 40
    if what == "batch":
        return batch(way, first, count, retries=MANY if way == "map" else lucky.choice((0, MANY))), count
    if way == "map":
        way = "submit"
    if what == "mixed":
        return batch(way, first, count, what, few), count
    if what == "lethal":
        return batch(way, first, count, what, few), count
    if what == "deadline":
        return batch(way, first, count // 4, what, few, timeout=lucky.uniform(0.03, 0.1)), count // 4
    if what == "racing":
        return batch(way, first, count // 4, what, few, timeout=work.RACE_SECONDS), count // 4
    assert what == "hogs"
    return batch(way, first, count // 8, what, few, memory_limit=work.HOG_LIMIT), count // 8


def drawn(seed: int, number: int) -> Plan:
    """Episode `number` of a campaign: which profile, and its plan."""
    lucky = random.Random(f"{seed} {number}")
    profile = lucky.choices(list(PROFILES), list(PROFILES.values()))[0]
    return draw(profile, lucky.randrange(1 << 30))
