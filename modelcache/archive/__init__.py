"""The archive: writes that fan out to backends through queues, and reads that ask them by priority (docs/archive.md).

The names are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backends.base import Archived as Archived
    from ..backends.base import Backend as Backend
    from ..backends.base import Batch as Batch
    from ..backends.directory import DirectoryBackend as DirectoryBackend
    from ..backends.memory import MemoryBackend as MemoryBackend
    from ..backends.objectstore import ObjectStoreBackend as ObjectStoreBackend
    from ..backends.sqlite import SqliteBackend as SqliteBackend
    from .archivist import Archivist as Archivist
    from .health import BackendHealth as BackendHealth
    from .health import Dropped as Dropped
    from .registration import Direct as Direct
    from .registration import Queued as Queued
    from .registration import Registration as Registration

_HOMES = {
    "Archived": "backends.base",
    "Archivist": "archive.archivist",
    "Backend": "backends.base",
    "BackendHealth": "archive.health",
    "Batch": "backends.base",
    "Direct": "archive.registration",
    "DirectoryBackend": "backends.directory",
    "Dropped": "archive.health",
    "MemoryBackend": "backends.memory",
    "ObjectStoreBackend": "backends.objectstore",
    "Queued": "archive.registration",
    "Registration": "archive.registration",
    "SqliteBackend": "backends.sqlite",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605  # One list of names is enough.


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"modelcache.{home}"), name)
    globals()[name] = value
    return value
