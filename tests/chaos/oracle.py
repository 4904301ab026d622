"""Judges an episode by what tasks have written, what the client was told, and who was killed. It knows tasks, attempts
and deaths, and nothing of how tasks travel.

The names of the invariants:

    I2 one end for each task that was given;    I12 nothing is left without an owner: no memory, no file
       no value from nowhere                        descriptor; and of mappings there are about as many
    I3 an end is final: nothing begins after       as at first
       it; who was killed stays so              I13 a worker is started for each that has ended, and no
    I4 as many attempts as there were, each        other
       death charged once, to whom it belongs   I14 nothing hangs, nothing is left unfinished
    I5 never two executions at the same time,   I15 no process and no file is left
       of a task or of a worker                 I16 one worker begins tasks in the order they were given
    I6 no more attempts than a task may have    I19 what was refused is not executed
    I7 the right value                          I20 who was killed has a successor soon
    I10 the pool's counts are mine: crashes,    G1 again only when the former attempt is known to have ended
       attempts that ended, that died; and      G2 who had not claimed a task is charged with none
       they never go down
    I11 all workers are there again at the      G6 late only with a limit, and never before it
       end, and nobody dead                     R3 condemned for what it has done
                                                R7 no hint is lost where nobody dies

I1, that the ends add up to what was given, follows from I2 and I14. I8, I9 and I18 are of backends that keep tasks; I17
(nobody reads what is not published) is what the C tests of the core are about.

That a map's values come in their order needs no look of its own: the player puts them beside the numbers of the tasks,
and no two of these have the same value, but for a few large ones (I7). Moments are monotonic ns of the machine, and
where one is not known the bound is taken that blames nobody.
"""

from __future__ import annotations

import json
import os
from bisect import bisect
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from chaos import work
from chaos.observer import CHARGED, CONDEMNED, DECODING, STARTING, UNSEEN
from chaos.plan import Plan

NO_TASK = -1
BY_DEATH = {"crashed", "late", "memory", "killed"}  # outcomes that are the end of a worker
FOREIGN = "I2: it ended by a death that is not its own"
DOUBLED = ("I3", "I4", "I5", "I6", "G1", "G2", "R3", FOREIGN)  # a task was run twice, or a death charged wrongly


RECOVERY = 5.0
"""Seconds from a kill until its slot's next worker has begun its initializer, on a machine that may be busy."""
MORE_MAPPINGS = {"client": 32, "monitor": 8}
"""What there may be more of at rest than before the first task. The client imports modules when an error is first made,
and its allocator keeps arenas of what it has used at most: up to 13 were seen, in the monitor none. A mapping that each
death, or each large value, leaves behind would be more in most episodes."""


@dataclass
class Execution:
    """What its lines say, in ns; 0: there is no such line."""

    pid: int
    since: int  # the worker's line before
    begin: int
    end: int = 0
    roused: int = 0  # by the last signal


class Death(NamedTuple):
    """Of an attempt that ended with its worker, as it was settled."""

    pid: int
    settled: int  # ns
    why: str


class End(NamedTuple):
    outcome: str
    detail: str
    told: int  # ns


class Attempts(NamedTuple):
    """What is known of one task."""

    number: int
    retries: int
    policy: dict[str, Any]
    runs: list[Execution]
    deaths: list[Death]
    end: End | None

    @property
    def outcome(self) -> str:
        return "" if self.end is None else self.end.outcome

    def charged(self) -> list[tuple[Death, Execution | None]]:
        """Each death, and what it has ended: the last execution by that worker, if there is one."""
        last = {run.pid: run for run in self.runs}
        return [(death, last.get(death.pid)) for death in self.deaths]


class Record:
    """The files of an episode."""

    def __init__(self, folder: str) -> None:
        self.policies: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, list[End]] = defaultdict(list)
        self.deaths: dict[int, list[Death]] = defaultdict(list)
        self.decoding: set[int] = set()
        self.asked: set[int] = set()
        self.cancelled: dict[int, int] = {}  # when
        self.continued: set[int] = set()
        self.refused: set[int] = set()
        self.kills: dict[int, str] = {}
        self.killed: dict[int, int] = {}  # the same pids: when
        self.runs: dict[int, list[Execution]] = defaultdict(list)
        self.births: list[tuple[int, int, int]] = []  # slot, pid, ns
        self.last: dict[int, int] = {}  # when a worker has written its last line
        for line in _lines(folder, "outcomes"):
            self._read(line)
        for line in _lines(folder, "kills"):
            pid, ns, state = line.split(" ", 2)
            if state != UNSEEN or int(pid) not in self.kills:  # a signal may not kill, and one may come too late
                self.kills[int(pid)], self.killed[int(pid)] = state, int(ns)
        for pid in self.continued & self.kills.keys():  # what it was at when it was stopped may not be where it died
            self.kills[pid] = UNSEEN
        self.lines = [line.split() for line in _lines(folder, "ledger")]
        self.final: dict[str, Any] | None = None
        if os.path.exists(path := os.path.join(folder, "final.json")):
            with open(path) as file:
                self.final = json.load(file)

    def _read(self, line: str) -> None:
        what, _, rest = line.partition(" ")
        words = rest.split(" ", 3)
        if what == "batch":
            policy = json.loads(rest)
            for number in work.numbers(policy["first"], policy["count"], policy["mix"]):
                self.policies[number] = policy
        elif what == "end":
            self.ends[int(words[0])].append(End(words[2], words[3] if len(words) > 3 else "", int(words[1])))
        elif what == "death":
            number = int(words[0]) if words[0].isdecimal() else NO_TASK
            self.deaths[number].append(Death(int(words[1]), int(words[2]), words[3]))
        elif what == "decoding":
            self.decoding.add(int(words[0]))
        elif what == "asked":
            self.asked.add(int(words[0]))
        elif what == "cancelled":
            self.cancelled[int(words[0])] = int(words[1])
        elif what == "continued":
            self.continued.add(int(words[0]))
        else:
            assert what == "refused", line
            numbers = [number for number, policy in self.policies.items() if policy["first"] == int(words[0])]
            self.refused.update(numbers[-int(words[1]) :])


def _lines(folder: str, name: str) -> list[str]:
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        return []
    with open(path) as file:
        text = file.read()
    lines = text.split("\n")
    if lines.pop() and name == "ledger":
        lines.append("torn")
    return lines


class Verdict(NamedTuple):
    """``wrong``: sentences, each with the invariant that it breaks. ``figures``: counts to add up over episodes."""

    wrong: list[str]
    figures: Counter[str]


def judge(folder: str, plan: Plan, exit_code: int, left: str) -> Verdict:
    """``exit_code``: the player's; ``left``: what is left of it on the machine, in words."""
    record = Record(folder)
    wrong: list[str] = []
    if left:
        wrong.append(f"I15: {left}")
    wanted = -9 if plan.end == "client" else 0
    if exit_code != wanted:
        wrong.append(f"I14: the client has ended with {exit_code}, not {wanted}; see its stderr")
    told = plan.end != "client" and exit_code == wanted
    rogue = any(work.kind_of(number) in (work.HEADER, work.ALL, work.BYTES) for number in record.policies)
    calm = not rogue and plan.end == "shutdown"
    wrong += _ledger(record, rogue)
    tasks = [_attempts(record, number) for number in record.policies]
    for task in tasks:
        wrong += _task(task, record, told, calm, rogue, plan.most_crashes)
        if not rogue:
            wrong += _times(task, record)
    if plan.workers == 1 and not rogue:
        wrong += _order(tasks)
    if told:
        wrong += _ends(record)
        wrong += _rest(record, plan, tasks, calm)
    if told and calm:
        wrong += _deaths(record)
        wrong += _restarts(record, plan)
    figures = _figures(record, tasks, wrong)
    if told and not rogue:
        figures["values compared"] = figures["ended: value"]
    if told and calm:
        figures["kills judged"] = figures["kills"] - figures["killed: " + UNSEEN]  # by what they were charged with
    return Verdict(wrong, figures)


def _attempts(record: Record, number: int) -> Attempts:
    policy = record.policies[number]
    end = record.ends[number][0] if number in record.ends else None
    return Attempts(number, policy["retries"], policy, record.runs[number], record.deaths.get(number, []), end)


def _ledger(record: Record, rogue: bool) -> list[str]:
    """Each line by itself, and each worker: it is at one execution at a time."""
    wrong = []
    now: dict[int, tuple[int, Execution]] = {}  # what each worker is at
    for line in record.lines:
        if len(line) != 4:
            wrong.append(f"a torn line in the ledger: {line}")
            continue
        number, pid, what, ns = int(line[0]), int(line[1]), line[2], int(line[3])
        since, record.last[pid] = record.last.get(pid, 0), ns
        if what == "born":
            record.births.append((number, pid, ns))
        elif what in ("end", "roused"):
            if pid not in now or now[pid][0] != number:
                wrong += [f"I2: worker {pid} is at an end of task {number}, with which it has not begun"] * (not rogue)
                continue
            setattr(now[pid][1], what, ns)
            if what == "end":
                del now[pid]
        else:
            if what == "overlap" and not rogue:
                wrong.append(f"I5: two executions of task {number} at the same time")
            if pid in now and not rogue:
                wrong.append(f"I5: worker {pid} has begun task {number}, and is still at task {now[pid][0]}")
            if not since and not rogue:
                wrong.append(f"I2: task {number} was begun by {pid}, which is no worker")
            if number not in record.policies and not rogue:
                wrong.append(f"I2: an execution of task {number}, which was never given")
            now[pid] = number, Execution(pid, since, ns)
            record.runs[number].append(now[pid][1])
    return wrong


def _task(task: Attempts, record: Record, told: bool, calm: bool, rogue: bool, most: int) -> list[str]:
    """What must hold for each task by itself."""
    number, retries, outcome = task.number, task.retries, task.outcome
    kind, name = work.kind_of(number), f"task {number} ({work.KINDS[work.kind_of(number)]})"
    attempts, deaths = len(task.runs) + _early(task), len(task.deaths)
    seen = f"{name}: {outcome or 'no outcome'}, begun {len(task.runs)} times, deaths {task.deaths}, retries {retries}"
    wrong = []
    if number in record.refused:
        return [f"I19: it was refused: {seen}"] if attempts or outcome else []
    if (
        rogue
    ):  # what was in shared memory is anything now: another task, another value, another error; but all of it ends
        return [] if outcome or not told else [f"I14: no outcome: {seen}"]
    if len({death.pid for death in task.deaths}) != deaths:
        wrong.append(f"I4: a death was charged twice: {seen}")
    if attempts > retries + 1:
        wrong.append(f"I6: more attempts than it may have: {seen}")
    if not told:
        return wrong
    if task.end is None:
        return [*wrong, f"I14: no outcome: {seen}"]
    detail = task.end.detail
    if outcome == "value":
        if int(detail) != work.digest_of(number):
            wrong.append(f"I7: a wrong value: {seen}")
        if kind in work.NEVER_RETURN or kind == work.RAISES:
            wrong.append(f"I7: a value from what has none: {seen}")
    if not calm:
        allowed = {"value", "raised", "cancelled", *BY_DEATH, "broken"}
        return wrong if outcome in allowed else [*wrong, f"I2: an outcome that cannot be, {detail}: {seen}"]
    wrong += [f"{why}: {seen}" for why in _outcome(task, detail, number in record.asked)]
    crashes = sum(death.why == "crashed" for death in task.deaths)
    if crashes > most or (crashes == most and outcome != "crashed"):
        wrong.append(f"I6: it was begun again after {most} crashes: {seen}")
    at_least, at_most = {
        "value": (deaths + 1, deaths + 1),
        "raised": (retries + 1, retries + 1),
        "cancelled": (deaths, retries),
        "killed": (deaths, deaths),
        "crashed": (deaths, deaths) if crashes >= most else (retries + 1, retries + 1),
    }.get(outcome, (retries + 1, retries + 1))
    if kind == work.RAISES and outcome == "killed":
        at_most = retries + 1
    if not at_least <= attempts + _doubtful(task) or attempts > at_most:
        wrong.append(f"I4: {attempts} attempts where it must be {at_least} to {at_most}: {seen}")
    return wrong


def _early(task: Attempts) -> int:
    """How many attempts were killed between the claim and the first line."""
    return sum(run is None for _, run in task.charged())


def _doubtful(task: Attempts) -> int:
    """How many more may have been. A worker that has raised, and has died since, may have died of storing that, or of
    the next attempt."""
    raises = work.kind_of(task.number) == work.RAISES
    return sum(run is not None and run.end > 0 for _, run in task.charged()) if raises else 0


def _times(task: Attempts, record: Record) -> list[str]:
    """What must hold of the moments of one task's attempts. A worker that was killed has lived until then at least."""
    wrong = []
    runs = sorted(task.runs, key=lambda run: run.begin)
    for former, latter in pairwise(runs):
        end = former.end or record.killed.get(former.pid, 0)
        if latter.begin < end:
            wrong.append(f"I5: worker {latter.pid} has begun while worker {former.pid} was at it")
    ended = set()
    for death, run in task.charged():
        begin = run.begin if run else 0
        ended.add(begin)
        again = run and any(run.begin < other.begin < death.settled for other in runs)
        if again and not _doubtful(task):
            wrong.append(f"G1: it was begun again before the death of worker {death.pid} was settled")
        # When it was claimed nobody has noted: after it was given, after all that its worker had done before, and after
        # the end of the former attempt.
        before = [other.settled for other in task.deaths if other.settled < death.settled]
        before += [other.end for other in runs if other.begin < begin]
        claimed = max(task.policy["ns"], run.since if run else record.last.get(death.pid, 0), *before, 0)
        noticed = run.roused if run and run.roused else death.settled
        if death.why == "late" and noticed - claimed < task.policy.get("timeout", 0) * 1e9:
            wrong.append(f"G6: it was late after {(noticed - claimed) / 1e6:.3f} ms")
    if task.end is not None:
        told = task.end.told
        if runs and runs[-1].begin > record.cancelled.get(task.number, told):
            wrong.append(f"I3: it was begun after its end was told, {task.outcome}")
        if task.outcome == "value" and not any(0 < run.end < told and run.begin not in ended for run in runs):
            wrong.append("I2: a value from nowhere: no execution has come to its end that was not charged for a death")
    name = f"task {task.number} ({work.KINDS[work.kind_of(task.number)]})"
    return [f"{text}: {name}: {runs}, {task.deaths}, {task.end}" for text in wrong]


def _order(tasks: list[Attempts]) -> list[str]:
    """A single worker begins with what was submitted, without retries, in the order in which it was."""
    firsts = [
        (task.runs[0].begin, task.number)
        for task in tasks
        if task.policy["way"] == "submit" and not task.retries and task.runs
    ]
    return [
        f"I16: task {latter} was given after task {former}, and has begun before"
        for (_, latter), (_, former) in pairwise(sorted(firsts))
        if latter > former
    ]


def _outcome(task: Attempts, detail: str, asked: bool) -> list[str]:
    """Whether its outcome is one that this task can have, in a pool that nobody has broken."""
    kind, outcome, deaths = work.kind_of(task.number), task.outcome, task.deaths
    wrong = []
    if outcome in BY_DEATH and (not deaths or deaths[-1].why != outcome):
        wrong.append(FOREIGN)
    if outcome == "crashed" and detail != str(task.number):
        wrong.append(f"I2: the error names {detail}")
    if outcome == "raised" and (kind != work.RAISES or detail != f'"ValueError: {task.number}"'):
        wrong.append(f"I2: it does not raise that: {detail}")
    if outcome in ("broken", "corrupt", "other"):
        wrong.append(f"I2: nobody has broken the pool: {detail}")
    reasons = {death.why for death in deaths}
    if "late" in reasons and "timeout" not in task.policy:
        wrong.append("G6: it was late without a limit")
    if "memory" in reasons and kind != work.HOGS:
        wrong.append("R3: it was too large without having filled any memory")
    if "killed" in reasons and not asked:
        wrong.append("R3: it was killed, and nobody had asked for that")
    if "killed" in reasons and outcome != "killed":
        wrong.append("I3: it was killed, and that was not its end")
    return wrong


def _ends(record: Record) -> list[str]:
    wrong = [f"I2: task {number} has {len(ends)} ends" for number, ends in record.ends.items() if len(ends) > 1]
    strangers = set(record.ends) - set(record.policies)
    return wrong + [f"I2: task {number} has an end, and was never given" for number in strangers]


def _deaths(record: Record) -> list[str]:
    """Each death was settled as what the dead was at; and nobody has died of nothing."""
    charges: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, deaths in record.deaths.items():
        for death in deaths:
            charges[death.pid].append((number, death.why))
    charged = {pid: tasks[0] for pid, tasks in charges.items()}
    themselves = _themselves(record)
    wrong = [
        f"I4: the death of worker {pid} was charged to {tasks}" for pid, tasks in charges.items() if len(tasks) > 1
    ]
    wrong += [f"I4: the death of worker {pid}, who decoded, was charged" for pid in record.decoding & charged.keys()]
    for pid, state in record.kills.items():
        if state in CHARGED and pid not in charged:
            wrong.append(f"I4: worker {pid} was killed while {state}, and no task was charged")
        if state == CONDEMNED and pid not in record.decoding and charged.get(pid, (0, "crashed"))[1] == "crashed":
            wrong.append(f"R3: worker {pid} was killed while {state}, and no task has paid for that")
        if state == DECODING and pid not in record.decoding:
            wrong.append(f"I4: worker {pid} was killed while {state}, and it was not settled so")
        if state not in (*CHARGED, CONDEMNED, UNSEEN) and pid in charged and charged[pid][1] == "crashed":
            wrong.append(f"G2: worker {pid} was killed {state}, and task {charged[pid][0]} was charged")
    wrong += [
        f"I4: task {number} was charged for the death of worker {pid}, whom nobody has killed"
        for pid, (number, why) in charged.items()
        if why == "crashed" and pid not in record.kills and pid not in themselves
    ]
    strangers = record.decoding - set(record.kills)
    return wrong + [f"I4: worker {pid} died while it decoded, and nobody has killed it" for pid in strangers]


def _themselves(record: Record) -> set[int]:
    """Workers that a task has ended."""
    return {
        run.pid for number, runs in record.runs.items() if work.kind_of(number) in work.KILL_THEMSELVES for run in runs
    }


def _restarts(record: Record, plan: Plan) -> list[str]:
    """One worker was started for each slot and for each that has ended; and all that have ended had a reason."""
    final = record.final
    if final is None:
        return []
    wrong = []
    born, ends = Counter(pid for _, pid, _ in record.births), Counter(final["ends"])
    known = born.total() + len(record.kills.keys() - born.keys())  # killed before its first line
    if known != plan.workers + final["generations"]:
        wrong.append(
            f"I13: {known} workers were started, for {plan.workers} and {final['generations']} that have ended"
        )
    if ends.total() != final["generations"]:
        wrong.append(f"I13: {final['generations']} workers have ended, and of so many it is told how: {ends}")
    charged = {death.pid for deaths in record.deaths.values() for death in deaths} | record.decoding
    certain = _themselves(record) | charged | {pid for pid, state in record.kills.items() if state != UNSEEN}
    unplanned = ends.total() - ends["recycled"] - ends["restarted"]
    if not len(certain) <= unplanned <= len(certain | record.kills.keys()):
        wrong.append(f"I13: {unplanned} workers have died, and I know of {len(certain)}, and of others killed: {ends}")
    states = Counter(record.kills.values())
    if ends["not ready"] > states[STARTING] + states[UNSEEN]:
        wrong.append(f"I13: {ends['not ready']} starts have failed, and only {states[STARTING]} were killed in one")
    if ends["recycled"] and not plan.tasks_per_worker:
        wrong.append(f"I13: {ends['recycled']} workers were replaced for having done a share that they had not")
    if ends["restarted"] > plan.workers * sum(event.what == "restart" for event in plan.events):
        wrong.append(f"I13: {ends['restarted']} workers were replaced because that was asked for")
    return wrong + _recoveries(record)


def _recoveries(record: Record) -> list[str]:
    slots: dict[int, list[int]] = defaultdict(list)
    of = {}
    for slot, pid, ns in record.births:
        slots[slot].append(ns)
        of[pid] = slot
    for births in slots.values():
        births.sort()
    wrong = []
    for pid, ns in record.killed.items():
        births = slots[of[pid]] if pid in of else []
        nth = bisect(births, ns)
        if nth < len(births) and births[nth] - ns > RECOVERY * 1e9:
            wrong.append(f"I20: after the kill of worker {pid} its successor came in {(births[nth] - ns) / 1e9:.1f} s")
    return wrong


def _rest(record: Record, plan: Plan, tasks: list[Attempts], calm: bool) -> list[str]:
    """What must hold when everything has ended."""
    final = record.final
    if final is None:
        return ["I14: the client has ended without a last word"]
    wrong = [f"I10: a count has gone down: {fall}" for fall in final.get("falls", [])]
    if plan.end == "shutdown" and not final["full"]:
        wrong.append("I11: the pool is not back to its full size")
    if plan.end == "shutdown" and final["zombies"]:
        wrong.append(f"I11: nobody has waited for the dead {final['zombies']}")
    if final["unfinished"]:
        wrong.append(f"I14: the pool counts {final['unfinished']} unfinished tasks")
    if final["files left"]:
        wrong.append(f"I12: file descriptors are left: {final['files left']}")
    if not calm:
        return wrong
    if final["in use"]:
        wrong.append(f"I12: {final['in use']} units of shared memory belong to nobody")
    for who, (before, after) in final["descriptors"].items():
        if after != before:
            wrong.append(f"I12: the {who} had {before} file descriptors at first, and has {after} at rest")
    for who, (before, after) in final["mappings"].items():
        if after > before + MORE_MAPPINGS[who]:
            wrong.append(f"I12: the {who} had {before} mappings at first, and has {after} at rest")
    deaths = [death for deaths in record.deaths.values() for death in deaths]
    crashes = sum(death.why == "crashed" for death in deaths) + len(record.decoding)
    if final["crashes"] != crashes:
        wrong.append(f"I10: the pool counts {final['crashes']} crashes, and has settled {crashes}")
    ended, died = final["counted"]["ended"], final["counted"]["died"]
    if died != len(deaths) + len(record.decoding):
        wrong.append(f"I10: the pool counts {died} attempts that died, and has settled {len(deaths)}")
    least = sum(len(task.runs) + _early(task) - len(task.deaths) for task in tasks)
    if tasks and not least <= ended <= least + sum(map(_doubtful, tasks)):
        wrong.append(f"I10: the pool counts {ended} attempts that came to an end, and there were {least}")
    if final["healed"] and not record.kills and plan.profile == "calm":
        wrong.append(f"R7: {final['healed']} lost hints were healed where nobody was killed")
    return wrong


def _figures(record: Record, tasks: list[Attempts], wrong: list[str]) -> Counter[str]:
    figures: Counter[str] = Counter({"episodes": 1})
    figures["tasks"] = len(tasks)
    figures["executions"] = sum(map(len, record.runs.values()))
    figures["kills"] = len(record.kills)
    figures["decoding deaths"] = len(record.decoding)
    for state in record.kills.values():
        figures["killed: " + state] += 1
    for task in tasks:
        figures["ended: " + (task.outcome or "not told")] += 1
        figures["ended as poison"] += task.outcome == "crashed" and len(task.deaths) <= task.retries
        figures["killed between claim and first line"] += _early(task)
    figures["lost"] = sum(text.startswith("I14") for text in wrong)
    figures["doubled"] = sum(text.startswith(DOUBLED) for text in wrong)
    figures["wrong values"] = sum(text.startswith("I7") for text in wrong)
    figures["left behind"] = sum(text.startswith("I15") for text in wrong)
    figures["violations"] = len(wrong)
    if record.final:
        figures["healed"] = record.final.get("healed", 0)
        figures["arrays"] = record.final.get("arrays", 0)
        figures["kills among arrays"] = record.final.get("kills", 0)
        figures["milliseconds"] = int(record.final["seconds"] * 1000)
    return figures
