"""Core ML models derived from others: converted by a callable, compiled for this Mac, loaded.

A compiled model (``.mlmodelc``) depends on the package, by its canonical digest, so that two saves of one model share
it; on the version of coremltools; on the version and build of macOS; and on the architecture. It does not depend on
compute units, function and optimization hints: Core ML takes these when it loads, and specialises then, in a cache of
its own.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from .. import commit, files, layout, leasing, mlpackage, reference, trees
from ..digest import Digest
from ..errors import CorruptObjectError, ModelCacheError, ModelLoadError, PackageError, UsageError, storage_error
from ..leases import Leases
from ..listing import Leaf, Listing, check_paths
from ..making import Input
from ..mlpackage import MANIFEST, SUFFIX, Package
from ..objects import Objects
from . import library, packages

if TYPE_CHECKING:
    from ..cache import Cache
    from ..question import RefLike
    from ..workspace import Workspace

RECIPE, IDENTITY, VERSION = "coreml-compile", "coreml-identity", "1"
COMPILED, MODEL = ".mlmodelc", ".mlmodel"
_PRIVATE = ".inputs"

Compiler = Callable[[str, str], object]


def converted(cache: Cache, build: Callable[[Any], object], *, name: str | None, platform: Mapping[str, Any] | None,
              inputs: Any, **options: Any) -> str:  # fmt: skip
    """Derive a package; see `modelcache.coreml.converted`."""
    depends = {"coremltools": library.version(), **(platform or {})}
    work = partial(_convert, build, name)
    return cache.derive(work, inputs=inputs, platform=depends, check=_check_package, **options)


def _convert(build: Callable[[Any], object], name: str | None, workspace: Workspace) -> str | None:
    """Do the user's work in *workspace*, with private copies of packages; settle what it made."""
    private = {}
    for index, (key, path) in enumerate(workspace.inputs.items()):
        if os.path.isfile(f"{path}/{MANIFEST}"):
            private[key] = f"{workspace}/{_PRIVATE}/{index}/{packages.package_name(path)}"
            packages.private_copy(path, private[key])
    workspace.inputs = {**workspace.inputs, **private}
    returned = build(workspace)
    if library.is_model(returned):
        target = f"{workspace}/{packages.package_name(name or 'model')}"
        returned.save(target)  # type: ignore[attr-defined]
        returned = target
    commit.discard(f"{workspace}/{_PRIVATE}")
    if returned is None:
        inside = files.listing(workspace)
        if len(inside) != 1:
            return None  # Nothing, or several things: `derive` says so.
        returned = f"{workspace}/{inside[0]}"
    if not isinstance(returned, str | os.PathLike):
        raise UsageError(problem=f"a converter returns an MLModel, a path or None, not {type(returned).__name__}")
    path = os.path.normpath(os.path.join(workspace, os.fspath(returned)))
    # What is outside is not written to, and `derive` refuses it.
    if path.startswith(f"{workspace}/") and os.path.isdir(path) and not os.path.islink(path):
        packages.forget_date(path)
        packages.settle(path)
    return path


def _check_package(path: str) -> None:
    mlpackage.read(path)


def compiled(
    cache: Cache,
    ref: RefLike,
    *,
    package: str | None,
    units: str,
    timeout: float | None,
    force: bool,
    compiler: Compiler | None,
) -> str:
    """Derive a compiled model; see `modelcache.coreml.compiled`."""
    if compiler is None:
        depends = {**library.this_mac("compiling a Core ML model"), "coremltools": library.version()}
        check: Callable[[str], object] = partial(_check_loads, units)
    else:
        # What a stand-in makes is its own: no real model is ever taken for it, nor the other way round.
        depends = {"compiler": f"{compiler.__module__}.{compiler.__qualname__}", "machine": os.uname().machine}
        check = _check_compiled
    source = place_of(got(cache, ref), package)
    digest = identity(cache, source)
    return cache.derive(
        partial(_compile, compiler or library.compile_model, digest), recipe=RECIPE, version=VERSION,
        inputs={"model": Input(source, digest=digest)}, platform=depends, check=check,
        isolate=True, timeout=timeout, force=force,
    )  # fmt: skip


def _compile(compiler: Compiler, digest: str, workspace: Workspace) -> str:
    """Compile a private copy: Core ML goes by the suffix, and nobody knows whether it writes to what it reads.

    All of it is read before: the key says which bytes these are, and they were perhaps altered on the disk since.

    Raises:
        CorruptObjectError: They were; the object is set aside.
    """
    source = workspace.inputs["model"]
    private = f"{workspace}/{_PRIVATE}"
    if os.path.isdir(source):
        model = f"{private}/{packages.package_name(source)}"
        packages.private_copy(source, model)
        stem = os.path.basename(model).removesuffix(SUFFIX)
    else:
        stem = os.path.basename(source).removesuffix(MODEL)
        model = f"{private}/{stem}{MODEL}"
        packages.copy(os.path.dirname(source), private, [os.path.basename(source)])
        if os.path.basename(source) != os.path.basename(model):
            commit.rename(f"{private}/{os.path.basename(source)}", model)
    _check_content(source, model, digest)
    target = f"{workspace}/{stem}{COMPILED}"
    compiler(model, target)
    commit.discard(private)
    _drop_empty(target)
    return target


def _check_content(source: str, model: str, digest: str) -> None:
    """Check that *model*, the private copy of *source*, has the content that *digest* stands for."""
    try:
        found = mlpackage.read(model).digest if os.path.isdir(model) else files.digest_of(model)[0]
    except PackageError as error:
        found, reason = Digest(""), error.summary
    else:
        reason = ""
    if found == digest:
        return
    _corrupt(source, digest, found or reason)


def _corrupt(path: str, expected: str, actual: str) -> NoReturn:
    """Set the object that *path* is in aside, and raise CorruptObjectError."""
    root, found, rest = path.partition(f"/{layout.OBJECTS}/")
    obj, moved_to = _on_record(path)[0], ""
    if found and obj is not None:
        top = "/".join(rest.split("/")[:2])
        reason = f"{path}: expected {expected}, found {actual}"
        moved_to = Objects(root).quarantine(obj, reason, os.lstat(f"{root}/{layout.OBJECTS}/{top}"))
    raise CorruptObjectError(ref=path, expected=expected, actual=actual, moved_to=moved_to)


def _drop_empty(directory: str) -> None:
    """Remove directories without a file: a tree holds none, and what is tried before it is stored must be that."""
    for path, _, _ in list(os.walk(directory, topdown=False)):
        if path != directory and not os.listdir(path):
            commit.discard(path)


def _check_compiled(path: str) -> None:
    if not path.endswith(COMPILED) or not os.path.isdir(path):
        raise ValueError(f"a compiled model is a directory whose name ends in {COMPILED}")


def _check_loads(units: str, path: str) -> None:
    """Load it once, here where a crash harms nobody."""
    _check_compiled(path)
    library.load_compiled(path, units, None, {})


def load(
    cache: Cache, ref: RefLike, *, units: str, function_name: str | None, hints: Mapping[str, str | bool],
    package: str | None, timeout: float | None,
) -> Any:  # fmt: skip
    """Load a compiled model; see `modelcache.coreml.load`."""
    library.this_mac("loading a Core ML model")
    leases = Leases(cache.root)
    for _ in range(leasing.TRIES):
        path = compiled(cache, ref, package=package, units=units, timeout=timeout, force=False, compiler=None)
        lease = leasing.take(cache.root, leases, path)
        if lease is None:
            continue
        try:
            model = library.load_compiled(path, units, function_name, hints)
        except BaseException as error:
            lease.release()
            if isinstance(error, ModelCacheError) or not isinstance(error, Exception):
                raise
            raise ModelLoadError(ref=path, runtime="Core ML", detail=str(error)) from error
        weakref.finalize(model, lease.release)  # Core ML maps its weights, and may open more of it later.
        return model
    raise leasing.vanishing(path)


def got(cache: Cache, ref: RefLike) -> str:
    """Return the path of what *ref* names, which is in the cache by then; a local path is looked at anew."""
    text = os.fspath(ref)
    if text.startswith(f"{cache.root}/{layout.OBJECTS}/"):
        return text.rstrip("/")
    parsed = reference.parse(ref)
    local = parsed.scheme == "file"
    max_age = 0.0 if local and not cache.offline else None
    if layout.is_packed(parsed.name) or (local and os.path.isdir(parsed.path)):
        return cache.get_tree(ref, max_age=max_age)
    return cache.get(ref, max_age=max_age)


def place_of(path: str, package: str | None) -> str:
    """Return where the package is in what was got to *path*; *path* itself if that is a file.

    Raises:
        PackageError: There is none, or several and *package* does not say which.
    """
    if not os.path.isdir(path):
        return path
    if package is not None:
        check_paths([package.strip("/")], ref=path)
        place = f"{path}/{package.strip('/')}"
        if not os.path.isfile(f"{place}/{MANIFEST}"):
            raise PackageError(ref=place, path=MANIFEST, problem="it is not there")
        return place
    try:
        found = mlpackage.find([MANIFEST] if os.path.isfile(f"{path}/{MANIFEST}") else mlpackage.walk(path), ref=path)
    except OSError as error:
        raise storage_error(error, action="read", path=path) from error
    return f"{path}/{found}".rstrip("/")


def identity(cache: Cache, path: str) -> str:
    """Return what *path*, a package or a file in the cache, counts as in a key: the canonical digest of a package.

    It is a derivation too, so that a start reads a line in place of the program: it is found out once for an object.

    Raises:
        PackageError: It is no package, or a broken one.
        CorruptObjectError: It was altered on the disk.
    """
    found = cache.derive(_identify, recipe=IDENTITY, version=VERSION, inputs={"package": path}, platform={})
    return (files.content(found) or b"").decode()


def _identify(workspace: Workspace) -> None:
    path = workspace.inputs["package"]
    digest, listing, below = _on_record(path)
    if digest is None:
        raise UsageError(problem=f"{path} is in no object of a cache")
    if listing is not None:
        digest = _package(path, {leaf.path: leaf for leaf in listing.files}, below).digest
    descriptor = commit.create_file(f"{workspace}/digest")
    try:
        commit.write(descriptor, digest.encode())
    finally:
        os.close(descriptor)


def _on_record(path: str) -> tuple[Digest | None, Listing | None, str]:
    """Return the digest of the object that *path* is in, its listing if it is a tree, and where in that *path* is."""
    root, found, rest = path.partition(f"/{layout.OBJECTS}/")
    name, _, inside = rest.partition("/")
    if not found or not name.startswith(("sha256-", "tree-")):
        return None, None, ""
    digest = Digest.parse(name.replace("-", ":", 1))
    if not digest.is_tree:
        return digest, None, ""
    listing = trees.listing_on_record(Objects(root).path(digest), digest)
    below = inside.partition("/")[2]
    return digest, listing, f"{below}/" if below else ""


def _package(directory: str, leaves: Mapping[str, Leaf], below: str) -> Package:
    """Return the package in *directory*, whose files are those of *leaves* that begin with *below*.

    Only its manifest and its root model are read; what their digests, and those of all others, are its listing says.
    """
    inside = {path.removeprefix(below): leaf for path, leaf in leaves.items() if path.startswith(below)}

    def content(path: str) -> bytes:
        found = files.read(f"{directory}/{path}")
        if found is None or path not in inside:
            raise PackageError(ref=directory, path=path, problem="it is not there")
        if Digest.of_bytes([found]) != inside[path].digest:
            _corrupt(directory, inside[path].digest, Digest.of_bytes([found]))
        return found

    moved = [Leaf(path, leaf.size, leaf.digest, leaf.executable) for path, leaf in inside.items()]
    return Package.of(content(MANIFEST), moved, ref=directory, content=lambda leaf: content(leaf.path))
