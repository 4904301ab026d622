"""Explore what weak memory may do to the core's steps: python3 ipc/model/orders.py

Each litmus below is a handful of steps of two or three roles, and something that must not come about. The order of each
step is read from the C source, so a weaker one there is found here. All outcomes are explored: with the orders of the
source the bad one is impossible, and with any one of them weakened it is possible; so each of them is needed. Every
order of the source that is stronger than relaxed belongs to a litmus, or stands in NEEDLESS with the reason why nobody
leans on it; one that does not is named, and fails the run.

Memory is as in C11 without its consume: each location has all its values, a thread may read any that is not older than
what it knows of; a release hands on what its thread knows, an acquire takes it over; a seq_cst load reads nothing older
than the last seq_cst store there. A read-modify-write reads the newest, and hands on what that one did. A write that is
no release may come before earlier steps on other locations that are no acquire: so a load may find what a later store
of its own thread has brought about (load buffering), and dependencies order nothing.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CORE = Path(__file__).resolve().parent.parent / "core"
STRONG = re.compile(r"memory_order_(?!relaxed\b)\w+")
ACQUIRES, RELEASES = ("acquire", "acq_rel", "seq_cst"), ("release", "acq_rel", "seq_cst")
UNNAMED = re.compile(r"\batomic_(?:load|store|exchange|fetch_[a-z]+|compare_exchange_[a-z]+)\(")  # seq_cst, unsaid


class Order(NamedTuple):
    file: str  # of the core; "": `text` is the order
    text: str  # which the order follows
    which: int = 0  # 1: that of a compare-and-swap that fails


PLAIN = Order("", "relaxed")


class Step(NamedTuple):
    what: str  # store; add: a read-modify-write; load
    where: str
    order: Order = PLAIN
    finds: str = ""  # in the bad outcome: the old value, or a new one


class Litmus(NamedTuple):
    name: str
    weaker: str  # what an order is weakened to, to show that it is needed
    threads: tuple[tuple[Step, ...], ...]  # bad: all come to their ends, each step finding what it is said to find


def old(step: Step) -> Step:
    return step._replace(finds="old")


def new(step: Step) -> Step:
    return step._replace(finds="new")


def message(name: str, word: Step, seen: Step, data: Order = PLAIN) -> Litmus:
    """Who has seen the word sees what was written before it."""
    return Litmus(name, "relaxed", ((Step("store", "data", data), word), (new(seen), old(Step("load", "data", data)))))


def last_look(name: str, word: Step, seen: Step, where: str = "data") -> Litmus:
    """Who has seen the word may write: what looked before the word does not find that."""
    return Litmus(name, "relaxed", ((new(Step("load", where)), word), (new(seen), Step("add", where))))


def dekker(name: str, say: Step, look: Step, say_other: Step, look_other: Step) -> Litmus:
    """Each side says something, then looks for what the other one says: they never both miss it."""
    return Litmus(name, "acq_rel", ((say, old(look)), (say_other, old(look_other))))


def dead(name: str, look: Step, clear: Step) -> Litmus:
    """The client publishes, then counts on somebody who is dead; the monitor clears that, then rings: who is rung finds
    what was published."""
    ring, rung = Step("add", "bell", Order("", "acq_rel")), Step("load", "bell", Order("", "acquire"))
    return Litmus(name, "acq_rel", ((TAIL, old(look)), (clear, ring), (new(rung), old(LOOK_TAIL))))


def store(where: str, file: str, text: str) -> Step:
    return Step("store", where, Order(file, text))


def add(where: str, file: str, text: str) -> Step:
    return Step("add", where, Order(file, text))


def load(where: str, file: str, text: str, which: int = 0) -> Step:
    return Step("load", where, Order(file, text, which))


TAIL = store("tail", "client.c", "&c->s->header->tail, c->tail")
ASLEEP = store("asleep", "client.c", "&h->client_asleep, look->wanting ? 2 : 1")
LISTENING = store("listening", "client.c", "&h->listening, 1")
SUMMARY = add("summary", "worker.c", "&h->done_summary, UINT64_C(1) << (row / 64)")
HEAD = add("head", "worker.c", "int moved = atomic_compare_exchange_strong_explicit(&h->head, &head, head + 1")
CLAIM = add("word", "worker.c", "&s->row[row].word, &ready, w->word")
REAPED = store("reaped", "monitor.c", "&s->slot[slot].reaped, death->generation + 1")
DEATHS = add("deaths", "monitor.c", "&h->deaths, 1")
RING = add("bell", "doorbell.c", "atomic_fetch_add_explicit(bell, 1")
BIT = add("sleepers", "worker.c", "atomic_fetch_or_explicit(&h->sleepers[w->slot >> 6], bit")
TAKE_BIT = add("sleepers", "doorbell.c", "atomic_fetch_and_explicit(&s->header->sleepers[slot >> 6], ~bit")
GIVE = add("owner", "units.c", "&s->owner[k], &mine, to")
TAKE = add("owner", "units.c", "&s->owner[first + run], &nobody, owner")
LOOK_TAIL = load("tail", "worker.c", "< atomic_load_explicit(&h->tail")
LOOK_SUMMARY = load("summary", "client.c", "return look->swept || atomic_load_explicit(&h->done_summary")
LOOK_ASLEEP = load(
    "asleep", "worker.c", 'IPC_POINT("complete:summed");\n    if (atomic_load_explicit(&h->client_asleep'
)
LOOK_ASLEEP_2 = load("asleep", "worker.c", "if (moved && atomic_load_explicit(&h->client_asleep")
LOOK_LISTENING = load("listening", "doorbell.c", "atomic_load_explicit(&s->header->listening")
LOOK_SPINNERS = load("spinners", "doorbell.c", "__builtin_popcountll(atomic_load_explicit(&words[k]")
LOOK_GUARD = load("guard", "client.c", "if (atomic_load_explicit(&h->guard")
LOOK_REF = load("ref", "client.c", ", ref = atomic_load_explicit(&r->result_ref")
SEEN_BELL = load("bell", "worker.c", "uint32_t seen = atomic_load_explicit(&line->bell")
PASSED = load("head", "client.c", "return atomic_load_explicit(&c->s->header->head")

LITMUS = [
    message("READY: arguments", store("word", "client.c", "&r->word, c->published[row]"), CLAIM),
    message(
        "DONE: result",
        add("word", "worker.c", "&w->s->row[w->row].word, &from, to"),
        load("word", "client.c", "return atomic_load_explicit(&s->row[row].word"),
    ),
    message(
        "claim: no former start",
        CLAIM,
        load("word", "monitor.c", "uint64_t word = atomic_load_explicit(&s->row[row].word"),
    ),
    message("tail: entry, READY", TAIL, load("tail", "worker.c", "uint64_t tail = atomic_load_explicit(&h->tail")),
    message(
        "head: the claim",
        HEAD,
        load("head", "client.c", "int healed = 0;\n    uint64_t head = atomic_load_explicit(&h->head"),
    ),
    last_look("head: its entry is read", HEAD, PASSED),
    Litmus(  # a worker that came too late does not take the ring for empty
        "head: not beyond tail",
        "relaxed",
        (
            (Step("store", "tail"),),
            (new(Step("load", "tail")), HEAD),
            (
                new(
                    load("head", "worker.c", "return IPC_STOP;\n        uint64_t head = atomic_load_explicit(&h->head")
                ),
                old(Step("load", "tail")),
            ),
        ),
    ),
    Litmus(  # both are read-modify-writes: the summary stands for both
        "summary: its bit",
        "relaxed",
        (
            (Step("add", "bit"), SUMMARY),
            (
                new(add("summary", "client.c", "summary = atomic_exchange_explicit(&h->done_summary, 0")),
                old(Step("add", "bit")),
            ),
        ),
    ),
    message("result_ref: the run", store("ref", "worker.c", "&r->result_ref, (uint64_t)unit << 32 | count"), LOOK_REF),
    message("result_ref 0: no length", store("ref", "worker.c", "&r->result_ref, 0"), LOOK_REF),
    message(
        "offered: frames",
        store("offered", "worker.c", "&r->offered, committed"),
        load("offered", "client.c", "offered = atomic_load_explicit(&c->s->row[row].offered"),
    ),
    last_look(
        "drained: frames are read",
        store("drained", "client.c", "&c->s->row[row].drained, c->drained[row]"),
        load("drained", "worker.c", "atomic_load_explicit(&r->drained"),
    ),
    message(
        "started_word: start",
        store("started", "worker.c", "&line->started_word, w->word"),
        load("started", "monitor.c", "stamped = atomic_load_explicit(&line->started_word"),
    ),
    message(
        "phase: how long it took",
        store("phase", "worker.c", "&line->phase, phase"),
        load("phase", "insight.c", "phase = atomic_load_explicit(&line->phase"),
    ),
    message(
        "reaped: death record",
        REAPED,
        load("reaped", "client.c", "uint32_t n = atomic_load_explicit(&s->slot[k].reaped"),
    ),
    message("reaped: for the reader", REAPED, load("reaped", "../client.c", "atomic_load_explicit(&line->reaped")),
    message(
        "deaths: reaped",
        DEATHS,
        load("deaths", "client.c", "uint32_t deaths = atomic_load_explicit(&s->header->deaths"),
    ),
    message(
        "settled: rows",
        store("settled", "client.c", "&c->s->slot[slot].settled, reaped"),
        load("settled", "monitor.c", "return generation - atomic_load_explicit(&s->slot[slot].settled"),
    ),
    message(
        "renewed: new workers",
        store("renewed", "monitor.c", "&s->header->renewed, count"),
        load("renewed", "monitor.c", "return atomic_load_explicit(&s->header->renewed"),
    ),
    message("unit: what stands in it", GIVE, TAKE),
    last_look("unit: it is read", GIVE, TAKE),
    last_look(
        "unit: read, punched out", GIVE, add("owner", "units.c", "&s->owner[first + run], &nobody, IPC_OWNER_VIEW")
    ),
    message("bell: retirement, stop", RING, SEEN_BELL),
    message("client's bell: a death", RING, load("bell", "client.c", "seen = atomic_load_explicit(&h->client_bell")),
    last_look("bit: who takes it rings", BIT, TAKE_BIT, "bell"),
    last_look(
        "sleep: who takes it rings",
        ASLEEP,
        add("asleep", "worker.c", " && atomic_exchange_explicit(&h->client_asleep, 0"),
        "bell",
    ),
    last_look(
        "sleep 2: the same",
        ASLEEP,
        add("asleep", "worker.c", "== 2 &&\n                atomic_exchange_explicit(&h->client_asleep, 0"),
        "bell",
    ),
    message(  # a word and a bit that were not there together would be taken for damage
        "bit: nothing is claimed",
        BIT,
        load("sleepers", "client.c", "atomic_load_explicit(&s->header->sleepers[k >> 6]"),
    ),
    Litmus(  # a wake that was spent on the dead: who is rung instead finds what was published
        "bit of the dead: tail",
        "relaxed",
        (
            (Step("store", "tail"), TAKE_BIT),
            (new(add("sleepers", "monitor.c", "&h->sleepers[slot >> 6], ~bit")), RING),
            (new(SEEN_BELL), old(Step("load", "tail"))),
        ),
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
        BIT,
        LOOK_TAIL,
    ),
    dekker(
        "tail, spinners",
        TAIL,
        LOOK_SPINNERS,
        add("spinners", "worker.c", "atomic_fetch_and_explicit(&h->spinners[w->slot >> 6], ~bit"),
        LOOK_TAIL,
    ),
    dekker(
        "tail, guard", TAIL, LOOK_GUARD, store("guard", "worker.c", "atomic_store_explicit(&h->guard, 0"), LOOK_TAIL
    ),
    dead("tail, a dead spinner", LOOK_SPINNERS, add("spinners", "monitor.c", "&h->spinners[slot >> 6], ~bit")),
    dead("tail, a dead guard", LOOK_GUARD, add("guard", "monitor.c", "&h->guard, &guard, 0")),
    dekker("done, client_asleep", SUMMARY, LOOK_ASLEEP, ASLEEP, LOOK_SUMMARY),
    dekker(
        "done, asleep in a loop",
        SUMMARY,
        LOOK_ASLEEP,
        store("asleep", "client.c", "&h->client_asleep, look.wanting ? 2 : 1"),
        LOOK_SUMMARY,
    ),
    dekker(
        "head, client_asleep 2",
        HEAD,
        LOOK_ASLEEP_2,
        ASLEEP,
        load("head", "client.c", "if (look->wanting && atomic_load_explicit(&h->head"),
    ),
    dekker(  # another thread of the client makes the sleep one in want of a row
        "head, 2 by who wants",
        HEAD,
        LOOK_ASLEEP_2,
        add("asleep", "client.c", "&h->client_asleep, &asleep, 2"),
        PASSED,
    ),
    dekker(
        "wanted, client_asleep",
        add("wanted", "client.c", "atomic_fetch_add_explicit(&c->wanted, 1"),
        load("asleep", "client.c", "&h->client_asleep, &asleep, 2", 1),
        ASLEEP,
        load("wanted", "client.c", "atomic_load_explicit(look->wanted_now"),
    ),
    dekker("done, listening", SUMMARY, LOOK_LISTENING, LISTENING, LOOK_SUMMARY),
    dekker(
        "deaths, listening",
        DEATHS,
        LOOK_LISTENING,
        LISTENING,
        load("deaths", "client.c", "atomic_load_explicit(&h->deaths"),
    ),
    dekker(
        "armed, monitor_idle",
        store("armed", "client.c", "&h->armed, ++c->armed"),
        load("idle", "../client.c", "must = v->client->shortened || atomic_load_explicit(&v->s.header->monitor_idle"),
        store("idle", "../monitor.c", "&v->s.header->monitor_idle, (uint32_t)PyObject_IsTrue(args[1])"),
        load("armed", "monitor.c", "if (atomic_load_explicit(&h->armed"),
    ),
]

# Orders that nobody leans on, and why.
NEEDLESS = {
    "a swap that fails reads nothing further": [
        Order("client.c", "&ready, ipc_word(IPC_FREE, 0, 0, c->seq[row], 0)", 1),
        Order("client.c", "&word, ipc_word_with_state(word, IPC_CONDEMNED)", 1),
        Order("worker.c", "&s->row[row].word, &ready, w->word", 1),
        Order("worker.c", "&w->s->row[w->row].word, &from, to", 1),
    ],
    "the word alone says who has won, and nothing is handed on by it; a row is used again by its next READY": [
        Order("client.c", "&ready, ipc_word(IPC_FREE, 0, 0, c->seq[row], 0)"),
        Order("client.c", "&word, ipc_word_with_state(word, IPC_CONDEMNED)"),
        Order("client.c", "&s->row[row].word, ipc_word(IPC_FREE, 0, 0, c->seq[row], 0)"),
        Order("../client.c", "atomic_load_explicit(&v->s.row[row].word"),
        Order("worker.c", "&w->s->header->leaver, &nobody, us"),
        Order("monitor.c", "return atomic_load_explicit(&s->header->leaver"),
    ],
    "handed on by DONE, `offered`, or `reaped`, which was read before": [
        Order("client.c", "result->length = atomic_load_explicit(&r->result_len"),
        Order("client.c", "if (atomic_load_explicit(&s->owner[k]"),
        Order("client.c", "uint64_t ref = atomic_load_explicit(&s->row[row].result_ref"),
    ],
    "handed on by the bell, which is rung after it, or was loaded before": [
        Order("doorbell.c", "&s->header->client_asleep, 0"),
        Order("monitor.c", "&s->slot[slot].retire, generation"),
        Order("monitor.c", "&s->header->leaver, 0"),
        Order("monitor.c", "&s->header->stop, 1"),
        Order("worker.c", "return atomic_load_explicit(&w->s->slot[w->slot].retire"),
        Order("worker.c", "!atomic_load_explicit(&h->leaver"),
        Order("worker.c", "           atomic_load_explicit(&h->stop"),
    ],
    "the worker is forked afterwards": [
        Order("monitor.c", "&line->generation, generation"),
        Order("client.c", "latest = atomic_load_explicit(&s->slot[k].generation"),
    ],
    "a bit of a row: its summary hands it on": [
        Order("worker.c", "&h->done[row / 64], UINT64_C(1) << (row & 63)"),
        Order("client.c", "atomic_exchange_explicit(&h->done[k], 0"),
    ],
    "the client's hint to itself": [
        Order("client.c", "&h->done[row / 64], UINT64_C(1) << (row & 63)"),
        Order("client.c", "&h->done_summary, UINT64_C(1) << (row / 64)"),
    ],
    "who still takes it for asleep rings in vain; before it sleeps it says so anew, then looks": [
        Order("client.c", "*timeout_ns);\n    atomic_store_explicit(&h->client_asleep, 0"),
        Order("client.c", "&s->header->client_asleep, 0"),
        Order("client.c", "&s->header->listening, 0"),
        Order("worker.c", "atomic_fetch_and_explicit(&h->sleepers[w->slot >> 6], ~bit"),
    ],
    "who counts on it has seen it: only its end must come before a look": [
        Order("worker.c", "atomic_fetch_or_explicit(&h->spinners[w->slot >> 6], bit"),
        Order("worker.c", "&h->guard, &nobody, w->slot + 1"),
    ],
    "an older head or tail only wakes one more, or looks once more": [
        Order("client.c", "struct ipc_header *h = c->s->header;\n    uint64_t head = atomic_load_explicit(&h->head"),
        Order("worker.c", "struct ipc_header *h = w->s->header;\n    uint64_t head = atomic_load_explicit(&h->head"),
        Order("worker.c", "struct ipc_header *h = w->s->header;\n    uint64_t head = atomic_load_explicit(&h->head", 1),
        Order("worker.c", "return atomic_load_explicit(&h->head"),
        Order("worker.c", 'IPC_POINT("guard:set");\n    uint64_t head = atomic_load_explicit(&h->head'),
        Order("worker.c", "looks++) {\n        uint64_t now = atomic_load_explicit(&h->head"),
        Order("worker.c", "wake ourselves */\n        uint64_t now = atomic_load_explicit(&h->head"),
        Order("worker.c", "wake ourselves */\n        uint64_t now = atomic_load_explicit(&h->head", 1),
    ],
    "looked at again and again, and nothing is read by it": [
        Order("worker.c", "if (atomic_load_explicit(&h->stop"),
        Order("worker.c", "if (atomic_load_explicit(&s->header->stop"),
    ],
    "a monitor that may sleep for the former one is told so by a message": [
        Order("client.c", "&h->shortest_ms, look_ms"),
        Order("monitor.c", "shortest = (uint64_t)atomic_load_explicit(&h->shortest_ms"),
    ],
    "a monitor that sees too many armed looks in vain": [Order("client.c", "&s->header->armed, --c->armed")],
    "only which one is woken last": [Order("doorbell.c", "guard = atomic_load_explicit(&s->header->guard")],
    "only a suspect, until a whole bounded wait has passed": [
        Order("client.c", "hinted = atomic_load_explicit(&h->done[k]")
    ],
    "only shown": [Order("monitor.c", "&s->slot[slot].pid, pid")],
}


def find(order: Order) -> re.Match[str]:
    """In the source, the order in its first group. ValueError: the text is not there, or more than once."""
    text = (CORE / order.file).read_text()
    found = re.compile(
        re.escape(order.text) + r"(?:[^;]*?memory_order_\w+)" * order.which + r"[^;]*?(memory_order_\w+)"
    ).search(text)
    if text.count(order.text) != 1 or found is None:
        raise ValueError(f"{order.file} has {text.count(order.text)} times {order.text!r}")
    return found


def order_of(order: Order) -> str:
    """As it stands in the source."""
    return find(order)[1].removeprefix("memory_order_") if order.file else order.text


def unexplained() -> Iterator[str]:
    """Where the source has an order that is in no litmus and not said to be needless, or a listed one is relaxed."""
    steps = (step.order for litmus in LITMUS for thread in litmus.threads for step in thread if step.order.file)
    listed = {
        ((CORE / order.file).resolve(), find(order).start(1))
        for order in (*steps, *(o for row in NEEDLESS.values() for o in row))
    }
    sources = {path.resolve(): path.read_text() for path in (*CORE.glob("*.[ch]"), *CORE.parent.glob("*.[ch]"))}
    strong = {(path, match.start()) for path, text in sources.items() for match in STRONG.finditer(text)}
    strong |= {(path, match.start()) for path in CORE.glob("*.[ch]") for match in UNNAMED.finditer(sources[path])}
    for path, at in sorted(strong ^ listed):
        what = "in no litmus, nor needless" if (path, at) in strong else "relaxed, but listed"
        line = sources[path].count("\n", 0, at) + 1
        yield f"{path.relative_to(CORE.parent.parent)}:{line}: {what}: {sources[path].splitlines()[line - 1].strip()}"


def _put(row: tuple[Any, ...], k: int, value: Any) -> tuple[Any, ...]:
    return (*row[:k], value, *row[k + 1 :])


def may_come_before(step: Step, order: str, earlier: Step, its_order: str) -> bool:
    """A later step of the same thread: only writes. That loads do is seen in their finding old values."""
    is_held = step.what == "load" or order in RELEASES or step.where == earlier.where
    return not is_held and (earlier.what == "store" or its_order not in ACQUIRES)


def outcomes(threads: tuple[tuple[Step, ...], ...], orders: list[list[str]]) -> tuple[int, bool]:
    """How many states there are on the way to the bad end, and whether it is reached."""
    names = sorted({step.where for thread in threads for step in thread})
    zero = tuple(0 for _ in names)
    # which steps of each thread are done; what it knows of each location; for each location what the writes hand on,
    # the first being the old value; and the last write there that is seq_cst
    begin = (tuple((False,) * len(thread) for thread in threads), (zero,) * len(threads), ((zero,),) * len(names), zero)
    seen, todo = {begin}, [begin]
    bad = False
    while todo:
        done, views, memory, newest_sc = todo.pop()
        bad |= all(all(row) for row in done)
        for k, n in ((k, n) for k, row in enumerate(done) for n, is_done in enumerate(row) if not is_done):
            step, order = threads[k][n], orders[k][n]
            earlier = (m for m in range(n) if not done[k][m])
            if not all(may_come_before(step, order, threads[k][m], orders[k][m]) for m in earlier):
                continue
            x = names.index(step.where)
            newest = len(memory[x]) - 1
            oldest = max(views[k][x], newest_sc[x] if order == "seq_cst" else 0)
            for read in range(newest if step.what != "load" else oldest, newest + 1):
                if step.finds and step.finds != ("new" if read else "old"):
                    continue
                view = list(views[k])
                if step.what != "store" and order in ACQUIRES:
                    view = [max(pair) for pair in zip(view, memory[x][read], strict=True)]
                view[x] = max(view[x], read)
                more, sc = memory, newest_sc
                if step.what != "load":
                    view[x] = newest + 1
                    note = tuple(view) if order in RELEASES else zero
                    if step.what == "add":
                        note = tuple(max(pair) for pair in zip(note, memory[x][read], strict=True))
                    more = _put(memory, x, (*memory[x], note))
                    if order == "seq_cst":
                        sc = _put(newest_sc, x, newest + 1)
                after = (_put(done, k, _put(done[k], n, True)), _put(views, k, tuple(view)), more, sc)
                if after not in seen:
                    seen.add(after)
                    todo.append(after)
    return len(seen), bad


def main() -> int:
    wrong = 0
    print(f"{'litmus':26}{'states':>7}  orders, each of which is needed")
    for litmus in LITMUS:
        orders = [[order_of(step.order) for step in thread] for thread in litmus.threads]
        states, bad = outcomes(litmus.threads, orders)
        idle = []
        for k, thread in enumerate(litmus.threads):
            for n, step in enumerate(thread):
                if step.order.file:
                    weak = [list(row) for row in orders]
                    weak[k][n] = litmus.weaker
                    if not outcomes(litmus.threads, weak)[1]:
                        idle.append(step.where)
        wrong += bad or bool(idle)
        text = ", ".join(
            f"{s.what} {s.where} {o}"
            for t, row in zip(litmus.threads, orders, strict=True)
            for s, o in zip(t, row, strict=True)
            if s.order.file
        )
        print(f"{litmus.name:26}{states:>7}  {text}{'  BAD' if bad else ''}{f'  NOT NEEDED: {idle}' if idle else ''}")
    left = list(unexplained())
    for text in left:
        print(text)
    needed = {step.order for litmus in LITMUS for thread in litmus.threads for step in thread if step.order.file}
    print(f"{len(LITMUS)} litmuses, {wrong} not as expected")
    print(f"{len(needed)} orders are needed, {sum(map(len, NEEDLESS.values()))} are not; {len(left)} unexplained")
    return 1 if wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
