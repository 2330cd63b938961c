"""What waits for the tiers of a cache is brought there: in the background, or before a call returns.

The archivist that does it is made when something has been filed, never on a hit and never at import. What a process
does not come to stays in the outbox: the next one that fetches, or flushes, delivers it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from time import monotonic

from . import forks
from .archive.archivist import Archivist
from .archive.registration import Queued, Registration, check_timeout
from .backends import contents, refs
from .backends.refs import RefRecord
from .breaker import DOWN
from .digest import Digest
from .errors import BackendError, ModelCacheError
from .levels.bucket import BucketLevel
from .objects import Stored
from .outbox import Outbox
from .tiers import Tiers

_log = logging.getLogger("modelcache")
_EXIT_S = 5.0
_FLUSH_S = 30.0
_WAIT_S = 600.0


class Replication:
    """Brings to *tiers* what waits for them in the outbox of the cache at *root*."""

    def __init__(self, root: str, tiers: Tiers) -> None:
        self._root, self._tiers = root, tiers
        self._made: Archivist | None = None
        self._told: set[str] = set()
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`."""
        self._guard = threading.Lock()

    def deliver(self, names: Iterable[str], digest: Digest) -> None:
        """Bring what waits for the tiers *names*; return when those have *digest* that are waited for.

        Raises:
            BackendError: A required tier does not have it. It waits, and is tried again.
        """
        errors: list[ModelCacheError] = []
        for level in self._tiers.writable():
            if level.name not in names:
                continue
            try:
                self._resume(level)
                if level.tier.is_required or (level.tier.is_direct and not self._is_down(level)):
                    self._await(level, digest)
            except ModelCacheError as error:
                if level.tier.is_required:
                    errors.append(error)
                elif (level.name + type(error).__name__) not in self._told:
                    self._told.add(level.name + type(error).__name__)
                    _log.warning("%s waits for the tier %s: %s", digest, level.name, error.summary)
        if errors:
            raise errors[0]

    def flush(self, timeout: float | None = None) -> bool:
        """Bring what waits, for *timeout* seconds (30) at most; tell whether nothing waits any more."""
        until = monotonic() + check_timeout(timeout, _FLUSH_S)
        for level in self._tiers.writable():
            if Outbox(self._root, level.name).count():
                try:
                    self._resume(level)
                except ModelCacheError as error:
                    _log.warning("the tier %s cannot be written: %s", level.name, error.summary)
        if self._made is not None:
            self._made.flush(max(0.0, until - monotonic()))
        return not any(Outbox(self._root, level.name).count() for level in self._tiers.writable())

    def close(self) -> None:
        """Bring what waits, within a bound, and end the threads. What does not get there waits for the next process."""
        with self._guard:
            made, self._made = self._made, None
        if made is None:
            return
        names = made.health()
        for level in self._tiers.writable():
            if level.name in names and DOWN in {self._tiers.health(level).breaker.state, names[level.name].state}:
                made.remove(level.name, 0.0)  # Nobody waits for that.
        made.shutdown(_EXIT_S)

    def _resume(self, level: BucketLevel) -> None:
        backend = level.backend()
        with self._guard:
            if self._made is None:
                self._made = Archivist(root=self._root, exit_timeout=_EXIT_S)
            if level.name not in self._made.health():
                # What is filed is bounded by who files it.
                self._made.add(Registration(level.name, backend, policy=Queued(batch_window=0)))
        self._made.resume(level.name)

    def _is_down(self, level: BucketLevel) -> bool:
        assert self._made is not None
        return DOWN in {self._tiers.health(level).breaker.state, self._made.health()[level.name].state}

    def _await(self, level: BucketLevel, digest: Digest) -> None:
        """Wait until *level* has *digest*; raise BackendError."""
        assert self._made is not None
        if not self._made.wait_object(level.name, digest, _WAIT_S):
            raise BackendError(backend=level.name, detail=f"it did not take {digest} in {_WAIT_S:g} s")


def publish(level: BucketLevel, stored: Stored, record: RefRecord | None) -> int:
    """Bring what is *stored*, then its *record*, to *level* now, in this thread; return the bytes that went there.

    Raises:
        BackendError, CorruptObjectError, FileNotFoundError, StorageError: As `contents.store`.
    """
    backend = level.backend()
    sent = contents.store(backend, stored, each=True)
    if record is not None:
        refs.write(backend, record)
    return sent
