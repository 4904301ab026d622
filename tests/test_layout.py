"""The bytes of the control segment, as literals: a change of `ipc/core/layout.h` must change this file on purpose.

A change here is a change of IPC_LAYOUT_VERSION, too, as soon as a version has been released.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ipc import _core

CORE = Path(__file__).parent.parent / "ipc" / "core"

HEADER = {
    "magic": 0,
    "size": 8,
    "rows": 16,
    "slots": 20,
    "units": 24,
    "cores": 28,
    "layout": 32,
    "created": 40,
    "tail": 128,
    "head": 256,
    "done_summary": 384,
    "client_asleep": 512,
    "client_bell": 516,
    "listening": 520,
    "deaths": 640,
    "stop": 644,
    "monitor_idle": 648,
    "shortest_ms": 652,
    "armed": 768,
    "guard": 896,
    "leaver": 900,
    "renewed": 904,
    "sleepers": 1024,
    "spinners": 1152,
    "done": 1280,
}
SLOT = {
    "started": 0,
    "started_word": 8,
    "intent": 16,
    "phase": 20,
    "tasks": 24,
    "parks": 32,
    "start_ns": 40,
    "wait_ns": 48,
    "progress": 56,
    "anonymous": 64,
    "dirtied": 72,
    "faults": 80,
    "peak": 88,
    "user_ns": 96,
    "system_ns": 104,
    "bell": 128,
    "generation": 256,
    "pid": 260,
    "reaped": 264,
    "settled": 268,
    "deaths": 272,
    "retire": 368,
    "spans": 384,
    "since": 1832,
    "used_ns": 1840,
    "used_most": 1848,
    "spent": 1856,
}
ROW = {
    "word": 0,
    "started": 8,
    "fn": 16,
    "fn_generation": 20,
    "fn_unit": 24,
    "fn_len": 28,
    "args_len": 32,
    "args_unit": 40,
    "items": 44,
    "timeout_ms": 48,
    "flags": 52,
    "attempt": 54,
    "kind": 56,
    "pid": 60,
    "result_ref": 64,
    "result_len": 72,
    "offered": 80,
    "drained": 84,
    "memory_limit": 88,
    "spent": 96,
    "body": 104,
}
SPANS = {"folds": 0, "busy": 8}
DEATH = {"generation": 0, "pid": 4, "status": 8, "reason": 12, "peak": 16}
SPENT = {"run": 0, "user": 2, "system": 4, "resident": 6}
FRAME = {"word": 0, "spent": 8}
STRUCTS = [
    ("ipc_header", HEADER),
    ("ipc_slot", SLOT),
    ("ipc_row", ROW),
    ("ipc_death", DEATH),
    ("ipc_spans", SPANS),
    ("ipc_spent", SPENT),
    ("ipc_frame", FRAME),
]
SIZES = {
    "ipc_header": 1792,
    "ipc_slot": 1920,
    "ipc_row": 512,
    "ipc_death": 24,
    "ipc_spans": 1448,
    "ipc_spent": 8,
    "ipc_frame": 16,
}
CONSTANTS = {
    "IPC_MAGIC": 0x676573206C6F6F70,
    "IPC_LAYOUT_VERSION": 1,
    "IPC_LINE": 128,
    "IPC_MAX_ROWS": 4096,
    "IPC_MAX_SLOTS": 512,
    "IPC_MAX_ITEMS": 4094,
    "IPC_ROW_SIZE": 512,
    "IPC_SLOT_SIZE": 1920,
    "IPC_UNIT_SIZE": 65536,
    "IPC_NO_UNIT": 0xFFFF_FFFF,
    "IPC_NO_PROGRESS": 0xFFFF_FFFF_FFFF_FFFF,
    "IPC_DEATHS": 4,
    "IPC_SPANS": 180,
    "IPC_SPAN_SHIFT": 23,
    "IPC_STATE_BITS": 3,
    "IPC_SLOT_BITS": 9,
    "IPC_GENERATION_BITS": 16,
    "IPC_SEQ_BITS": 24,
    "IPC_ITEM_BITS": 12,
    "IPC_SLOT_SHIFT": 3,
    "IPC_GENERATION_SHIFT": 12,
    "IPC_SEQ_SHIFT": 28,
    "IPC_ITEM_SHIFT": 52,
    "IPC_FREE": 0,
    "IPC_READY": 1,
    "IPC_RUNNING": 2,
    "IPC_STORING": 3,
    "IPC_DONE": 4,
    "IPC_CONDEMNED": 5,
    "IPC_DIED": 0,
    "IPC_DEADLINE": 1,
    "IPC_KILLED": 2,
    "IPC_RECYCLED": 3,
    "IPC_MEMORY": 4,
    "IPC_OOM": 5,
    "IPC_UNREADY": 6,
    "IPC_RESTARTED": 7,
    "IPC_CHANGED": 8,
    "IPC_STARTING": 0,
    "IPC_IDLE": 1,
    "IPC_LEAVING": 2,
    "IPC_PACKED": 2,
    "IPC_REPEATABLE": 4,
    "IPC_CAPTURE": 32,
    "IPC_PACKED_KIND": 0x80,
    "IPC_FAILED_KINDS": 0x1F,
    "IPC_ALIGN": 64,
    "IPC_INLINE": 408,
    "IPC_FILL_RATE": 10**10,
    "IPC_LOOK_MS": 50,
    "IPC_FRAME": 16,
    "IPC_LENGTH_BITS": 56,
    "IPC_OWNER_FUNCTION": 1 << 62,
    "IPC_OWNER_VIEW": 1 << 61,
    "IPC_OWNER_KEPT": 1 << 60,
}
DOING = {"REPLACED": 0, "IS_STARTING": 1, "IS_IDLE": 2, "IS_BUSY": 3, "IS_WAITING": 4, "IS_LEAVING": 5}
CODES = {"EMPTY": -1, "FULL": -2, "NO_ROOM": -3, "TOO_LARGE": -4, "LOST": -5, "STOP": -6, "DAMAGED": -7, "SIGNAL": -8}
PYTHON_ONLY = {"GENERATION_MASK": 0xFFFF, "TALLIES": 256, "SLOWEST": 5}


def word(state: int, slot: int = 0, generation: int = 0, seq: int = 0, item: int = 0) -> int:
    """A row word by the golden shifts."""
    return state | slot << 3 | generation << 12 | seq << 28 | item << 52


def owner(row: int, seq: int) -> int:
    """The owner word of a payload unit that belongs to a task."""
    return 1 << 63 | row << 32 | seq


def owner_kept(slot: int, generation: int) -> int:
    """The owner word of a payload unit that a task of that worker has kept."""
    return 1 << 60 | slot << 32 | generation


def ring_at() -> int:
    return SIZES["ipc_header"]


def slots_at(rows: int) -> int:
    return _line(ring_at() + 8 * (1 << (rows - 1).bit_length()))


def rows_at(rows: int, slots: int) -> int:
    return _line(slots_at(rows) + slots * SIZES["ipc_slot"])


def owners_at(rows: int, slots: int) -> int:
    return rows_at(rows, slots) + rows * SIZES["ipc_row"]


def _line(n: int) -> int:
    return -(-n // 128) * 128


WORDS = [(0, 0, 0, 0, 0), (5, 511, 0xFFFF, 0xFFFFFF, 4095), (2, 3, 7, 11, 13), (4, 256, 0x8001, 0x800001, 2049)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory, require: Callable[[str], str]) -> dict[str, int]:
    """What a C compiler makes of layout.h: name → number."""
    compiler = require("cc")
    lines = []
    for struct, fields in STRUCTS:
        lines += [f'printf("{struct}.{name} %zu\\n", offsetof(struct {struct}, {name}));' for name in fields]
        lines.append(f'printf("{struct} %zu\\n", sizeof(struct {struct}));')
    lines += [f'printf("{name} %llu\\n", (unsigned long long){name});' for name in CONSTANTS]
    lines += [f'printf("{name} %d\\n", (int)IPC_{name});' for name in (*CODES, *DOING)]
    for n, (state, *rest) in enumerate(WORDS):
        numbers = ", ".join(map(str, rest))
        lines.append(f'printf("word{n} %llu\\n", (unsigned long long)ipc_word((enum ipc_state){state}, {numbers}));')
    lines.append('printf("owner %llu\\n", (unsigned long long)ipc_owner(4095, 0xffffff));')
    lines.append('printf("kept %llu\\n", (unsigned long long)ipc_owner_kept(511, 0xffffffff));')
    folder = tmp_path_factory.mktemp("layout")
    source = folder / "layout.c"
    source.write_text(
        '#include <stdio.h>\n#include "core.h"\nint main(void) {\n' + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    program = folder / "layout"
    subprocess.run([compiler, "-std=c11", "-I", CORE, source, "-o", program], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: int(number) for name, number in (line.split() for line in output.splitlines())}


@pytest.mark.parametrize(("struct", "fields"), STRUCTS)
def test_offsets(compiled: dict[str, int], struct: str, fields: dict[str, int]) -> None:
    assert {name: compiled[f"{struct}.{name}"] for name in fields} == fields


def test_sizes_and_constants(compiled: dict[str, int]) -> None:
    for golden in (SIZES, CONSTANTS, CODES, DOING):
        assert {name: compiled[name] for name in golden} == golden


def test_no_field_is_missing_here() -> None:
    """Fields of the structs in layout.h that the goldens don't know: none. (Bytes between them are padding.)"""
    assert HEADER["done"] + 8 * 64 == SIZES["ipc_header"]
    assert HEADER["sleepers"] + 8 * 8 <= HEADER["spinners"]
    assert SLOT["deaths"] + 4 * SIZES["ipc_death"] <= SLOT["spans"]
    assert SLOT["spans"] + SIZES["ipc_spans"] == SLOT["since"]
    assert SLOT["used_most"] + 8 == SLOT["spent"]
    assert SLOT["spent"] + 4 * SIZES["ipc_spent"] <= SIZES["ipc_slot"]
    assert SPANS["busy"] + 8 * 180 == SIZES["ipc_spans"]
    assert ROW["body"] + CONSTANTS["IPC_INLINE"] == SIZES["ipc_row"]
    text = (CORE / "layout.h").read_text()
    for struct, fields in STRUCTS:
        body = text.split(f"struct {struct} {{", 1)[1].split("\n};", 1)[0]
        code = "\n".join(line.split("/*")[0].split("//")[0] for line in body.split("\n"))
        assert sum(statement.count(",") + 1 for statement in code.split(";")[:-1]) == len(fields), struct


def test_words(compiled: dict[str, int]) -> None:
    assert [compiled[f"word{n}"] for n in range(len(WORDS))] == [word(*fields) for fields in WORDS]
    assert compiled["owner"] == owner(4095, 0xFFFFFF)
    assert compiled["kept"] == owner_kept(511, 0xFFFF_FFFF)


def test_module_constants() -> None:
    golden = {**{name.removeprefix("IPC_"): n for name, n in CONSTANTS.items()}, **CODES, **DOING, **PYTHON_ONLY}
    numbers = {name: n for name, n in vars(_core).items() if name.isupper()}
    assert numbers == {name: golden[name] for name in numbers}
    assert len(numbers) == 45


@pytest.mark.parametrize(
    ("rows", "slots", "units", "size"),
    [
        (1, 1, 0, 4352),
        (1, 1, 1, 4360),
        (8, 3, 8, 11840),
        (100, 3, 7, 59832),
        (1024, 1, 131072, 1584768),
        (1024, 8, 131072, 1598208),
        (4096, 512, 131072, 4163328),
        (0, 1, 1, 0),
        (1, 0, 1, 0),
        (4097, 1, 1, 0),
        (1, 513, 1, 0),
    ],
)
def test_size(rows: int, slots: int, units: int, size: int) -> None:
    assert _core.size(rows, slots, units) == size
    if size:
        assert owners_at(rows, slots) + 8 * units == size
