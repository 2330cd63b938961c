"""What a claimer has so far, in the bucket, so that its successor goes on where it was killed.

::

    parts/<claimed key id>/<key id>.<mark>                  the index of one sharer: sealed; which pieces, and of what
    parts/<claimed key id>/<key id>.<mark>.<start>-<turn>   a piece of the content, from that byte on

The first id is that of what is claimed, a tree say; the second one that of the file under way. A piece goes up when it
has become part of the prefix on disk, and is read from there; so many at a time, and so many are in memory. An index
names the pieces of a prefix without holes, those of its predecessors too, each with its digest. What is restored from
them is a partial like any other: only the digest of the whole, or the validators of its source, make it content.

What a kill costs is what no index names. So the download waits while that is several pieces; not for ever, because to
have the model counts for more: for `HOLD_S` in total, and not for a bucket that fails.

Nothing is shared of what cannot be resumed: no strong validator, and no digest given.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from functools import partial as partial_of
from time import monotonic

from failpoints import fail_point

from .. import files, forks, layout
from ..backends import contents
from ..backends.ahead import Ordered
from ..digest import Digest
from ..errors import BackendError, ModelCacheError, NotInArchiveError, storage_error
from ..partials import Partial, Partials
from ..reference import Ref
from ..retry import Deadline
from ..sealed import seal
from .bucket import Bucket
from .growing import Content, Whole, piece_bytes
from .index import Offered, decode

HOLD_S = 15.0  # So long a download waits for uploads, in total.
_AT_ONCE = 3  # So many are brought, or read, at a time; and so many may be here, and not shared.
_TOP = "parts"
_LOOK_S = 5.0  # For what saves bytes, and is not needed.
_REST_S, _REST_MAX_S = 0.1, 5.0  # After an upload that failed; twice as long after the next one.
_FAILURES_MAX = 3  # In a row: nothing waits for such a bucket.
_END_S = 10.0  # For uploads under way at the end. One that takes longer removes what it has brought.
_log = logging.getLogger("modelcache")


class Sharing:
    """What the holder of one claim shares.

    Args:
        bucket: Where.
        key: What is claimed.
        mark: Of the claim.
        trusted: Whether what the bucket holds is believed without a digest of the caller's.
        deadline: Of the claimer.
        hold: For how long, in seconds and in total, a download may wait for what it has brought to be shared.
    """

    def __init__(
        self, bucket: Bucket, key: str, mark: str, *, trusted: bool, deadline: Deadline, hold: float = HOLD_S
    ) -> None:
        self._bucket, self._mark, self._deadline, self._trusted = bucket, mark, deadline, trusted
        self._top = directory_of(key)
        self._contents: dict[str, Content] = {}
        self._whole: deque[Whole] = deque()  # Which nobody has begun to bring.
        self._whole_backlog = self._finished = 0
        self._closed = False
        self._failures = 0
        self._failed = False
        self._hold, self._holding, self._held_since = hold, 0, 0.0
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. A child shares nothing: what its parent has claimed is the parent's."""
        self._changed = threading.Condition(threading.Lock())
        self._threads: list[threading.Thread] = []

    @property
    def reached(self) -> tuple[int, int | None]:
        """The bytes that are here, of how many."""
        found = list(self._contents.values())
        sizes = [one.total for one in found if one.total is not None]
        total = None if len(sizes) < len(found) else sum(sizes) + self._finished
        return sum(one.length for one in found) + self._finished, total or None

    # -- restoring -------------------------------------------------------------------------------------------------

    def longer(
        self,
        partial: Partial | None,
        ref: Ref,
        place: str,
        partials: Partials,
        *,
        proven: bool,
        make_room: Callable[[int], object],
    ) -> Partial | None:
        """Return a partial with what the bucket has of *ref*, in the place of *partial*, if that is more.

        Args:
            partial: What is here.
            ref: What is fetched.
            place: Where the rest will come from. Without a digest it must be where the beginning is from.
            partials: Makes the new one.
            proven: Whether the caller has given the digest.
            make_room: Told how many bytes will come, before they do.

        Raises:
            StorageError, NoSpaceError: It could not be written.
        """
        if not (self._trusted or proven):
            return partial
        least = 0 if partial is None else partial.length

        def fits(offered: Offered) -> bool:
            same = offered.facts["place"] == place and offered.validators.for_range is not None
            return offered.length > least and (proven or same)

        offered = max(filter(fits, self._offered(ref.key)), key=lambda one: one.length, default=None)
        if offered is None:
            return partial
        make_room(offered.length)
        restored = self._restored(offered, ref, partials)
        if restored is None or restored.length <= least:
            if restored is not None:
                restored.discard()
            return partial
        if partial is not None:
            partial.discard()
        _log.info("%s: %d bytes of %s are there already", self._bucket.name, restored.length, ref.key)
        return restored

    def _restored(self, offered: Offered, ref: Ref, partials: Partials) -> Partial | None:
        """Return a partial with as much of *offered* as is there."""
        partial = partials.create(ref.key, ref.name)
        content = Content(ref.key, partial, facts=dict(offered.facts), total=offered.total)
        with self._changed:
            self._contents[ref.key] = content  # So that our beats say how far this is.
        ahead = Ordered(len(offered.pieces), lambda index: self._piece(offered.pieces[index]), at_once=_AT_ONCE)
        try:
            partial.describe(dict(offered.facts), offered.total)
            with self._deadline.cutting(ahead.close):
                for piece in offered.pieces:
                    data = ahead.take()
                    if not data:
                        break
                    fail_point("fleet.parts.before-restore")
                    for at in range(0, len(data), files.CHUNK_BYTES):
                        partial.append(data[at : at + files.CHUNK_BYTES])
                        partial.hash(data[at : at + files.CHUNK_BYTES])
                    content.pieces.append(piece)
            self._deadline.check()
        except BaseException as error:
            partial.release()
            if isinstance(error, OSError) and not isinstance(error, ModelCacheError):
                raise storage_error(error, action="write", path=partial.path) from error
            raise
        finally:
            ahead.close()
        if not content.pieces:
            partial.discard()
            return None
        content.begun = content.joined = content.shared = partial.length
        return partial

    def _piece(self, piece: tuple[str, int, str]) -> bytes:
        """Return the bytes of *piece*, none if they are not what the index says."""
        name, size, digest = piece
        try:
            data = self._bucket.ask(lambda: self._bucket.backend.read(f"{self._top}{name}", 0, size), self._deadline)
        except (BackendError, NotInArchiveError):
            return b""
        return data if len(data) == size and hashlib.sha256(data).hexdigest() == digest else b""

    def _offered(self, key: str) -> list[Offered]:
        try:
            return self._bucket.ask(lambda: self._indices(key), self._deadline, patience=_LOOK_S)
        except BackendError as error:
            self._tell(error)
            return []

    def _indices(self, key: str) -> list[Offered]:
        backend, mine, found = self._bucket.backend, layout.key_id(key), []
        for name in backend.names(f"{self._top}{mine}."):
            if name[len(self._top) :].count(".") == 1:
                try:
                    index = decode(backend.read(name), mine)
                except NotInArchiveError:
                    continue
                if index is not None:
                    found.append(index)
        return found

    # -- sharing ---------------------------------------------------------------------------------------------------

    def follow(self, key: str, partial: Partial, *, resumable: bool) -> None:
        """Share *partial*, which is about to grow, from now on; only how far it is if what comes is not *resumable*."""
        with self._changed:
            content = self._contents.setdefault(key, Content(key))
            if (partial.facts, partial.total) != (content.facts, content.total) or partial.length < content.begun:
                content.begin_anew()
            content.facts, content.total, content.partial = dict(partial.facts), partial.total, partial
            content.active = resumable
            self._wake()

    def pace(self, deadline: Deadline) -> float:
        """Share what has come since; wait while too much of it is not shared yet; return for how many seconds.

        Raises:
            CancelledError, DeadlineError: Of *deadline*, of who brings it.
        """
        with self._changed:
            self._wake()
            if not self._lags():
                return 0.0
        began = monotonic()
        with deadline.cutting(self._stir):
            with self._changed:
                self._holding += 1
                if self._holding == 1:
                    self._held_since = began
                try:
                    while self._lags() and not deadline.is_over:
                        self._changed.wait(self._hold - (monotonic() - self._held_since))
                finally:
                    self._holding -= 1
                    if not self._holding:  # Several files of a tree may wait at once: that counts as one.
                        self._hold -= monotonic() - self._held_since
            deadline.check()
        return monotonic() - began

    def _lags(self) -> bool:
        """Tell whether a download is to wait for what it has brought to be shared."""
        if self._closed or self._hold <= 0 or self._failures >= _FAILURES_MAX:
            return False
        found = self._contents.values()
        lag = sum(one.backlog for one in found) + self._whole_backlog
        if lag < _AT_ONCE * max((one.piece for one in found), default=piece_bytes(None)):
            return False
        if self._holding and monotonic() - self._held_since >= self._hold:
            self._hold = 0.0
            _log.warning(
                "%s: what comes is shared more slowly than it comes; it is not waited for any more", self._bucket.name
            )
            return False
        return True

    def _stir(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def drop(self, key: str) -> None:
        """Remove what the bucket has of *key*, of whomever: its bytes are wrong."""
        with self._changed:
            content = self._contents.get(key)
            if content is not None:
                content.begin_anew()
                content.partial, content.active = None, False
            self._changed.notify_all()  # Who waits for its pieces waits for nothing by now.
        try:
            clear(self._bucket, f"{self._top}{layout.key_id(key)}.", self._deadline, patience=_LOOK_S)
        except BackendError as error:
            self._tell(error)  # The next one finds that they are wrong as we did.

    def whole(self, key: str, path: str, digest: Digest, size: int) -> None:
        """Share the file *path* of a tree, *key*, of which all has come, under the name that it has there for good."""
        with self._changed:
            content = self._contents.pop(key, None)  # Of a tree of many files only a few are on the way.
            if content is not None:
                content.active = False
            whole = Whole(path, digest, size, size - (0 if content is None else content.shared))
            self._whole.append(whole)
            self._whole_backlog += whole.backlog
            self._finished += size
            self._changed.notify_all()
            self._wake()

    def close(self, *, wait: bool = False) -> None:
        """Share nothing more; with *wait*, what is under way has ended too, as a rule. What is in the bucket stays."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            threads = list(self._threads)
        until = monotonic() + _END_S
        for thread in threads if wait else ():
            thread.join(max(0.0, until - monotonic()))

    def _wake(self) -> None:
        """See to it that what is due is done; called with the lock held."""
        if self._closed or not self._is_due():
            return
        self._changed.notify_all()
        if len(self._threads) < _AT_ONCE:
            thread = threading.Thread(target=self._run, name="modelcache-fleet-parts", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._is_due())
                if self._failures:
                    rest = min(_REST_S * 2.0 ** (self._failures - 1), _REST_MAX_S)
                    self._changed.wait_for(lambda: self._closed, rest)
                if self._closed:
                    return
                work = self._take()
            try:
                work()
                failures = 0
            except (BackendError, OSError) as error:  # No upload is worth a download.
                self._tell(error)
                failures = self._failures + 1
            with self._changed:
                self._failures = failures
                self._changed.notify_all()

    def _is_due(self) -> bool:
        found = self._contents.values()
        return bool(self._whole) or any(one.is_due or one.index_is_due for one in found)

    def _take(self) -> Callable[[], object]:
        """Return what is to be done next, which is nobody else's by then; called with the lock held."""
        for content in self._contents.values():
            if content.index_is_due:
                content.indexing = True
                return partial_of(self._share, content)
        for content in self._contents.values():
            if content.is_due:
                return partial_of(self._bring, content, content.take(), content.turn)
        if self._whole:
            return partial_of(self._upload, self._whole.popleft())
        return lambda: None  # Another thread was faster.

    def _bring(self, content: Content, start: int, turn: int) -> None:
        """Bring the piece of *content* that begins at *start*."""
        partial, size = content.partial, content.piece
        name = f"{self._index_name(content)}.{start:016d}-{turn}"
        try:
            data = b"" if partial is None else _read(partial.path, start, size)
            if len(data) == size:
                fail_point("fleet.parts.before-piece")
                self._bucket.backend.put(f"{self._top}{name}", data)
        except FileNotFoundError:
            data = b""  # It is an object by now, or was given up.
        except (BackendError, OSError):
            with self._changed:
                if content.turn == turn:
                    content.again.append(start)
            raise
        with self._changed:
            is_of_now = content.turn == turn and not self._closed
            if len(data) != size:
                content.active = content.active and not is_of_now
                return
            if is_of_now and partial is not None and partial.length >= start + size:
                content.join((name, size, hashlib.sha256(data).hexdigest()), start)
                return
        # Nobody is to find it: what it was part of is whole, or wrong.
        self._bucket.backend.delete(f"{self._top}{name}")

    def _share(self, content: Content) -> None:
        """Bring the index, which names all pieces that are there without a hole."""
        name = f"{self._top}{self._index_name(content)}"
        with self._changed:
            index, turn, reached = content.index(), content.turn, content.joined
        try:
            fail_point("fleet.parts.before-index")
            self._bucket.backend.put(name, seal(index))
            if content.turn != turn:
                self._bucket.backend.delete(name)
        finally:
            with self._changed:
                content.indexing = False
        with self._changed:
            if content.turn == turn:
                content.shared = reached

    def _upload(self, whole: Whole) -> None:
        backend, name = self._bucket.backend, contents.blob_name(whole.digest)
        try:
            if backend.size(name) != whole.size and os.path.exists(whole.path):
                fail_point("fleet.parts.before-whole")
                backend.upload(name, whole.path, whole.size)
        except FileNotFoundError:
            pass  # It is part of the object by now.
        except (BackendError, OSError):
            with self._changed:
                self._whole.appendleft(whole)
            raise
        with self._changed:
            self._whole_backlog -= whole.backlog

    def _index_name(self, content: Content) -> str:
        return f"{layout.key_id(content.key)}.{self._mark}"

    def _tell(self, error: BaseException) -> None:
        level = logging.DEBUG if self._failed else logging.WARNING
        self._failed = True
        _log.log(level, "%s: what has come cannot be shared with the fleet for now: %s", self._bucket.name, error)


def directory_of(key: str) -> str:
    """Return where the parts of what is claimed as *key* are."""
    return f"{_TOP}/{layout.key_id(key)}/"


def clear(bucket: Bucket, prefix: str, deadline: Deadline, *, patience: float | None = None) -> None:
    """Remove all parts whose names begin with *prefix*; raise BackendError."""
    names = bucket.ask(lambda: list(bucket.backend.names(prefix)), deadline, patience=patience)
    for name in sorted(names, key=lambda name: name.count(".")):  # An index first: it names what is there, or nothing.
        fail_point("fleet.parts.before-clear")
        bucket.ask(partial_of(bucket.backend.delete, name), deadline, patience=patience)


def _read(path: str, start: int, size: int) -> bytes:
    descriptor = files.open_regular(path, follow=False)
    try:
        return b"".join(files.chunks(descriptor, start=start, length=size))
    finally:
        os.close(descriptor)
