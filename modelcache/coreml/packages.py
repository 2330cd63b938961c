"""Core ML packages in and out of the cache: whole, in one form, and never written to by coremltools.

coremltools writes ``Manifest.json`` anew in any package that it opens. In the cache that would be a change of a
published object, which the next get finds and sets aside. So what it opens is a *private copy*: directories of its
own, whose files are other names of those in the cache.

What is stored is *settled* first: the manifest gets identifiers that follow from the paths of its items, and the maps
of the root model one order, so that two saves of one model are one object; an item that is a directory without a file,
as models without weights have one, gets an empty file, because a tree holds no empty directories and a package that
lacks an item cannot be opened; and what macOS has left beside the items goes.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

from .. import commit, files, layout, milprogram, mlpackage, reference, roots, trees
from ..config import ArchiveLimits
from ..errors import (
    InvalidReferenceError,
    ModelCacheError,
    PackageError,
    RemoteNotFoundError,
    UsageError,
    storage_error,
)
from ..mlpackage import MANIFEST, PLACEHOLDER, SUFFIX, Package
from ..patterns import Patterns
from ..records import Entry
from ..staged import Present, StagedTree, of_file, written
from ..unpacking import Unpacking
from . import library

if TYPE_CHECKING:
    from ..cache import Cache

_DATE = "com.github.apple.coremltools.conversion_date"
_ZIP = b"PK\x03\x04"


def put(cache: Cache, content: Any, *, name: str, ttl: float | None = None, limits: ArchiveLimits) -> Entry:
    """Store a package; see `modelcache.coreml.put_package`."""
    parsed = reference.parse(name)
    if parsed.scheme:
        raise InvalidReferenceError(ref=parsed.key, problem="a package is put under a name, not under a URL or a path")
    with _staged(cache.root, content, parsed.name, limits) as directory:
        return cache.put_tree(directory, name=name, ttl=ttl)


@contextmanager
def _staged(root: str, content: Any, name: str, limits: ArchiveLimits) -> Iterator[str]:
    """Yield a directory of ours with the settled package that *content* is."""
    roots.prepare_root(root)
    with workplace(root) as place:
        target = f"{place}/{package_name(name)}"
        if library.is_model(content):
            content.save(target)
            settle(target)
        elif isinstance(content, str | os.PathLike) and not layout.is_packed(os.fspath(content)):
            source = os.path.abspath(os.path.expanduser(os.fspath(content)))
            if not os.path.isdir(source):
                raise _no_package(source)
            _copy_package(source, target)
            settle(target)
        else:
            target = _unpacked(place, content, limits)
            settle(target)
        yield target


@contextmanager
def workplace(root: str) -> Iterator[str]:
    """Yield a directory in staging, which goes at the end; that of a process that dies goes with the next sweep."""
    try:
        place = commit.stage_directory(root)
    except OSError as error:
        raise storage_error(error, action="stage", path=root) from error
    try:
        yield place
    except OSError as error:
        if isinstance(error, ModelCacheError):
            raise
        raise storage_error(error, action="stage", path=place) from error
    finally:
        commit.discard(place)


def copy(source: str, target: str, paths: Iterable[str]) -> None:
    """Make *target*, below a staged directory, hold the files *paths* of *source*: other names of them, or copies."""
    for path in paths:
        place = f"{target}/{path}"
        commit.make_staged(os.path.dirname(place))
        if not commit.share(f"{source}/{path}", place):
            _write(place, of_file(f"{source}/{path}"))


def _copy_package(source: str, target: str) -> None:
    """Copy what may be a package; what has no manifest of one is not copied."""
    data = files.read(f"{source}/{MANIFEST}", follow=True)
    if data is None:
        raise PackageError(ref=source, path=MANIFEST, problem="it is not there")
    items = mlpackage.Manifest.parse(data, ref=source).items
    copy(source, target, mlpackage.walk(source))
    for item in items:
        if os.path.isdir(f"{source}/{item}"):
            commit.make_staged(f"{target}/{item}")


def private_copy(source: str, target: str) -> None:
    """Make *target*, below a staged directory, a private copy of all of the package *source*, which is in the cache."""
    copy(source, target, [path for path, _ in trees.walk(source)])


def settle(directory: str) -> Package:
    """Bring the package in *directory*, which is ours, into the form in which it is stored; return it.

    Raises:
        PackageError: It is none, or not whole.
    """
    found = _read(directory)
    for path in found.others:
        if os.path.basename(path) != PLACEHOLDER:
            commit.remove_quietly(f"{directory}/{path}")
    for item in found.hollow:
        os.close(commit.create_file(f"{directory}/{item}/{PLACEHOLDER}"))
    _settle_file(f"{directory}/{MANIFEST}", lambda _: found.manifest.settled())
    _settle_file(f"{directory}/{found.manifest.root}", milprogram.settled)
    return found


def forget_date(directory: str) -> None:
    """Take the day of the conversion out of the package in *directory*, which is ours: a build that is repeated has it.

    coremltools notes it in the metadata of the model; the record of a derivation has it anyway.
    """
    place = _root_model(directory)
    if os.path.getsize(place) > mlpackage.MODEL_BYTES_MAX or _DATE.encode() not in (files.read(place) or b""):
        return
    found = _parsed(place)
    found.description.metadata.userDefined.pop(_DATE, None)
    _replace(place, found.SerializeToString())


def _settle_file(path: str, settled: Callable[[bytes], bytes]) -> None:
    if os.path.getsize(path) <= mlpackage.MODEL_BYTES_MAX:
        data = files.read(path) or b""
        text = settled(data)
        if text != data:
            _replace(path, text)


def spec(path: str) -> Any:
    """Return the protocol buffer of the model at *path*, a package or a ``.mlmodel`` file, which is only read.

    Raises:
        PackageError: It is neither.
        MissingLibraryError: coremltools is not installed.
    """
    return _parsed(_root_model(path) if os.path.isdir(path) else path)


def open_private(cache: Cache, path: str, **options: Any) -> Any:
    """Return the ``MLModel`` of a private copy of the package at *path*; the copy goes with the model."""
    tools = library.tools()
    place = commit.stage_directory(cache.root)
    try:
        target = f"{place}/{package_name(path)}"
        private_copy(path, target)
        model = tools.models.MLModel(target, **options)
    except BaseException:
        commit.discard(place)
        raise
    weakref.finalize(model, _discard_own, place, os.getpid())
    return model


def _discard_own(place: str, pid: int) -> None:
    if os.getpid() == pid:  # At the end of a forked child it is still its parent's.
        commit.discard(place)


def package_name(path: str) -> str:
    """Return what a copy of the package at *path* is called: coremltools goes by the suffix."""
    return f"{os.path.basename(path.rstrip('/')).removesuffix(SUFFIX)}{SUFFIX}"


def _root_model(directory: str) -> str:
    data = files.read(f"{directory}/{MANIFEST}", follow=True)
    if data is None:
        raise PackageError(ref=directory, path=MANIFEST, problem="it is not there")
    root = mlpackage.Manifest.parse(data, ref=directory).root
    if not os.path.isfile(f"{directory}/{root}"):
        raise PackageError(ref=directory, path=root, problem="its manifest names it, and it is not there")
    return f"{directory}/{root}"


def _parsed(path: str) -> Any:
    found = library.tools().proto.Model_pb2.Model()
    data = b"".join(of_file(path))
    try:
        found.ParseFromString(data)
    except Exception as error:  # google.protobuf.message.DecodeError, whose library is coremltools' own affair.
        raise PackageError(ref=path, path="", problem=f"it is no model ({error})") from error
    return found


def _read(directory: str) -> Package:
    try:
        return mlpackage.read(directory)
    except OSError as error:
        raise storage_error(error, action="read", path=directory) from error


def _unpacked(place: str, content: Any, limits: ArchiveLimits) -> str:
    """Return where in *place* the one package of the archive *content*, a path or a stream, was unpacked to."""
    archive, shown = os.fspath(content) if isinstance(content, str | os.PathLike) else "", "the archive"
    if archive:
        shown = archive
        if not os.path.isfile(archive):
            raise RemoteNotFoundError(ref=archive, detail="No such file")
    else:
        archive = _saved(place, content)
    root = os.path.dirname(os.path.dirname(place))
    descriptor = files.open_regular(archive)
    staged = None
    try:
        staged = StagedTree(root, "unpacked", ref=shown)
        unpacking = Unpacking(
            staged, descriptor, ref=shown, patterns=Patterns(), limits=limits, present=Present(root),
            make_room=lambda _: None, check=lambda: None,
        )  # fmt: skip
        unpacking.run()
        inside = mlpackage.find(staged.paths, ref=shown)
        for directory in unpacking.directories:  # A model without weights has an empty one.
            if not os.path.lexists(f"{staged.path}/{directory}"):
                commit.make_staged(f"{staged.path}/{directory}")
        target = f"{place}/package{SUFFIX}"
        commit.rename(f"{staged.path}/{inside}" if inside else staged.path, target)
        return target
    finally:
        os.close(descriptor)
        if staged is not None:
            staged.discard()


def _saved(place: str, stream: BinaryIO) -> str:
    """Write what *stream* has into *place*, under a name that says what it is."""
    if not callable(getattr(stream, "read", None)):
        kinds = "the path of a directory or an archive, an open archive, or a coremltools MLModel"
        raise UsageError(problem=f"a package is {kinds}, not {type(stream).__name__}")
    first = stream.read(files.CHUNK_BYTES)
    if not isinstance(first, bytes):
        raise UsageError(problem="the archive must be opened in binary mode: open(path, 'rb')")

    def chunks() -> Iterator[bytes]:
        chunk = first
        while chunk:
            yield chunk
            chunk = stream.read(files.CHUNK_BYTES)

    path = f"{place}/archive.{'zip' if first.startswith(_ZIP) else 'tar'}"
    _write(path, chunks())
    return path


def _write(path: str, chunks: Iterator[bytes]) -> None:
    descriptor = commit.create_file(path)
    try:
        written(descriptor, chunks)
    finally:
        os.close(descriptor)


def _replace(path: str, data: bytes) -> None:
    """Give the file *path* of ours another content. What it was may have other names, and stays under them."""
    commit.remove_quietly(path)
    _write(path, iter((data,)))


def _no_package(path: str) -> ModelCacheError:
    if not os.path.lexists(path):
        return RemoteNotFoundError(ref=path, detail="No such file or directory")
    problem = "it is no directory"
    if path.endswith(".mlmodel"):
        problem = "a .mlmodel is one file, which Cache.put stores and compiled() takes as it is"
    return PackageError(ref=path, path="", problem=problem)
