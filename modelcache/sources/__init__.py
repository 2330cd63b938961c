"""The registry: from a scheme to the source that serves it."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from importlib.metadata import entry_points

from ..errors import ConfigurationError, UnknownSchemeError
from ..forks import renew_after_fork
from ..reference import Ref
from .base import RemoteFile, RemoteListing, Request, Source, Stream, Validators

__all__ = ["Registry", "RemoteFile", "RemoteListing", "Request", "Source", "Stream", "Validators"]

GROUP = "modelcache.sources"
_BUILT_IN = ("file", "hf", "http", "https")


class Registry:
    """The sources of one cache: those it was given, then the built-in ones, then the installed ones.

    A source is made when its scheme is first asked for, so that a cache of local files never loads an HTTP client.
    """

    def __init__(self, given: Iterable[Source] = ()) -> None:
        self._sources: dict[str, Source] = {}
        renew_after_fork(self)
        for source in given:
            if not isinstance(source, Source):
                raise ConfigurationError(
                    setting="sources", value=repr(source), expected="instances of modelcache.sources.Source"
                )
            for scheme in source.schemes:
                self._sources[scheme] = source

    def renew_guard(self) -> None:
        """Replace the lock, which another thread may have held at a fork."""
        self._guard = threading.Lock()

    def check(self, ref: Ref) -> None:
        """Check that there is a source for *ref*, without making a built-in one; raise UnknownSchemeError."""
        if ref.scheme not in _BUILT_IN:
            self.source(ref)

    def source(self, ref: Ref) -> Source:
        """Return the source for *ref*.

        Raises:
            UnknownSchemeError: There is none, or the installed one cannot be loaded.
        """
        with self._guard:
            source = self._sources.get(ref.scheme)
            if source is None:
                source = self._make(ref)
                for scheme in source.schemes:
                    self._sources.setdefault(scheme, source)
            return source

    def close(self) -> None:
        """Let go of the idle connections of all sources."""
        with self._guard:
            for source in set(self._sources.values()):
                source.close()

    def _make(self, ref: Ref) -> Source:
        if ref.scheme in {"http", "https"}:
            from .http import HttpSource  # urllib3 takes 100 ms to import.

            return HttpSource()
        if ref.scheme == "hf":
            from .hf import HfSource

            return HfSource()
        if ref.scheme == "file":
            from .file import FileSource

            return FileSource()
        installed = {point.name: point for point in entry_points(group=GROUP)}
        if ref.scheme not in installed:
            known = (*_BUILT_IN, *self._sources, *installed)
            raise UnknownSchemeError(ref=ref.key, scheme=ref.scheme, known=tuple(sorted(set(known))))
        made = installed[ref.scheme].load()()
        if not isinstance(made, Source):
            expected = "a subclass of modelcache.sources.Source"
            raise ConfigurationError(setting=f"entry point {GROUP}:{ref.scheme}", value=repr(made), expected=expected)
        return made
