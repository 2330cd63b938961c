"""The one carrier of objects to a backend: what waits in the outbox is brought there, in a thread of its own.

The outbox is on disk and belongs to all processes of the machine; whoever holds its lock delivers all that waits in it,
whoever filed it. A process that waits for the lock finds its own objects delivered when it gets it, or delivers them.
Without locks two may bring the same object, which changes nothing: a replica is made once (I9).
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any

from failpoints import fail_point

from .. import forks, locks
from ..backends import contents, refs
from ..breaker import DOWN, Breaker
from ..digest import Digest
from ..errors import (
    ArchiveClosedError,
    BackendError,
    CancelledError,
    CorruptObjectError,
    LockTimeoutError,
    ModelCacheError,
    NotInArchiveError,
    QueueFullError,
    RejectedError,
    storage_error,
)
from ..objects import Objects, Stored
from ..outbox import Filing, Outbox
from ..records import Entries
from ..retry import Deadline
from . import exits
from .queue import Ledger
from .registration import Queued, Registration

_TOLD_S = 1.0
_OWNER_S = 600.0  # How long one looks on while another process delivers, before it looks again.
_log = logging.getLogger("modelcache")


class Carrier:
    """Brings objects of the cache at *root* to one backend. It starts its thread with the first of them."""

    def __init__(self, root: str, registration: Registration, breaker: Breaker, ledger: Ledger) -> None:
        assert isinstance(registration.policy, Queued)
        self._registration, self._policy = registration, registration.policy
        self._backend, self._breaker, self._ledger = registration.backend, breaker, ledger
        self._objects, self._entries, self._outbox = Objects(root), Entries(root), Outbox(root, registration.name)
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. What the parent has asked for, the parent delivers."""
        self._changed = threading.Condition(threading.RLock())
        self._thread: threading.Thread | None = None
        self._patience = Deadline(None, ref=self._registration.name)
        self._asked: dict[Digest, float] = {}
        self._failed: dict[Digest, ModelCacheError] = {}
        self._error: ModelCacheError | None = None  # What the last round ended with.
        self._tries: Counter[Digest] = Counter()  # That failed: what goes well is not to wait for what does not.
        self._awake = self._closed = False
        self.dispatched = 0

    @property
    def depth(self) -> int:
        """Objects that wait or are under way, as far as this process knows."""
        return len(self._asked)

    @property
    def lag(self) -> float:
        """For how long the oldest of them has been waiting here, in seconds."""
        oldest = min(list(self._asked.values()), default=None)
        return 0.0 if oldest is None else max(0.0, monotonic() - oldest)

    def resume(self) -> None:
        """Deliver what an earlier process has left."""
        waiting = self._outbox.all()
        if waiting:
            self._wake(*waiting)

    def put(self, digest: Digest) -> bool:
        """Let the object wait for the backend, durably; False if there was no room, and it was dropped.

        Raises:
            QueueFullError, StorageError, NoSpaceError: It does not wait.
        """
        if self._closed:
            raise ArchiveClosedError(what=f"the object {digest}")
        waiting = self._outbox.digests()
        if digest not in waiting and len(waiting) >= self._policy.capacity and not self._made_room():
            self._ledger.add(digest, digest, "full")
            return False
        self._outbox.add(digest)
        fail_point("archive.carrier.before-wake")
        self._wake(digest)
        return True

    def _made_room(self) -> bool:
        """Do what the policy says when the outbox is full; False if the new one is dropped."""
        policy, name = self._policy, self._registration.name
        if policy.overflow == "drop-newest":
            return False
        if policy.overflow == "drop-oldest":
            oldest = next(iter(self._outbox.all()), None)
            if oldest is None:
                return True  # All of it has been delivered meanwhile.
            self._outbox.remove(oldest)
            self._settle({oldest: None})
            self._ledger.add(oldest, oldest, "full")
            return True
        full = QueueFullError(backend=name, capacity=policy.capacity, detail="so many objects wait for it already")
        if policy.overflow == "error":
            raise full
        self._wake(*self._outbox.digests())  # What others have filed has to go, too.
        until = monotonic() + policy.wait_max
        self._wait_for(
            lambda: len(self._asked) < policy.capacity or self._breaker.state == DOWN, until, "for room in its outbox"
        )
        if len(self._outbox.digests()) < policy.capacity:
            return True
        if self._registration.is_required:
            raise full
        return False

    def wait(self, digest: Digest, seconds: float) -> bool:
        """Wait until the backend has the object; tell whether it has.

        Raises:
            ModelCacheError: It never will: the object is gone, or corrupt. Or bringing it has failed, as often as the
                policy says: it waits, and is tried again.
        """
        with self._changed:
            before = self._error
            self._wait_for(
                lambda: digest not in self._asked or self._error not in {None, before},
                monotonic() + seconds, f"until it has {digest}",
            )  # fmt: skip
            error = self._failed.pop(digest, None) or (self._error if digest in self._asked else None)
            if error is not None and error is not before:
                raise error
            return digest not in self._asked

    def flush(self, seconds: float) -> bool:
        """Wait until nothing waits, for so many *seconds*; tell whether that came."""
        if self._asked:
            self._wake()
        with self._changed:
            return self._changed.wait_for(lambda: not self._asked, min(seconds, threading.TIMEOUT_MAX))

    def close(self) -> None:
        """Take nothing more; what waits is tried once more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def end(self, seconds: float) -> bool:
        """Deliver what waits, for so many *seconds*, and end the thread; tell whether nothing waits.

        What still does is in the outbox, for the next process.
        """
        self.close()
        if self._asked:
            self._wake()
        thread = self._thread
        if thread is not None:
            thread.join(min(seconds, threading.TIMEOUT_MAX))
            self._patience.cancel()
            thread.join(min(seconds, 1.0))  # A wait for a lock notices within a fraction of a second.
        return not self._asked

    @property
    def has_ended(self) -> bool:
        """Whether no thread of it runs."""
        return self._thread is None or not self._thread.is_alive()

    def _wake(self, *digests: Digest) -> None:
        now = monotonic()
        with self._changed:
            for digest in digests:
                self._asked.setdefault(digest, now)
            self._awake = True
            self._changed.notify_all()
            if self._thread is None or not self._thread.is_alive():
                name = f"modelcache-archive-objects-{self._registration.name}"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                thread.start()
                self._thread = thread
                exits.arm()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._awake or self._closed)
                if not self._asked:
                    if self._closed:
                        return
                    self._awake = False
                    continue
                closing, self._awake = self._closed, False
            try:
                if self._deliver():
                    self._error = None
                    continue
            except CancelledError:
                return
            except (ModelCacheError, OSError) as failed:
                error = (
                    failed if isinstance(failed, ModelCacheError)
                    else storage_error(failed, action="read", path="outbox")
                )  # fmt: skip
                level = logging.DEBUG if self._error is not None else logging.WARNING  # Told once, until it is well.
                _log.log(level, "%s: %d objects wait: %s", self._registration.name, self.depth, error)
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
            if closing:  # That was the last try.
                return
            with self._changed:
                rest = max(self._breaker.closed_in(), self._registration.cooldown)
                self._changed.wait_for(lambda: self._closed, rest)
                self._awake = True

    def _deliver(self) -> bool:
        """Deliver what waits, if no other process does; tell whether to go on at once."""
        try:
            with locks.exclusive(
                self._outbox.lock,
                timeout=_OWNER_S,
                what=f"the outbox of {self._registration.name}",
                done=lambda: not self._left(),
                on_wait=self._say,
                check=self._patience.check,
            ) as turn:
                return self._deliver_all() if turn.held else True
        except locks.LockUnavailableError:
            return self._deliver_all()
        except LockTimeoutError:
            return False

    def _say(self, holder: str) -> None:
        _log.info("%s: %s delivers what waits in the outbox", self._registration.name, holder)

    def _left(self) -> bool:
        """Forget what was asked for and does not wait any more; tell whether anything is left."""
        here = self._outbox.digests()
        self._settle({digest: None for digest in list(self._asked) if digest not in here})
        return bool(self._asked)

    def _deliver_all(self) -> bool:
        while waiting := self._outbox.filings():
            failed: ModelCacheError | None = None
            for digest in sorted({filing.digest: 0 for filing in waiting}, key=self._tries.__getitem__):
                self._patience.check()
                try:
                    error = self._deliver_one(digest, [filing for filing in waiting if filing.digest == digest])
                except ModelCacheError as found:
                    self._tries[digest] += 1
                    if isinstance(found, BackendError | CancelledError):
                        raise
                    failed = found  # It says nothing of the others, such as a disk that does not read this one.
                    continue
                del self._tries[digest]
                self._settle({digest: error})
            if failed is not None:
                raise failed
        return not self._left()

    def _deliver_one(self, digest: Digest, filings: list[Filing]) -> ModelCacheError | None:
        """Bring one object, and what was filed with it; return the error if it can never be brought."""
        error = self._bring(digest, {wrong for filing in filings for wrong in filing.wrong})
        for filing in filings:
            if error is None and filing.record is not None:
                self._put_on_record(filing.record)
            fail_point("archive.carrier.before-forget")
            self._outbox.forget(filing)
        return error

    def _put_on_record(self, facts: dict[str, Any]) -> None:
        """Write the record of a ref, whose object is there, unless the ref stands for another one by now.

        Raises:
            BackendError: Not now.
        """
        record = refs.RefRecord.of_facts(facts)
        if record is None:
            return
        now = self._entries.read(record.key)
        if now is not None and now.digest != record.digest:
            return  # Which has been filed as well, and must not be taken back.
        fail_point("archive.carrier.before-put-record")
        self._breaker.call(lambda: refs.bring(self._backend, record), patience=self._patience, probe=self._closed)

    def _bring(self, digest: Digest, wrong: Collection[Digest] = ()) -> ModelCacheError | None:
        """Bring one object; return the error if it can never be brought.

        Raises:
            BackendError: Not now.
        """
        stored = self._objects.find(digest)
        error: ModelCacheError = NotInArchiveError(what=digest, asked=("the cache",))
        reason = "gone"
        if stored is not None:
            try:
                fail_point("archive.carrier.before-bring")
                self._breaker.call(
                    self._storing(stored, wrong), patience=self._patience, probe=self._closed, size=stored.size
                )
                self.dispatched += 1
                return None
            except CorruptObjectError as corrupt:
                error, reason = corrupt, "corrupt"
            except RejectedError as rejected:
                error, reason = rejected, "rejected"
            except NotInArchiveError:
                if self._objects.find(digest) is not None:
                    raise
        _log.warning("%s: %s was not replicated: it is %s", self._registration.name, digest, reason)
        self._ledger.add(digest, digest, reason)
        return error

    def _storing(self, stored: Stored, wrong: Collection[Digest]) -> Callable[[], int]:
        """Return what brings *stored* to the backend; that it has gone from the cache is not the backend's failure."""

        def store() -> int:
            try:
                return contents.store(self._backend, stored, wrong=wrong)
            except (BackendError, FileNotFoundError) as error:
                absent = isinstance(error, FileNotFoundError) or isinstance(error.__cause__, FileNotFoundError)
                if absent and self._objects.find(stored.digest) is None:
                    raise NotInArchiveError(what=stored.digest, asked=("the cache",)) from error
                raise

        return store

    def _wait_for(self, is_so: Callable[[], bool], until: float, what: str) -> None:
        """Wait until *is_so*, to the moment *until*; say so after a second."""
        told, began = False, monotonic()
        with self._changed:
            while not is_so() and (left := until - monotonic()) > 0:
                if not told and monotonic() - began >= _TOLD_S:
                    told = True
                    _log.warning("%s: a write waits %s, %g s at most", self._registration.name, what, left)
                self._changed.wait(min(left, max(0.001, self._breaker.hangs_in()), _TOLD_S))

    def _settle(self, outcomes: dict[Digest, ModelCacheError | None]) -> None:
        with self._changed:
            for digest, error in outcomes.items():
                was_asked = self._asked.pop(digest, None) is not None
                if error is not None and was_asked and self._registration.is_required:
                    self._failed[digest] = error
            self._changed.notify_all()
