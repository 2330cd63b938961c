"""What a backend owes the archive and the tiers: the contract, and the batch of events that it is handed. No I/O.

A backend stores two things. *Events* are appended, in order, each with an id that is its own for all time; a write that
failed may come again, whole, with the same ids, and a backend that can tell keeps each event once. *Files* have names
such as ``blobs/sha256/<hex>``; most are created once and never changed, some small ones are replaced whole, and all are
read in ranges (`contents` and `refs` say what is in them). A backend raises `BackendError` and its kin, never retries,
never touches a cache root, and may be called from any thread.
"""

from __future__ import annotations

import json
import os
import threading
import time as clock
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

from .. import forks
from ..config import is_whole
from ..errors import BackendError, DamagedReplicaError, NoConditionalWritesError, UsageError

EVENT_BYTES_MAX = 1 << 20
KEY_CHARACTERS_MAX = 4096
_RACERS = 4
PIECE_BYTES = 8 << 20  # What is asked for at a time, of a large file.


def _plain(value: object) -> Any:
    """Return what stands for *value* in JSON: events of a cache say it themselves."""
    as_dict = getattr(value, "as_dict", None)
    if callable(as_dict):
        return as_dict()
    raise TypeError(f"{type(value).__name__} has no form in JSON")


_encode: Callable[[object], str] = json.JSONEncoder(
    separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain
).encode


def encode(event: object) -> str:
    """Return *event* as one line of JSON.

    Raises:
        UsageError: It has no such form, or is longer than a mebibyte.
    """
    try:
        line = _encode(event)
        size = len(line) if line.isascii() else len(line.encode())  # A lone surrogate has no form in UTF-8.
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(problem=f"the event {event!r:.100} cannot be archived: {error}") from error
    if size > EVENT_BYTES_MAX:
        raise UsageError(problem=f"an event of {size} bytes cannot be archived: {EVENT_BYTES_MAX} are the most")
    return line


class Batch(list[Any]):
    """Consecutive events of one key, as their writers gave them: a list, with what belongs to each beside it.

    Attributes:
        key: Of all of them.
        ids: Of each: the same whenever, and to whatever backend, it is written.
        times: When each was accepted, in Unix seconds.
        lines: Each as JSON.
    """

    __slots__ = ("ids", "key", "lines", "times")

    def __init__(
        self, key: str, events: Sequence[Any], *, ids: list[str], times: list[float], lines: list[str]
    ) -> None:
        super().__init__(events)
        self.key, self.ids, self.times, self.lines = key, ids, times, lines

    @classmethod
    def of(cls, key: str, events: Sequence[Any]) -> Batch:
        """Return *events* as a batch; those that are none yet are new ones."""
        if isinstance(events, Batch):
            return events
        origin, now = os.urandom(10).hex(), clock.time()
        ids = [f"{origin}.{number}" for number in range(len(events))]
        return cls(key, events, ids=ids, times=[now] * len(ids), lines=[encode(event) for event in events])

    def records(self) -> list[str]:
        """Return a line of JSON for each event, as `decode` reads it."""
        key = _encode(self.key)
        return [
            f'{{"id":"{identity}","key":{key},"time":{time:.6f},"event":{line}}}'
            for identity, time, line in zip(self.ids, self.times, self.lines, strict=True)
        ]


class Archived(NamedTuple):
    """An event as a backend has it. ``time`` is when it was accepted, in Unix seconds."""

    id: str
    key: str
    time: float
    event: Any


def decode(line: str | bytes) -> Archived | None:
    """Return the event in *line*, None if it is torn or none of ours."""
    try:
        facts = json.loads(line)
        return Archived(str(facts["id"]), str(facts["key"]), float(facts["time"]), facts["event"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


class _Probing:
    """One probe at a time: it deletes what earlier ones have left."""

    def __init__(self) -> None:
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        self.lock = threading.Lock()


_probing = _Probing()


class Backend(ABC):
    """Storage for events and files.

    Attributes:
        location: Where it is, for people; holds no credentials.
        is_remote: Whether a call opens a connection, which none may who is offline.
    """

    location: str = ""
    is_remote: bool = False
    _conditional: bool | None = None  # What the probe has found, of this object.
    _probes: tuple[str, ...] = ()  # What it has made, and not deleted yet.

    @abstractmethod
    def append_events(self, key: str, events: Sequence[Any]) -> None:
        """Append *events* of *key*, in order. When it returns they survive a crash of this process, if anything does.

        What comes from an archivist is a `Batch`, whose ids tell a repetition.
        """

    @abstractmethod
    def read_events(self, key: str | None = None, *, since: float = 0.0) -> Iterator[Archived]:
        """Yield the events of *key*, of all keys if that is None, that were accepted *since* then: each once, in order.

        In order means: those of one writer as they were appended.
        """

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Make the small file *name*, unless it is there; return whether this call made it: just one ever does."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Make the small file *name*, or replace it whole: a reader finds what was there before, or this."""

    @abstractmethod
    def upload(self, name: str, path: str, size: int) -> None:
        """Make the file *name*, of *size* bytes, from the local file *path*; it replaces one whole."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the bytes of the file *name*, None if there is none."""

    @abstractmethod
    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return up to *length* bytes of the file *name* from *start* on, all that follow if that is None.

        Raises:
            NotInArchiveError: There is no such file.
        """

    def stream(self, name: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes of the file *name* from *start*, which is in it, to its end: by one request if that can be.

        Raises:
            NotInArchiveError: There is no such file.
        """
        while data := self.read(name, start, PIECE_BYTES):
            yield data
            if len(data) < PIECE_BYTES:
                return
            start += len(data)

    @abstractmethod
    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the names of the files that begin with *prefix*."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Delete the file *name*; one that is not there is fine."""

    def check_conditional(self) -> None:
        """Check, once, that `create` makes a file once: asked for one after the other, and by several at the same time.

        A store that looks first and writes then passes the first half of that, and fails the second one, mostly.

        Raises:
            NoConditionalWritesError: It has overwritten a file, or told two callers that they had made it.
            BackendError: That could not be tried.
        """
        with _probing.lock:
            if self._conditional is None:
                self._conditional = self._makes_once()
            while self._probes:  # Those of tries that failed too.
                self.delete(self._probes[-1])
                self._probes = self._probes[:-1]
        if not self._conditional:
            detail = "it has overwritten a file, or told two callers that they had made the same one"
            raise NoConditionalWritesError(backend=self.location, detail=detail)

    def _makes_once(self) -> bool:
        name = f"probes/{os.urandom(10).hex()}"
        start = threading.Barrier(_RACERS)
        winners: list[bytes] = []
        errors: list[BaseException] = []

        def race(mine: bytes) -> None:
            start.wait()
            try:
                if self.create(name, mine):
                    winners.append(mine)
            except Exception as error:  # noqa: BLE001  # It is raised again, by who asked.
                errors.append(error)

        # Daemons: one that hangs keeps no process from ending.
        racers = [threading.Thread(target=race, args=(b"%d" % number,), daemon=True) for number in range(_RACERS)]
        self._probes = (*self._probes, name)
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        if errors:
            raise errors[0]
        if self.create(name, b"later") or len(winners) > 1:
            return False
        # Nobody was told where the answer was lost, and its repetition found the file made.
        return self.read(name) in (winners or [b"%d" % number for number in range(_RACERS)])

    def close(self) -> None:  # noqa: B027  # Most have nothing to give back.
        """Give back what it holds open; it may be used again."""


@runtime_checkable
class LandsBatches(Protocol):
    """A backend that takes batches of several keys in one call, cheaper than one by one."""

    def append_batches(self, batches: Sequence[Batch]) -> None:
        """Append all of *batches*, in order; one that failed comes again whole."""


@contextmanager
def failing_as(location: str) -> Iterator[None]:
    """Raise BackendError for a system call that fails in the block."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BackendError):
            raise
        raise BackendError(backend=location, detail=error.strerror or str(error)) from error


def is_size(value: object) -> TypeGuard[int]:
    """Tell whether *value* can be a number of bytes, or a moment, that a file system knows."""
    return isinstance(value, int) and is_whole(value) and 0 <= value < 1 << 63


def read_whole(backend: Backend, name: str, limit: int) -> bytes:
    """Return all of the small file *name*; of one that cannot be ours, no more than *limit* bytes come.

    Raises:
        NotInArchiveError: There is no such file.
        DamagedReplicaError: It has more.
        BackendError
    """
    data = bytearray()
    for chunk in backend.stream(name):
        data += chunk
        if len(data) > limit:
            detail = f"it has more than {limit} bytes"
            raise DamagedReplicaError(backend=backend.location, name=name, detail=detail)
    return bytes(data)


def check_name(name: str) -> str:
    """Return *name*; raise UsageError if it is not one of ours, and could lead elsewhere."""
    parts = name.split("/")
    if not name.isascii() or not name.isprintable() or any(part in {"", ".", ".."} for part in parts):
        raise UsageError(problem=f"{name!r:.100} cannot be the name of a file in a backend")
    return name
