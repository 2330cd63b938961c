"""What is put together in staging before it becomes an object: a tree, file by file.

Content that is here already, in any object, is not stored again: the file becomes another name of it (I1: read and
hashed first). Without hard links it is copied.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property

from failpoints import fail_point

from . import commit, files, layout, process, trees
from .digest import ALGORITHM, Digest
from .errors import (
    EmptyContentError,
    InvalidReferenceError,
    ModelCacheError,
    RemoteNotFoundError,
    StorageError,
    storage_error,
)
from .listing import Leaf, Listing
from .objects import Objects, Stored
from .partials import Partial


class _Facts:
    """What the digests of objects stand for, read once by this process: it cannot change."""

    def __init__(self) -> None:
        self._sizes: dict[Digest, int] = {}
        self._listings: dict[Digest, Listing] = {}
        self._leaves = 0

    def size(self, digest: Digest, objects: Objects) -> int | None:
        """Return the bytes of the file object *digest*, None if it has gone."""
        found = self._sizes.get(digest)
        if found is None:
            stored = objects.find(digest)
            if stored is None:
                return None
            if len(self._sizes) >= _FACTS_MAX:
                self._sizes.clear()
            found = self._sizes[digest] = stored.size
        return found

    def listing(self, digest: Digest, objects: Objects) -> Listing | None:
        """Return the listing of the tree *digest*, None if it has gone or is broken."""
        found = self._listings.get(digest)
        if found is None:
            found = trees.listing_on_record(objects.path(digest), digest)
            if found is None:
                return None
            if self._leaves + len(found.files) > _FACTS_MAX:
                self._listings.clear()
                self._leaves = 0
            self._listings[digest] = found
            self._leaves += len(found.files)
        return found


_FACTS_MAX = 200_000
_facts = _Facts()


class Present:
    """The files that the objects of the cache at *root* hold, to be used again."""

    def __init__(self, root: str) -> None:
        self._objects = Objects(root)
        self._tops: dict[Digest, str | None] = {}

    def find(self, digest: Digest, *, executable: bool) -> str | None:
        """Return the path of a file with that content, None if there is none. What it holds has been read (I1)."""
        leaf = self._leaves.get((digest, executable))
        candidates = [None if leaf is None else self._place(*leaf)]
        if not executable:
            stored = self._objects.find(digest)
            candidates.append(None if stored is None else stored.path)
        for path in candidates:
            try:
                if path is not None and files.digest_of(path)[0] == digest:
                    return path
            except OSError:
                continue  # It was removed this moment.
        return None

    def at(self, path: str, size: int) -> Iterator[str]:
        """Yield the files of *size* bytes that trees have at *path*: what another revision of it may be equal to."""
        for digest, listing in self._trees:
            for leaf in listing.files:
                if (leaf.path, leaf.size, leaf.executable) == (path, size, False):
                    place = self._place(digest, path)
                    if place is not None:
                        yield place

    def _place(self, tree: Digest, path: str) -> str | None:
        """Return where the file *path* of *tree* is, None if that has gone."""
        if tree not in self._tops:
            stored = self._objects.find(tree)
            self._tops[tree] = None if stored is None else stored.path
        top = self._tops[tree]
        return None if top is None else f"{top}/{path}"

    def has_size(self, size: int) -> bool:
        """Tell whether any file here has *size* bytes: only then is content worth hashing before it is copied."""
        return size in self._sizes

    @cached_property
    def _leaves(self) -> dict[tuple[Digest, bool], tuple[Digest, str]]:
        found = {}
        for digest, listing in self._trees:
            for leaf in listing.files:
                found[leaf.digest, leaf.executable] = digest, leaf.path
        return found

    @cached_property
    def _sizes(self) -> set[int]:
        sizes = {leaf.size for _, listing in self._trees for leaf in listing.files}
        for digest in self._all:
            if not digest.is_tree:
                size = _facts.size(digest, self._objects)
                if size is not None:
                    sizes.add(size)
        return sizes

    @cached_property
    def _all(self) -> list[Digest]:
        return list(self._objects.all())

    @cached_property
    def _trees(self) -> list[tuple[Digest, Listing]]:
        found = []
        for digest in self._all:
            listing = _facts.listing(digest, self._objects) if digest.is_tree else None
            if listing is not None:
                found.append((digest, listing))
        return found


class StagedTree:
    """A tree that this process puts together; whoever makes one publishes it or discards it.

    Raises:
        InvalidReferenceError: *name* cannot be that of a tree.
    """

    def __init__(self, root: str, name: str, *, ref: str) -> None:
        if name == layout.LISTING:
            raise InvalidReferenceError(ref=ref, problem=f"{name!r} cannot be the name of a tree")
        self.root, self.directory = root, commit.stage_directory(root)
        self.name, self.ref = name, ref
        self._leaves: list[Leaf] = []  # Appended to by any thread.
        commit.make_staged(f"{self.directory}/{name}")

    @property
    def path(self) -> str:
        """Where it is."""
        return f"{self.directory}/{self.name}"

    def link(self, existing: str, leaf: Leaf) -> bool:
        """Make *leaf* another name of the file *existing*, which holds its content; False if that cannot be done."""
        try:
            if not commit.share(existing, self._place(leaf.path)):
                return False
        except FileNotFoundError:
            return False  # It was removed this moment.
        self._leaves.append(leaf)
        return True

    def copy(self, existing: str, leaf: Leaf) -> bool:
        """Make *leaf* a copy of the file *existing*, where it cannot be another name of it; False if it has changed."""
        try:
            found = self.write(leaf.path, of_file(existing), executable=leaf.executable)
        except RemoteNotFoundError:
            commit.remove_quietly(f"{self.path}/{leaf.path}")
            return False  # It was removed this moment.
        if found == leaf:
            return True
        self._leaves.remove(found)
        commit.remove_quietly(f"{self.path}/{leaf.path}")
        return False

    def write(self, path: str, chunks: Iterator[bytes], *, executable: bool) -> Leaf:
        """Write *chunks* as the file *path* of the tree."""
        descriptor = commit.create_file(self._place(path), executable=executable)
        try:
            digest = written(descriptor, chunks)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        leaf = Leaf(path, size, digest, executable)
        self._leaves.append(leaf)
        return leaf

    def replace(self, existing: str, leaf: Leaf) -> None:
        """Make *leaf*, which was written, another name of the file *existing*, which holds the same, if that can be."""
        beside = f"{self.directory}/{process.token()}"
        try:
            if commit.share(existing, beside):
                commit.rename(beside, f"{self.path}/{leaf.path}")
        except FileNotFoundError:
            return  # It was removed this moment: there are two of it.

    def adopt(self, partial: Partial, leaf: Leaf) -> None:
        """Make *leaf* what *partial* holds; the partial stays the caller's."""
        place = self._place(leaf.path)
        partial.give(place)
        if leaf.executable:
            commit.make_executable(place)
        self._leaves.append(leaf)

    def hold(self, leaves: Iterable[Leaf]) -> None:
        """Take *leaves* for what it holds, whoever has put it there."""
        self._leaves = list(leaves)

    @property
    def paths(self) -> set[str]:
        """Of the files that it holds by now."""
        return {leaf.path for leaf in self._leaves}

    def seal(self) -> None:
        """Make all that is in it durable and read-only: partials that were adopted can be discarded then."""
        commit.seal(self.directory)

    def listing(self) -> Listing:
        """Return what it holds by now.

        Raises:
            EmptyContentError: Nothing.
        """
        if not self._leaves:
            raise EmptyContentError(ref=self.ref)
        return Listing(self._leaves, ref=self.ref)

    def publish(self, objects: Objects) -> Stored:
        """Make it an object, durably. The caller announces its digest before, and records it after."""
        listing = self.listing()
        descriptor = commit.create_file(f"{self.directory}/{layout.LISTING}")
        try:
            commit.write(descriptor, listing.encode())
        finally:
            os.close(descriptor)
        return objects.publish(self.directory, listing.digest, self.name)

    def discard(self) -> None:
        """Remove it, if it is still there."""
        commit.discard(self.directory)

    def _place(self, path: str) -> str:
        place = f"{self.path}/{path}"
        commit.make_staged(os.path.dirname(place))
        return place


def of_file(path: str) -> Generator[bytes, None, None]:
    """Yield the bytes of the regular file *path*, which must not change meanwhile.

    Raises:
        RemoteNotFoundError: There is none.
        StorageError: It cannot be read, or was written to.
    """
    try:
        descriptor = files.open_regular(path)
    except OSError as error:
        raise RemoteNotFoundError(ref=path, detail=error.strerror or str(error)) from error
    try:
        before = os.fstat(descriptor)
        yield from files.chunks(descriptor)
        if files.has_changed(before, descriptor):
            raise StorageError(path=path, action="read", reason="it was written to meanwhile")
    except OSError as error:
        if isinstance(error, ModelCacheError):
            raise
        raise storage_error(error, action="read", path=path) from error
    finally:
        os.close(descriptor)


def written(descriptor: int, chunks: Iterator[bytes]) -> Digest:
    """Write *chunks* into the file; return their digest. An iterator that can be closed is, whatever comes."""
    state = hashlib.sha256()
    try:
        for chunk in chunks:
            _write(descriptor, chunk)
            state.update(chunk)
    finally:
        if isinstance(chunks, Generator):
            chunks.close()
    return Digest(f"{ALGORITHM}:{state.hexdigest()}")


def _write(descriptor: int, chunk: bytes) -> None:
    fail_point("staged.before-write", on_torn=lambda size: commit.write(descriptor, chunk[:size]))
    commit.write(descriptor, chunk)
