"""The journal of ``pool map``: which inputs are done, in an SQLite file that survives kill -9.

An input is recorded under what was done with it (function, its arguments, where the outputs go), with its size and time
of change: the same path with other bytes is another input. A file has its absolute path there. What is recorded is not
done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import time
import urllib.parse
from collections import namedtuple
from collections.abc import Iterator

import click

from pool.cli import Mistake, Stopped, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_APPLICATION = 0x706F6F6C  # "pool", so that another program's database is not taken for a journal
_VERSION = 2
_MOST_WAITING = 20_000  # records that wait for their commit
_SCHEMA = """
CREATE TABLE work (id INTEGER PRIMARY KEY, function TEXT NOT NULL, arguments TEXT NOT NULL,
    UNIQUE (function, arguments));
CREATE TABLE run (id INTEGER PRIMARY KEY, work INTEGER NOT NULL REFERENCES work, began REAL NOT NULL, ended REAL);
CREATE TABLE item (work INTEGER NOT NULL REFERENCES work, input BLOB NOT NULL, size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL, error TEXT, seconds REAL NOT NULL, ended REAL NOT NULL,
    PRIMARY KEY (work, input)) WITHOUT ROWID;
"""

Stamp = tuple[int, int]
"""Size and time of change in ns of an input."""
NO_FILE: Stamp = -1, -1


class Recorded(namedtuple("Recorded", "stamp error")):
    """What an input was, and its error, or None."""

    __slots__ = ()
    stamp: Stamp
    error: str | None


def stamp(path: str) -> Stamp:
    """What tells whether a file has changed."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return NO_FILE
    return found.st_size, found.st_mtime_ns


def files_of(path: str) -> list[str]:
    """The journal, and what is beside it while it is used, as absolute paths."""
    return [os.path.abspath(path) + end for end in ("", "-wal", "-shm", "-lock")]


class Journal:
    """The records of one piece of work, open for this run.

    Attributes:
        unclean: an earlier run of the same work was killed; it may have left temporary files.
        elsewhere: if nothing of this work is recorded yet, the ``--base`` of those that differ from it only there.
    """

    def __init__(self, path: str, function: str, key: dict[str, str]) -> None:
        """Opens or makes the file. ``key``: what makes it another work for the same function. Raises Mistake
        if it is no journal, in use, or not writable."""
        self._path = path
        self._folder = os.getcwd()
        self._waiting: list[tuple[Any, ...]] = []
        if not path:
            raise Mistake("the journal has no name")
        with _usable(path):
            self._lock = _lock(path)
            try:
                self._begin(function, key)
            except BaseException:
                self._unlock()
                raise

    def _begin(self, function: str, key: dict[str, str]) -> None:
        arguments = json.dumps(key, ensure_ascii=False)
        self._db = db = _open(self._path)
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT OR IGNORE INTO work (function, arguments) VALUES (?, ?)", (function, arguments))
        (self._work,) = db.execute(
            "SELECT id FROM work WHERE function = ? AND arguments = ?", (function, arguments)
        ).fetchone()
        self.unclean = self._one("SELECT count(*) FROM run WHERE work = ? AND ended IS NULL") > 0
        db.execute("UPDATE run SET ended = 0 WHERE work = ? AND ended IS NULL", (self._work,))
        self._run = db.execute("INSERT INTO run (work, began) VALUES (?, ?)", (self._work, time.time())).lastrowid
        self.elsewhere = self._others(function, key)
        db.execute("COMMIT")

    def _others(self, function: str, key: dict[str, str]) -> list[str]:
        if self._one("SELECT count(*) FROM item WHERE work = ?"):
            return []
        query = "SELECT arguments FROM work WHERE function = ? AND id IN (SELECT work FROM item) ORDER BY id"
        others = [json.loads(arguments) for (arguments,) in self._db.execute(query, (function,))]
        return [other["--base"] for other in others if {**key, "--base": other.get("--base")} == other]

    def _one(self, query: str) -> Any:
        return self._db.execute(query, (self._work,)).fetchone()[0]

    def find(self, inputs: list[tuple[str, Stamp]]) -> list[Recorded | None]:
        """What is recorded of each of these inputs; the stamps are those of now."""
        names = [self._name(path, then) for path, then in inputs]
        marks = ",".join("?" * len(names))
        query = f"SELECT input, size, mtime_ns, error FROM item WHERE work = ? AND input IN ({marks})"
        rows = self._db.execute(query, (self._work, *names))
        known = {name: Recorded((size, mtime_ns), error) for name, size, mtime_ns, error in rows}
        return [known.get(name) for name in names]

    def _name(self, path: str, then: Stamp) -> bytes:
        """A file is the same file from every folder; anything else is what it says."""
        if then == NO_FILE:
            return os.fsencode(path)
        return os.fsencode(os.path.normpath(os.path.join(self._folder, path)))

    def record(self, path: str, then: Stamp, error: str | None, seconds: float) -> None:
        """Note the end of an input; ``then``: what it was when it was given away. ``commit`` makes it safe."""
        self._waiting.append((self._work, self._name(path, then), *then, error, seconds, time.time()))

    @property
    def full(self) -> bool:
        """Whether ``commit`` should not wait for more."""
        return len(self._waiting) >= _MOST_WAITING

    def commit(self) -> None:
        """Write what was noted. It survives any death of this process then, and is at most as old as the file system's
        last flush after a power failure. Raises Stopped (a full disk)."""
        if not self._waiting:
            return
        with self._failing():
            if self._db.in_transaction:  # an interrupt came in between: the same records once more
                self._db.execute("ROLLBACK")
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR REPLACE INTO item VALUES (?, ?, ?, ?, ?, ?, ?)", self._waiting)
            self._db.execute("COMMIT")
            self._waiting.clear()

    def close(self) -> None:
        """Note that this run has ended by itself. What was not committed is not recorded."""
        try:
            with self._failing():
                self._db.execute("UPDATE run SET ended = ? WHERE id = ?", (time.time(), self._run))
                self._db.close()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):
            os.unlink(f"{self._path}-lock")  # while it is still ours
        os.close(self._lock)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Stopped(f"the journal {self._path!r} cannot be written: {error}") from error


@contextlib.contextmanager
def _usable(path: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise Mistake(f"the journal {path!r} cannot be used: {error}") from error


def _lock(path: str) -> int:
    """Hold ``path-lock`` as long as the file descriptor is open. The kernel lets go of it when we are dead, however we
    died, and other machines and containers see it."""
    name = f"{path}-lock"
    while True:
        try:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise Mistake(f"the journal {path!r} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            pid = os.pread(fd, 20, 0).decode(errors="replace")
            os.close(fd)
            who = f" by process {pid}" if pid else ""
            raise Mistake(f"the journal {path!r} is in use{who}") from error
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(name), os.fstat(fd)):
                with contextlib.suppress(OSError):  # a full disk: SQLite will say so
                    os.truncate(fd, 0)
                    os.pwrite(fd, str(os.getpid()).encode(), 0)
                return fd
        os.close(fd)  # its owner has removed it meanwhile


def _open(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(os.path.abspath(path), isolation_level=None, timeout=10)  # `:memory:` is a name like others
    empty = _check(path, db)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    if empty:
        db.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_VERSION};{_SCHEMA}COMMIT"
        )
    return db


def _open_to_look(path: str) -> sqlite3.Connection:
    """Changes nothing: also from a disk that cannot be written to, and while a run uses it."""
    if not os.path.exists(path):
        raise Mistake(f"no such journal: {path!r}")
    # Even who only reads makes files beside it, unless told that nobody writes.
    how = "mode=ro" if os.path.exists(f"{path}-wal") else "immutable=1"
    name = urllib.parse.quote(os.path.abspath(path))
    db = sqlite3.connect(f"file:{name}?{how}", uri=True, isolation_level=None)
    if _check(path, db):
        raise Mistake(f"{path!r} is no journal of pool map")
    return db


def _check(path: str, db: sqlite3.Connection) -> bool:
    """Whether it has nothing at all yet. Raises Mistake if it is no journal of ours."""
    (application,), (version,) = (
        db.execute("PRAGMA application_id").fetchone(),
        db.execute("PRAGMA user_version").fetchone(),
    )
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return True
    if application != _APPLICATION:
        raise Mistake(f"{path!r} is a database, but no journal of pool map")
    if version != _VERSION:
        raise Mistake(f"the journal {path!r} was made by another version of pool")
    return False


@click.command("journal")
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--failed", is_flag=True, help="List the inputs that failed, with their reasons.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each recorded input.")
def command(file: str, failed: bool, as_json: bool) -> None:
    """Show what the journal FILE of `pool map --journal` has recorded."""
    with _usable(file):
        db = _open_to_look(file)
        works = db.execute("SELECT id, function, arguments FROM work ORDER BY id").fetchall()
        for work, function, arguments in works:
            if not as_json:
                click.echo(_summary(db, work, function, arguments))
            if not (failed or as_json):
                continue
            which = "work = ? AND (error NOTNULL OR NOT ?)"
            query = f"SELECT input, error, seconds, ended FROM item WHERE {which} ORDER BY ended"
            for name, error, seconds, ended in db.execute(query, (work, failed)):
                path = os.fsdecode(name)
                if as_json:
                    row = {"function": function, "input": path, "ok": error is None, "error": error}
                    click.echo(json.dumps({**row, "seconds": round(seconds, 6), "ended": ended}))
                else:
                    click.echo(f"  {printable(path)}: {error}")
        db.close()


def _summary(db: sqlite3.Connection, work: int, function: str, arguments: str) -> str:
    done, failed, seconds = db.execute(
        "SELECT count(*) - count(error), count(error), total(seconds) FROM item WHERE work = ?", (work,)
    ).fetchone()
    (runs,) = db.execute("SELECT count(*) FROM run WHERE work = ?", (work,)).fetchone()
    counts = f"{done:,} done, {failed:,} failed, {seconds:,.1f} s of work, {runs} run{'s' * (runs != 1)}"
    return f"{function} {arguments}: {counts}"


__all__ = ["NO_FILE", "Journal", "Recorded", "Stamp", "command", "files_of", "stamp"]
