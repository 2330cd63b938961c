"""A backend in one SQLite database, on a local disk: events that can be queried, and files in parts.

WAL, with a sync for each commit: what an append that returned has written survives power loss. All batches of one call
are one transaction, so that a write lands whole or not at all, and an event that comes again is known by its id. Not
for network disks: WAL needs memory that all its processes share.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .. import files, forks
from ..errors import BackendError, BackendSetupError, NotInArchiveError, RejectedError
from .base import Archived, Backend, Batch, check_name, decode

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, time REAL NOT NULL, event TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_key ON events (key, time);
CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    name TEXT NOT NULL, number INTEGER NOT NULL, data BLOB NOT NULL, PRIMARY KEY (name, number)
);
"""
_PART_BYTES = 1 << 20
_BUSY_S = 10.0  # How long a transaction waits for that of another process.
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_PAGE = 1000
_abandoned: list[sqlite3.Connection] = []  # A forked child must not touch, nor close, those of its parent.


class SqliteBackend(Backend):
    """A backend in the database *path*, which is made if it is missing.

    Raises:
        BackendSetupError: It is no database, or cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.location = os.path.abspath(os.fspath(path))
        self._to_write, self._to_read = _Door(), _Door()  # A long query holds no writer up.
        self._pid = os.getpid()
        forks.renew_after_fork(self)
        try:
            with self._writing() as connection:
                connection.execute("SELECT count(*) FROM files")
        except BackendError as error:
            raise BackendSetupError(backend=self.location, detail=error.detail) from error

    def renew_guard(self) -> None:
        """See `forks`. A child opens a connection of its own."""
        if self._pid != os.getpid():
            doors = (self._to_write, self._to_read)
            _abandoned.extend(door.connection for door in doors if door.connection is not None)
            self._to_write, self._to_read = _Door(), _Door()
        self._pid = os.getpid()

    def append_events(self, key: str, events: Sequence[Any]) -> None:
        """See `Backend`."""
        self.append_batches([Batch.of(key, events)])

    def append_batches(self, batches: Sequence[Batch]) -> None:
        """See `LandsBatches`."""
        rows = (
            (identity, batch.key, time, line)
            for batch in batches
            for identity, time, line in zip(batch.ids, batch.times, batch.lines, strict=True)
        )
        with self._writing() as connection:
            connection.executemany("INSERT OR IGNORE INTO events (id, key, time, event) VALUES (?, ?, ?, ?)", rows)

    def read_events(self, key: str | None = None, *, since: float = 0.0) -> Iterator[Archived]:
        """See `Backend`."""
        last = 0
        while True:
            found = self.query(
                "SELECT number, id, key, time, event FROM events "
                "WHERE number > ? AND time >= ? AND (? IS NULL OR key = ?) ORDER BY number LIMIT ?",
                (last, since, key, key, _PAGE),
            )
            for number, identity, of, time, line in found:
                archived = decode(f'{{"id":"{identity}","key":"","time":{time!r},"event":{line}}}')
                if archived is not None:
                    yield archived._replace(key=of)
                last = number
            if len(found) < _PAGE:
                return

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return the rows of a SELECT over ``events (number, id, key, time, event)``; *event* is JSON.

        ``json_extract(event, '$.kind')`` takes a field out of it. What would change anything is refused.

        Raises:
            BackendError
        """
        with self._open(self._to_read) as connection:
            connection.execute("PRAGMA query_only = on")
            return connection.execute(sql, tuple(parameters)).fetchall()

    def create(self, name: str, data: bytes) -> bool:
        """See `Backend`."""
        parts = [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]
        return self._store(check_name(name), len(data), iter(parts))

    def put(self, name: str, data: bytes) -> None:
        """See `Backend`."""
        parts = [data[start : start + _PART_BYTES] for start in range(0, len(data), _PART_BYTES)]
        self._store(check_name(name), len(data), iter(parts), replace=True)

    def upload(self, name: str, path: str, size: int) -> None:
        """See `Backend`."""
        try:
            descriptor = files.open_regular(path, follow=False)
        except OSError as error:
            raise BackendError(backend=self.location, detail=error.strerror or str(error)) from error
        try:
            self._store(check_name(name), size, files.chunks(descriptor, length=size), replace=True)
        finally:
            os.close(descriptor)

    def _store(self, name: str, size: int, parts: Iterator[bytes], *, replace: bool = False) -> bool:
        with self._writing() as connection:
            if replace:
                _delete(connection, name)
            made = connection.execute("INSERT OR IGNORE INTO files VALUES (?, ?)", (name, size)).rowcount == 1
            if made:
                numbered = ((name, number, part) for number, part in enumerate(parts))
                connection.executemany("INSERT INTO parts VALUES (?, ?, ?)", numbered)
                sql = "SELECT coalesce(sum(length(data)), 0) FROM parts WHERE name = ?"
                found = connection.execute(sql, (name,)).fetchone()[0]
                if found != size:
                    raise BackendError(backend=self.location, detail=f"{name} has {found} bytes and not {size}")
            return made

    def size(self, name: str) -> int | None:
        """See `Backend`."""
        found = self.query("SELECT size FROM files WHERE name = ?", (check_name(name),))
        return int(found[0][0]) if found else None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Backend`."""
        first = start // _PART_BYTES
        with self._open(self._to_read) as connection:
            connection.execute("BEGIN")  # Its size and its bytes are of one moment: it may be replaced.
            try:
                sized = connection.execute("SELECT size FROM files WHERE name = ?", (check_name(name),)).fetchone()
                size = 0 if sized is None else int(sized[0])
                end = size if length is None else min(size, start + length)
                found = connection.execute(
                    "SELECT data FROM parts WHERE name = ? AND number BETWEEN ? AND ? ORDER BY number",
                    (name, first, max(first, (end - 1) // _PART_BYTES)),
                ).fetchall()
            finally:
                connection.execute("COMMIT")
        if sized is None:
            raise NotInArchiveError(what=name, asked=(self.location,))
        data = b"".join(row[0] for row in found)
        return data[start - first * _PART_BYTES : max(0, end - first * _PART_BYTES)]

    def names(self, prefix: str = "") -> Iterator[str]:
        """See `Backend`."""
        sql = "SELECT name FROM files WHERE substr(name, 1, ?) = ? ORDER BY name"
        return (row[0] for row in self.query(sql, (len(prefix), prefix)))

    def delete(self, name: str) -> None:
        """See `Backend`."""
        with self._writing() as connection:
            _delete(connection, check_name(name))

    def close(self) -> None:
        """See `Backend`."""
        for door in (self._to_write, self._to_read):
            with door.guard:
                door.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Run the block in one transaction, which is committed, durably, at its end."""
        with self._open(self._to_write) as connection:
            if connection.in_transaction:
                raise BackendError(backend=self.location, detail="this thread writes to it already: it was interrupted")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _open(self, door: _Door) -> Iterator[sqlite3.Connection]:
        with door.guard:
            try:
                there = self._there()
                if door.connection is not None and door.file != there:
                    door.close()  # Somebody has deleted or replaced it; into the old one everything would be lost.
                if door.connection is None:
                    door.connection = self._connect()
                    door.file = self._there()
                yield door.connection
            except (sqlite3.DataError, sqlite3.IntegrityError) as error:
                raise RejectedError(backend=self.location, detail=f"SQLite: {error}") from error
            except sqlite3.Error as error:
                if getattr(error, "sqlite_errorcode", None) not in _BUSY:
                    door.close()  # Whatever state it is in, after a full disk or a broken page.
                raise BackendError(backend=self.location, detail=f"SQLite: {error}") from error

    def _there(self) -> tuple[int, int] | None:
        """Return what tells the file from another one of its name."""
        try:
            found = os.stat(self.location)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.location, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.executescript(_SCHEMA)
        except BaseException:
            connection.close()
            raise
        return connection


class _Door:
    """A connection, and the lock of who uses it."""

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self.connection: sqlite3.Connection | None = None
        self.file: tuple[int, int] | None = None

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error:
                pass  # It is of no use any more.


def _delete(connection: sqlite3.Connection, name: str) -> None:
    connection.execute("DELETE FROM parts WHERE name = ?", (name,))
    connection.execute("DELETE FROM files WHERE name = ?", (name,))
