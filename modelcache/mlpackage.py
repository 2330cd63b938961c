"""A Core ML package (``.mlpackage``): what its manifest says is in it, and a digest that two saves of one model share.

It reads, and changes nothing; coremltools is not needed. A package is a directory with ``Manifest.json``, which names
*items*, files or directories below ``Data/``, by identifiers that are new at every save, and one of them as the root
model. The canonical digest is the SHA-256 of a text that has one form only::

    modelcache-mlpackage 1
    <the manifest as JSON: ASCII, keys sorted, no spaces; in place of each identifier stands the path of its item>
    <sha256, 64 hexadecimal digits> <size in bytes> <path in the package>

with one last line for each file of an item, sorted by the bytes of its path. The line of the root model is that of its
settled form (`milprogram`), as the maps in it are written in any order; over 64 MiB, as models of old kinds have with
their weights in it, it is taken as it is. What a manifest says beyond these keys is
part of it, modes and times are not, nor are files that macOS leaves beside items (``.DS_Store``, ``._*``).

Taken for no package: a manifest that is not JSON or has a key twice, an item that is not there, that leaves the package
or is there twice, a root model that is no file, a file that no item names.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import posixpath
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from . import files, milprogram, trees
from .digest import ALGORITHM, Digest
from .errors import InvalidReferenceError, PackageError
from .listing import Leaf, check_paths, clash

SUFFIX = ".mlpackage"
MANIFEST = "Manifest.json"
PLACEHOLDER = ".modelcache-empty"  # What keeps the directory of an item without files in a tree: those have no others.
MODEL_BYTES_MAX = 64 << 20
_HEAD = "modelcache-mlpackage 1\n"
_DATA = "Data"
_VERSION, _ITEMS, _ROOT = "fileFormatVersion", "itemInfoEntries", "rootModelIdentifier"
_FACTS = ("path", "name", "author", "description")
_MANIFEST_BYTES_MAX = 1 << 20
_NAMESPACE = "modelcache-mlpackage"
_MAC_ARCHIVES = "__MACOSX"  # A directory that macOS adds to archives.


@dataclass(frozen=True, slots=True)
class Manifest:
    """What ``Manifest.json`` says.

    Attributes:
        facts: All of it, as JSON values, with the path of an item in place of its identifier.
        items: The paths of the items, below the package.
        root: The path of the root model, below the package.
    """

    facts: dict[str, Any]
    items: tuple[str, ...]
    root: str

    @classmethod
    def parse(cls, data: bytes, *, ref: str) -> Manifest:
        """Return the manifest in *data*.

        Raises:
            PackageError: It is none.
        """
        found = _json(data, ref)
        entries, root = found.get(_ITEMS), found.get(_ROOT)
        if not isinstance(found.get(_VERSION), str) or not isinstance(entries, dict) or not entries:
            raise _broken(ref, f"it has no {_VERSION}, or no {_ITEMS}")
        items: dict[str, Any] = {}
        for facts in entries.values():
            if not isinstance(facts, dict) or not all(isinstance(facts.get(name), str) for name in _FACTS):
                raise _broken(ref, f"an item in it lacks one of {', '.join(_FACTS)}")
            if facts["path"] in items:
                raise _broken(ref, f"it names the item {facts['path']!r:.100} twice")
            items[facts["path"]] = facts
        try:
            check_paths(items, ref=ref)
        except InvalidReferenceError as error:
            raise _broken(ref, str(error.facts["problem"])) from error
        problem = clash(items)
        if problem is not None:
            raise _broken(ref, problem)
        if not isinstance(root, str) or root not in entries:
            raise _broken(ref, "it names no root model among its items")
        facts = {**found, _ITEMS: items, _ROOT: entries[root]["path"]}
        return cls(facts, tuple(f"{_DATA}/{path}" for path in sorted(items)), f"{_DATA}/{entries[root]['path']}")

    def canonical(self) -> str:
        """Return it in its one form."""
        return json.dumps(self.facts, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def settled(self) -> bytes:
        """Return its text with identifiers that follow from the paths, in the form in which coremltools writes it.

        coremltools writes the manifest anew whenever it opens a package: what has this form already stays what it is.
        """
        import uuid

        names = {path: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{_NAMESPACE}:{path}")) for path in self.facts[_ITEMS]}
        items = {names[path]: facts for path, facts in self.facts[_ITEMS].items()}
        facts = {**self.facts, _ITEMS: items, _ROOT: names[self.facts[_ROOT]]}
        text = json.dumps(facts, indent=4, sort_keys=True, ensure_ascii=False)
        return f"{text}\n".encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Package:
    """A package whose manifest and files agree.

    Attributes:
        manifest: What it says.
        leaves: The files of its items; the root model as it is in its settled form.
        hollow: Items that are directories without a file: models without weights have one.
        others: Files beside these that count for nothing.
    """

    manifest: Manifest
    leaves: tuple[Leaf, ...]
    hollow: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def digest(self) -> Digest:
        """The canonical digest."""
        lines = (f"{leaf.digest.hex} {leaf.size} {leaf.path}\n" for leaf in self.leaves)
        text = f"{_HEAD}{self.manifest.canonical()}\n{''.join(lines)}"
        return Digest(f"{ALGORITHM}:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}")

    @classmethod
    def of(
        cls,
        manifest: bytes,
        leaves: Iterable[Leaf],
        *,
        ref: str,
        is_directory: Callable[[str], bool] | None = None,
        content: Callable[[Leaf], bytes] | None = None,
    ) -> Package:
        """Return the package with this *manifest* and these files.

        Args:
            manifest: The bytes of ``Manifest.json``.
            leaves: Of all files, with paths below the package.
            ref: How errors name it.
            is_directory: Tells whether there is a directory at a path below the package. None: only where files are.
            content: Returns the bytes of a file. None: the root model is in its settled form.

        Raises:
            PackageError: They do not agree.
        """
        parsed = Manifest.parse(manifest, ref=ref)
        named: list[Leaf] = []
        others: list[str] = []
        full: set[str] = set()
        for leaf in sorted(leaves, key=lambda leaf: leaf.path.encode("utf-8", "surrogatepass")):
            item = _item_of(leaf.path, parsed.items)
            if item is not None:
                full.add(item)
            if leaf.path == MANIFEST:
                continue
            if _counts_for_nothing(leaf, item):
                others.append(leaf.path)
            elif item is None:
                raise PackageError(ref=ref, path=leaf.path, problem="no item of its manifest is this file")
            else:
                named.append(leaf)
        hollow = tuple(
            item for item in parsed.items if item not in full and is_directory is not None and is_directory(item)
        )
        missing = sorted(set(parsed.items) - full - set(hollow))
        if missing:
            raise PackageError(ref=ref, path=missing[0], problem="its manifest names it, and it is not there")
        if parsed.root not in {leaf.path for leaf in named}:
            raise PackageError(ref=ref, path=parsed.root, problem="it is the root model, and no file")
        if content is not None:
            named = [_settled(leaf, content) if leaf.path == parsed.root else leaf for leaf in named]
        return cls(parsed, tuple(named), hollow, tuple(others))


def read(directory: str) -> Package:
    """Return the package in *directory*, all of whose files are read and hashed. Links to files are followed.

    Raises:
        PackageError: It is none, or its manifest and its files do not agree.
        OSError: A file cannot be read.
    """
    directory = directory.rstrip("/")
    if not os.path.isfile(f"{directory}/{MANIFEST}"):
        raise PackageError(ref=directory, path=MANIFEST, problem="it is not there")
    manifest = files.read(f"{directory}/{MANIFEST}", follow=True) or b""
    # The manifest first: a directory that is none, of any size, is not hashed.
    Manifest.parse(manifest, ref=directory)
    leaves = [_leaf(directory, path) for path in walk(directory)]

    def is_directory(path: str) -> bool:
        return os.path.isdir(f"{directory}/{path}") and not os.path.islink(f"{directory}/{path}")

    def content(leaf: Leaf) -> bytes:
        return files.read(f"{directory}/{leaf.path}", follow=True) or b""

    return Package.of(manifest, leaves, ref=directory, is_directory=is_directory, content=content)


def walk(directory: str) -> list[str]:
    """Return the paths of all files in *directory*; links to files are followed.

    Raises:
        PackageError: Something is neither a file nor a directory.
        OSError: A directory cannot be read.
    """
    try:
        return [path for path, _ in trees.walk(directory, follow=True)]
    except files.NotRegularError as error:
        path = str(error.filename).removeprefix(f"{directory}/")
        raise PackageError(ref=directory, path=path, problem=error.strerror or "it is no file") from error


def canonical_digest(directory: str | os.PathLike[str]) -> Digest:
    """Return the digest of the package in *directory*: the same for every save of one model.

    Raises:
        PackageError: It is no package, or a broken one.
        OSError: A file cannot be read.
    """
    return read(os.fspath(directory)).digest


def find(paths: Collection[str], *, ref: str) -> str:
    """Return where in a tree with the files *paths* its one package is: "" if the tree itself is one.

    Raises:
        PackageError: There is none, or there are several.
    """
    if MANIFEST in paths:
        return ""
    found = sorted({top for top in (_top(path) for path in paths) if top is not None})
    if len(found) == 1:
        return found[0]
    listed = ", ".join(found[:5])
    problem = f"it holds several packages: {listed}" if found else "there is no package in it"
    raise PackageError(ref=ref, path="", problem=problem)


def _top(path: str) -> str | None:
    """Return the directory of the package whose manifest *path* is, None if it is none's."""
    directory, name = posixpath.split(path)
    is_package = name == MANIFEST and directory.endswith(SUFFIX) and not path.startswith(f"{_MAC_ARCHIVES}/")
    return directory if is_package else None


def _leaf(directory: str, path: str) -> Leaf:
    descriptor = files.open_regular(f"{directory}/{path}")
    try:
        return Leaf(path, os.fstat(descriptor).st_size, Digest.of_bytes(files.chunks(descriptor)))
    finally:
        os.close(descriptor)


def _settled(leaf: Leaf, content: Callable[[Leaf], bytes]) -> Leaf:
    """Return what *leaf*, the root model, is in its settled form."""
    if leaf.size > MODEL_BYTES_MAX:
        return leaf
    found = milprogram.settled(content(leaf))
    return Leaf(leaf.path, len(found), Digest.of_bytes([found]))


def _item_of(path: str, items: Iterable[str]) -> str | None:
    return next((item for item in items if path == item or path.startswith(f"{item}/")), None)


def _counts_for_nothing(leaf: Leaf, item: str | None) -> bool:
    name = posixpath.basename(leaf.path)
    if item is not None:  # A model may name any file of an item: only what holds nothing cannot make a difference.
        return name == PLACEHOLDER and leaf.size == 0
    return name == ".DS_Store" or name.startswith("._")


def _json(data: bytes, ref: str) -> dict[str, Any]:
    if len(data) > _MANIFEST_BYTES_MAX:
        raise _broken(ref, f"it has more than {_MANIFEST_BYTES_MAX} bytes")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):  # Readers disagree which of the two counts.
            raise ValueError("it has a key twice")
        return found

    def number(text: str) -> float:
        found = float(text)
        if not math.isfinite(found):
            raise ValueError(f"{text:.20} is no number of JSON, or too large")
        return found

    try:
        found = json.loads(data, object_pairs_hook=once, parse_constant=number, parse_float=number)
    except (ValueError, RecursionError) as error:
        raise _broken(ref, f"it cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise _broken(ref, "it is no JSON object")
    return found


def _broken(ref: str, problem: str) -> PackageError:
    return PackageError(ref=ref, path=MANIFEST, problem=problem)
