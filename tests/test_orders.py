"""The explorer of memory orders, ipc/model/orders.py: the core passes, an order that is too weak is seen, and so is one
that nobody has thought about."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

IPC = Path(__file__).parent.parent / "ipc"
EXPLORER = runpy.run_path(str(IPC / "model" / "orders.py"))


def explore(ipc: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ipc / "model" / "orders.py"], capture_output=True, text=True, timeout=60)


def explore_changed(folder: Path, file: str, old: str, new: str) -> subprocess.CompletedProcess[str]:
    ipc = folder / "ipc"
    shutil.copytree(IPC, ipc)
    text = (ipc / "core" / file).read_text()
    assert text.count(old) == 1
    (ipc / "core" / file).write_text(text.replace(old, new))
    return explore(ipc)


def test_each_order_of_the_core_is_enough_and_needed() -> None:
    done = explore(IPC)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("client.c", "header->tail, c->tail, memory_order_seq_cst", "header->tail, c->tail, memory_order_release"),
        # What the litmus on the machine shows too rarely to be a test, and not at all beside other work.
        ("client.c", "look.wanting ? 2 : 1, memory_order_seq_cst", "look.wanting ? 2 : 1, memory_order_release"),
        ("worker.c", "&from, to, memory_order_acq_rel", "&from, to, memory_order_acquire"),
        ("monitor.c", "death->generation + 1, memory_order_release", "death->generation + 1, memory_order_relaxed"),
        # a write that may come before a look
        ("units.c", "&mine, to, memory_order_release", "&mine, to, memory_order_relaxed"),
        (
            "client.c",
            ".drained, c->drained[row], memory_order_release",
            ".drained, c->drained[row], memory_order_relaxed",
        ),
        # three roles
        ("monitor.c", "&h->guard, &guard, 0, memory_order_seq_cst", "&h->guard, &guard, 0, memory_order_acq_rel"),
    ],
)
def test_a_weaker_order_is_seen(tmp_path: Path, file: str, old: str, new: str) -> None:
    done = explore_changed(tmp_path, file, old, new)
    assert done.returncode == 1, done.stderr
    assert "BAD" in done.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        (
            "monitor.c",
            "uint32_t ipc_renewed(",
            "uint32_t ipc_guard(struct ipc_segment *s) { return atomic_load_explicit(&s->header->guard,"
            " memory_order_acquire); }\nuint32_t ipc_renewed(",
            "in no litmus, nor needless: uint32_t ipc_guard(",
        ),
        (
            "worker.c",
            "atomic_load_explicit(&h->client_asleep, memory_order_relaxed)",
            "atomic_load(&h->client_asleep)",
            "in no litmus, nor needless: if (!atomic_load(",
        ),
        (
            "core.h",
            "uint64_t ipc_now(void);",
            "uint64_t ipc_now(void);\n#define IPC_FENCE() atomic_thread_fence(memory_order_seq_cst)",
            "in no litmus, nor needless: #define IPC_FENCE()",
        ),
        (
            "monitor.c",
            ".pid, pid, memory_order_release",
            ".pid, pid, memory_order_relaxed",
            "relaxed, but listed: void ipc_slot_forked(",
        ),
    ],
)
def test_an_order_that_nobody_has_thought_about_is_named(
    tmp_path: Path, file: str, old: str, new: str, named: str
) -> None:
    done = explore_changed(tmp_path, file, old, new)
    assert done.returncode == 1, done.stderr
    assert "BAD" not in done.stdout
    text = (tmp_path / "ipc" / "core" / file).read_text()
    line = text.count("\n", 0, text.index(named.partition(": ")[2])) + 1
    assert f"ipc/core/{file}:{line}: {named}" in done.stdout


W, R, A = "store", "load", "add"
SHAPES = {
    "store buffering": [[(W, "x"), (R, "y", "old")], [(W, "y"), (R, "x", "old")]],
    "message": [[(W, "x"), (W, "y")], [(R, "y", "new"), (R, "x", "old")]],
    "message, passed on by a read-modify-write": [
        [(W, "x"), (W, "y")], [(A, "y", "new"), (W, "z")], [(R, "y", "new"), (R, "z", "new"), (R, "x", "old")],
    ],
    "load buffering": [[(R, "x", "new"), (W, "y")], [(R, "y", "new"), (W, "x")]],
    "two readers": [
        [(W, "x")], [(W, "y")], [(R, "x", "new"), (R, "y", "old")], [(R, "y", "new"), (R, "x", "old")],
    ],
    "one location": [[(W, "x")], [(R, "x", "new"), (R, "x", "old")]],
    "one location, load and store": [[(R, "x", "new"), (W, "x")]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "stores", "loads", "is_possible"),
    [
        ("store buffering", "release", "acquire", True),
        ("store buffering", "seq_cst", "acquire", True),
        ("store buffering", "release", "seq_cst", True),
        ("store buffering", "seq_cst", "seq_cst", False),
        ("message", "relaxed", "acquire", True),
        ("message", "release", "relaxed", True),
        ("message", "release", "acquire", False),
        ("message, passed on by a read-modify-write", "release", "acquire", False),
        ("message, passed on by a read-modify-write", "relaxed", "acquire", True),
        ("load buffering", "relaxed", "relaxed", True),
        ("load buffering", "relaxed", "acquire", False),
        ("load buffering", "release", "relaxed", False),
        ("two readers", "release", "acquire", True),
        ("two readers", "seq_cst", "seq_cst", False),
        ("one location", "relaxed", "relaxed", False),
        ("one location, load and store", "relaxed", "relaxed", False),
    ],
)
def test_what_memory_may_do_in_the_shapes_that_are_known(
    shape: str, stores: str, loads: str, is_possible: bool
) -> None:
    threads = tuple(
        tuple(EXPLORER["Step"](what, where, finds="".join(finds)) for what, where, *finds in thread)
        for thread in SHAPES[shape]
    )
    by = {W: stores, R: loads, A: "relaxed"}
    assert EXPLORER["outcomes"](threads, [[by[step.what] for step in row] for row in threads])[1] == is_possible
