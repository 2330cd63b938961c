"""Caches that providers keep themselves: TensorRT's engines, what CoreML and OpenVINO compile.

A runtime writes to such a directory whenever it likes, without a lock or a rename, and trusts what it finds there. So
the directory that a build has filled is a product like any other, which nobody writes to, and a session gets a private,
writable copy of it, in ``staging/``: it is removed when the process ends, or once it is seen to be gone.

None of these providers runs where this was written: names of options and keys are tested, the runtimes are not.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import commit, forks, platforms, trees
from ..derivation import Derivation, Part
from ..errors import ModelCacheError, storage_error
from ..staged import of_file, written
from . import building, graph, runtime

if TYPE_CHECKING:
    from ..cache import Cache
    from .options import Options
    from .sources import Source

RECIPE, VERSION = "onnx-engines", "1"
COREML = "CoreMLExecutionProvider"
COREML_KEY, _COREML_KEY_MAX = "COREML_CACHE_KEY", 64


@dataclass(frozen=True, slots=True)
class EngineCache:
    """How a provider is told where its cache is: in *options*; where they hold ``{}``, that is the directory."""

    directory: str
    options: Mapping[str, str]


ENGINE_CACHES = {
    COREML: EngineCache("ModelCacheDirectory", {"ModelCacheDirectory": "{}"}),
    "TensorrtExecutionProvider": EngineCache(
        "trt_engine_cache_path",
        {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "{}",
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": "{}",
        },
    ),
    "NvTensorRTRTXExecutionProvider": EngineCache("nv_runtime_cache_path", {"nv_runtime_cache_path": "{}"}),
    "OpenVINOExecutionProvider": EngineCache("cache_dir", {"cache_dir": "{}"}),
}


def managed(options: Options) -> list[str]:
    """Return the providers whose caches are handled here: those that keep one, and were not told where."""
    return [
        name
        for name, given in options.providers
        if name in ENGINE_CACHES and ENGINE_CACHES[name].directory not in given
    ]


def with_directory(options: Options, directory: str) -> Options:
    """Return *options* that tell each managed provider that its cache is in *directory*. What was given stays."""
    wanted = set(managed(options))
    found = []
    for name, given in options.providers:
        own = ENGINE_CACHES[name].options if name in wanted else {}
        found.append((name, {key: value.replace("{}", f"{directory}/{name}") for key, value in own.items()} | given))
    return replace(options, providers=tuple(found))


def privately(options: Options, root: str, directory: str) -> Options:
    """Return *options* that tell each managed provider of its part of this process's copy of *directory*.

    Raises:
        StorageError, NoSpaceError
    """
    copy = copies.of(root, directory)
    for name in managed(options):
        commit.make_staged(f"{copy}/{name}")  # One that has written nothing yet has none.
    return with_directory(options, copy)


def coreml_key(digest: str) -> str:
    """Return the cache key of a model for CoreML's provider: at most 64 letters and digits, of its digest.

    Without one it goes by the model's path, and takes one model for another that has come to be there.
    """
    key = digest.rpartition(":")[2]
    assert key.isalnum()
    assert len(key) <= _COREML_KEY_MAX
    return key


def platform(options: Options) -> dict[str, Any]:
    """Return what of this machine counts: engines fit one driver and device, and one build of the system."""
    return {**options.platform, "cpu": platforms.cpu(), "os_build": platforms.os_build(), "gpu": platforms.gpu()}


def fill(task: building.Task, feeds: Mapping[str, Any] | None, digest: str, workspace: str) -> None:
    """Let the providers fill their caches, in a directory in *workspace*: by a session, and a run with *feeds*."""
    directory = f"{workspace}/{task.name}"
    options = with_directory(task.options, directory)
    for name in managed(task.options):
        commit.make_staged(f"{directory}/{name}")
    found = session(replace(task, options=options), digest, None)
    if feeds is not None:
        found.run(None, dict(feeds))


def session(task: building.Task, digest: str, session_options: Any) -> Any:
    """Return a session of the source of *task*, with CoreML's key in it where that provider is asked for."""
    own = task.options.session_options() if session_options is None else session_options
    with runtime.at_level(own, task.options.level):
        try:
            if COREML not in [name for name, _ in task.options.providers]:
                return runtime.create(task.source, own, task.options.providers)
            model = graph.with_metadata(_read(task.source), COREML_KEY, coreml_key(digest))
            if session_options is None:
                own.add_session_config_entry(building.FOLDER, os.path.dirname(task.source))
            return runtime.create(model, own, task.options.providers)
        except Exception as error:
            raise task.refused(error) from error


def product(cache: Cache, source: Source, task: building.Task, feeds: Mapping[str, Any] | None, **given: Any) -> str:
    """Return the path of the directory that the providers have filled; built if it is not here.

    Raises:
        DerivationError: It could not be made.
        ModelCacheError
    """
    params = {**task.options.params, **({"file": source.file} if source.file else {})}
    where = platform(task.options)
    what = Derivation(RECIPE, VERSION, (Part("model", source.digest, source.digest),), params, where)
    task = replace(task, name=f"{source.stem}.engines", ref=what.ref)
    return cache.derive(
        partial(fill, task, feeds, source.digest),
        isolate=True,
        recipe=RECIPE,
        version=VERSION,
        inputs={"model": source.input},
        params=params,
        platform=where,
        **given,
    )


class Copies:
    """Private copies of directories, one of each for a process."""

    def __init__(self) -> None:
        self._made: dict[tuple[int, str], str] = {}
        forks.renew_after_fork(self)  # A copy takes a while, and a fork in it would leave the child waiting for ever.

    def renew_guard(self) -> None:
        """See `forks`."""
        self._guard = threading.Lock()

    def of(self, root: str, directory: str) -> str:
        """Return a copy of *directory* that this process alone writes to, in the staging of the cache at *root*.

        Raises:
            StorageError, NoSpaceError
        """
        wanted = os.getpid(), directory
        with self._guard:
            if wanted not in self._made:
                if not self._made:
                    atexit.register(self.discard)
                self._made[wanted] = _copied(root, directory)
            return self._made[wanted]

    def discard(self) -> None:
        """Remove those of this process; those of a child that was forked are its own."""
        with self._guard:
            for owner, directory in list(self._made):
                path = self._made.pop((owner, directory))
                if owner == os.getpid():
                    commit.discard(path)


copies = Copies()


def _copied(root: str, directory: str) -> str:
    try:
        target = commit.stage_directory(root)
        for path, _ in trees.walk(directory):
            commit.make_staged(os.path.dirname(f"{target}/{path}"))
            descriptor = commit.create_file(f"{target}/{path}")
            try:
                written(descriptor, of_file(f"{directory}/{path}"))
            finally:
                os.close(descriptor)
    except OSError as error:
        if isinstance(error, ModelCacheError):
            raise
        raise storage_error(error, action="copy", path=root) from error
    return target


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
