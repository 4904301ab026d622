"""The explorer of memory orders, ipc/model/orders.py: the core passes, and an order that is too weak is seen."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

IPC = Path(__file__).parent.parent / "ipc"


def explore(ipc: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ipc / "model" / "orders.py"], capture_output=True, text=True, timeout=60)


def test_each_order_of_the_core_is_enough_and_needed() -> None:
    done = explore(IPC)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("client.c", "header->tail, c->tail, memory_order_seq_cst", "header->tail, c->tail, memory_order_release"),
        ("worker.c", "&from, to, memory_order_acq_rel", "&from, to, memory_order_acquire"),
        ("monitor.c", "death->generation + 1, memory_order_release", "death->generation + 1, memory_order_relaxed"),
    ],
)
def test_a_weaker_order_is_seen(tmp_path: Path, file: str, old: str, new: str) -> None:
    ipc = tmp_path / "ipc"
    shutil.copytree(IPC, ipc)
    text = (ipc / "core" / file).read_text()
    assert text.count(old) == 1
    (ipc / "core" / file).write_text(text.replace(old, new))
    done = explore(ipc)
    assert done.returncode == 1, done.stderr
    assert "BAD" in done.stdout
