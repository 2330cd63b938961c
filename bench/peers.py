"""Who is compared: this library and its peers, each at its best settings, behind one method.

A peer is asked in a process of its own (`bench.worker`). ``get`` returns a path whether the model is cached or not;
what a peer cannot do raises `MissingError`. Settings are written down here because they are part of the result.
"""

from __future__ import annotations

import importlib.metadata
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from .measure import MissingError

REVISION = "a" * 40  # A full commit: huggingface_hub then answers a hit without a request.


class Subject(ABC):
    """One of those that are compared.

    Args:
        root: Its cache directory.
        server: Where the models are, as ``http://host:port``; "" if nothing is to be fetched.
        digests: The sha256 of each model, for those that verify.
    """

    package = ""
    settings = ""

    def __init__(self, root: str, server: str, digests: dict[str, str]) -> None:
        self.root, self.server, self.digests = root, server, digests

    @abstractmethod
    def get(self, name: str) -> str:
        """Return the path of the model *name*."""

    def get_many(self, names: list[str]) -> None:
        """Get all of *names*, in the order that a loop would."""
        for name in names:
            self.get(name)

    @property
    def hits(self) -> int:
        """Hits counted so far by the subject itself; -1 if it counts none."""
        return -1

    def url(self, name: str) -> str:
        """Return where the model *name* is."""
        return f"{self.server}/bench/models/resolve/{REVISION}/{name}"


class ModelCache(Subject):
    package = "modelcache"
    settings = "digest given, so that what comes is verified; synced before it is visible"

    def __init__(self, root: str, server: str, digests: dict[str, str]) -> None:
        super().__init__(root, server, digests)
        # What a first fetch imports: the peers import all of theirs at once, too.
        import modelcache.fetch
        import modelcache.flights
        import modelcache.sources.http  # noqa: F401  # Only imported.
        from modelcache import Cache

        self.cache = Cache(root)

    def get(self, name: str) -> str:
        digest = self.digests.get(name)
        return self.cache.get(self.url(name), digest=None if digest is None else f"sha256:{digest}")

    def get_many(self, names: list[str]) -> None:
        self.cache.get_many([self.url(name) for name in names])

    @property
    def hits(self) -> int:
        return self.cache.stats().hits


class HuggingFaceHub(Subject):
    package = "huggingface_hub"
    settings = "revision is a full commit, HF_HUB_DISABLE_PROGRESS_BARS, no telemetry; checks sizes, syncs nothing"

    def __init__(self, root: str, server: str, digests: dict[str, str]) -> None:
        super().__init__(root, server, digests)
        os.environ.update({
            "HF_ENDPOINT": server or "http://127.0.0.1:9", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "HF_HOME": root,
        })  # fmt: skip
        import huggingface_hub

        self._get: Any = huggingface_hub.hf_hub_download

    def get(self, name: str) -> str:
        return str(self._get("bench/models", name, revision=REVISION, cache_dir=self.root))


class Pooch(Subject):
    package = "pooch"
    settings = "known_hash given, progressbar=False"

    def __init__(self, root: str, server: str, digests: dict[str, str]) -> None:
        super().__init__(root, server, digests)
        import pooch

        pooch.get_logger().setLevel("ERROR")
        self._get: Any = pooch.retrieve

    def get(self, name: str) -> str:
        known = f"sha256:{self.digests[name]}"
        return str(self._get(self.url(name), known_hash=known, fname=name, path=self.root, progressbar=False))


class CachedPath(Subject):
    package = "cached_path"
    settings = "quiet=True; asks the server at every hit, by design"

    def __init__(self, root: str, server: str, digests: dict[str, str]) -> None:
        super().__init__(root, server, digests)
        import cached_path

        self._get: Any = cached_path.cached_path

    def get(self, name: str) -> str:
        return str(self._get(self.url(name), cache_dir=self.root, quiet=True))


class Fsspec(Subject):
    package = "fsspec"
    settings = "filecache over http, check_files=False"

    def __init__(self, root: str, server: str, digests: dict[str, str]) -> None:
        super().__init__(root, server, digests)
        import aiohttp  # noqa: F401  # What fsspec's http file system needs.
        import fsspec

        self._system: Any = fsspec.filesystem(
            "filecache", target_protocol="http", cache_storage=root, check_files=False
        )

    def get(self, name: str) -> str:
        with self._system.open(self.url(name)) as file:
            return str(file.name)


class DiskCache(Subject):
    package = "diskcache"
    settings = "a path by key; fetches nothing itself"

    def __init__(self, root: str, server: str, digests: dict[str, str]) -> None:
        super().__init__(root, server, digests)
        import diskcache

        self._cache: Any = diskcache.Cache(root)

    def get(self, name: str) -> str:
        path = self._cache.get(name)
        if path is None:
            if self.server:
                raise MissingError("fetches nothing itself")
            path = f"{self.root}/{name}"
            Path(path).touch()
            self._cache.set(name, path)
        return str(path)


class Stat(Subject):
    """The floor of a hit: one ``os.stat`` of a file that is there."""

    def get(self, name: str) -> str:
        path = f"{self.root}/{name}"
        os.stat(path)
        return path


SUBJECTS: dict[str, type[Subject]] = {
    "os.stat": Stat,
    "modelcache": ModelCache,
    "huggingface_hub": HuggingFaceHub,
    "pooch": Pooch,
    "cached_path": CachedPath,
    "fsspec": Fsspec,
    "diskcache": DiskCache,
}


def version(name: str) -> str:
    """Return the version of the peer *name*, "" if it is not installed."""
    try:
        return importlib.metadata.version(SUBJECTS[name].package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""
