"""Where a backend is, as one word: ``s3://bucket/prefix``, ``sqlite:///abs/path``, ``directory:///abs/path``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ..errors import BackendSetupError, UsageError

if TYPE_CHECKING:
    from .base import Backend

SCHEMES = ("s3", "gs", "az", "sqlite", "directory")
EXPECTED = "s3://bucket/prefix, gs://…, az://…, sqlite:///absolute/path or directory:///absolute/path"


def check(location: str) -> str:
    """Return *location*; raise UsageError if it is none. Nothing is opened."""
    try:
        parts = urlsplit(location)
    except ValueError:
        parts = urlsplit("")
    local = parts.scheme in {"sqlite", "directory"}
    if parts.scheme not in SCHEMES or "@" in parts.netloc or parts.query or parts.fragment:
        # Not shown as it is: it may hold a password.
        raise UsageError(
            problem=f"{location.partition('://')[0]!r:.20}://… is no location of a backend",
            hint=f"Give {EXPECTED}, without credentials: those come from the variables of its provider",
        )
    if local and (parts.netloc or not parts.path.startswith("/") or parts.path == "/"):
        raise UsageError(problem=f"{location!r} has no absolute path: three slashes, such as {parts.scheme}:///srv/x")
    if not local and not parts.netloc:
        raise UsageError(problem=f"{location!r} names no bucket")
    return location


def opened(location: str, *, reading: bool = False) -> Backend:
    """Return the backend at *location*; where it is only for *reading*, it must be there.

    Raises:
        UsageError: It is no location.
        BackendSetupError: It cannot be opened.
    """
    parts = urlsplit(check(location))
    if parts.scheme not in {"sqlite", "directory"}:
        from .objectstore import ObjectStoreBackend

        # Options of ours keep obstore from reading this one of the environment.
        plain = os.environ.get("AWS_ALLOW_HTTP", "").strip().lower() in {"1", "true"}
        return ObjectStoreBackend(location, client_options={"allow_http": True} if plain else None, check=not reading)
    path = unquote(parts.path)
    if reading and not os.path.exists(path):
        raise BackendSetupError(backend=location, detail="it is not there")
    if parts.scheme == "sqlite":
        from .sqlite import SqliteBackend

        return SqliteBackend(path)
    from .directory import DirectoryBackend

    return DirectoryBackend(path)
