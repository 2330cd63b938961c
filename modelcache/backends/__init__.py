"""Backends: the storage that a tier or an event archive sits on. The names are loaded when they are first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Archived as Archived
    from .base import Backend as Backend
    from .base import Batch as Batch
    from .directory import DirectoryBackend as DirectoryBackend
    from .memory import MemoryBackend as MemoryBackend
    from .objectstore import ObjectStoreBackend as ObjectStoreBackend
    from .sqlite import SqliteBackend as SqliteBackend

_HOMES = {
    "Archived": "base",
    "Backend": "base",
    "Batch": "base",
    "DirectoryBackend": "directory",
    "MemoryBackend": "memory",
    "ObjectStoreBackend": "objectstore",
    "SqliteBackend": "sqlite",
}
__all__ = sorted(_HOMES)  # noqa: PLE0605  # One list of names is enough.


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{home}"), name)
