"""What a claimer has so far, in the bucket, so that its successor goes on where it was killed.

::

    parts/<claimed key id>/<key id>.<mark>            the index of one sharer: sealed; which pieces, and of what
    parts/<claimed key id>/<key id>.<mark>.<start>    a piece of the content, from that byte on

The first id is that of what is claimed, a tree say; the second one that of the file under way. A piece goes up when it
has become part of the prefix on disk, and is read from there: so one piece is in memory, and the download waits for
nothing. An index names the pieces of a prefix without holes, those of its predecessors too, each with its digest. What
is restored from them is a partial like any other: only the digest of the whole, or the validators of its source, make
it content.

Nothing is shared of what cannot be resumed: no strong validator, and no digest given.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial as partial_of
from typing import Any

from failpoints import fail_point

from .. import files, forks, layout
from ..backends import contents
from ..digest import Digest
from ..errors import BackendError, InvalidDigestError, ModelCacheError, NotInArchiveError, storage_error
from ..partials import Partial, Partials
from ..reference import Ref
from ..retry import Deadline
from ..sealed import seal, unseal
from ..sources.base import Validators
from .bucket import Bucket

PIECE_BYTES, PIECE_BYTES_MAX = 8 << 20, 32 << 20
_PIECES = 64  # So many a content has, as long as each is within these bounds.
_TOP = "parts"
_LOOK_S = 5.0  # For what saves bytes, and is not needed.
_LOOK_EVERY_S = 0.1
_REST_S, _REST_MAX_S = 0.1, 5.0  # After an upload that failed; twice as long after the next one.
_END_S = 10.0  # For an upload under way at the end. One that takes longer removes what it has brought.
_FACTS = {"place", "announced", *Validators.__dataclass_fields__}
_log = logging.getLogger("modelcache")


@dataclass(frozen=True, slots=True)
class Offered:
    """A prefix in the bucket. ``facts`` and ``total`` are those of the partial that it was, ``pieces`` its parts."""

    facts: dict[str, Any]
    total: int | None
    pieces: tuple[tuple[str, int, str], ...]

    @property
    def length(self) -> int:
        """The bytes of it."""
        return sum(size for _, size, _ in self.pieces)

    @property
    def validators(self) -> Validators:
        """What its source has said of the version."""
        return Validators(**{name: self.facts[name] for name in Validators.__dataclass_fields__})


@dataclass(slots=True)
class _Content:
    """One file that is shared while it comes; ``pieces`` are in the bucket, and go up to the byte ``shared``."""

    key: str
    partial: Partial | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    total: int | None = None
    shared: int = 0
    pieces: list[tuple[str, int, str]] = field(default_factory=list)
    active: bool = False
    epoch: int = 0

    @property
    def length(self) -> int:
        """The bytes that are here."""
        return 0 if self.partial is None else self.partial.length

    @property
    def piece(self) -> int:
        return min(PIECE_BYTES_MAX, max(PIECE_BYTES, (self.total or 0) // _PIECES))

    def index(self) -> dict[str, Any]:
        """Return what the index says of it now."""
        identity = layout.key_id(self.key)
        return {"key": identity, "facts": self.facts, "total": self.total, "pieces": list(self.pieces)}

    @property
    def is_due(self) -> bool:
        """Whether a piece of it is here and not in the bucket. The last one stays: who has it has all."""
        reached = self.shared + self.piece
        return self.active and self.length >= reached and (self.total is None or reached < self.total)


class Sharing:
    """What the holder of one claim shares.

    Args:
        bucket: Where.
        key: What is claimed.
        mark: Of the claim.
        trusted: Whether what the bucket holds is believed without a digest of the caller's.
        deadline: Of the claimer.
    """

    def __init__(self, bucket: Bucket, key: str, mark: str, *, trusted: bool, deadline: Deadline) -> None:
        self._bucket, self._mark, self._deadline, self._trusted = bucket, mark, deadline, trusted
        self._top = directory_of(key)
        self._contents: dict[str, _Content] = {}
        self._whole: list[tuple[str, Digest, int]] = []
        self._closed = False
        self._rest = 0.0
        self._failed = False
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. A child shares nothing: what its parent has claimed is the parent's."""
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None

    @property
    def reached(self) -> tuple[int, int | None]:
        """The bytes that are here, of how many."""
        found = list(self._contents.values())
        totals = [one.total for one in found]
        return sum(one.length for one in found), None if None in totals or not totals else sum(
            one or 0 for one in totals
        )

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
        pieces = []
        try:
            partial.describe(dict(offered.facts), offered.total)
            for piece in offered.pieces:
                data = self._piece(piece)
                if data is None:
                    break
                fail_point("fleet.parts.before-restore")
                for at in range(0, len(data), files.CHUNK_BYTES):
                    partial.append(data[at : at + files.CHUNK_BYTES])
                    partial.hash(data[at : at + files.CHUNK_BYTES])
                pieces.append(piece)
        except BaseException as error:
            partial.release()
            if isinstance(error, OSError) and not isinstance(error, ModelCacheError):
                raise storage_error(error, action="write", path=partial.path) from error
            raise
        if not pieces:
            partial.discard()
            return None
        with self._changed:
            self._contents[ref.key] = _Content(
                ref.key, facts=dict(offered.facts), total=offered.total, pieces=pieces, shared=partial.length
            )
        return partial

    def _piece(self, piece: tuple[str, int, str]) -> bytes | None:
        name, size, digest = piece
        try:
            data = self._bucket.ask(lambda: self._bucket.backend.read(f"{self._top}{name}"), self._deadline)
        except (BackendError, NotInArchiveError):
            return None
        return data if len(data) == size and hashlib.sha256(data).hexdigest() == digest else None

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
                    index = _decode(backend.read(name), mine)
                except NotInArchiveError:
                    continue
                if index is not None:
                    found.append(index)
        return found

    # -- sharing ---------------------------------------------------------------------------------------------------

    def follow(self, key: str, partial: Partial, *, resumable: bool) -> None:
        """Share *partial*, which is about to grow, from now on; only how far it is if what comes is not *resumable*."""
        with self._changed:
            content = self._contents.setdefault(key, _Content(key))
            if (partial.facts, partial.total) != (content.facts, content.total) or partial.length < content.shared:
                content.pieces, content.shared = [], 0
                content.epoch += 1
            content.facts, content.total, content.partial = dict(partial.facts), partial.total, partial
            content.active = resumable
            self._wake()

    def drop(self, key: str) -> None:
        """Remove what the bucket has of *key*, of whomever: its bytes are wrong."""
        with self._changed:
            content = self._contents.get(key)
            if content is not None:
                content.pieces, content.shared, content.partial, content.active = [], 0, None, False
                content.epoch += 1
        try:
            clear(self._bucket, f"{self._top}{layout.key_id(key)}.", self._deadline, patience=_LOOK_S)
        except BackendError as error:
            self._tell(error)  # The next one finds that they are wrong as we did.

    def whole(self, path: str, digest: Digest, size: int) -> None:
        """Share the file *path* of a tree, of which all has come, under the name that it has in the bucket for good."""
        with self._changed:
            self._whole.append((path, digest, size))
            self._wake()

    def close(self, *, wait: bool = False) -> None:
        """Share nothing more; with *wait*, what is under way has ended too, as a rule. What is in the bucket stays."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and wait:
            thread.join(_END_S)

    def _wake(self) -> None:
        if self._closed:
            return
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="modelcache-fleet-parts", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._due() is not None or self._whole):
                    # Nobody tells how a partial grows: a download has better things to do.
                    growing = any(one.active for one in self._contents.values())
                    self._changed.wait(_LOOK_EVERY_S if growing else None)
                if self._rest:
                    self._changed.wait_for(lambda: self._closed, self._rest)
                if self._closed:
                    return
                content = self._due()
                whole = self._whole.pop(0) if content is None and self._whole else None
            try:
                if content is not None:
                    self._share(content)
                elif whole is not None:
                    self._upload(*whole)
                self._rest = 0.0
            except (BackendError, OSError) as error:  # No upload is worth a download.
                self._tell(error)
                self._rest = min(2 * self._rest or _REST_S, _REST_MAX_S)

    def _due(self) -> _Content | None:
        return next((one for one in self._contents.values() if one.is_due), None)

    def _share(self, content: _Content) -> None:
        """Bring the next piece of *content*, then the index that names it."""
        with self._changed:
            epoch, start, size, partial = content.epoch, content.shared, content.piece, content.partial
        try:
            data = b"" if partial is None else _read(partial.path, start, size)
        except FileNotFoundError:
            data = b""  # It is an object by now, or was given up.
        if len(data) != size:
            content.active = False
            return
        name = f"{self._index_name(content)}.{start:016d}"
        fail_point("fleet.parts.before-piece")
        self._bucket.backend.put(f"{self._top}{name}", data)
        with self._changed:
            stale = self._closed or content.epoch != epoch or partial is None or partial.length < start + size
            if not stale:
                content.pieces.append((name, size, hashlib.sha256(data).hexdigest()))
                content.shared += size
                index = content.index()
        if stale:  # Nobody is to find it: what it was part of is whole, or wrong.
            self._bucket.backend.delete(f"{self._top}{name}")
            return
        fail_point("fleet.parts.before-index")
        self._bucket.backend.put(f"{self._top}{self._index_name(content)}", seal(index))

    def _upload(self, path: str, digest: Digest, size: int) -> None:
        backend, name = self._bucket.backend, contents.blob_name(digest)
        if backend.size(name) != size and os.path.exists(path):
            fail_point("fleet.parts.before-whole")
            backend.upload(name, path, size)

    def _index_name(self, content: _Content) -> str:
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


def _decode(data: bytes, identity: str) -> Offered | None:
    """Return what the index *data* says of the content *identity*; None if it cannot be believed."""
    index = unseal(data)
    if index is None or index.get("key") != identity:
        return None
    facts, total, pieces = index.get("facts"), index.get("total"), index.get("pieces")
    if not isinstance(facts, dict) or facts.keys() != _FACTS or not isinstance(facts["place"], str):
        return None
    texts = (value for name, value in facts.items() if name != "strong_date")
    if any(not isinstance(value, str | None) for value in texts) or not isinstance(facts["strong_date"], bool):
        return None
    try:
        if facts["announced"] is not None:
            Digest.parse(facts["announced"])
    except InvalidDigestError:
        return None
    if not isinstance(total, int | None) or isinstance(total, bool):
        return None
    found = []
    at = 0
    for piece in pieces if isinstance(pieces, list) else ():
        fits = isinstance(piece, list) and [type(one) for one in piece] == [str, int, str]
        if (
            not fits
            or not 0 < piece[1] <= PIECE_BYTES_MAX
            or not piece[0].startswith(f"{identity}.")
            or "/" in piece[0]
        ):
            return None
        at += piece[1]
        found.append((piece[0], piece[1], piece[2]))
    if not found or (total is not None and at >= total):
        return None
    return Offered(facts, total, tuple(found))
