"""A level that is a directory: the root of another modelcache, or the cache of huggingface_hub. It is only read.

It is somebody else's. In one that everybody may write to, records mean nothing: only content whose digest the caller
gives is taken from it, and hashed. huggingface_hub's cache is promoted from unless told otherwise, because nobody has
verified it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from .. import files, hit, hubcache, layout, reference, trees
from ..digest import Digest
from ..errors import BackendError, StorageError
from ..hubcache import HubFile, Snapshot
from ..objects import Objects
from ..records import Entries, Entry
from ..reference import HubPlace, Ref
from ..sources.base import RemoteFile, RemoteListing
from ..tier import Tier
from .base import Found, Level, Offer, TierState


class DirectoryLevel(Level):
    """The directory of *tier*."""

    def __init__(self, tier: Tier) -> None:
        super().__init__(tier)
        self._hashed: dict[tuple[str, int, int, int], Digest] = {}

    def prepare(self) -> None:
        """See `Level.prepare`."""

    def find(self, ref: Ref, digest: Digest | None) -> Found | None:
        """See `Level.find`."""
        with self._reading():
            return self._find(ref, digest)

    def copy_of(self, file: RemoteFile) -> Ref | None:
        """See `Level.copy_of`."""
        with self._reading():
            return self._copy_of(file)

    def holds(self, entry: Entry, verify: str) -> bool:
        """See `Level.holds`."""
        if verify == "stat":
            return True
        if verify == "sample" and not entry.digest.is_tree:
            return self._digest(entry.path) == entry.digest
        return trees.digest_of(entry.path, entry.digest)[0] == entry.digest

    def state(self) -> TierState:
        """See `Level.state`."""
        top = self.tier.path
        with self._reading():
            ours = os.path.isdir(f"{top}/{layout.ENTRIES}")
            names = [] if ours else files.listing(top)
            hub = any(name.startswith(("models--", "datasets--", "spaces--")) for name in names)
            kind = "modelcache" if ours else "huggingface_hub" if hub else "unknown"
            promote = self.tier.promote if self.tier.promote is not None else hub
            problem = _why_not(top) or _why_not_believed(top)
        if not problem and kind == "unknown":
            problem = "holds neither a cache of modelcache nor one of huggingface_hub"
        return TierState(top, kind, promote, problem, name=self.name)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Raise BackendError for what the file system refuses in the block."""
        try:
            yield
        except (OSError, StorageError) as error:
            detail = getattr(error, "summary", None) or str(error)
            raise BackendError(backend=self.name, detail=detail) from error

    def _find(self, ref: Ref, digest: Digest | None) -> Found | None:
        top = self.tier.path
        problem = _why_not(top)
        if problem:
            self.complain(f"it {problem}")
            return None
        believed = True
        doubt = _why_not_believed(top)
        if doubt:
            believed = False
            self.complain(f"it {doubt}; only content whose digest is given is taken from it")
        if believed:
            found = self._recorded(ref, digest) or self._of_hub(ref, digest)
            if found is not None:
                return found
        return None if digest is None else self._with_digest(ref, digest)

    def _recorded(self, ref: Ref, digest: Digest | None) -> Found | None:
        """Return what is recorded for *ref* in another modelcache."""
        entry = Entries(self.tier.path).read(ref.key)
        if entry is None or digest not in {None, entry.digest}:
            return None
        try:
            found = os.lstat(entry.path)
        except FileNotFoundError:
            return None  # Its owner may be collecting; with a digest it is looked for under other names.
        listing = self._listing(ref, entry)
        if listing is None and entry.digest.is_tree:
            return None
        offer = Offer(self.tier, entry, listing, in_place=not self.tier.promote, checked=entry.checked)
        if hit.is_same(found, entry.size, entry.mtime_ns):
            return lambda: offer

        def touched() -> Offer | None:
            if entry.digest.is_tree or self._digest(entry.path) != entry.digest:
                self.complain(f"what it has for {ref.key} is not what was stored")
                return None
            return replace(offer, entry=replace(entry, mtime_ns=found.st_mtime_ns))

        return touched

    def _with_digest(self, ref: Ref, digest: Digest) -> Found | None:
        """Return the object with *digest*, whatever it is called there: it comes here under its new name."""
        stored = Objects(self.tier.path).find(digest, ref.name) or Objects(self.tier.path).find(digest)
        if stored is None:
            return None
        entry = Entry(
            key=ref.key, digest=digest, path=stored.path, size=stored.size, name=stored.name, source=ref.key,
            created=0, checked=0, mtime_ns=stored.mtime_ns, personal=True,
        )  # fmt: skip
        listing = self._listing(ref, entry)
        if listing is None and digest.is_tree:
            return None
        offer = Offer(self.tier, entry, listing, in_place=False)
        return lambda: offer

    def _listing(self, ref: Ref, entry: Entry) -> RemoteListing | None:
        if not entry.digest.is_tree:
            return None
        listing = trees.listing_on_record(Objects(self.tier.path).path(entry.digest), entry.digest)
        if listing is None:
            self.complain(f"the listing of {entry.digest} is broken")
            return None
        found = (
            RemoteFile(
                leaf.path, leaf.size, leaf.digest, None, reference.parse(f"{entry.path}/{leaf.path}"), leaf.executable
            )
            for leaf in listing.files
        )
        return RemoteListing(ref, entry.revision, tuple(found))

    def _of_hub(self, ref: Ref, digest: Digest | None) -> Found | None:
        """Return what huggingface_hub has: of a tree only what it knows to be complete."""
        place = self._place(ref)
        snapshot = None if place is None else hubcache.snapshot(self.tier.path, place)
        if place is None or snapshot is None:
            return None
        if not place.path or ref.is_tree:
            found = snapshot.files()
            if found is None:
                return None
            listed = tuple(
                RemoteFile(file.inside, file.size, file.digest, file.blob, reference.parse(file.path)) for file in found
            )
            listing = RemoteListing(ref, snapshot.commit, listed)
            offer = Offer(self.tier, None, listing, in_place=False, checked=snapshot.named)
            return lambda: offer
        file = snapshot.file(place.path)
        return None if file is None else lambda: self._file_of_hub(ref, digest, snapshot, file)

    def _file_of_hub(self, ref: Ref, digest: Digest | None, snapshot: Snapshot, file: HubFile) -> Offer | None:
        """Return the offer of *file*: hashed if nobody will do so on the way here, or nothing else says its digest."""
        in_place = self.tier.promote is False
        named = file.digest
        if named is None or in_place:
            if file.blob is not None and files.blob_id(file.path) != file.blob:
                self.complain(f"what it has for {ref.key} is not what its name says")
                return None
            actual = self._digest(os.path.realpath(file.path))  # It is made of links.
            if named not in {None, actual}:
                self.complain(f"what it has for {ref.key} is not what its name says")
                return None
            named = actual
        if digest not in {None, named}:
            return None
        entry = Entry(
            key=ref.key, digest=named, path=file.path, size=file.size, name=ref.name, source=ref.key,
            created=snapshot.named, checked=snapshot.named, mtime_ns=file.mtime_ns, revision=snapshot.commit,
            personal=True,  # Nobody knows with whose token it came.
        )  # fmt: skip
        return Offer(self.tier, entry, None, in_place=in_place, checked=snapshot.named)

    def _place(self, ref: Ref) -> HubPlace | None:
        place = ref.hub if ref.scheme == "hf" else None
        return place if place is not None and hubcache.has(self.tier.path, place) else None

    def _copy_of(self, file: RemoteFile) -> Ref | None:
        place = self._place(file.ref)
        identity = file.digest.hex if file.digest is not None else file.blob
        path = hubcache.blob(self.tier.path, place, identity) if place is not None and identity is not None else None
        if path is not None and file.blob is not None and file.digest is None and files.blob_id(path) != file.blob:
            path = None
        if path is None and file.digest is not None:
            stored = Objects(self.tier.path).find(file.digest)
            path = None if stored is None else stored.path
        return None if path is None else reference.parse(path)

    def _digest(self, path: str) -> Digest:
        """Return the digest of the file *path*, read once as long as it does not change."""
        found = os.stat(path)
        known = path, found.st_ino, found.st_size, found.st_mtime_ns
        if known not in self._hashed:
            self._hashed[known] = files.digest_of(path)[0]
        return self._hashed[known]


def _why_not(top: str) -> str:
    """Return why the tier *top* cannot be used at all; empty if it can."""
    if not os.path.isdir(top):
        return "is not a directory" if os.path.lexists(top) else "is not there"
    if not os.access(top, os.R_OK | os.X_OK):
        return "may not be read by this user"
    return "" if hit.format_is_known(top) else "was written by a newer modelcache, or is not readable"


def _why_not_believed(top: str) -> str:
    """Return why what is on record in the tier *top* cannot be believed; empty if it can."""
    for directory in (top, f"{top}/{layout.ENTRIES}", f"{top}/{layout.DERIVED}", f"{top}/{layout.OBJECTS}"):
        try:
            if os.stat(directory).st_mode & stat.S_IWOTH:
                return "can be written by everybody"
        except FileNotFoundError:
            continue
    return ""
