"""From a stream into a partial: received and written by one thread, hashed by a second, synced early by a third.

The stages overlap, so that a verified, durable download costs the time of its slowest stage. Chunks are immutable and
go from hand to hand; a bounded queue keeps what is in memory below 8 MiB whatever the size of the content. Watched
meanwhile: progress (a stream that drips is cut), the deadline, the announced length, the bandwidth allowed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from failpoints import fail_point

from .config import Timeout
from .digest import Digest
from .errors import NetworkError, NoSpaceError, ProtocolError, StalledError, StorageError, storage_error
from .forks import renew_after_fork
from .partials import Partial
from .policy import NONE, Policies
from .retry import Deadline
from .sources import Stream

CHUNK_BYTES = 512 * 1024
JOURNAL_BYTES = 32 * 1024 * 1024
# Slower than this over Timeout.stall seconds is a stall, unless a Throttle is what slows it.
STALLED_BYTES_PER_S = 16 * 1024
_QUEUED_CHUNKS = 14
_TELL_S = 0.1

# A stream this slow, with this much to come, is worth more connections (measured: on a fast link they bring nothing).
SLOW_BYTES_PER_S = 16 * 1024 * 1024
_JUDGE_AFTER_S = 3.0
_WORTH_S = 6.0


class Throttle:
    """A limit in bytes per second, shared by all transfers that hold it."""

    def __init__(self, bytes_per_s: int) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()
        renew_after_fork(self)

    def renew_guard(self) -> None:
        """Replace the lock, which another thread may have held at a fork."""
        self._guard = threading.Lock()

    def take(self, count: int, deadline: Deadline) -> None:
        """Wait until *count* more bytes may pass."""
        with self._guard:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + count / self.bytes_per_s
        deadline.sleep(start - now) if start > now else deadline.check()


@dataclass(slots=True)
class Transfer:
    """One attempt to fill *partial* from *stream*.

    Attributes:
        on_progress: Told the bytes that are in the partial, ten times a second at most.
        throttle: Limits the rate, if given.
        policies: Which say how much may come; what goes on beyond that is cut off.
        pace: Called when more is in the partial; waits if it must, and returns for how many seconds it did.
        may_split: Stop early, with ``slow`` set, when several connections would be faster.
        slow: Set when that is why `run` returned before the end.
    """

    stream: Stream
    partial: Partial
    ref: str
    timeout: Timeout
    deadline: Deadline
    on_progress: Callable[[int], object]
    throttle: Throttle | None = None
    policies: Policies = NONE
    pace: Callable[[], float] | None = None
    may_split: bool = False
    slow: bool = False

    def run(self) -> None:
        """Receive to the end of the stream.

        Raises:
            NetworkError, CancelledError: The partial holds what had come, and can be resumed.
            StorageError: A sync failed; the partial must be discarded.
            NoSpaceError: The disk is full; the partial holds what had come.
        """
        hashing = _Hashing(self.partial)
        _keep_memory()
        try:
            with self.deadline.cutting(self.stream.interrupt):
                self._receive(hashing)
        except OSError as error:
            if isinstance(error, StorageError | NoSpaceError) or not error.errno:
                raise
            raise storage_error(error, action="write", path=self.ref) from error
        finally:
            hashing.finish()
        hashing.check()

    def _receive(self, hashing: _Hashing) -> None:
        partial, stream, started = self.partial, self.stream, time.monotonic()
        first = partial.length
        told, mark, mark_length = started, started, first
        enough = 1 if self.throttle is not None else STALLED_BYTES_PER_S * self.timeout.stall
        limit = CHUNK_BYTES if self.throttle is None else max(1024, min(CHUNK_BYTES, self.throttle.bytes_per_s // 20))
        while True:
            fail_point("transfer.before-read")
            try:
                chunk = stream.read(limit)
            except NetworkError:
                self.deadline.check()  # A read that was cut fails in its own words.
                raise
            self.deadline.check()
            if not chunk:
                return
            if partial.total is not None and partial.length + len(chunk) > partial.total:
                raise ProtocolError(ref=self.ref, detail=f"more than the announced {partial.total} bytes came")
            if self.policies:
                self.policies.check_size(self.ref, partial.length + len(chunk))
            partial.append(chunk)
            hashing.add(chunk)
            if self.throttle is not None:
                self.throttle.take(len(chunk), self.deadline)
            if self.pace is not None:
                held = self.pace()  # Which says nothing of how fast the stream is.
                started, mark = started + held, mark + held
            now = time.monotonic()
            if now - told >= _TELL_S:
                told = now
                self.on_progress(partial.length)
            if partial.length - mark_length >= enough:
                mark, mark_length = now, partial.length
            elif now - mark > self.timeout.stall:
                detail = f"{partial.length - mark_length} bytes in {self.timeout.stall:g} s"
                raise StalledError(ref=self.ref, detail=f"it stalled: {detail}")
            if self.may_split and self._is_slow(partial.length - first, now - started):
                self.slow = True
                return

    def _is_slow(self, received: int, seconds: float) -> bool:
        if seconds < _JUDGE_AFTER_S or self.stream.total is None:
            return False
        rate = received / seconds
        return rate < SLOW_BYTES_PER_S and (self.stream.total - self.partial.length) / rate > _WORTH_S


def _keep_memory() -> None:
    """Keep glibc from giving the memory of each chunk back to the kernel, and from faulting it in again for the next.

    To free one large block raises its limits for good: blocks below it come from the heap, and twice as much may stay
    free at the heap's top (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD). Else, in one download of three, every
    byte cost a page fault: half as much processor time again. Elsewhere it does nothing.
    """
    bytes(_QUEUED_CHUNKS * CHUNK_BYTES)


class _Hashing:
    """The second and third thread: the digest, and early syncs with their journal. Neither starts for small content."""

    def __init__(self, partial: Partial) -> None:
        self._partial = partial
        self._chunks: queue.Queue[bytes | None] = queue.Queue(_QUEUED_CHUNKS)
        self._journals: queue.Queue[tuple[int, Digest] | None] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Event()
        self._idle.set()
        self._error: OSError | None = None
        self._next_journal = partial.hashed + JOURNAL_BYTES
        self._received = 0

    def add(self, chunk: bytes) -> None:
        """Hash *chunk*, soon; raise what the sync thread has met."""
        self._received += len(chunk)
        if not self._threads:
            if self._received <= 2 * CHUNK_BYTES:
                self._partial.hash(chunk)
                return
            self._start(self._hash, "modelcache-hash")
        self.check()
        self._chunks.put(chunk)

    def check(self) -> None:
        """Raise what the sync thread has met."""
        if self._error is not None:
            raise storage_error(self._error, action="sync", path="a download") from self._error

    def finish(self) -> None:
        """Wait until every chunk is hashed and no sync is under way."""
        if self._threads:
            self._chunks.put(None)
            for thread in self._threads:  # The first one starts the second, so the list may grow meanwhile.
                thread.join()

    def _start(self, target: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _hash(self) -> None:
        while (chunk := self._chunks.get()) is not None:
            self._partial.hash(chunk)
            if self._partial.hashed >= self._next_journal and self._idle.is_set():
                self._next_journal = self._partial.hashed + JOURNAL_BYTES
                if len(self._threads) == 1:
                    self._start(self._journal, "modelcache-sync")
                self._idle.clear()
                self._journals.put((self._partial.hashed, self._partial.digest))
        self._journals.put(None)

    def _journal(self) -> None:
        """Sync while more bytes arrive: the disk is busy early, and little is left for the end."""
        while (item := self._journals.get()) is not None:
            if self._error is not None:
                continue  # Never again after a failed sync: the kernel may have dropped the pages.
            try:
                self._partial.journal(*item)
            except OSError as error:
                self._error = error
            self._idle.set()
