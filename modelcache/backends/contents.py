"""Objects in a backend: content-addressed blobs, and one small manifest for each object. Each is looked at when read.

::

    blobs/sha256/<hex>            the bytes of one file; objects that share files share blobs
    objects/<sha256 or tree>-<hex>   the manifest: sealed; name, size, and of a tree its canonical listing

Blobs first, the manifest last, made only if it is not there: so a manifest names only what is there, and an object is
published once. A reader believes nothing: a manifest must match its checksum and its name, a listing its digest, and
each blob the digest that it is asked for by.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from failpoints import fail_point

from .. import commit, files, layout, trees
from ..digest import ALGORITHM, Digest
from ..errors import CorruptObjectError, DamagedReplicaError, NotInArchiveError, storage_error
from ..listing import Leaf, Listing, digest_of_text
from ..objects import Stored
from ..sealed import seal, unseal
from .ahead import Ahead
from .base import Backend, is_size, read_whole

_FORM = 1
_MANIFEST_BYTES_MAX = 256 << 20  # A million files.


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backend says of one object.

    Attributes:
        digest: Of the object.
        name: Of the file, or of the tree.
        files: What it is made of; of a file its one.
    """

    digest: Digest
    name: str
    files: tuple[Leaf, ...]

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(leaf.size for leaf in self.files)


def blob_name(digest: Digest) -> str:
    """Return the name of the blob with *digest* in a backend."""
    return f"blobs/{ALGORITHM}/{digest.hex}"


def manifest_name(digest: Digest) -> str:
    """Return the name of the manifest of the object *digest* in a backend."""
    return f"objects/{layout.object_name(digest)}"


def has(backend: Backend, digest: Digest) -> bool:
    """Tell whether *backend* has a manifest of the object that can be believed; raise BackendError."""
    try:
        return manifest(backend, digest) is not None
    except DamagedReplicaError:
        return False


def has_all(backend: Backend, stored: Stored) -> bool:
    """Tell whether *backend* has the object that is *stored*, and something for each of its files, of its size.

    Raises:
        CorruptObjectError: What is on record of it here is broken.
        BackendError
    """
    if not has(backend, stored.digest):
        return False
    return all(backend.size(blob_name(leaf.digest)) == leaf.size for leaf in _leaves(stored)[0])


def store(backend: Backend, stored: Stored, *, wrong: Collection[Digest] = (), each: bool = False) -> int:
    """Bring what is *stored* in a cache to *backend*; return the bytes that went there.

    Blobs that are there already are believed by their size, but not those that were found to be *wrong*. That a whole
    object is there is believed by its manifest, unless *each* blob is to be looked at.

    Raises:
        CorruptObjectError: It is not what its name says; nothing of that went anywhere.
        BackendError: Some blobs may be there; the object is not, to any reader.
        FileNotFoundError: It has been removed meanwhile.
        StorageError: It cannot be read.
    """
    if not wrong and not each and has(backend, stored.digest):
        return 0
    sent = 0
    leaves, text = _leaves(stored)
    for leaf in leaves:
        path = f"{stored.path}/{leaf.path}" if stored.digest.is_tree else stored.path
        if leaf.digest not in wrong and backend.size(blob_name(leaf.digest)) == leaf.size:
            continue
        try:
            actual, _ = files.digest_of(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise storage_error(error, action="read", path=path) from error
        if actual != leaf.digest:
            raise CorruptObjectError(ref=path, expected=leaf.digest, actual=actual, moved_to="")
        fail_point("backends.contents.before-blob")
        backend.upload(blob_name(leaf.digest), path, leaf.size)
        sent += leaf.size
    facts = {"form": _FORM, "digest": stored.digest, "name": stored.name, "size": stored.size, "listing": text}
    fail_point("backends.contents.before-manifest")
    name = manifest_name(stored.digest)
    if not backend.create(name, seal(facts)) and not has(backend, stored.digest):
        backend.delete(name)  # A damaged one stands in the way.
        backend.create(name, seal(facts))
    return sent


def _leaves(stored: Stored) -> tuple[tuple[Leaf, ...], str]:
    """Return the files of what is *stored*, and the text of its listing, "" of a file."""
    if not stored.digest.is_tree:
        return (Leaf(stored.name, stored.size, stored.digest),), ""
    listing = trees.listing_on_record(os.path.dirname(stored.path), stored.digest)
    if listing is None:
        raise CorruptObjectError(ref=stored.path, expected=stored.digest, actual="a broken listing", moved_to="")
    return listing.files, listing.encode().decode("utf-8", "surrogatepass")


def manifest(backend: Backend, digest: Digest) -> Manifest | None:
    """Return what *backend* has for the object *digest*, None if it has nothing.

    Raises:
        DamagedReplicaError: It cannot be believed.
        BackendError
    """
    name = manifest_name(digest)
    try:
        data = read_whole(backend, name, _MANIFEST_BYTES_MAX)
    except NotInArchiveError:
        return None
    facts = unseal(data)
    problem = "its checksum is wrong"
    if facts is not None:
        found, size, text = facts.get("name"), facts.get("size"), facts.get("listing")
        problem = "it is not of this object"
        if facts.get("digest") == digest and isinstance(found, str) and is_size(size) and isinstance(text, str):
            if not digest.is_tree:
                return Manifest(digest, found, (Leaf(found, size, digest),))
            raw = text.encode("utf-8", "surrogatepass")
            listing = Listing.decode(raw) if digest_of_text(raw) == digest else None
            if listing is not None:
                return Manifest(digest, found, listing.files)
            problem = "its listing is not that of this tree"
    raise DamagedReplicaError(backend=backend.location, name=name, detail=problem)


def pieces(backend: Backend, digest: Digest, size: int, *, start: int = 0) -> Iterator[bytes]:
    """Yield the bytes of the blob *digest*, which has *size*, from *start* on: several ranges at once, in order.

    Raises:
        NotInArchiveError: There is no such blob.
        DamagedReplicaError: It is shorter.
        BackendError
    """
    ahead = Ahead(backend, blob_name(digest), size, start)
    try:
        while piece := ahead.take():
            yield piece
    finally:
        ahead.close()


def fetch_blob(backend: Backend, leaf: Leaf, path: str) -> int:
    """Fill the file *path*, which may hold a beginning of it, with the blob of *leaf*; return the bytes that came.

    What is there already is hashed, and not asked for again; whoever calls this syncs and publishes the file. A whole
    that is wrong, with a beginning that came from elsewhere, is asked for once more from its first byte.

    Raises:
        DamagedReplicaError: The blob is not what its name says; the file is empty then.
        NotInArchiveError, BackendError: What had come stays in the file.
        OSError
    """
    try:
        descriptor = commit.create_file(path, reading=True)
    except FileExistsError:
        descriptor = commit.open_existing(path)
    try:
        have = os.fstat(descriptor).st_size
        if have > leaf.size:
            commit.truncate(descriptor, have := 0)
        came = leaf.size - have
        found = _fill(backend, leaf, descriptor, have)
        if found != leaf.digest and have:
            commit.truncate(descriptor, 0)
            came += leaf.size
            found = _fill(backend, leaf, descriptor, 0)
        if found != leaf.digest:
            commit.truncate(descriptor, 0)
            detail = f"it has the digest {found}"
            raise DamagedReplicaError(backend=backend.location, name=blob_name(leaf.digest), detail=detail)
        return came
    finally:
        os.close(descriptor)


def _fill(backend: Backend, leaf: Leaf, descriptor: int, have: int) -> Digest:
    """Add to the file what is missing behind its first *have* bytes; return the digest of all of it."""
    state = hashlib.sha256()
    for chunk in files.chunks(descriptor, length=have):
        state.update(chunk)
    os.lseek(descriptor, have, os.SEEK_SET)
    for data in pieces(backend, leaf.digest, leaf.size, start=have):
        commit.write(descriptor, data)
        state.update(data)
    return Digest(f"{ALGORITHM}:{state.hexdigest()}")
