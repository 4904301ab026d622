"""What the client and its monitor say to each other, over a socket that keeps messages apart."""

from __future__ import annotations

import struct

STOP, KILL_ALL, LOOK, TERMINAL, RESTART = b"S", b"K", b"L", b"T", b"R"
"""Commands of the client. LOOK: at the deadlines, and for rows that the client has condemned. A LOOK that finds the
socket full need not be sent: what is in there is read later, and then the monitor looks. TERMINAL, with a path or
nothing: if the client is killed, end the scroll region that it had there (pool/terminal.py). RESTART: replace all
workers that live now; when that is done, `_core.renewed` is the number of RESTARTs so far."""
LONGEST_PATH = 200
"""Bytes of the path of a TERMINAL; of a terminal with a longer one nothing is told."""
NOTICE, OUTPUT, FAILED = b"n", b"o", b"f"
"""Messages to the client: a dead worker's log, and what it has printed (each after a packed WHO); and why the pool
cannot start workers."""
WHO = struct.Struct("<II")  # slot, generation
