"""Explore what weak memory may do to the core's steps: python3 ipc/model/orders.py

Each litmus below is a handful of steps of two roles, and something that must not come about. The order of each step is
read from the C source, so a weaker one there is found here. All outcomes are explored: with the orders of the source
the bad one is impossible, and with any one of them weakened it is possible; so each of them is needed.

Memory is as in C11 without its consume and without stores that pass earlier loads: each location has all its values, a
thread may read any that is not older than what it knows of; a release hands on what its thread knows, an acquire takes
it over; a seq_cst load reads nothing older than the last seq_cst store there. A read-modify-write reads the newest.
That a load is not passed by a later store (a unit is freed after the last look at it) is therefore not explored; there
the release stands for the order by definition.
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

CORE = Path(__file__).resolve().parent.parent / "core"

Order = tuple[str, str]  # (file of the core, text): the first memory order that follows the text there; ("", name)
PLAIN: Order = ("", "relaxed")


class Step(NamedTuple):
    what: str  # store; add: a read-modify-write; load
    where: str
    order: Order = PLAIN
    want: bool = False  # a load that finds the old value ends its thread


class Litmus(NamedTuple):
    name: str
    weaker: str  # what an order is weakened to, to show that it is needed
    threads: tuple[
        tuple[Step, ...], tuple[Step, ...]
    ]  # bad: the last load of each thread that has one finds the old value


def message(name: str, word: Step, seen: Step, data: Order = PLAIN) -> Litmus:
    """Who has seen the word sees what was written before it."""
    return Litmus(
        name, "relaxed", ((Step("store", "data", data), word), (seen._replace(want=True), Step("load", "data", data)))
    )


def dekker(name: str, say: Step, look: Step, say_other: Step, look_other: Step) -> Litmus:
    """Each side says something, then looks for what the other one says: they never both miss it."""
    return Litmus(name, "acq_rel", ((say, look), (say_other, look_other)))


def store(where: str, file: str, text: str) -> Step:
    return Step("store", where, (file, text))


def add(where: str, file: str, text: str) -> Step:
    return Step("add", where, (file, text))


def load(where: str, file: str, text: str) -> Step:
    return Step("load", where, (file, text))


TAIL = store("tail", "client.c", "&c->s->header->tail, c->tail")
ASLEEP = store("asleep", "client.c", "&h->client_asleep, look->wanting ? 2 : 1")
SUMMARY = add("summary", "worker.c", "&h->done_summary, UINT64_C(1) << (row / 64)")
HEAD = add("head", "worker.c", "int moved = atomic_compare_exchange_strong_explicit(&h->head, &head, head + 1")
LOOK_TAIL = load("tail", "worker.c", "< atomic_load_explicit(&h->tail")
LOOK_SUMMARY = load("summary", "client.c", "return look->swept || atomic_load_explicit(&h->done_summary")

LITMUS = [
    message(
        "READY: arguments",
        store("word", "client.c", "&r->word, c->published[row]"),
        add("word", "worker.c", "&s->row[row].word, &ready, w->word"),
    ),
    message(
        "DONE: result",
        add("word", "worker.c", "&w->s->row[w->row].word, &from, to"),
        load("word", "client.c", "return atomic_load_explicit(&s->row[row].word"),
    ),
    message("tail: entry, READY", TAIL, load("tail", "worker.c", "uint64_t tail = atomic_load_explicit(&h->tail")),
    message(
        "head: the claim",
        HEAD,
        load("head", "client.c", "int healed = 0;\n    uint64_t head = atomic_load_explicit(&h->head"),
    ),
    message(
        "result_ref: the run",
        store("ref", "worker.c", "&r->result_ref, (uint64_t)unit << 32 | count"),
        load("ref", "client.c", ", ref = atomic_load_explicit(&r->result_ref"),
    ),
    message(
        "offered: frames",
        store("offered", "worker.c", "&r->offered, committed"),
        load("offered", "client.c", "offered = atomic_load_explicit(&c->s->row[row].offered"),
    ),
    message(
        "started_word: start",
        store("started", "worker.c", "&line->started_word, w->word"),
        load("started", "monitor.c", "stamped = atomic_load_explicit(&line->started_word"),
    ),
    message(
        "reaped: death record",
        store("reaped", "monitor.c", "&s->slot[slot].reaped, death->generation + 1"),
        load("reaped", "client.c", "uint32_t n = atomic_load_explicit(&s->slot[k].reaped"),
    ),
    message(
        "settled: rows",
        store("settled", "client.c", "&c->s->slot[slot].settled, reaped"),
        load("settled", "monitor.c", "return generation - atomic_load_explicit(&s->slot[slot].settled"),
    ),
    message(
        "unit: what stands in it",
        add("owner", "units.c", "&s->owner[k], &mine, to"),
        add("owner", "units.c", "&s->owner[first + run], &nobody, owner"),
    ),
    message(
        "bell: retirement",
        add("bell", "doorbell.c", "atomic_fetch_add_explicit(bell, 1"),
        load("bell", "worker.c", "uint32_t seen = atomic_load_explicit(&line->bell"),
    ),
    message(
        "layout: identity",
        store("layout", "segment.c", "&h->layout, IPC_LAYOUT_VERSION"),
        load("layout", "segment.c", "|| atomic_load_explicit(&h->layout"),
    ),
    dekker(
        "tail, sleepers",
        TAIL,
        load("sleepers", "doorbell.c", "uint64_t word = atomic_load_explicit(&s->header->sleepers[k]"),
        add("sleepers", "worker.c", "atomic_fetch_or_explicit(&h->sleepers[w->slot >> 6], bit"),
        LOOK_TAIL,
    ),
    dekker(
        "tail, spinners",
        TAIL,
        load("spinners", "doorbell.c", "__builtin_popcountll(atomic_load_explicit(&words[k]"),
        add("spinners", "worker.c", "atomic_fetch_and_explicit(&h->spinners[w->slot >> 6], ~bit"),
        LOOK_TAIL,
    ),
    dekker(
        "tail, guard",
        TAIL,
        load("guard", "client.c", "if (atomic_load_explicit(&h->guard"),
        store("guard", "worker.c", "atomic_store_explicit(&h->guard, 0"),
        LOOK_TAIL,
    ),
    dekker(
        "done, client_asleep",
        SUMMARY,
        load("asleep", "worker.c", 'IPC_POINT("complete:summed");\n    if (atomic_load_explicit(&h->client_asleep'),
        ASLEEP,
        LOOK_SUMMARY,
    ),
    dekker(
        "head, client_asleep 2",
        HEAD,
        load("asleep", "worker.c", "if (moved && atomic_load_explicit(&h->client_asleep"),
        ASLEEP,
        load("head", "client.c", "if (look->wanting && atomic_load_explicit(&h->head"),
    ),
    dekker(
        "wanted, client_asleep",
        add("wanted", "client.c", "atomic_fetch_add_explicit(&c->wanted, 1"),
        load(
            "asleep", "client.c", "&h->client_asleep, &asleep, 2, memory_order_seq_cst"
        ),  # a swap that fails only loads
        ASLEEP,
        load("wanted", "client.c", "atomic_load_explicit(look->wanted_now"),
    ),
    dekker(
        "done, listening",
        SUMMARY,
        load("listening", "doorbell.c", "atomic_load_explicit(&s->header->listening"),
        store("listening", "client.c", "&h->listening, 1"),
        LOOK_SUMMARY,
    ),
    dekker(
        "armed, monitor_idle",
        store("armed", "client.c", "&h->armed, ++c->armed"),
        load("idle", "../client.c", "must = v->client->shortened || atomic_load_explicit(&v->s.header->monitor_idle"),
        store("idle", "../monitor.c", "&v->s.header->monitor_idle, (uint32_t)PyObject_IsTrue(args[1])"),
        load("armed", "monitor.c", "if (atomic_load_explicit(&h->armed"),
    ),
]


def order_of(order: Order) -> str:
    """As it stands in the source. ValueError: the text is not there, or more than once."""
    file, text = order
    if not file:
        return text
    parts = (CORE / file).read_text().split(text)
    found = re.match(r"[^;]*?memory_order_(\w+)", parts[-1])
    if len(parts) != 2 or not found:
        raise ValueError(f"{file} has {len(parts) - 1} times {text!r}")
    return found[1]


def _put(row: tuple[Any, ...], k: int, new: Any) -> tuple[Any, ...]:
    return (*row[:k], new, *row[k + 1 :])


def outcomes(threads: tuple[tuple[Step, ...], ...], orders: list[list[str]]) -> tuple[int, bool]:
    """How many states there are, and whether the bad end is one of them."""
    names = sorted({step.where for thread in threads for step in thread})
    zero = tuple(0 for _ in names)
    # where each thread is; what it knows of each location; whether its last load was old; for each location what the
    # writes hand on, the first being the old value; and the last write there that is seq_cst
    begin = ((0,) * len(threads), (zero,) * len(threads), (False,) * len(threads), ((zero,),) * len(names), zero)
    seen, todo, bad = {begin}, [begin], False
    while todo:
        state = todo.pop()
        at, views, missed, memory, newest_sc = state
        bad |= all(missed[k] for k, thread in enumerate(threads) if thread[-1].what == "load") and all(
            at[k] == len(thread) for k, thread in enumerate(threads)
        )
        for k, thread in enumerate(threads):
            if at[k] == len(thread):
                continue
            step, order = thread[at[k]], orders[k][at[k]]
            x, newest = names.index(step.where), len(memory[names.index(step.where)]) - 1
            oldest = max(views[k][x], newest_sc[x] if order == "seq_cst" else 0)
            for read in range(newest if step.what != "load" else oldest, newest + 1):
                view = list(views[k])
                if step.what != "store" and order in ("acquire", "acq_rel", "seq_cst"):
                    view = [max(pair) for pair in zip(view, memory[x][read], strict=True)]
                view[x] = max(view[x], read)
                more, sc = memory, newest_sc
                if step.what != "load":
                    view[x] = newest + 1
                    hands_on = order in ("release", "acq_rel", "seq_cst")
                    note = tuple(view) if hands_on else zero
                    more = _put(memory, x, (*memory[x], note))
                    if order == "seq_cst":
                        sc = _put(newest_sc, x, newest + 1)
                if step.want and read == 0:
                    continue
                after = (_put(at, k, at[k] + 1), _put(views, k, tuple(view)), _put(missed, k, read == 0), more, sc)
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
    return len(seen), bad


def main() -> int:
    wrong = 0
    print(f"{'litmus':24}{'states':>7}  orders, each of which is needed")
    for litmus in LITMUS:
        orders = [[order_of(step.order) for step in thread] for thread in litmus.threads]
        states, bad = outcomes(litmus.threads, orders)
        idle = []
        for k, thread in enumerate(litmus.threads):
            for n, step in enumerate(thread):
                if step.order != PLAIN:
                    weak = [list(row) for row in orders]
                    weak[k][n] = litmus.weaker
                    if not outcomes(litmus.threads, weak)[1]:
                        idle.append(step.where)
        wrong += bad or bool(idle)
        text = ", ".join(
            f"{s.what} {s.where} {o}"
            for t, row in zip(litmus.threads, orders, strict=True)
            for s, o in zip(t, row, strict=True)
            if s.order != PLAIN
        )
        print(f"{litmus.name:24}{states:>7}  {text}{'  BAD' if bad else ''}{f'  NOT NEEDED: {idle}' if idle else ''}")
    print(f"{len(LITMUS)} litmuses, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
