"""A level that is a bucket: a backend with objects and ref records, which machines share. All it has is promoted.

One ref record answers for a ref, the manifest of an object for a digest; the content comes later, as blobs, through the
same download as everything else. Whoever may write to the bucket is believed as far as records go: bytes prove
themselves. What a ref of this machine's own disk names (``file:``) is looked for by its digest only: on another
machine the same path is another file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection

from .. import forks, reference
from ..backends import contents, refs
from ..backends.base import Backend
from ..backends.refs import RefRecord, is_shared
from ..digest import Digest
from ..errors import BackendSetupError, DamagedReplicaError, ModelCacheError, UsageError
from ..objects import Stored
from ..records import Entry
from ..reference import Ref
from ..sources.base import RemoteFile, RemoteListing
from ..sources.tier import place
from ..tier import STORES, Tier
from .base import Found, Level, Offer, TierState

Refused = Callable[[Level, str, ModelCacheError], None]


class BucketLevel(Level):
    """The bucket of *tier*. *refused* is told, with the key, of what is not what its name says."""

    def __init__(self, tier: Tier, refused: Refused) -> None:
        super().__init__(tier)
        self._refused = refused
        self._opened: Backend | None = None
        self._pid = os.getpid()
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """See `forks`. A child opens its own, where that can be: obstore says so where it cannot."""
        self._guard = threading.Lock()
        if self.tier.backend is None:
            self._opened = None

    @property
    def timeout(self) -> float:
        """How long it may take to say whether it has something, in seconds."""
        return self.tier.timeout

    @property
    def is_remote(self) -> bool:
        """See `Level.is_remote`."""
        if self.tier.backend is None:
            return self.tier.path.partition("://")[0] in STORES
        return bool(getattr(self.tier.backend, "is_remote", True))

    def prepare(self) -> None:
        """See `Level.prepare`."""
        self.backend()

    def backend(self) -> Backend:
        """Return the backend, made when it is first asked for in this process. No request is sent.

        Raises:
            BackendSetupError: It cannot be used as it is configured, or in a forked child.
            MissingLibraryError
        """
        with self._guard:
            if self._opened is None:
                self._opened = self._made()
            return self._opened

    def close(self) -> None:
        """Give back what the backend holds open, unless it is the caller's."""
        with self._guard:
            if self._opened is not None and self._opened is not self.tier.backend:
                self._opened.close()
                self._opened = None

    def find(self, ref: Ref, digest: Digest | None) -> Found | None:
        """See `Level.find`."""
        backend = self.backend()
        offer = None
        if self.tier.trust == "records" and is_shared(ref):
            try:
                record = refs.read(backend, ref.key)
                if record is not None and digest in {None, record.digest}:
                    offer = self._recorded(backend, ref, record)
            except DamagedReplicaError as error:
                self._refused(self, ref.key, error)
        if offer is None and digest is not None:
            try:
                offer = self._with_digest(backend, ref, digest)
            except DamagedReplicaError as error:
                self._refused(self, ref.key, error)
        return None if offer is None else lambda: offer

    def copy_of(self, file: RemoteFile) -> Ref | None:
        """See `Level.copy_of`."""
        if file.digest is None:
            return None
        blob = contents.blob_name(file.digest)
        size = self.backend().size(blob)
        return None if size is None or file.size not in {None, size} else place(self.name, blob, size)

    def state(self) -> TierState:
        """See `Level.state`."""
        refs.read(
            self.backend(), "modelcache tiers"
        )  # A miss, of which the bucket must know; and no list of thousands.
        return TierState(self.tier.path, self.kind, promote=True, problem="", name=self.name)

    @property
    def kind(self) -> str:
        """``s3``, ``gs``, ``az``, ``directory``; or the class of a backend that was given."""
        if self.tier.backend is None:
            return self.tier.path.partition("://")[0]
        return (self.tier.backend if isinstance(self.tier.backend, type) else type(self.tier.backend)).__name__

    def _made(self) -> Backend:
        tier = self.tier
        try:
            if tier.backend is not None:
                made = tier.backend if isinstance(tier.backend, Backend) else tier.backend()
            elif tier.path.startswith("directory://"):
                from ..backends.directory import DirectoryBackend

                made = DirectoryBackend(tier.path.removeprefix("directory://"), read_only=not tier.write)
            else:
                from ..backends.objectstore import ObjectStoreBackend

                made = ObjectStoreBackend(
                    tier.path, config=tier.config, client_options=tier.client_options, check=False
                )
        except ModelCacheError:
            raise
        except Exception as error:  # Whatever the constructor of somebody else's class raises.
            detail = f"its constructor raised {type(error).__name__}: {error}"
            raise BackendSetupError(backend=self.name, detail=detail) from error
        if not isinstance(made, Backend):
            raise UsageError(problem=f"backend={made!r:.100} of the tier {self.name} makes no sense: a Backend")
        return made

    def _recorded(self, backend: Backend, ref: Ref, record: RefRecord) -> Offer | None:
        digest = record.digest
        if ref.scheme and digest.is_tree != ref.is_tree:
            detail = "it names a tree" if digest.is_tree else "it names a file"
            raise DamagedReplicaError(backend=self.name, name=refs.record_name(ref.key), detail=detail)
        listing = None
        if digest.is_tree:
            manifest = contents.manifest(backend, digest)
            if manifest is None:
                return None
            listing = self._listing(ref, manifest, record.revision)
        return self._offer(ref, record, listing)

    def _with_digest(self, backend: Backend, ref: Ref, digest: Digest) -> Offer | None:
        manifest = contents.manifest(backend, digest)
        if manifest is None:
            return None
        size = manifest.size
        record = RefRecord(key=ref.key, digest=digest, name=ref.name, size=size, source=ref.key, checked=0)
        return self._offer(ref, record, self._listing(ref, manifest, None) if digest.is_tree else None)

    def _offer(self, ref: Ref, record: RefRecord, listing: RemoteListing | None) -> Offer:
        digest, blob = record.digest, contents.blob_name(record.digest)
        entry = Entry(
            key=ref.key, digest=digest, path=f"{self.tier.path}/{contents.manifest_name(digest)}", size=record.size,
            name=record.name, source=record.source, created=0, checked=record.checked, mtime_ns=0, etag=record.etag,
            last_modified=record.last_modified, revision=record.revision, mirrors=record.mirrors,
        )  # fmt: skip
        where = None if digest.is_tree else place(self.name, blob, record.size)
        return Offer(self.tier, entry, listing, in_place=False, checked=record.checked, place=where)

    def _listing(self, ref: Ref, manifest: contents.Manifest, revision: str | None) -> RemoteListing:
        found = (
            RemoteFile(
                leaf.path, leaf.size, leaf.digest, None,
                place(self.name, contents.blob_name(leaf.digest), leaf.size), leaf.executable,
            )
            for leaf in manifest.files
        )  # fmt: skip
        return RemoteListing(ref, revision, tuple(found))


def publish(level: BucketLevel, stored: Stored, record: RefRecord | None, *, wrong: Collection[Digest] = ()) -> int:
    """Bring what is *stored*, then its *record*, to *level* now, in this thread; return the bytes that went there.

    Raises:
        BackendError, CorruptObjectError, FileNotFoundError, StorageError: As `contents.store`.
    """
    backend = level.backend()
    sent = contents.store(backend, stored, wrong=wrong, each=True)
    if record is not None:
        refs.write(backend, record)
    return sent


def record_of(entry: Entry) -> RefRecord | None:
    """Return what a bucket is to have on record for *entry*; None if its ref is this machine's own."""
    if not is_shared(reference.parse(entry.key)):
        return None
    source = entry.source if not entry.source.startswith("file:") else refs.PUT
    mirrors = tuple(mirror for mirror in entry.mirrors if not mirror.startswith("file:"))
    return RefRecord(
        key=entry.key, digest=entry.digest, name=entry.name, size=entry.size, source=source, checked=entry.checked,
        etag=entry.etag, last_modified=entry.last_modified, revision=entry.revision, mirrors=mirrors,
    )  # fmt: skip
