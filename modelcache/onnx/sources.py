"""Where a model is: from what the caller says to a file in the cache, with all external data that it names beside it.

A model without external data is one file. One with it is a tree that holds the model and exactly the files that it
names: those of a directory of this machine, of a repository of a hub, or of a tree that was put. What is looked at
again in the same process is recognised by `stat`, and by its record.
"""

from __future__ import annotations

import mmap
import os
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .. import glance, hit, layout, reference
from ..companions import locations
from ..errors import EntryNotFoundError, ExternalDataError, ModelTooLargeError, UsageError
from ..stamps import is_current, stamp, stamp_of
from .graph import PROTOBUF_BYTES_MAX

if TYPE_CHECKING:
    from ..cache import Cache
    from ..reference import Ref

    RefLike = str | os.PathLike[str]

SUFFIX = ".onnx"
Stamp = tuple[str, int, int, int]  # Path, inode, size and mtime.
_SHOWN = 5
_SEEN_MAX = 256


@dataclass(frozen=True, slots=True)
class Source:
    """A model in the cache.

    Attributes:
        root: Of the cache.
        input: The object that it is, or is in: the path of a file, or of a tree.
        digest: Of that object; ``""`` if it is none, but a file of this machine where it lies.
        file: The model's path within the tree; ``""`` if the object is the model.
        ref: What the caller calls it.
        key: Under which the object is on record; ``""`` if it was named by its path in the cache.
        stamps: What `stat` said of the local files that it came from, before they were read.
    """

    root: str
    input: str
    digest: str
    file: str
    ref: str
    key: str = ""
    stamps: tuple[Stamp, ...] = ()

    @property
    def path(self) -> str:
        """The model's own path."""
        return f"{self.input}/{self.file}" if self.file else self.input

    @property
    def stem(self) -> str:
        """Its name without ``.onnx``."""
        return posixpath.basename(self.path).removesuffix(SUFFIX)

    @property
    def size(self) -> int:
        """Bytes of the model and of its external data."""
        names = external(self.path, self.ref, mapped=bool(self.digest))
        parts = [self.path, *(f"{os.path.dirname(self.path)}/{name}" for name in names)]
        return sum(os.stat(path).st_size for path in parts)


def resolve(cache: Cache, ref: RefLike, file: str | None) -> Source:
    """Return the model that *ref* means; with *file*, that one in the directory, repository or tree *ref*.

    Raises:
        UsageError: *file* is missing, or makes no sense.
        ExternalDataError: External data is missing, or elsewhere.
        ModelTooLargeError: The file is larger than a protocol buffer can be.
        ModelCacheError: As `Cache.get`.
    """
    file = None if file is None else _checked(file)
    place = reference.parse(ref)
    if place.scheme == "file":
        inside = _inside(cache.root, place.path, file)
        return inside or _local(cache, place.path, file)
    if place.scheme == "hf":
        return _on_hub(cache, place, file)
    if place.scheme:
        if file is not None:
            return _in_tree(cache.root, cache.get_tree(ref), file, place.key, place.tree().key)
        return _single(cache.root, cache.get(ref), place.key)
    entry = cache.lookup(ref)
    if entry is None and os.path.exists(ref):
        problem = f"{os.fspath(ref)!r} is the name of a model, and there is none in the cache at {cache.root}"
        raise UsageError(problem=problem, hint=f"The file of that name is {f'./{os.fspath(ref)}'!r}")
    if entry is None:
        raise EntryNotFoundError(ref=place.key, root=cache.root)
    if entry.digest.is_tree:
        return _in_tree(cache.root, cache.get_tree(ref), file, place.key, place.key)
    return _single(cache.root, cache.get(ref), place.key)


def external(path: str, ref: str, *, mapped: bool = True) -> list[str]:
    """Return where the model at *path* keeps its external data, relative to its own directory.

    A file of the cache may be *mapped*; another one may become shorter meanwhile, which a map does not survive.

    Raises:
        ExternalDataError: It is not below the model's directory.
        ModelTooLargeError: The file is larger than a protocol buffer can be.
        OSError
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > PROTOBUF_BYTES_MAX:
            raise ModelTooLargeError(ref=ref, size=size, limit=PROTOBUF_BYTES_MAX)
        if not size:
            return []
        if mapped:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                found = locations(data)
        else:
            found = locations(file.read(PROTOBUF_BYTES_MAX))
    for name in found:
        normal = posixpath.normpath(name)
        if not name or posixpath.isabs(name) or normal == "." or normal.split("/")[0] == "..":
            raise ExternalDataError(ref=ref, location=name, problem="is not below the model's own directory")
    return found


def _single(root: str, path: str, ref: str) -> Source:
    found = external(path, ref)
    if found:
        raise ExternalDataError(ref=ref, location=found[0], problem="is not part of what this ref names")
    return _of(root, path, ref=ref, key=ref)


def in_place(ref: RefLike, file: str | None) -> Source | None:
    """Return the model of this machine that *ref* means, where it lies; None if it is not one, or not all here.

    For who cannot store it.
    """
    place = reference.parse(ref)
    if place.scheme != "file":
        return None
    model = _chosen(place.path, None if file is None else _checked(file))
    found = Source("", model, "", "", reference.parse(model).key)
    try:
        return found if found.size else None
    except OSError:
        return None


def _chosen(path: str, file: str | None) -> str:
    """Return the path of the model that is meant: the one of a directory, or *path* itself."""
    if os.path.isdir(path):
        return f"{path}/{file or _only(_models(path), path)}"
    if file is not None:
        raise UsageError(problem=f"file={file!r} was given, and {path} is no directory")
    return path


def _local(cache: Cache, path: str, file: str | None) -> Source:
    model = _chosen(path, file)
    ref = reference.parse(model).key
    stamps = _stamps([model])
    names = external(model, ref, mapped=False) if stamps else []
    if not names:
        # One that has not changed needs no source, which counts as a connection where the cache is offline.
        current = on_record(cache.root, model, None) is not None
        found = _of(cache.root, cache.get(model, max_age=None if current else 0), ref=ref, key=ref)
        return replace(found, stamps=stamps)
    directory, name = os.path.split(model)
    stamps += _stamps([f"{directory}/{one}" for one in names])
    for one in names:
        if not os.path.isfile(f"{directory}/{one}"):
            raise ExternalDataError(ref=ref, location=one, problem="is missing")
    return replace(_tree(cache, directory, name, names, ref, max_age=0), stamps=stamps)


def _on_hub(cache: Cache, place: Ref, file: str | None) -> Source:
    hub = place.hub
    if hub.path and file is not None:
        raise UsageError(problem=f"file={file!r} was given, and {place.key} is a file itself")
    if not hub.path and file is None:
        tree = cache.get_tree(place.key, allow_patterns=f"*{SUFFIX}")
        file = _only(_models(tree), place.key)
    file = hub.path or file or ""
    single = hub.at(hub.revision, file).key
    names = external(cache.get(single), single)
    if not names:
        return _of(cache.root, cache.get(single), ref=single, key=single)
    return _tree(cache, hub.at(hub.revision).key, file, names, single)


def _tree(cache: Cache, ref: str, file: str, names: Iterable[str], whole: str, **options: Any) -> Source:
    """Return the model *file* as a tree of itself and the external data *names*."""
    patterns, key = _tree_of(ref, file, names)
    path = cache.get_tree(ref, allow_patterns=patterns, **options)
    return _in_tree(cache.root, path, file, whole, key)


def _tree_of(ref: str, file: str, names: Iterable[str]) -> tuple[list[str], str]:
    """Return the patterns of the model *file* and its external data *names*, and the key of the tree of these."""
    from ..patterns import Patterns

    wanted = [file, *(posixpath.normpath(posixpath.join(posixpath.dirname(file), name)) for name in names)]
    patterns = [_escaped(one) for one in wanted]
    return patterns, reference.parse(ref).tree(Patterns.of(patterns, None).text).key


def _in_tree(root: str, tree: str, file: str | None, ref: str, key: str) -> Source:
    file = file or _only(_models(tree), ref)
    model = f"{tree}/{file}"
    if not os.path.isfile(model):
        raise UsageError(problem=f"there is no file {file!r} in {ref}", hint=f"There are {_some(_models(tree))}")
    for name in external(model, ref):
        if not os.path.isfile(f"{os.path.dirname(model)}/{name}"):
            raise ExternalDataError(ref=ref, location=name, problem="is missing")
    return _of(root, tree, file, ref=ref, key=key)


def _inside(root: str, path: str, file: str | None) -> Source | None:
    """Return the model of a path that a get has returned; None if *path* is elsewhere."""
    objects = f"{os.path.realpath(root)}/{layout.OBJECTS}/"
    real = os.path.realpath(path)
    if not real.startswith(objects):
        return None
    name, _, rest = real.removeprefix(objects).partition("/")
    top, _, below = rest.partition("/")
    if not name.startswith("tree-"):
        return _single(root, f"{root}/{layout.OBJECTS}/{name}/{top}", f"file://{path}")
    inner = posixpath.join(below, file) if below and file else (below or file)
    return _in_tree(root, f"{root}/{layout.OBJECTS}/{name}/{top}", inner or None, f"file://{path}", "")


def _of(root: str, path: str, file: str = "", *, ref: str, key: str) -> Source:
    """Return the source whose object has the artefact *path*, which may be in another cache, of a tier."""
    name = os.path.basename(os.path.dirname(path))
    return Source(root, path, name.replace("-", ":", 1), file, ref, key)


def _models(directory: str) -> list[str]:
    """Return the models below *directory*. What else a user has there, links and pipes, is nobody's business."""
    found = (f"{top}/{name}" for top, _, names in os.walk(directory) for name in names if name.endswith(SUFFIX))
    return sorted(os.path.relpath(path, directory) for path in found)


def _only(found: list[str], ref: str) -> str:
    if len(found) != 1:
        count = "no model" if not found else f"{len(found)} models ({_some(found)})"
        raise UsageError(problem=f"{ref} holds {count}: it is not clear which one is meant", hint="Say file='….onnx'")
    return found[0]


def _some(found: list[str]) -> str:
    return ", ".join(found[:_SHOWN]) + (" …" if len(found) > _SHOWN else "") if found else "none that end in .onnx"


def _checked(file: str) -> str:
    normal = posixpath.normpath(file) if isinstance(file, str) and file else ".."
    if posixpath.isabs(normal) or normal.split("/")[0] == ".." or normal == ".":
        raise UsageError(problem=f"file={file!r} makes no sense: the path of a model below the directory or repository")
    return normal


def _escaped(path: str) -> str:
    """Return the pattern that matches *path* alone."""
    return "".join(f"[{one}]" if one in "*?[" else one for one in path)


class Seen:
    """What this process has resolved, so that it can be recognised without a look into any file."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str | None], Source] = {}

    def remember(self, asked: tuple[str, str, str | None], source: Source) -> None:
        """Keep that *asked* (root, ref and file) means *source*."""
        if not source.key:
            return
        if len(self._found) >= _SEEN_MAX:
            self._found.clear()
        self._found[asked] = source

    def look(self, asked: tuple[str, str, str | None]) -> Source | None:
        """Return what *asked* means, if its record still says so, and no local file has changed."""
        source = self._found.get(asked)
        if source is None:
            return None
        there = hit.look(source.root, source.key, recently=True)
        if there is None or there.path != source.input:
            return None
        return source if _stamps([stamp[0] for stamp in source.stamps]) == source.stamps else None

    def forget(self) -> None:
        """Know nothing any more; for tests."""
        self._found.clear()


def on_record(root: str, ref: RefLike, file: str | None) -> Source | None:
    """Return what *ref* means, if a record alone answers that: for the first look of a process.

    A local file is the one on record if its entity tag is. Whether it has external data need not be asked: then nothing
    was ever made from it alone. One that is not on record alone may be so with that data: it is asked where that is.
    """
    place = reference.parse(ref)
    stamps: tuple[Stamp, ...] = ()
    if place.scheme == "file":
        stamps = _stamps([place.path])
        entry = glance.facts(root, place.key) if stamps and file is None else None
        if entry is None or not is_current(place.path, entry.get("etag")):
            return _with_data_on_record(root, place.path, place.key) if stamps and file is None else None
    found = hit.look(root, place.key, recently=True)
    if found is None or found.object.startswith("tree-") != (file is not None):
        return None
    source = _of(root, found.path, "" if file is None else _checked(file), ref=place.key, key=place.key)
    return replace(source, stamps=stamps)


def _with_data_on_record(root: str, model: str, ref: str) -> Source | None:
    """Return the local *model* as the tree on record that it is with its external data, if no file has changed."""
    directory, name = os.path.split(model)
    try:
        seen = os.stat(model)
        names = external(model, ref, mapped=False)
        data = [(posixpath.normpath(one), os.stat(f"{directory}/{one}")) for one in names]
    except (OSError, ExternalDataError, ModelTooLargeError):
        return None  # Who resolves it says what is wrong.
    key = _tree_of(directory, name, names)[1] if names else ""
    entry = glance.facts(root, key) if names else None
    if entry is None or entry.get("etag") != stamp_of((one, stamp(facts)) for one, facts in [(name, seen), *data]):
        return None
    found = hit.look(root, key, recently=True)
    if found is None:
        return None
    stamps = _stamps([model, *(f"{directory}/{one}" for one in names)])
    return replace(_of(root, found.path, name, ref=ref, key=key), stamps=stamps)


def _stamps(paths: list[str]) -> tuple[Stamp, ...]:
    """Return what `stat` says of *paths*; nothing of one that is not there."""
    found = []
    for path in paths:
        try:
            seen = os.stat(path)
        except OSError:
            continue
        found.append((path, seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return tuple(found)
