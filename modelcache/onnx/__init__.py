"""ONNX models that are optimised once per machine: the extra ``onnx``.

    import modelcache.onnx

    session = modelcache.onnx.session("https://host/model.onnx")

`session` is what ``onnxruntime.InferenceSession`` is, of a model that was optimised before: by this process or another
one, once, in a child process, checked against its source and published whole. Its weights are mapped, so that processes
share them. docs/onnx.md says what the key holds, what is checked, and what happens when something fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from ..cache import Cache

    RefLike = str | os.PathLike[str]

__all__ = ["SourceModelWarning", "compile_context", "optimize", "recipe", "session"]


def session(
    ref_or_path: RefLike,
    *,
    file: str | None = None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | None = None,
    session_options: Any = None,
    cache: Cache | None = None,
    level: str | None = None,
    prepack: bool = True,
    config: Mapping[str, Any] | None = None,
    free_dimensions: Mapping[str, int] | None = None,
    custom_ops: Sequence[RefLike] = (),
    feeds: Mapping[str, Any] | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-4,
    timeout: float | None = None,
    verify: str = "stat",
    fallback: bool = True,
) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of the model, optimised before; by this call, if nobody has yet.

    Args:
        ref_or_path: A ref, as `Cache.get` takes it, or a path of this machine.
        file: Which model, where that is a directory, a repository or another tree.
        providers: As onnxruntime takes them: names, or tuples of a name and its options, first choice first. Default:
            the processor.
        provider_options: One dict for each of *providers*, which are then names.
        session_options: A ``SessionOptions`` that the session is made with; it is left as it was. What of it changes
            the graph counts in the key: level, and the entries in `modelcache.onnx.options.GRAPH_ENTRIES`. Free
            dimensions, operators and other entries cannot be read from it: see the arguments for these.
        cache: Default: that of `modelcache.get`.
        level: ``disable``, ``basic``, ``extended``, ``layout`` or ``all``. Default: that of *session_options*, else
            ``all``.
        prepack: Whether weights are saved as the kernels of this processor want them, which is what lets processes
            share those of matrix products.
        config: Configuration entries of the session, where there are no *session_options*.
        free_dimensions: Sizes for dimensions that the model gives a name, where there are no *session_options*.
        custom_ops: Libraries with operators. Where *session_options* are given, register them there as well.
        feeds: Inputs by name. The outputs of product and source for them must be close before it is published.
        rtol: How close: the difference is at most ``atol + rtol * abs(source)``; what is no float must be equal.
        atol: See *rtol*.
        timeout: Longest time for the build, and for the check, in seconds.
        verify: ``stat`` compares size and time of each file of the product; ``full`` reads and hashes them too.
        fallback: Whether the source is loaded, with a `SourceModelWarning`, where no product can be made.

    Raises:
        MissingLibraryError: onnxruntime is not installed.
        ProviderNotInstalledError: It lacks a provider.
        ExternalDataError: External data of the model is missing, or outside its directory.
        ModelTooLargeError: The file is too large to be read.
        ModelRefusedError: onnxruntime refuses the model; nothing was cached.
        DerivationError: The product could not be made, and the source must not, or cannot, be loaded either.
        ModelCacheError: As `Cache.get`.
    """
    from . import sessions

    request = _request(
        ref_or_path, file, providers, provider_options, session_options, cache, level, prepack, config,
        free_dimensions, custom_ops, feeds, rtol, atol, timeout, verify,
    )  # fmt: skip
    return sessions.loaded(request, session_options, fallback=fallback)


def optimize(
    ref_or_path: RefLike,
    *,
    file: str | None = None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, Any]] | None = None,
    session_options: Any = None,
    cache: Cache | None = None,
    level: str | None = None,
    prepack: bool = True,
    config: Mapping[str, Any] | None = None,
    free_dimensions: Mapping[str, int] | None = None,
    custom_ops: Sequence[RefLike] = (),
    feeds: Mapping[str, Any] | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-4,
    timeout: float | None = None,
    verify: str = "stat",
    force: bool = False,
) -> str:
    """Return the path of the optimised model, built if it is not here: what `session` loads. Arguments are the same.

    With *force* it is built also if it is here, or has failed too often.

    It is to be loaded by this path, with the optimisation level ``ORT_DISABLE_ALL``, and never to be written to: its
    external data lies beside it.

    Raises:
        DerivationError: It could not be made; nothing was cached.
        ModelCacheError: As `session`.
    """
    from . import sessions

    request = _request(
        ref_or_path, file, providers, provider_options, session_options, cache, level, prepack, config,
        free_dimensions, custom_ops, feeds, rtol, atol, timeout, verify, force,
    )  # fmt: skip
    return sessions.warm(request) or sessions.product(request, request.source)


def compile_context(
    ref_or_path: RefLike,
    *,
    providers: Sequence[Any],
    file: str | None = None,
    provider_options: Sequence[Mapping[str, Any]] | None = None,
    cache: Cache | None = None,
    level: str | None = None,
    config: Mapping[str, Any] | None = None,
    free_dimensions: Mapping[str, int] | None = None,
    custom_ops: Sequence[RefLike] = (),
    timeout: float | None = None,
    force: bool = False,
) -> str:
    """Return the path of the model as *providers* have compiled it (EPContext), built if it is not here.

    For providers that compile, such as QNN, OpenVINO and TensorRT-RTX; the path is loaded with the same providers. The
    arguments are those of `session`.

    Raises:
        ModelRefusedError: No provider compiles any of it; nothing was cached.
        ModelCacheError: As `optimize`.
    """
    from . import contexts, sessions

    request = _request(
        ref_or_path, file, providers, provider_options, None, cache, level, False, config,
        free_dimensions, custom_ops, None, 0, 0, timeout, "stat", force,
    )  # fmt: skip
    source = request.source
    task = request.task(source)
    return contexts.product(sessions.cache_of(request), source, task, timeout=timeout, force=force)


def recipe(cache: Cache, ref: RefLike, **options: Any) -> str:
    """Do what `optimize` does, with options as a manifest or the command line gives them: JSON values.

    A manifest may be a stranger's: what could name a file, or a library that is loaded, is no option here.

    Raises:
        UsageError: An option is not known, or makes no sense.
        ModelCacheError: As `optimize`.
    """
    from .options import of_recipe

    return optimize(ref, cache=cache, **of_recipe(options))


def _request(
    ref: RefLike,
    file: str | None,
    providers: Sequence[Any] | None,
    provider_options: Sequence[Mapping[str, Any]] | None,
    session_options: Any,
    cache: Cache | None,
    level: str | None,
    prepack: bool,
    config: Mapping[str, Any] | None,
    free_dimensions: Mapping[str, int] | None,
    custom_ops: Sequence[RefLike],
    feeds: Mapping[str, Any] | None,
    rtol: float,
    atol: float,
    timeout: float | None,
    verify: str,
    force: bool = False,
) -> Any:
    from . import options, sessions

    found = options.given(
        level=level, prepack=prepack, providers=providers, provider_options=provider_options, config=config,
        free_dimensions=free_dimensions, custom_ops=custom_ops, session_options=session_options,
    )  # fmt: skip
    found = replace(found, compared=sessions.comparison(feeds, rtol, atol))
    return sessions.Request(ref, file, found, cache, feeds, timeout, verify, force)


def __getattr__(name: str) -> Any:
    if name == "SourceModelWarning":
        from .sessions import SourceModelWarning

        return SourceModelWarning
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
