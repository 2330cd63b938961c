"""Core ML: packages in the cache, converted and compiled once per machine (the extra ``coreml``; docs/coreml.md).

``put_package``, ``converted``, ``model`` and ``spec`` work wherever coremltools does; ``compiled`` and ``load`` need
macOS, and raise UnsupportedPlatformError elsewhere before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..mlpackage import canonical_digest as canonical_digest
from . import compiling, library, packages

if TYPE_CHECKING:
    from ..cache import Cache
    from ..question import RefLike
    from ..records import Entry

__all__ = ["canonical_digest", "compiled", "converted", "load", "model", "put_package", "recipe", "spec"]


def put_package(package: Any, *, name: str, cache: Cache | None = None, ttl: float | None = None) -> Entry:
    """Store a Core ML package under *name*, durably and whole; it is a ref from then on.

    Its manifest gets identifiers that follow from what it names, so that two saves of one model are one object.

    Args:
        package: The path of a directory ``Net.mlpackage``; that of an archive (``.zip``, ``.tar.gz`` …) with one in it,
            or such an archive as an open binary file; or a coremltools ``MLModel``.
        name: Such as ``vision/Net.mlpackage``; its last part becomes the directory's name.
        cache: Default: the one behind ``modelcache.get``.
        ttl: See `Cache.put`.

    Raises:
        PackageError: It is no package, or its manifest and its files do not agree; nothing was stored.
        ArchiveError: It cannot be unpacked, or (ArchiveLimitError) is too large.
        MissingLibraryError: It is an ``MLModel``, and coremltools cannot be imported.
        InvalidReferenceError, NotFoundError, UsageError, PolicyError, NoSpaceError, StorageError: As `Cache.put_tree`.
    """
    used = _cache(cache)
    return packages.put(used, package, name=name, ttl=ttl, limits=used.archive_limits)


def converted(
    build: Callable[[Any], object],
    *,
    recipe: str,
    version: str,
    inputs: Any = (),
    params: Mapping[str, Any] | None = None,
    platform: Mapping[str, Any] | None = None,
    name: str | None = None,
    cache: Cache | None = None,
    isolate: bool = False,
    timeout: float | None = None,
    force: bool = False,
) -> str:
    """Return the path of the package that *build* makes, made once for all that it depends on; see `Cache.derive`.

    It depends on the version of coremltools, beside what *inputs*, *params* and *platform* say. The package is stored
    in one form, whatever order coremltools writes it in, and without the day of the conversion that coremltools notes
    in its metadata: so a build that is repeated comes to the same bytes.

    Args:
        build: Called with a `Workspace`. It returns an ``MLModel``, or writes one ``.mlpackage`` into the workspace, or
            returns the path of one there. Inputs that are packages are private copies: coremltools writes to what it
            opens.
        recipe: The name of the conversion.
        version: Of *build*: another one when its code changes.
        inputs: What it is made from: refs, paths or entries, or a mapping of names to such.
        params: What else decides about the result; JSON values. In ``workspace.params``.
        platform: What else of the machine and its software does, such as the version of PyTorch.
        name: What the package is called where *build* returns an ``MLModel``. Default: ``model.mlpackage``.
        cache: Default: the one behind ``modelcache.get``.
        isolate: Build in a child process; *build* must be a function of a module then.
        timeout: Of the build, in seconds.
        force: Build it anew.

    Raises:
        PackageError, BuildFailedError, ProductError, ProductRefusedError: It made no package; nothing is cached.
        MissingLibraryError: coremltools is not installed.
        ModelCacheError: As `Cache.derive`.
    """
    return compiling.converted(
        _cache(cache), build, recipe=recipe, version=version, inputs=inputs, params=params, platform=platform,
        name=name, isolate=isolate, timeout=timeout, force=force,
    )  # fmt: skip


def compiled(
    ref: RefLike,
    *,
    package: str | None = None,
    compute_units: Any = "ALL",
    cache: Cache | None = None,
    timeout: float | None = None,
    force: bool = False,
    compiler: Callable[[str, str], object] | None = None,
) -> str:
    """Return the path of the compiled model of *ref*, a ``.mlmodelc`` directory, compiled once per machine. macOS only.

    The key is made of the canonical digest of the package, the version of coremltools, version and build of macOS, and
    the architecture. Compute units, function and hints are no part of it: Core ML takes them when it loads. A child
    process compiles, and loads the product once; what crashes it, or is refused, is not cached.

    Args:
        ref: Of a package, of an archive or a repository with one in it, or of a ``.mlmodel`` file; or a path. Of a
            local path, what it holds now.
        package: The path of the package in what *ref* names, where that has several.
        compute_units: What the product is tried with: a name, or one of ``coremltools.ComputeUnit``.
        cache: Default: the one behind ``modelcache.get``.
        timeout: Of compiling, and of the trial, in seconds each.
        force: Compile it anew.
        compiler: A stand-in for coremltools, for tests: called with the path of a private copy of the package and the
            path of the directory to make. Any system will do then; its product is never taken for a real one, and is
            not loaded.

    Raises:
        UnsupportedPlatformError: This is not macOS; nothing was fetched or written.
        MissingLibraryError: coremltools is not installed.
        UsageError: *compute_units* are none.
        PackageError: There is no package in *ref*, several, or a broken one.
        DerivationError: It could not be compiled, or what came of it not loaded.
        ModelCacheError: As `Cache.get`.
    """
    units = library.units_name(compute_units)
    if compiler is not None and not (callable(compiler) and hasattr(compiler, "__qualname__")):
        raise UsageError(problem=f"compiler={compiler!r} makes no sense: a function of a module")
    return compiling.compiled(
        _cache(cache), ref, package=package, units=units, timeout=timeout, force=force, compiler=compiler
    )


def load(
    ref: RefLike,
    *,
    compute_units: Any = "ALL",
    function_name: str | None = None,
    optimization_hints: Mapping[str, Any] | None = None,
    package: str | None = None,
    cache: Cache | None = None,
    timeout: float | None = None,
) -> Any:
    """Return the ``coremltools.models.CompiledMLModel`` of *ref*, compiled if that was not done yet. macOS only.

    The compiled model is leased until the returned object is gone: nothing removes it before.

    Args:
        ref: See `compiled`.
        compute_units: A name, such as ``CPU_AND_NE``, or one of ``coremltools.ComputeUnit``.
        function_name: Of a model with several functions, the one to load. macOS 15.
        optimization_hints: As coremltools takes them, or with names in place of its enumerations:
            ``{"reshapeFrequency": "Infrequent"}``. macOS 15.
        package: See `compiled`.
        cache: Default: the one behind ``modelcache.get``.
        timeout: See `compiled`.

    Raises:
        ModelLoadError: Core ML does not load it so.
        ModelCacheError: As `compiled`.
    """
    units, hints = library.units_name(compute_units), library.hint_names(optimization_hints)
    function = library.function_text(function_name)
    return compiling.load(
        _cache(cache), ref, units=units, function_name=function, hints=hints, package=package, timeout=timeout
    )


def model(ref: RefLike, *, package: str | None = None, cache: Cache | None = None, **options: Any) -> Any:
    """Return the ``coremltools.models.MLModel`` of the package *ref*, opened from a private copy.

    To look at it, quantise it, or save it elsewhere: coremltools writes to a package that it opens, so that one in the
    cache must not be opened by its path. The copy is made of links, in ``staging/``, and goes with the model.

    Args:
        ref: See `compiled`.
        package: See `compiled`.
        cache: Default: the one behind ``modelcache.get``.
        options: Those of ``MLModel``, as ``skip_model_load=True``.

    Raises:
        PackageError: There is no package in *ref*, several, or a broken one.
        MissingLibraryError: coremltools is not installed.
        ModelCacheError: As `Cache.get`.
    """
    used = _cache(cache)
    return packages.open_private(used, _package_path(used, ref, package), **options)


def spec(ref: RefLike, *, package: str | None = None, cache: Cache | None = None) -> Any:
    """Return the specification, ``coremltools.proto.Model_pb2.Model``, of *ref*, which is only read.

    Raises:
        PackageError, MissingLibraryError, ModelCacheError: As `model`; a ``.mlmodel`` file will do.
    """
    used = _cache(cache)
    return packages.spec(_package_path(used, ref, package))


def recipe(cache: Cache, ref: RefLike, **options: Any) -> str:
    """Return the path of `compiled`; for manifests and the command line.

    Options: ``package``, ``compute_units``, ``timeout``, ``force``.
    """
    unknown = sorted(set(options) - {"package", "compute_units", "timeout", "force"})
    if unknown:
        raise UsageError(problem=f"coreml has no option {unknown[0]!r}: package, compute_units, timeout, force")
    return compiled(ref, cache=cache, **options)


def _package_path(cache: Cache, ref: RefLike, package: str | None) -> str:
    return compiling.place_of(compiling.got(cache, ref), package)


def _cache(cache: Cache | None) -> Cache:
    if cache is not None:
        return cache
    from ..api import default_cache

    return default_cache()
