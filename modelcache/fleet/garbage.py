"""What is left of claims and parts where every machine that wanted a key was killed, and none came after it.

Two looks, more than a lease apart: what has moved belongs to somebody who lives. No clock but our own is asked. Who
comes between the second look and a removal loses bytes that it would have gone on with, or its claim: so it costs a
download at worst, and no content, because nothing but claims, parts and the files of probes is ever removed.
"""

from __future__ import annotations

from collections.abc import Callable

from failpoints import fail_point

from ..backends.base import Backend
from ..errors import NotInArchiveError

_CLAIMS = "claims/"
_TOPS = (_CLAIMS, "parts/", "probes/")
_WAIT_MIN_S = 20.0  # A probe of a slow bucket takes half as long.


def collect(
    backend: Backend, *, lease: float, wait: Callable[[float], object], dry_run: bool = False
) -> tuple[str, ...]:
    """Remove the claims, beats and parts of keys on which nothing moves; return the names of the files.

    Args:
        backend: The bucket.
        lease: The longest that any of its users has, in seconds.
        wait: Waits so many seconds.
        dry_run: Remove nothing.

    Raises:
        BackendError: Some may have gone.
    """
    before = _looked(backend)
    if not before:
        return ()
    wait(max(1.5 * lease, _WAIT_MIN_S))
    removed: list[str] = []
    now = _looked(backend)
    for key, files in sorted(before.items()):
        if now.get(key) != files:
            continue
        for name in sorted(files):  # Claims before parts: who comes meanwhile makes a claim of its own.
            if not dry_run:
                if name.startswith(_CLAIMS) and _content(backend, name) != files[name]:
                    break  # Somebody has come this moment.
                fail_point("fleet.garbage.before-delete")
                backend.delete(name)
            removed.append(name)
    return tuple(removed)


def _looked(backend: Backend) -> dict[str, dict[str, bytes | None]]:
    """Return the files of each key, by the id of the key: of claims and beats what they hold, of parts their names."""
    found: dict[str, dict[str, bytes | None]] = {}
    for top in _TOPS:
        for name in backend.names(top):
            key = name[len(top) :].partition("/")[0]
            found.setdefault(key, {})[name] = _content(backend, name) if top == _CLAIMS else b""
    return found


def _content(backend: Backend, name: str) -> bytes | None:
    """Return what the file holds; None if it has gone this moment."""
    try:
        return backend.read(name)
    except NotInArchiveError:
        return None
