"""The C core: its own tests under several compilers' eyes, and planted bugs that those tests must find."""

import functools
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent / "c"
CORE = HERE.parent.parent / "ipc" / "core"
Misses = dict[str, Future[str | None]]
STEPS = sorted(
    {step for source in CORE.glob("*.c") for step in re.findall(r'IPC_POINT\("([^"]+)"\)', source.read_text())}
)
SANITIZERS = {
    "TSAN_OPTIONS": "halt_on_error=1",
    "ASAN_OPTIONS": "detect_leaks=0",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
}


def build(core: Path, out: Path, program: str, *options: str) -> Path:
    """Compile one test program against a core; a compiler error is never taken for a caught bug."""
    path = out / program
    command = ["make", "-s", f"CORE={core}", f"BUILD={out}", f"PYTHON={sys.executable}", *options, str(path)]
    made = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=100)
    assert made.returncode == 0, made.stderr
    return path


def run(path: Path, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
    command = [str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=SANITIZERS, cwd=HERE)


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        pytest.param("steps", [], id="one role acts between two steps of another"),
        pytest.param("steps.tsan", [], id="steps, TSan"),
        pytest.param("steps.asan", [], id="steps, ASan and UBSan"),
        pytest.param("failpoints", STEPS, id="a worker dies at every named step"),
        pytest.param("failpoints.asan", STEPS, id="failpoints, ASan and UBSan"),
        pytest.param("sweep", [], id="a worker dies, stalls, is condemned at every instruction"),
        pytest.param("litmus", ["-t", "2"], id="no store is buffered behind a look at a sleeper"),
        pytest.param("threads", ["-t", "0.8"], id="threads"),
        pytest.param("threads.tsan", ["-t", "0.6"], id="threads, TSan"),
        pytest.param("threads.asan", ["-t", "0.4"], id="threads, ASan and UBSan"),
    ],
)
def test_the_core_keeps_its_promises(program: str, arguments: list[str]) -> None:
    done = run(build(CORE, HERE / "build", program), *arguments, timeout=60)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_every_failpoint_of_the_core_is_known() -> None:
    """The list given to `failpoints` comes from the sources, and it refuses a step that no run reaches."""
    assert len(STEPS) >= 16
    refused = run(build(CORE, HERE / "build", "failpoints"), "no:such:step", timeout=60)
    assert refused.returncode == 1
    assert "every step named in the core is reached" in refused.stderr


class Planted(NamedTuple):
    """A bug: what to replace in which file (each text must occur exactly once), and the check that must fail."""

    name: str
    file: str
    edits: list[tuple[str, str]]
    check: str
    arguments: str = ""


PLANTED = [
    Planted(
        "tail stored with release only: store buffering",
        "client.c",
        [
            (
                "atomic_store_explicit(&c->s->header->tail, c->tail, memory_order_seq_cst)",
                "atomic_store_explicit(&c->s->header->tail, c->tail, memory_order_release)",
            )
        ],
        "litmus",
        "-t 60 tail",
    ),
    Planted(
        "client_asleep stored with release only: store buffering",
        "client.c",
        [
            (
                "atomic_store_explicit(&h->client_asleep, look->wanting ? 2 : 1, memory_order_seq_cst)",
                "atomic_store_explicit(&h->client_asleep, look->wanting ? 2 : 1, memory_order_release)",
            )
        ],
        "litmus",
        "-t 60 asleep",
    ),
    Planted(
        "client_asleep stored with release only: store buffering, in want of a row",
        "client.c",
        [
            (
                "atomic_store_explicit(&h->client_asleep, look->wanting ? 2 : 1, memory_order_seq_cst)",
                "atomic_store_explicit(&h->client_asleep, look->wanting ? 2 : 1, memory_order_release)",
            )
        ],
        "litmus",
        "-t 60 head",
    ),
    Planted(
        "wake before publish: sleepers looked at before tail is stored",
        "client.c",
        [
            (
                "static void enter(struct ipc_client *c, uint32_t row) {\n",
                "static unsigned before;\nstatic void enter(struct ipc_client *c, uint32_t row) {\n"
                "    before = ipc_count_bits(c->s->header->sleepers, c->s->slots);\n",
            ),
            ("if (ipc_count_bits(h->sleepers, s->slots) == s->slots)", "if (before == s->slots)"),
            ("if (ready <= spinning || sleepers == 0) return 0;", "if (ready <= spinning || before == 0) return 0;"),
        ],
        "litmus",
        "-t 60 tail",
    ),
    Planted(
        "done bit trusted",
        "client.c",
        [("if (ipc_word_state(word) == IPC_DONE || ipc_offers(c, row)) return (int)row;", "return (int)row;")],
        "steps",
    ),
    Planted(
        "done bit trusted, met by a death between the two hints",
        "client.c",
        [
            ("if (row >= c->s->rows || !c->published[row]) continue;", "if (row >= c->s->rows) continue;"),
            ("if (ipc_word_seq(word) != c->seq[row]) continue;", ""),
            ("if (ipc_word_state(word) == IPC_DONE || ipc_offers(c, row)) return (int)row;", "return (int)row;"),
        ],
        "failpoints",
        "complete:hinted",
    ),
    Planted(
        "a damaged word is taken for one that somebody moves on",
        "client.c",
        [("if (!word_can_be(c, row, word)) return IPC_DAMAGED;", "(void)word_can_be;")],
        "steps",
    ),
    Planted(
        "claim ignores the sequence of the entry",
        "worker.c",
        [
            (
                "ipc_word(IPC_READY, 0, 0, seq, 0);",
                "(seq = ipc_word_seq(atomic_load(&s->row[row].word)), ipc_word(IPC_READY, 0, 0, seq, 0));",
            )
        ],
        "steps",
    ),
    Planted(
        "sequence not advanced: a word comes back",
        "client.c",
        [("(c->seq[row] + 1) & (uint32_t)IPC_MASK(IPC_SEQ_BITS)", "c->seq[row]")],
        "steps",
    ),
    Planted(
        "completion by a store, not a compare-and-swap",
        "worker.c",
        [
            (
                "if (!atomic_compare_exchange_strong_explicit(&w->s->row[w->row].word, &from, to, "
                "memory_order_acq_rel, "
                "memory_order_acquire)) return IPC_LOST;",
                "(void)from; atomic_store_explicit(&w->s->row[w->row].word, to, memory_order_release);",
            )
        ],
        "sweep",
        "small",
    ),
    Planted(
        "condemnation by a store, not a compare-and-swap",
        "client.c",
        [
            (
                "    return atomic_compare_exchange_strong_explicit(&s->row[row].word, &word, "
                "ipc_word_with_state(word, IPC_CONDEMNED), memory_order_acq_rel,\n"
                "                                                   memory_order_acquire);",
                "    return atomic_store(&s->row[row].word, ipc_word_with_state(word, IPC_CONDEMNED)), 1;",
            )
        ],
        "steps",
    ),
    Planted(
        "a task that stores is condemned",
        "client.c",
        [("if (row >= s->rows || ipc_word_state(word) != IPC_RUNNING) return 0;", "if (row >= s->rows) return 0;")],
        "steps",
    ),
    Planted(
        "row used again before head has passed its entry",
        "client.c",
        [
            (
                "static void put_row(struct ipc_client *c, uint32_t row) {\n    if (head_has_passed(c, row))",
                "static void put_row(struct ipc_client *c, uint32_t row) {\n    if (1)",
            )
        ],
        "threads",
        "-w 2 -t 5 cancels",
    ),
    Planted(
        "result_ref published before the copy",
        "worker.c",
        [
            ("        memcpy(area, w->area, w->used);\n        uint64_t old", "        uint64_t old"),
            (
                "(uint64_t)unit << 32 | count, memory_order_release);\n",
                "(uint64_t)unit << 32 | count, memory_order_release);\n        memcpy(area, w->area, w->used);\n",
            ),
        ],
        "sweep",
        "chunk",
    ),
    Planted(
        "item committed before its frame is written",
        "worker.c",
        [
            (
                "    memcpy(w->area + w->used, &frame, IPC_FRAME);\n"
                "    ipc_pieces_copy(w->area + w->used + IPC_FRAME, piece, pieces);\n",
                "",
            ),
            (
                "    if (code == 0) stamp(w, w->ended);\n    return code;\n}\n\nint ipc_complete",
                "    memcpy(w->area + w->used - IPC_FRAME - length, &frame, IPC_FRAME);\n"
                "    ipc_pieces_copy(w->area + w->used - length, piece, pieces);\n"
                "    if (code == 0) stamp(w, w->ended);\n    return code;\n}\n\nint ipc_complete",
            ),
        ],
        "sweep",
        "chunk",
    ),
    Planted(
        "settlement ignores the generation",
        "client.c",
        [("if ((int16_t)(uint16_t)(generation - reaped) >= 0) continue;", "")],
        "steps",
    ),
    Planted(
        "settlement compares generations without their wrap",
        "client.c",
        [
            ("if ((int16_t)(uint16_t)(generation - reaped) >= 0) continue;", "if (generation >= reaped) continue;"),
            (
                "uint32_t state = ipc_word_state(word), generation = ipc_word_generation(word);\n        if "
                "(state == IPC_READY",
                "uint32_t state = ipc_word_state(word), generation = ipc_word_generation(word) + 0;\n"
                "        reaped &= (uint32_t)IPC_MASK(IPC_GENERATION_BITS);\n        if (state == IPC_READY",
            ),
        ],
        "threads",
        "-w 2 -t 5 condemns",
    ),
    Planted(
        "settlement does not look for DONE without a hint",
        "client.c",
        [
            (
                "            c->swept[row / 64] |= UINT64_C(1) << (row & 63);\n"
                "            c->swept_summary |= UINT64_C(1) << (row / 64);\n            continue;",
                "            continue;",
            )
        ],
        "failpoints",
        "complete:done",
    ),
    Planted(
        "head advanced only by who has claimed",
        "worker.c",
        [
            (
                "int moved = atomic_compare_exchange_strong_explicit",
                "int moved = claimed && atomic_compare_exchange_strong_explicit",
            )
        ],
        "failpoints",
        "claim:owned",
    ),
    Planted(
        "head advanced before the claim",
        "worker.c",
        [
            (
                "        int claimed = 0;\n        if (row < s->rows) {",
                "        int claimed = 0;\n        uint64_t before = head;\n"
                "        if (!atomic_compare_exchange_strong(&h->head, &before, head + 1)) continue;\n        "
                "if (row < s->rows) {",
            )
        ],
        "sweep",
        "small",
    ),
    Planted(
        "owner written after the claim",
        "worker.c",
        [
            (
                'memory_order_acq_rel, memory_order_acquire);\n            IPC_POINT("claim:owned");',
                "memory_order_acq_rel, memory_order_acquire);\n"
                "            if (claimed) atomic_store(&s->row[row].word, ipc_word(IPC_RUNNING, w->slot, "
                "w->generation, seq, 0));\n"
                '            IPC_POINT("claim:owned");',
            ),
            (
                "w->word = ipc_word(IPC_RUNNING, w->slot, w->generation, seq, 0);",
                "w->word = ipc_word(IPC_RUNNING, 7, 0, seq, 0);",
            ),
            (
                "        w->worked = 1;\n        struct ipc_row",
                "        w->worked = 1;\n        w->word = ipc_word(IPC_RUNNING, w->slot, w->generation, seq, "
                "0);\n        struct ipc_row",
            ),
        ],
        "sweep",
        "small",
    ),
    Planted(
        "units freed without a look at their owner",
        "units.c",
        [
            (
                "atomic_compare_exchange_strong_explicit(&s->owner[k], &mine, to, memory_order_release, "
                "memory_order_relaxed);",
                "(void)mine, atomic_store_explicit(&s->owner[k], to, memory_order_release);",
            )
        ],
        "steps",
    ),
    Planted(
        "kept arguments given after DONE",
        "worker.c",
        [
            ("    if (w->keep) ipc_units_give(", "    if (0) ipc_units_give("),
            (
                "IPC_DONE));\n    if (code == 0) tell_client(w, row);\n",
                "IPC_DONE));\n    if (code == 0) tell_client(w, row);\n"
                "    if (w->keep) ipc_units_give(w->s, w->args_unit, w->args_units, "
                "ipc_owner(row, ipc_word_seq(w->word)), ipc_owner_kept(w->slot, w->generation));\n",
            ),
        ],
        "steps",
    ),
    Planted(
        "kept arguments given after DONE, met by a death",
        "worker.c",
        [
            ("    if (w->keep) ipc_units_give(", "    if (0) ipc_units_give("),
            (
                "IPC_DONE));\n    if (code == 0) tell_client(w, row);\n",
                "IPC_DONE));\n    if (code == 0) tell_client(w, row);\n"
                "    if (w->keep) ipc_units_give(w->s, w->args_unit, w->args_units, "
                "ipc_owner(row, ipc_word_seq(w->word)), ipc_owner_kept(w->slot, w->generation));\n",
            ),
        ],
        "sweep",
        "keeps",
    ),
    Planted(
        "what the dead have kept is not freed",
        "client.c",
        [("    ipc_units_free_kept(c->s, slot, reaped);\n", "")],
        "failpoints",
        "units:give",
    ),
    Planted(
        "what is kept is freed whatever its generation",
        "units.c",
        [(" && (int32_t)((uint32_t)owner - reaped) < 0)", ")")],
        "steps",
    ),
    Planted(
        "what is kept is freed by generations without their wrap",
        "units.c",
        [(" && (int32_t)((uint32_t)owner - reaped) < 0)", " && (uint32_t)owner < reaped)")],
        "steps",
    ),
    Planted(
        "what is kept is freed whatever its slot",
        "units.c",
        [("owner >> 32 == ipc_owner_kept(slot, 0) >> 32 &&", "owner >> 60 == 1 &&")],
        "steps",
    ),
    Planted(
        "what is kept is freed when the next row is claimed",
        "worker.c",
        [
            (
                "        w->worked = 1;\n        struct ipc_row",
                "        ipc_units_free_kept(s, w->slot, w->generation + 1);\n"
                "        w->worked = 1;\n        struct ipc_row",
            )
        ],
        "threads",
        "-t 2 held",
    ),
    Planted(
        "an adopted result is still its row's",
        "client.c",
        [("    ipc_units_give(c->s, result->unit, count, ipc_owner(row, c->seq[row]), IPC_OWNER_VIEW);\n", "")],
        "steps",
    ),
    Planted(
        "an adopted result is still its row's, met by a death",
        "client.c",
        [("    ipc_units_give(c->s, result->unit, count, ipc_owner(row, c->seq[row]), IPC_OWNER_VIEW);\n", "")],
        "sweep",
        "keeps2",
    ),
    Planted(
        "as many results as there are units are adopted",
        "client.c",
        [("    if (c->view_units + count > c->s->units / 4) return 0;\n", "")],
        "steps",
    ),
    Planted(
        "a result takes the lower half",
        "units.c",
        [("ipc_units_take(s, s->units / 2, s->units, count, owner)", "ipc_units_take(s, 0, s->units, count, owner)")],
        "steps",
    ),
    Planted(
        "arguments take the upper half",
        "client.c",
        [("ipc_units_take(c->s, 0, c->s->units / 2, count,", "ipc_units_take(c->s, 0, c->s->units, count,")],
        "steps",
    ),
    Planted(
        "a result waits for views",
        "units.c",
        [("& (IPC_OWNER_FUNCTION | IPC_OWNER_VIEW) ?", "& IPC_OWNER_FUNCTION ?")],
        "steps",
    ),
    Planted(
        "arguments wait for what is kept",
        "client.c",
        [("if (unit == IPC_NO_ROOM && c->args_units == 0) return IPC_TOO_LARGE;", "")],
        "steps",
    ),
    Planted(
        "arguments never wait",
        "client.c",
        [("if (unit == IPC_NO_ROOM && c->args_units == 0)", "if (unit == IPC_NO_ROOM)")],
        "steps",
    ),
    Planted(
        "a trim punches out what is held",
        "units.c",
        [
            (
                "&nobody, IPC_OWNER_VIEW, memory_order_acq_rel, memory_order_relaxed))\n                break;",
                "&nobody, IPC_OWNER_VIEW, memory_order_acq_rel, memory_order_relaxed))\n                continue;",
            )
        ],
        "steps",
    ),
    Planted(
        "pieces that are not aligned",
        "units.c",
        [("        at = ipc_align(at);\n", "")],
        "steps",
    ),
    Planted(
        "units that no reference names are kept",
        "client.c",
        [("if (state == IPC_STORING || state == IPC_CONDEMNED) /*", "if (state == IPC_FREE) /*")],
        "failpoints",
        "store:copied",
    ),
    Planted(
        "hint before DONE",
        "worker.c",
        [
            (
                "    int code = change(w, ipc_word_with_state(w->word, IPC_DONE));\n    if (code == 0) "
                "tell_client(w, row);\n",
                "    tell_client(w, row);\n    int code = change(w, ipc_word_with_state(w->word, IPC_DONE));\n",
            )
        ],
        "sweep",
        "small",
    ),
    Planted(
        "summary bit before the done bit",
        "worker.c",
        [
            (
                "    atomic_fetch_or_explicit(&h->done[row / 64], UINT64_C(1) << (row & 63), memory_order_seq_cst);\n",
                "",
            ),
            (
                '    IPC_POINT("complete:summed");\n',
                '    IPC_POINT("complete:summed");\n'
                "    atomic_fetch_or(&h->done[row / 64], UINT64_C(1) << (row & 63));\n",
            ),
        ],
        "steps",
    ),
    Planted(
        "no second look after the sleeper bit",
        "worker.c",
        [
            (
                "    if (!ready(h) && !turn) {\n        atomic_store_explicit(&line->parks",
                "    if (!turn) {\n        atomic_store_explicit(&line->parks",
            )
        ],
        "sweep",
        "sleep",
    ),
    Planted(
        "a retired worker goes to sleep without a look at its turn",
        "worker.c",
        [("    if (!ready(h) && !turn) {\n", "    (void)turn;\n    if (!ready(h)) {\n")],
        "steps",
    ),
    Planted(
        "retired workers leave all at once",
        "worker.c",
        [
            (
                "    return retired(w) && atomic_compare",
                "    if (retired(w)) return atomic_store(&w->s->header->leaver, us), 1;\n"
                "    return retired(w) && atomic_compare",
            )
        ],
        "steps",
    ),
    Planted(
        "a worker that leaves keeps the wake that it got",
        "worker.c",
        [("    if (head < tail) ipc_wake_workers(w->s, tail - head);\n", "    (void)head, (void)tail;\n")],
        "steps",
    ),
    Planted(
        "nobody is told that the next one may leave",
        "monitor.c",
        [
            (
                "    atomic_store_explicit(&s->header->leaver, 0, memory_order_seq_cst);\n"
                "    for (uint32_t k = 0; k < s->slots; k++) ipc_ring_slot(s, k);\n",
                "    atomic_store_explicit(&s->header->leaver, 0, memory_order_seq_cst);\n",
            )
        ],
        "steps",
    ),
    Planted(
        "no second look after client_asleep",
        "client.c",
        [("int news = something_to_do(s, look) || atomic_load", "int news = atomic_load")],
        "litmus",
        "-t 60 asleep",
    ),
    Planted(
        "no second look while a loop listens",
        "client.c",
        [("if (something_to_do(c->s, &look)) {", "if (0) {")],
        "litmus",
        "-t 60 listen",
    ),
    Planted(
        "a thread that is about to sleep does not hear of one that finds no row",
        "client.c",
        [(" || atomic_load_explicit(look->wanted_now, memory_order_seq_cst) != look->wanted;", ";")],
        "steps",
    ),
    Planted(
        "who has heard is still said to listen",
        "client.c",
        [("    atomic_store_explicit(&s->header->listening, 0, memory_order_seq_cst);\n", "")],
        "steps",
    ),
    Planted(
        "the monitor leaves the wire to whoever took the sleep",
        "monitor.c",
        [
            (
                "    ipc_ring_client(s);\n    for (uint32_t k = 0; k < s->slots; k++) ipc_ring_slot(s, "
                "k);\n}\n\nint ipc_claimed_by",
                "    if (atomic_load(&h->client_asleep)) ipc_ring_client(s);\n    for (uint32_t k = 0; k < s->slots; "
                "k++) ipc_ring_slot(s, k);\n}\n\nint ipc_claimed_by",
            )
        ],
        "steps",
    ),
    Planted(
        "the wire is taken for ours by its number",
        "doorbell.c",
        [("if (wire_is_ours(s)) send", "(void)wire_is_ours; send")],
        "steps",
    ),
    Planted(
        "bell read after the sleeper bit",
        "worker.c",
        [
            ("    uint32_t seen = atomic_load_explicit(&line->bell, memory_order_seq_cst);\n", ""),
            (
                "        code = sleep_marked(w, seen, timeout_ns);",
                "        code = sleep_marked(w, atomic_load(&line->bell), timeout_ns);",
            ),
        ],
        "sweep",
        "sleep",
    ),
    Planted(
        "a guard that leaves wakes for one row only",
        "worker.c",
        [
            (
                "        if (now < tail) ipc_wake_workers(s, tail - now);\n",
                "        if (now < tail) ipc_wake_workers(s, 1);\n",
            )
        ],
        "steps",
        "who_ends_its_guard_wakes_a_worker_for_each_ready_task",
    ),
    Planted(
        "the flush wakes one worker for many rows",
        "client.c",
        [("uint64_t most = ready; /*", "uint64_t most = 1; /*")],
        "steps",
        "a_flush_wakes_a_worker_for_each_ready_task",
    ),
    Planted(
        "the monitor rings only who says that it sleeps",
        "monitor.c",
        [
            (
                "    ipc_ring_client(s);\n    for (uint32_t k = 0; k < s->slots; k++) ipc_ring_slot(s, "
                "k);\n}\n\nint ipc_claimed_by",
                "    if (atomic_load(&h->client_asleep)) ipc_ring_client(s);\n    ipc_wake_workers(s, "
                "UINT64_MAX);\n}\n\nint ipc_claimed_by",
            )
        ],
        "failpoints",
        "wake:taken",
    ),
    Planted(
        "the sleeper bit of the dead is left",
        "monitor.c",
        [("    atomic_fetch_and_explicit(&h->sleepers[slot >> 6], ~bit, memory_order_seq_cst);\n", "")],
        "failpoints",
        "sleep:marked",
    ),
    Planted(
        "a chunk takes new room while its offer is open",
        "worker.c",
        [("int64_t unit = w->offering ? IPC_NO_ROOM : ipc_units_take", "int64_t unit = ipc_units_take")],
        "threads",
        "-w 2 -t 5 crowded",
    ),
    Planted(
        "a task inherits the progress of the one before",
        "worker.c",
        [
            (
                "            atomic_store_explicit(&line->progress, IPC_NO_PROGRESS, memory_order_relaxed); "
                "/* nor its progress */\n",
                "",
            )
        ],
        "steps",
    ),
    Planted(
        "an item of a chunk inherits the progress of the one before",
        "worker.c",
        [
            (
                "    atomic_store_explicit(&w->s->slot[w->slot].progress, IPC_NO_PROGRESS, memory_order_relaxed);\n"
                "    int code",
                "    int code",
            )
        ],
        "steps",
    ),
    Planted(
        "the start of an earlier task is left while the next one is claimed",
        "worker.c",
        [("            atomic_store_explicit(&line->started_word, 0, memory_order_relaxed);\n", "")],
        "steps",
    ),
    Planted(
        "the wait for room is run time",
        "worker.c",
        [("    w->started += ns;\n", "")],
        "steps",
    ),
    Planted(
        "the time of a task that died is lost",
        "insight.c",
        [("if (ipc_claimed_by(s, slot, &r) && r.started) ipc_book(s, slot, r.started, now, &span);", "(void)r;")],
        "steps",
    ),
    Planted(
        "a fold leaves the second half",
        "insight.c",
        [
            (
                "uint64_t both = k < IPC_SPANS / 2 ?",
                "if (k == IPC_SPANS / 2) break;\n        uint64_t both = k < IPC_SPANS / 2 ?",
            )
        ],
        "steps",
    ),
    Planted(
        "spans trust the time that they are given",
        "insight.c",
        [
            ("    if (to >> (IPC_SPAN_SHIFT + 31)) return; /* damage: two hundred days for each span */\n", ""),
            (
                "    for (; to >> shift >= IPC_SPANS; shift++) fold(spans, shift);\n",
                "    if (to >> shift >= IPC_SPANS) fold(spans, shift++);\n",
            ),
        ],
        "steps.asan",
    ),
    Planted(
        "a brief that is cut off, not rounded",
        "layout.h",
        [("    n += UINT64_C(1) << shift >> 1; /*", "    /*")],
        "steps",
    ),
    Planted(
        "a dead worker's item is charged with what was used before",
        "insight.c",
        [(".user = since(user_ns, load(&line->user_ns))", ".user = since(user_ns, 0)")],
        "steps",
    ),
    Planted(
        "the start of a chunk stands for those of its items",
        "worker.c",
        [
            (
                "    w->s->row[w->row].started = w->started; /*",
                "    if (!ipc_word_item(w->word)) w->s->row[w->row].started = w->started; /*",
            )
        ],
        "steps",
    ),
    Planted(
        "nobody looks at a task whose output is caught",
        "client.c",
        [
            (
                "    if (!task->memory_limit && !(task->flags & IPC_CAPTURE)) return",
                "    if (!task->memory_limit) return",
            )
        ],
        "steps",
    ),
    Planted(
        "nobody looks at a task that has a memory limit and no deadline",
        "client.c",
        [
            (
                "    if (!task->memory_limit && !(task->flags & IPC_CAPTURE)) return task->timeout_ms;\n",
                "    return task->timeout_ms;\n",
            )
        ],
        "steps",
    ),
    Planted(
        "the memory of a chunk's items is counted from the chunk's start",
        "worker.c",
        [
            (
                "    if (w->memory_limit) ipc_note_memory(w);\n",
                "    if (w->memory_limit && ipc_word_item(w->word) < 2) ipc_note_memory(w);\n",
            )
        ],
        "steps",
    ),
    Planted(
        "shared mappings count as a task's own",
        "memory.c",
        [("*private = space && strlen(space) > 4 && space[4] == 'p';", "*private = space != NULL;")],
        "steps",
    ),
    Planted(
        "what was inherited never counts",
        "memory.c",
        [("} else if (*private && strncmp", "} else if (0 && strncmp")],
        "steps",
    ),
    Planted(
        "READY published without release",
        "client.c",
        [
            (
                "atomic_store_explicit(&r->word, c->published[row], memory_order_release);",
                "atomic_store_explicit(&r->word, c->published[row], memory_order_relaxed);",
            ),
            (
                "atomic_store_explicit(&c->s->header->tail, c->tail, memory_order_seq_cst);",
                "atomic_store_explicit(&c->s->header->tail, c->tail, memory_order_relaxed);",
            ),
        ],
        "threads.tsan",
        "-w 5 -t 5 small",
    ),
    Planted(
        "DONE published without release",
        "worker.c",
        [
            (
                "&from, to, memory_order_acq_rel, memory_order_acquire)) return IPC_LOST;",
                "&from, to, memory_order_relaxed, memory_order_relaxed)) return IPC_LOST;",
            ),
            (
                "atomic_fetch_or_explicit(&h->done[row / 64], UINT64_C(1) << (row & 63), memory_order_seq_cst);",
                "atomic_fetch_or_explicit(&h->done[row / 64], UINT64_C(1) << (row & 63), memory_order_relaxed);",
            ),
            (
                "atomic_fetch_or_explicit(&h->done_summary, UINT64_C(1) << (row / 64), memory_order_seq_cst);",
                "atomic_fetch_or_explicit(&h->done_summary, UINT64_C(1) << (row / 64), memory_order_relaxed);",
            ),
        ],
        "threads.tsan",
        "-w 5 -t 5 small",
    ),
]


_ONE_CONTROL = threading.Lock()  # they are built in one folder


def miss(bug: Planted, folder: Path) -> str | None:
    """Plant the bug in a copy of the core and run its check: None if it is caught, else why not."""
    core = folder / "core"
    shutil.copytree(CORE, core)
    text = (core / bug.file).read_text()
    for old, new in bug.edits:
        if text.count(old) != 1:
            return f"{bug.file} has changed: it has {text.count(old)} times {old!r}"
        text = text.replace(old, new)
    (core / bug.file).write_text(text)
    program = build(core, folder / "build", bug.check, "WARN=-std=gnu11 -w")
    try:
        done = run(program, *bug.arguments.split(), timeout=100)
    except subprocess.TimeoutExpired:
        return f"{bug.check} {bug.arguments} does not come to its end"
    if not has_found(done):
        return f"{bug.check} {bug.arguments} does not see it: {done.returncode}\n{done.stdout}{done.stderr}"
    return control(bug.check, bug.arguments)


def has_found(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether a check has ended because the core is not as it should be: by what it says, or by a signal (of its alarm,
    or because the core has crashed). A program that cannot run ends with another code, and says something else."""
    said = re.search(r"broken promise: |(Thread|Address)Sanitizer: | runtime error: |ERROR: libFuzzer: ", done.stderr)
    return done.returncode < 0 or (done.returncode > 0 and said is not None)


@functools.cache
def control(check: str, arguments: str) -> str | None:
    """The same on the core as it is: None if it finds nothing. What runs for a time that it is told runs for less of it
    here; `test_the_core_keeps_its_promises` is what runs for longer."""
    words = re.sub(r"-t \d+", "-t 2", arguments).split()
    with _ONE_CONTROL:
        program = build(CORE, HERE / "build", check)
        done = run(program, *words, timeout=100)
    return f"{check} {arguments} fails without a bug too:\n{done.stderr}" if done.returncode else None


@pytest.fixture(scope="module")
def misses(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misses]:
    """All selected bugs side by side: most of them show as a standstill, whose watchdog needs time but no CPU."""
    chosen = [item for item in request.session.items if "misses" in getattr(item, "fixturenames", ())]
    bugs: list[Planted] = [item.callspec.params["bug"] for item in chosen]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(3) as threads:
        yield {bug.name: threads.submit(miss, bug, tmp_path_factory.mktemp("planted")) for bug in bugs}


@pytest.mark.parametrize(
    ("code", "said", "found"),
    [
        (0, "", False),
        (2, "usage: steps", False),
        (127, "steps: error while loading shared libraries", False),
        (0, "x.c:3: broken promise: done", False),
        (1, "x.c:3: broken promise: done\n", True),
        (66, "WARNING: ThreadSanitizer: data race (pid=4)", True),
        (1, "==4==ERROR: AddressSanitizer: heap-use-after-free", True),
        (1, "x.c:9:3: runtime error: shift exponent 64 is too large", True),
        (71, "==4== ERROR: libFuzzer: out-of-memory (malloc(4294967334))", True),
        (1, "INFO: Running with entropic power schedule\nlibFuzzer: no such file", False),
        (-14, "", True),
    ],
)
def test_only_what_a_check_has_found_counts_as_caught(code: int, said: str, found: bool) -> None:
    assert has_found(subprocess.CompletedProcess([], code, "", said)) == found


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_a_planted_bug_is_caught(bug: Planted, misses: Misses) -> None:
    missed = misses[bug.name].result()
    assert missed is None, missed
