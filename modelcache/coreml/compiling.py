"""Core ML models derived from others: converted by a callable, compiled for this Mac, loaded.

A compiled model (``.mlmodelc``) depends on the package, by its canonical digest, so that two saves of one model share
it; on the version of coremltools; on the version and build of macOS; and on the architecture. It does not depend on
compute units, function and optimization hints: Core ML takes these when it loads, and specialises then, in a cache of
its own.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import commit, files, layout, leasing, mlpackage, reference, trees
from ..digest import Digest
from ..errors import ModelCacheError, ModelLoadError, PackageError, UsageError, storage_error
from ..leases import Leases
from ..listing import Leaf, Listing
from ..making import Input
from ..mlpackage import MANIFEST, SUFFIX, Package
from ..objects import Objects
from . import library, packages

if TYPE_CHECKING:
    from ..cache import Cache
    from ..question import RefLike
    from ..workspace import Workspace

RECIPE, VERSION = "coreml-compile", "1"
COMPILED, MODEL = ".mlmodelc", ".mlmodel"
_PRIVATE = ".inputs"
_IDENTITIES_MAX = 1000
_identities: dict[tuple[Digest, str], Digest] = {}  # Of packages in trees: what an object holds does not change.

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
        packages.settle(path, model=True)
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
    source = got(cache, ref)
    inside, digest = identity(source, package)
    return cache.derive(
        partial(_compile, compiler or library.compile_model), recipe=RECIPE, version=VERSION,
        inputs={"model": Input(f"{source}/{inside}".rstrip("/"), digest=digest)}, platform=depends, check=check,
        isolate=True, timeout=timeout, force=force,
    )  # fmt: skip


def _compile(compiler: Compiler, workspace: Workspace) -> str:
    """Compile a private copy: Core ML goes by the suffix, and nobody knows whether it writes to what it reads."""
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
    target = f"{workspace}/{stem}{COMPILED}"
    compiler(model, target)
    commit.discard(private)
    _drop_empty(target)
    return target


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
    max_age = 0.0 if local else None
    if layout.is_packed(parsed.name) or (local and os.path.isdir(parsed.path)):
        return cache.get_tree(ref, max_age=max_age)
    return cache.get(ref, max_age=max_age)


def identity(path: str, package: str | None) -> tuple[str, str]:
    """Return where in the tree at *path* its package is, and that package's canonical digest.

    Of a file, "" and its own digest. Nothing of a tree that is an object of a cache is hashed: its listing says it.

    Raises:
        PackageError: There is no package, or a broken one.
    """
    try:
        digest, listing, below = _on_record(path)
        if listing is None and not os.path.isdir(path):
            return "", digest or files.digest_of(path)[0]
        leaves = {
            one.removeprefix(below): leaf for one, leaf in _by_path(path, listing).items() if one.startswith(below)
        }
        inside = mlpackage.find(leaves, ref=path) if package is None else package.strip("/")
        if listing is None or digest is None:
            return inside, mlpackage.read(f"{path}/{inside}").digest
        known = _identities.get((digest, f"{below}{inside}"))
        if known is None:
            known = _package(f"{path}/{inside}".rstrip("/"), leaves, f"{inside}/" if inside else "").digest
            if len(_identities) >= _IDENTITIES_MAX:
                _identities.clear()
            _identities[digest, f"{below}{inside}"] = known
        return inside, known
    except OSError as error:
        raise storage_error(error, action="read", path=path) from error


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


def _by_path(path: str, listing: Listing | None) -> dict[str, Leaf]:
    if listing is not None:
        return {leaf.path: leaf for leaf in listing.files}
    nothing = Digest.of_bytes(())
    return {one: Leaf(one, 0, nothing) for one in mlpackage.walk(path)}


def _package(directory: str, leaves: Mapping[str, Leaf], below: str) -> Package:
    """Return the package in *directory*, whose files are those of *leaves* that begin with *below*."""
    inside: Iterable[Leaf] = [
        Leaf(path.removeprefix(below), leaf.size, leaf.digest, leaf.executable)
        for path, leaf in leaves.items()
        if path.startswith(below)
    ]
    manifest = files.read(f"{directory}/{MANIFEST}")
    if manifest is None:
        raise PackageError(ref=directory, path=MANIFEST, problem="it is not there")
    on_record = leaves.get(f"{below}{MANIFEST}")
    if on_record is None or Digest.of_bytes([manifest]) != on_record.digest:
        return mlpackage.read(directory)  # Somebody has written to it: what it holds now is what is compiled.
    return Package.of(manifest, inside, ref=directory)
