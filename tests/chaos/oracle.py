"""Judges an episode by what tasks have written, what the client was told, and who was killed. It knows tasks, attempts
and deaths, and nothing of how tasks travel.

The names of the invariants:

    I2 one end for each task that was given     I11 all workers are there again at the end
    I3 who was killed stays so                  I12 no memory and no descriptor is left without an owner
    I4 as many attempts as there were, each     I14 nothing hangs, nothing is left unfinished
       death charged once, to whom it belongs   I15 no process and no file is left
    I5 never two executions at the same time    G2 who had not claimed a task is charged with none
    I6 no more attempts than a task may have    G6 late only with a limit
    I7 the right value                          R3 condemned for what it has done
    I10 the pool counts its crashes as I do     R7 no hint is lost where nobody dies
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from typing import Any, NamedTuple

from chaos import work
from chaos.observer import CHARGED, CONDEMNED, DECODING, UNSEEN
from chaos.plan import Plan

NO_TASK = -1
BY_DEATH = {"crashed", "late", "memory", "killed"}  # outcomes that are the end of a worker


class Attempts(NamedTuple):
    """What is known of one task."""

    number: int
    retries: int
    policy: dict[str, Any]
    runs: list[int]  # pids that have begun with it
    deaths: list[tuple[int, str]]  # (pid, why) of attempts that ended with their worker
    outcome: str  # "" if none was told


class Record:
    """The files of an episode."""

    def __init__(self, folder: str) -> None:
        self.policies: dict[int, dict[str, Any]] = {}
        self.ends: dict[int, list[tuple[str, str]]] = defaultdict(list)
        self.deaths: dict[int, list[tuple[int, str]]] = defaultdict(list)
        self.decoding: set[int] = set()
        self.asked: set[int] = set()
        self.continued: set[int] = set()
        self.refused = False
        for line in _lines(folder, "outcomes"):
            self._read(line)
        self.kills = {int(pid): state for pid, state in (line.split(" ", 1) for line in _lines(folder, "kills"))}
        for pid in self.continued & self.kills.keys():  # what it was at when it was stopped may not be where it died
            self.kills[pid] = UNSEEN
        self.lines = [line.split() for line in _lines(folder, "ledger")]
        self.final: dict[str, Any] | None = None
        if os.path.exists(path := os.path.join(folder, "final.json")):
            with open(path) as file:
                self.final = json.load(file)

    def _read(self, line: str) -> None:
        what, _, rest = line.partition(" ")
        words = rest.split(" ", 2)
        if what == "batch":
            policy = json.loads(rest)
            for number in work.numbers(policy["first"], policy["count"], policy["mix"]):
                self.policies[number] = policy
        elif what == "end":
            self.ends[int(words[0])].append((words[1], words[2] if len(words) > 2 else ""))
        elif what == "death":
            number = int(words[0]) if words[0].isdecimal() else NO_TASK  # the player's own question at the end
            self.deaths[number].append((int(words[1]), words[2]))
        elif what == "decoding":
            self.decoding.add(int(words[0]))
        elif what == "asked":
            self.asked.add(int(words[0]))
        elif what == "continued":
            self.continued.add(int(words[0]))
        else:
            assert what == "refused", line
            self.refused = True


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
        wrong += _task(task, record, told, calm, rogue)
    if told:
        wrong += _ends(record)
        wrong += _rest(record, plan, calm)
    if told and calm:
        wrong += _deaths(record)
    figures = _figures(record, tasks, wrong)
    if told and not rogue:
        figures["values compared"] = figures["ended: value"]
    if told and calm:
        figures["kills judged"] = figures["kills"]  # by what they were charged with
    return Verdict(wrong, figures)


def _attempts(record: Record, number: int) -> Attempts:
    policy = record.policies[number]
    ends = record.ends.get(number, [])
    outcome = ends[0][0] if ends else ""
    return Attempts(number, policy["retries"], policy, record.runs[number], record.deaths.get(number, []), outcome)


def _ledger(record: Record, rogue: bool) -> list[str]:
    record.runs = runs = defaultdict(list)
    wrong = []
    for line in record.lines:
        if len(line) != 3:
            wrong.append(f"a torn line in the ledger: {line}")
            continue
        number = int(line[0])
        runs[number].append(int(line[1]))
        if line[2] != "run" and not rogue:
            wrong.append(f"I5: two executions of task {number} at the same time")
        if number not in record.policies and not rogue:
            wrong.append(f"I2: an execution of task {number}, which was never given")
    return wrong


def _task(task: Attempts, record: Record, told: bool, calm: bool, rogue: bool) -> list[str]:
    """What must hold for each task by itself."""
    number, retries, outcome = task.number, task.retries, task.outcome
    kind, name = work.kind_of(number), f"task {number} ({work.KINDS[work.kind_of(number)]})"
    pids = [pid for pid, _ in task.deaths]
    early = sum(pid not in task.runs for pid in pids)  # killed between the claim and the first line
    attempts, deaths = len(task.runs) + early, len(task.deaths)
    seen = f"{name}: {outcome or 'no outcome'}, begun {len(task.runs)} times, deaths {task.deaths}, retries {retries}"
    wrong = []
    if (
        rogue
    ):  # what was in shared memory is anything now: another task, another value, another error; but all of it ends
        return [] if outcome or not told or record.refused else [f"I14: no outcome: {seen}"]
    if len(set(pids)) != deaths:
        wrong.append(f"I4: a death was charged twice: {seen}")
    if attempts > retries + 1:
        wrong.append(f"I6: more attempts than it may have: {seen}")
    if not told:
        return wrong
    if not outcome:
        return wrong if record.refused else [*wrong, f"I14: no outcome: {seen}"]
    detail = record.ends[number][0][1]
    if outcome == "value":
        if int(detail) != work.digest_of(number):
            wrong.append(f"I7: a wrong value: {seen}")
        if kind in work.NEVER_RETURN or kind == work.RAISES:
            wrong.append(f"I7: a value from what has none: {seen}")
    if not calm:
        allowed = {"value", "raised", "cancelled", *BY_DEATH, "broken"}
        return wrong if outcome in allowed else [*wrong, f"I2: an outcome that cannot be, {detail}: {seen}"]
    wrong += [f"{why}: {seen}" for why in _outcome(task, detail, number in record.asked)]
    at_least, at_most = {
        "value": (deaths + 1, deaths + 1),
        "raised": (retries + 1, retries + 1),
        "cancelled": (deaths, retries),
        "killed": (deaths, deaths),
    }.get(outcome, (retries + 1, retries + 1))
    if kind == work.RAISES and outcome == "killed":
        at_most = retries + 1
    if not at_least <= attempts <= at_most:
        wrong.append(f"I4: {attempts} attempts where it must be {at_least} to {at_most}: {seen}")
    return wrong


def _outcome(task: Attempts, detail: str, asked: bool) -> list[str]:
    """Whether its outcome is one that this task can have, in a pool that nobody has broken."""
    kind, outcome, deaths = work.kind_of(task.number), task.outcome, task.deaths
    wrong = []
    if outcome in BY_DEATH and (not deaths or deaths[-1][1] != outcome):
        wrong.append("I2: it ended by a death that is not its own")
    if outcome == "crashed" and detail != str(task.number):
        wrong.append(f"I2: the error names {detail}")
    if outcome == "raised" and (kind != work.RAISES or detail != f'"ValueError: {task.number}"'):
        wrong.append(f"I2: it does not raise that: {detail}")
    if outcome in ("broken", "corrupt", "other"):
        wrong.append(f"I2: nobody has broken the pool: {detail}")
    reasons = {why for _, why in deaths}
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
        for pid, why in deaths:
            charges[pid].append((number, why))
    charged = {pid: tasks[0] for pid, tasks in charges.items()}
    themselves = {
        pid for number, pids in record.runs.items() if work.kind_of(number) in work.KILL_THEMSELVES for pid in pids
    }
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


def _rest(record: Record, plan: Plan, calm: bool) -> list[str]:
    """What must hold when everything has ended."""
    final = record.final
    if final is None:
        return ["I14: the client has ended without a last word"]
    wrong = []
    if not final["full"]:
        wrong.append("I11: the pool is not back to its full size")
    if final["unfinished"]:
        wrong.append(f"I14: the pool counts {final['unfinished']} unfinished tasks")
    if final["files left"]:
        wrong.append(f"I12: file descriptors are left: {final['files left']}")
    if not calm:
        return wrong
    if final["in use"]:
        wrong.append(f"I12: {final['in use']} units of shared memory belong to nobody")
    crashes = sum(why == "crashed" for deaths in record.deaths.values() for _, why in deaths) + len(record.decoding)
    if final["crashes"] != crashes:
        wrong.append(f"I10: the pool counts {final['crashes']} crashes, and has settled {crashes}")
    if final["healed"] and not record.kills and plan.profile == "calm":
        wrong.append(f"R7: {final['healed']} lost hints were healed where nobody was killed")
    return wrong


def _figures(record: Record, tasks: list[Attempts], wrong: list[str]) -> Counter[str]:
    figures: Counter[str] = Counter({"episodes": 1})
    figures["tasks"] = len(tasks)
    figures["executions"] = len(record.lines)
    figures["kills"] = len(record.kills)
    figures["decoding deaths"] = len(record.decoding)
    for state in record.kills.values():
        figures["killed: " + state] += 1
    for task in tasks:
        figures["ended: " + (task.outcome or "not told")] += 1
        figures["killed between claim and first line"] += sum(pid not in task.runs for pid, _ in task.deaths)
    figures["lost"] = sum(text.startswith("I14") for text in wrong)
    figures["doubled"] = sum(text.startswith(("I5", "I6", "I4")) for text in wrong)
    figures["wrong values"] = sum(text.startswith("I7") for text in wrong)
    figures["left behind"] = sum(text.startswith("I15") for text in wrong)
    figures["violations"] = len(wrong)
    if record.final:
        figures["healed"] = record.final.get("healed", 0)
        figures["arrays"] = record.final.get("arrays", 0)
        figures["kills among arrays"] = record.final.get("kills", 0)
        figures["milliseconds"] = int(record.final["seconds"] * 1000)
    return figures
