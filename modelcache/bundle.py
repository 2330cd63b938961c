"""Bundles: cached models on their way to a machine without a network. Their form, and a reader that trusts nothing.

A bundle is a folder, or one uncompressed tar (ustar; sizes beyond 8 GiB as GNU writes them), with the same names::

    index                      which entries there are, and what they consist of
    contents/sha256-<hex>      one file for each content, however many entries and trees share it

The index is ``modelcache-bundle 1 <sha256 of the body> <its length>``, a line end, and the body, which is JSON in one
form only: so equal entries make equal bundles, byte for byte, and the digest of an index stands for all of its bundle.
In a tar the index comes first, the contents follow sorted by digest, each behind one header of 512 bytes, and nothing
else is there. An index may name contents that the bundle leaves out, because its base had them (``without``).

Relied on by `exporting` and `importing`:
  * An index that was decoded is consistent: refs are canonical and free of credentials, names and paths are safe, every
    entry and every file of a tree has its content, and none is there twice.
  * Where a content is in a tar follows from the index; each header is compared with what it must be. A link, a device,
    a sparse file, an extension header or a second member of one name has no place in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

from . import files, layout, reference
from .digest import Digest
from .errors import BundleError, ModelCacheError, NotInBundleError, RemoteNotFoundError, storage_error
from .listing import Leaf, Listing, clash

INDEX, CONTENTS = "index", "contents"
BLOCK_BYTES = 512
_RECORD_BYTES = 20 * BLOCK_BYTES  # pax(1): an archive ends with two empty blocks, and its length is a multiple of this.
_MAGIC = b"modelcache-bundle 1 "
_HEAD_BYTES_MAX = len(_MAGIC) + 64 + 1 + 12 + 1
_INDEX_BYTES_MAX = 1 << 28
_SIZE_MAX = 1 << 62
_TEXT_MAX = 8192  # A ref, a validator.


@dataclass(frozen=True, slots=True)
class Item:
    """One entry in a bundle: what a record needs; see `Entry`. ``checked`` is in Unix seconds."""

    key: str
    digest: Digest
    name: str
    size: int
    source: str
    checked: int
    etag: str | None = None
    last_modified: str | None = None
    revision: str | None = None
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """What a bundle holds.

    Attributes:
        items: The entries, sorted by key.
        trees: The listing of each tree among them, by its digest.
        contents: The size of each file content in bytes, by digest.
        without: Those of them that are not in the bundle.
    """

    items: tuple[Item, ...]
    trees: dict[Digest, Listing]
    contents: dict[Digest, int]
    without: frozenset[Digest] = frozenset()

    @classmethod
    def of(cls, items: Iterable[Item], trees: dict[Digest, Listing], without: Iterable[Digest] = ()) -> Index:
        """Return the index of *items*, whose trees are among *trees*; what is in *without* is left out."""
        chosen = tuple(sorted(items, key=lambda item: item.key))
        named = {item.digest: trees[item.digest] for item in chosen if item.digest.is_tree}
        contents = {item.digest: item.size for item in chosen if not item.digest.is_tree}
        contents |= {leaf.digest: leaf.size for tree in named.values() for leaf in tree.files}
        return cls(chosen, named, contents, frozenset(without) & contents.keys())

    @cached_property
    def digest(self) -> Digest:
        """Of the index, and so of all that the bundle holds."""
        return Digest.of_bytes([self.encoded])

    @property
    def carried(self) -> list[Digest]:
        """The contents that are in the bundle, in their order."""
        return sorted(self.contents.keys() - self.without)

    def leaves(self, item: Item) -> tuple[Leaf, ...]:
        """Return the files that *item* consists of: those of its tree, or itself."""
        return self.trees[item.digest].files if item.digest.is_tree else (Leaf(item.name, item.size, item.digest),)

    @cached_property
    def encoded(self) -> bytes:
        """The bytes of the index file."""
        body = {
            "contents": [[digest, size] for digest, size in sorted(self.contents.items())],
            "entries": [{**asdict(item), "mirrors": list(item.mirrors)} for item in self.items],
            "trees": {
                digest: [[leaf.path, leaf.size, leaf.digest, leaf.executable] for leaf in listing.files]
                for digest, listing in self.trees.items()
            },
            "without": sorted(self.without),
        }
        data = json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        return _MAGIC + f"{hashlib.sha256(data).hexdigest()} {len(data)}\n".encode() + data

    @classmethod
    def decode(cls, data: bytes, *, path: str) -> Index:
        """Return the index in *data*, of the bundle *path*.

        Raises:
            BundleError: It is none that `export` writes.
        """
        head, _, body = data.partition(b"\n")
        if head + b"\n" != _MAGIC + f"{hashlib.sha256(body).hexdigest()} {len(body)}\n".encode():
            raise BundleError(path=path, problem="its index is damaged: it does not have the checksum that it states")
        try:
            found = _parsed(json.loads(body))
            whole = found.encoded == data
        except ModelCacheError as error:
            raise BundleError(path=path, problem=error.summary) from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
            raise BundleError(path=path, problem=f"its index is none that an export writes ({error!r:.120})") from error
        if not whole:
            raise BundleError(path=path, problem="its index is not in the one form that an export writes")
        return found


def _parsed(body: Any) -> Index:
    """Return the index that the JSON *body* means; raise ValueError and its like, or what a bad name raises."""
    trees = {}
    for text, found in body["trees"].items():
        digest = Digest.parse(text)
        listing = Listing(
            (Leaf(_text(path), _number(size), Digest.parse(content), _flag(x)) for path, size, content, x in found),
            ref=digest,
        )
        problem = clash(leaf.path for leaf in listing.files)
        if problem is not None or listing.digest != digest or not listing.files:
            raise ValueError(f"{digest}: {problem or 'its files are others'}")
        trees[digest] = listing
    items = tuple(_item(found) for found in body["entries"])
    if len({item.key for item in items}) != len(items):
        raise ValueError("an entry is there twice")
    index = Index.of(items, trees, [Digest.parse(one) for one in body["without"]])
    for item in items:
        if item.size != sum(leaf.size for leaf in index.leaves(item)):
            raise ValueError(f"{item.key} has another size than its content")
    for leaf in (leaf for item in items for leaf in index.leaves(item)):
        if index.contents[leaf.digest] != leaf.size or leaf.digest.is_tree:
            raise ValueError(f"{leaf.digest} has two sizes, or is no file's")
    return index


def _item(found: dict[str, Any]) -> Item:
    item = Item(**{**found, "digest": Digest.parse(found["digest"]), "mirrors": tuple(found["mirrors"])})
    refs = [item.key, *item.mirrors, *([] if item.source == "put" else [item.source])]
    for ref in refs:
        if reference.parse(_text(ref)).key != ref:
            raise ValueError("a ref is not in its canonical form")
    if len(item.mirrors) > 1000 or not all("://" in mirror for mirror in item.mirrors):
        raise ValueError("a mirror is no URL")
    parsed = reference.parse(item.key)
    if parsed.is_derived:
        raise ValueError(f"{item.key} was derived, which is done where it is used")
    if parsed.scheme and parsed.is_tree != item.digest.is_tree:
        raise ValueError(f"{item.key} is of another kind than its digest")
    for text in (item.etag, item.last_modified, item.revision):
        if text is not None and not _text(text).isprintable():
            raise ValueError("a validator holds a control character")
    reference.check_name(_text(item.name), ref=item.key)
    if item.digest.is_tree and item.name == layout.LISTING:
        raise ValueError("a tree has the name of a listing")
    _number(item.size), _number(item.checked)
    return item


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _TEXT_MAX:
        raise ValueError("a text is expected")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _SIZE_MAX:
        raise ValueError("a whole number from 0 is expected")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false is expected")
    return value


def content_name(digest: Digest) -> str:
    """Return the path within a bundle of the content with *digest*."""
    return f"{CONTENTS}/{layout.object_name(digest)}"


# -- one file ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """One file in a tar. ``at`` is where its header stands; ``digest`` is None for the index."""

    name: str
    digest: Digest | None
    size: int
    at: int

    @property
    def header(self) -> bytes:
        """The 512 bytes before it."""
        info = tarfile.TarInfo(self.name)
        info.size = self.size
        return info.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")

    @property
    def start(self) -> int:
        """Where its first byte is."""
        return self.at + BLOCK_BYTES

    @property
    def padding(self) -> int:
        """The empty bytes behind it."""
        return -self.size % BLOCK_BYTES

    @property
    def end(self) -> int:
        """Where the next header stands."""
        return self.start + self.size + self.padding


def members(index: Index) -> list[Member]:
    """Return what the tar of *index* consists of, in order."""
    found = [Member(INDEX, None, len(index.encoded), 0)]
    for digest in index.carried:
        found.append(Member(content_name(digest), digest, index.contents[digest], found[-1].end))
    return found


def length(found: list[Member]) -> int:
    """Return the length of the tar that consists of the members *found*."""
    end = found[-1].end + 2 * BLOCK_BYTES
    return end + -end % _RECORD_BYTES


# -- reading -----------------------------------------------------------------------------------------------------------


class Bundle:
    """A bundle that is open for reading; use it in a ``with`` block.

    Raises:
        RemoteNotFoundError: There is nothing at *path*.
        BundleError: It is no bundle, or not whole: the sizes of all contents are looked at, their bytes are not.
        StorageError: It cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor = -1
        self.is_folder = os.path.isdir(path)
        try:
            if self.is_folder:
                self.index = _index_in(f"{path}/{INDEX}", path)
                self._check_folder()
            else:
                self._descriptor = _opened(path, path, follow=True)
                self.index, self._members = self._checked()
        except OSError as error:
            self.close()
            if isinstance(error, ModelCacheError):
                raise
            raise storage_error(error, action="read", path=path) from error
        except BaseException:
            self.close()
            raise

    def find(self, key: str) -> Item:
        """Return the entry of *key*; raise NotInBundleError."""
        for item in self.index.items:
            if item.key == key:
                return item
        raise NotInBundleError(ref=key, path=self.path)

    def open(self, digest: Digest) -> tuple[int, int]:
        """Return a descriptor of the file that holds the content *digest*, which the caller closes, and its offset.

        Raises:
            BundleError: It is not there.
            StorageError: It cannot be opened.
        """
        try:
            if self.is_folder:
                return _opened(f"{self.path}/{content_name(digest)}", self.path), 0
            return os.dup(self._descriptor), self._members[digest].start
        except OSError as error:
            if isinstance(error, ModelCacheError):
                raise
            raise storage_error(error, action="read", path=self.path) from error

    def close(self) -> None:
        """Let go of the file."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):  # It was only read.
                os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_folder(self) -> None:
        for digest in self.index.carried:
            descriptor = _opened(f"{self.path}/{content_name(digest)}", self.path)
            try:
                found = os.fstat(descriptor).st_size
            finally:
                os.close(descriptor)
            if found != self.index.contents[digest]:
                problem = f"{content_name(digest)} has {found} bytes, and {self.index.contents[digest]} are expected"
                raise BundleError(path=self.path, problem=problem)

    def _checked(self) -> tuple[Index, dict[Digest, Member]]:
        """Return the index of the tar, and where each content is, after all that is no content was compared."""
        size = os.fstat(self._descriptor).st_size
        first = self._header(0)
        if (first.name, first.type, first.linkname) != (INDEX, tarfile.REGTYPE, ""):
            raise self._error("it does not begin with an index")
        index = Index.decode(_head_and_body(self._descriptor, BLOCK_BYTES, first.size, self.path), path=self.path)
        found = members(index)
        if size != length(found):
            raise self._error(f"it has {size} bytes, and {length(found)} are expected")
        for member in found:
            there = self._header(member.at)
            if (there.name, there.size, there.type, there.linkname) != (member.name, member.size, tarfile.REGTYPE, ""):
                raise self._error(f"{member.name} is not where it must be")
        return index, {member.digest: member for member in found if member.digest is not None}

    def _header(self, at: int) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(os.pread(self._descriptor, BLOCK_BYTES, at), "ascii", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            raise self._error(f"it is no tar that an export writes (at byte {at})") from error

    def _error(self, problem: str) -> BundleError:
        hint = ""
        if os.path.isfile(f"{os.path.dirname(os.path.abspath(self.path))}/{INDEX}"):
            hint = "If it was packed again: unpack it into an empty folder, and import that"
        return BundleError(path=self.path, problem=problem, hint=hint)


def read_index(path: str) -> Index:
    """Return the index of the bundle at *path*: a folder, a tar, or the file ``index`` out of one.

    Raises:
        RemoteNotFoundError, BundleError, StorageError: As `Bundle`, whose contents need not be there.
    """
    try:
        if os.path.isdir(path):
            return _index_in(f"{path}/{INDEX}", path)
        descriptor = _opened(path, path, follow=True)
        try:
            start = os.pread(descriptor, BLOCK_BYTES, 0)
            if start.startswith(_MAGIC):
                size = os.fstat(descriptor).st_size
                return Index.decode(_head_and_body(descriptor, 0, size, path), path=path)
            try:
                first = tarfile.TarInfo.frombuf(start, "ascii", "surrogateescape")
            except (tarfile.TarError, ValueError) as error:
                raise BundleError(path=path, problem="it is neither a bundle nor the index of one") from error
            return Index.decode(_head_and_body(descriptor, BLOCK_BYTES, first.size, path), path=path)
        finally:
            os.close(descriptor)
    except OSError as error:
        if isinstance(error, ModelCacheError):
            raise
        raise storage_error(error, action="read", path=path) from error


def _index_in(file: str, path: str) -> Index:
    descriptor = _opened(file, path)
    try:
        return Index.decode(_head_and_body(descriptor, 0, os.fstat(descriptor).st_size, path), path=path)
    finally:
        os.close(descriptor)


def _head_and_body(descriptor: int, at: int, size: int, path: str) -> bytes:
    """Return the *size* bytes of an index; what is none is not read beyond its first line."""
    head = os.pread(descriptor, min(size, _HEAD_BYTES_MAX), at)
    if not head.startswith(_MAGIC):
        known = head.startswith(_MAGIC.rstrip(b"1 "))
        problem = "a newer modelcache wrote it" if known else "it does not begin with an index"
        raise BundleError(path=path, problem=problem, hint="Upgrade modelcache" if known else "")
    if size > _INDEX_BYTES_MAX:
        raise BundleError(path=path, problem=f"its index has {size} bytes, and {_INDEX_BYTES_MAX} are the most")
    return b"".join(files.chunks(descriptor, start=at, length=size))


def _opened(file: str, path: str, *, follow: bool = False) -> int:
    """Return a descriptor of *file*, of the bundle *path*; what is no regular file is an error of the bundle."""
    try:
        return files.open_regular(file, follow=follow)
    except FileNotFoundError as error:
        if file == path:
            raise RemoteNotFoundError(ref=path, detail=error.strerror or str(error)) from error
        raise BundleError(path=path, problem=f"{file.removeprefix(path + '/')} is missing, or is no file") from error
    except OSError as error:
        # ELOOP, or EFTYPE and EMLINK elsewhere: a link (open(2), O_NOFOLLOW).
        if not follow and os.path.islink(file):
            raise BundleError(path=path, problem=f"{file.removeprefix(path + '/')} is a link") from error
        raise
