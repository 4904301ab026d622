"""Looks at a running pool from outside: at the control segment, in the memory of its client, without being asked in.

Nothing of the pool's own code is used, only the places of the bytes, which test_layout.py pins. The system must allow
it: the client is the observer itself or a process that it has started (or the observer is root).
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from test_layout import CONSTANTS, DEATH, HEADER, ROW, SIZES, SLOT

# What a worker can be at when it dies.
STARTING, IDLE, CLAIMING, LEAVING = "starting", "idle", "without a task, some are ready", "leaving"
DECODING, SINGLE, ITEM = "decoding a chunk", "running a single task", "running an item of a chunk"
STORING, STORED = "storing a result", "done, not collected"
STORING_ITEM, CONDEMNED = "storing a chunk's results", "condemned"
UNSEEN = "nobody has looked"  # it was not stopped before
STATES = (STARTING, IDLE, CLAIMING, DECODING, SINGLE, ITEM, STORING, STORING_ITEM, STORED, CONDEMNED, LEAVING)
CHARGED = (SINGLE, ITEM, STORING, STORING_ITEM)  # a death then costs a task one attempt

_SLOTS, _ROWS = SIZES["ipc_slot"], SIZES["ipc_row"]
_DEATHS = CONSTANTS["IPC_DEATHS"]


class Slot(NamedTuple):
    """The worker that lives in a slot, or lived there last; all generations below `reaped` are dead."""

    pid: int
    generation: int
    phase: int
    reaped: int


class Gone(Exception):
    """There is no segment now: the client has ended, or is replacing it."""


class Observer:
    """Of the pool whose client is process `pid`. The newest segment is looked at, if there are several."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.slots = self._rows = self._at = self._first_slot = self._first_row = 0
        self._memory = -1
        try:
            self._memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
            self.attach()
        except OSError as error:
            raise Gone(f"the memory of {pid} cannot be read: {error}") from error

    def attach(self) -> None:
        """Look where the segment is now."""
        found = []
        try:
            with open(f"/proc/{self.pid}/maps") as file:
                for line in file:
                    if "memfd:pool-control" in line:
                        area, _, _, _, inode = line.split()[:5]
                        found.append((int(inode), int(area.split("-")[0], 16)))
        except OSError as error:
            raise Gone(str(error)) from error
        if not found:
            raise Gone(f"process {self.pid} has no pool")
        self._at = max(found)[1]
        self._rows, self.slots = struct.unpack("II", self._read(HEADER["rows"], 8))
        if self._rows > CONSTANTS["IPC_MAX_ROWS"] or self.slots > CONSTANTS["IPC_MAX_SLOTS"]:
            raise Gone("it is damaged")
        ring = 8 << (self._rows - 1).bit_length()  # bytes: a power of two of entries
        self._first_slot = -(-(SIZES["ipc_header"] + ring) // CONSTANTS["IPC_LINE"]) * CONSTANTS["IPC_LINE"]
        self._first_row = self._first_slot + self.slots * _SLOTS

    def close(self) -> None:
        if self._memory >= 0:
            os.close(self._memory)
            self._memory = -1

    def _read(self, offset: int, size: int) -> bytes:
        try:
            data = os.pread(self._memory, size, self._at + offset)
        except OSError as error:
            raise Gone(str(error)) from error
        if len(data) != size:
            raise Gone("it ends while it is read")
        return data

    def slot(self, slot: int) -> Slot:
        line = self._read(self._first_slot + slot * _SLOTS, SLOT["settled"])
        (phase,) = struct.unpack_from("I", line, SLOT["phase"])
        generation, pid, reaped = struct.unpack_from("IiI", line, SLOT["generation"])
        return Slot(pid, generation, phase, reaped)

    def is_ready(self, slot: int) -> bool:
        """Whether the worker that lives there has become ready."""
        found = self.slot(slot)
        return found.pid > 0 and found.reaped <= found.generation and found.phase != CONSTANTS["IPC_STARTING"]

    def settled(self, slot: int) -> int:
        """All deaths of generations below it are settled."""
        return int(struct.unpack("I", self._read(self._first_slot + slot * _SLOTS + SLOT["settled"], 4))[0])

    def death(self, slot: int, generation: int) -> tuple[int, int, int] | None:
        """(pid, wait status, reason) of the record of that death; None: it is not written yet, or no more there."""
        if self.slot(slot).reaped <= generation:
            return None
        offset = SLOT["deaths"] + generation % _DEATHS * SIZES["ipc_death"]
        entry = self._read(self._first_slot + slot * _SLOTS + offset, DEATH["peak"])
        found, pid, status, reason = struct.unpack("IiiI", entry)
        return (pid, status, reason) if found == generation else None

    def ready(self) -> int:
        """Entries of the ring that are not spent yet."""
        (tail,) = struct.unpack("Q", self._read(HEADER["tail"], 8))
        (head,) = struct.unpack("Q", self._read(HEADER["head"], 8))
        return int(tail - head)

    def state(self, slot: int) -> str:
        """What the worker of the slot is at: true at one moment only if it is stopped."""
        return self.states([slot])[0]

    def states(self, slots: list[int]) -> list[str]:
        rows = memoryview(self._read(self._first_row, self._rows * _ROWS)).cast("Q")
        words = rows[ROW["word"] // 8 :: _ROWS // 8].tolist()
        return [self._state(self.slot(slot), slot, words, rows) for slot in slots]

    def _state(self, found: Slot, slot: int, words: list[int], rows: memoryview[int]) -> str:
        if found.phase == CONSTANTS["IPC_STARTING"]:
            return STARTING
        owner = slot | (found.generation & 0xFFFF) << 9
        mine = {}
        for row, word in enumerate(words):
            if word & 7 > CONSTANTS["IPC_READY"] and word >> 3 & 0x1FF_FFFF == owner:
                items = rows[row * _ROWS // 8 + ROW["items"] // 8] >> 32
                mine[word & 7] = (items, word >> CONSTANTS["IPC_ITEM_SHIFT"])
        if CONSTANTS["IPC_CONDEMNED"] in mine:
            return CONDEMNED
        if CONSTANTS["IPC_RUNNING"] in mine:
            items, item = mine[CONSTANTS["IPC_RUNNING"]]
            return ITEM if item else DECODING if items else SINGLE
        if CONSTANTS["IPC_STORING"] in mine:
            return STORING_ITEM if mine[CONSTANTS["IPC_STORING"]][0] else STORING
        if CONSTANTS["IPC_DONE"] in mine:
            return STORED
        if found.phase == CONSTANTS["IPC_LEAVING"]:
            return LEAVING
        return CLAIMING if self.ready() else IDLE
