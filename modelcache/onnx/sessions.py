"""The way from a ref to a session: warm, built, or, where a product cannot be had, the source itself.

A warm call reads two records and looks at the files' stamps: no hash, no child process, no network. Whatever keeps a
product from being made or loaded is told, and the source is loaded in its place; unless that would crash this process
too, or onnxruntime refuses it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import api, configfiles, glance, hit, reference, stamps
from ..derivation import Derivation, Part
from ..errors import (
    BuildDiedError,
    BuildTimeoutError,
    DerivationError,
    LockTimeoutError,
    ModelCacheError,
    NoInterpreterError,
    NoSpaceError,
    RepeatedFailureError,
    StorageError,
    UsageError,
)
from . import runtime
from .options import CPU, MODEL, Options
from .sources import Seen, Source, in_place, on_record, resolve

if TYPE_CHECKING:
    from ..cache import Cache
    from . import building

    RefLike = str | os.PathLike[str]

RECIPE, VERSION = "onnx-optimize", "1"
_PROBE_S, _START_S = 600.0, 60.0
# What keeps a product from being made or had; the model may be as good as ever.
_NO_PRODUCT = (DerivationError, LockTimeoutError, NoInterpreterError, NoSpaceError, StorageError)
_seen = Seen()


class SourceModelWarning(UserWarning):
    """The source model is used, because a product could not be made or loaded; the message says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a caller asks for."""

    ref: RefLike
    file: str | None
    options: Options
    cache: Cache | None
    feeds: Mapping[str, Any] | None
    timeout: float | None
    verify: str
    force: bool = False

    def __post_init__(self) -> None:
        if self.verify not in {"stat", "full"}:
            raise UsageError(problem=f"verify={self.verify!r} makes no sense: 'stat' or 'full'")

    @property
    def source(self) -> Source:
        """The model, fetched if it is not here."""
        cache = cache_of(self)
        source = resolve(cache, self.ref, self.file)
        _seen.remember(self.asked(cache.root), source)
        return source

    def asked(self, root: str) -> tuple[str, str, str | None]:
        """What is asked for, whatever the working directory is by then."""
        return root, reference.parse(self.ref).key, self.file

    def task(self, source: Source) -> building.Task:
        """What a build of *source* is told."""
        from . import building

        return building.Task(
            source=source.path,
            bytes=source.size,
            name=f"{source.stem}.optimized",
            options=self.options,
            ref=self.derivation(source).ref,
            model=source.ref,
        )

    def derivation(self, source: Source) -> Derivation:
        """Return all that the product of *source* depends on."""
        params = {**self.options.params, **({"file": source.file} if source.file else {})}
        part = Part("model", source.digest, source.digest, ref=source.ref)
        return Derivation(RECIPE, VERSION, (part,), params, self.options.platform)


def cache_of(request: Request) -> Cache:
    """Return the cache that is asked."""
    return request.cache or api.default_cache()


def warm(request: Request) -> str | None:
    """Return the path of the product if records and stamps alone say that it is here, else None."""
    if request.verify != "stat" or request.force:
        return None
    root = _root(request.cache)
    if root is None:
        return None
    asked = request.asked(root)
    source = _seen.look(asked)
    if source is None:
        source = on_record(root, request.ref, request.file)
        if source is None:
            return None
        _seen.remember(asked, source)
    return standing(root, request.derivation(source).ref)


def _root(cache: Cache | None) -> str | None:
    """Return the root from which records alone may answer; None where the cache has to be asked."""
    if cache is None:
        if configfiles.plain(os.environ) and os.environ.get("MODELCACHE_VERIFY_DERIVED", "0") in {"", "0"}:
            root = configfiles.root_for_a_look(os.environ)
            return root if root is not None and hit.format_is_known(root) else None
        cache = api.default_cache()
    return cache.root if cache.is_plain else None


def standing(root: str, ref: str) -> str | None:
    """Return the path of the product *ref* if it is here, and each of its files is as it was stored."""
    found = hit.look(root, ref, recently=True)
    if found is None or not _stamped(root, ref, found.path):
        return None
    return f"{found.path}/{MODEL}"


def product(request: Request, source: Source) -> str:
    """Return the path of the product of *source*, built if it is not here.

    Raises:
        DerivationError: It could not be made.
        ModelCacheError
    """
    from . import building

    cache = cache_of(request)
    derivation = request.derivation(source)
    task = request.task(source)
    known = cache.lookup(source.key) if source.key else None
    path = cache.derive(
        partial(building.build, task),
        isolate=True,
        recipe=RECIPE,
        version=VERSION,
        # Its entry, where that is the same: then the product is kept and goes with what it was made from.
        inputs={"model": known if known is not None and known.path == source.input else source.input},
        params=derivation.params,
        platform=derivation.platform,
        check=partial(building.check, task, request.feeds),
        timeout=request.timeout,
        force=request.force,
        verify=None if request.verify == "stat" else request.verify,  # None: as the cache is set.
    )
    return f"{path}/{MODEL}"


def loaded(request: Request, session_options: Any, *, fallback: bool) -> Any:
    """Return the session that *request* asks for; with *fallback*, one of the source where no product can be had."""
    if _has_engines(request.options):
        return _with_engines(request, session_options, fallback=fallback)
    path = warm(request)
    source = None
    try:
        if path is None:
            source = request.source
            path = product(request, source)
        try:
            return _load(path, request.options, session_options)
        except Exception as error:  # noqa: BLE001  # onnxruntime has no common error; each is told.
            return _again(request, session_options, path, error)
    except _NO_PRODUCT as error:
        if not fallback:
            raise
        return _source_instead(request, source or _at_hand(request, error), session_options, error)


def _has_engines(options: Options) -> bool:
    """Tell whether a provider keeps a cache of its own, that is handled here."""
    if all(name == CPU for name, _ in options.providers):
        return False
    from . import engines

    return bool(engines.managed(options))


def _with_engines(request: Request, session_options: Any, *, fallback: bool) -> Any:
    """Return a session of the source, whose providers find a private copy of what they have compiled before."""
    from . import engines

    source = None
    try:
        cache, source = cache_of(request), request.source
        task = request.task(source)
        made = engines.product(cache, source, task, request.feeds, timeout=request.timeout, force=request.force)
        options = engines.privately(request.options, cache.root, made)
        return engines.session(replace(task, options=options), source.digest, session_options)
    except _NO_PRODUCT as error:
        if not fallback:
            raise
        return _source_instead(request, source or _at_hand(request, error), session_options, error)


def _at_hand(request: Request, error: Exception) -> Source:
    """Return the model, in the cache or, where that takes nothing, as it lies on this machine; else raise *error*."""
    try:
        return request.source
    except (LockTimeoutError, NoSpaceError, StorageError):
        found = in_place(request.ref, request.file)
        if found is None:
            raise error from None
        return found


def _again(request: Request, session_options: Any, path: str, error: Exception) -> Any:
    """Load the product once more, after it was looked at: what is damaged was set aside, and is built anew."""
    _tell(f"{path} does not load ({error}): it is read and hashed")
    request = replace(request, verify="full")
    source = request.source
    path = product(request, source)
    try:
        return _load(path, request.options, session_options)
    except Exception as second:
        raise request.task(source).refused(second) from second


def _source_instead(request: Request, source: Source, session_options: Any, error: ModelCacheError) -> Any:
    """Return a session of the source itself, and say why; raise *error* if that is no way out."""
    from .. import isolation
    from . import building

    task = request.task(source)
    if _was_violent(error):
        if isolation.no_interpreter():
            raise error  # Nobody can find out what the source would do to this process.
        try:
            isolation.run(building.probe, task, timeout=request.timeout or _PROBE_S)
        except (isolation.DiedError, isolation.TimedOutError):
            if _starts_processes():
                raise error from None
        except Exception as refusal:  # It is refused, and does not crash: it is told as it was.
            raise error from refusal
    try:
        if session_options is None:
            found = building.source_session(task)
        else:
            with runtime.at_level(session_options, request.options.level):
                found = runtime.create(source.path, session_options, request.options.providers)
    except Exception as refusal:
        raise error from refusal
    _tell(f"the source model is used: {error.summary}")
    warnings.warn(f"the source model is used: {error.summary}", SourceModelWarning, stacklevel=4)
    return found


def _starts_processes() -> bool:
    """Tell whether a process that does nothing survives: else the death of one says nothing of what it was to do."""
    from .. import isolation

    try:
        isolation.run(os.getpid, timeout=_START_S)
    except (isolation.DiedError, isolation.TimedOutError):
        return False
    return True


def _tell(text: str) -> None:
    import logging  # 2 ms, and a warm session has nothing to tell.

    logging.getLogger("modelcache").warning("%s", text)


def _was_violent(error: Exception) -> bool:
    """Tell whether what failed may do to this process what it has done to the one that built."""
    if isinstance(error, BuildDiedError):
        return not error.moved_to  # Else it was the product that crashed: the source had been loaded before that.
    if isinstance(error, RepeatedFailureError):
        return "set aside at" not in error.last and ("died of" in error.last or "within" in error.last)
    return isinstance(error, BuildTimeoutError)


def _load(path: str, options: Options, session_options: Any) -> Any:
    if session_options is None:
        return runtime.create_optimised(path, options.session_options(), options.providers, own=True)
    return runtime.create_optimised(path, session_options, options.providers, own=False)


def _stamped(root: str, ref: str, path: str) -> bool:
    """Tell whether the files of the product at *path* have the sizes and times that are on record."""
    found = glance.facts(root, ref)
    known = ((found or {}).get("derivation") or {}).get("stamps")
    return isinstance(known, dict) and MODEL in known and stamps.hold(path, known)


def comparison(feeds: Mapping[str, Any] | None, rtol: float, atol: float) -> dict[str, Any] | None:
    """Return what of a comparison counts in the key: a digest of *feeds*, and how close is close.

    Raises:
        UsageError: They are no arrays by name.
    """
    if feeds is None:
        return None
    import hashlib

    import numpy as np

    state = hashlib.sha256()
    if not isinstance(feeds, Mapping) or not feeds:
        raise UsageError(problem="feeds are a dict of arrays by the names of inputs")
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        content = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
        state.update(f"{name}\0{array.dtype.str}\0{array.shape}\0{len(content)}\0".encode() + content)
    return {"feeds": f"sha256:{state.hexdigest()}", "rtol": float(rtol), "atol": float(atol)}
