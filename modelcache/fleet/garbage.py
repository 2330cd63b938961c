"""What is left of claims and parts where every machine that wanted a key was killed, and none came after it.

Two looks, more than a lease apart: what has moved belongs to somebody who lives. No clock but our own is asked.
"""

from __future__ import annotations

from collections.abc import Callable

from ..backends.base import Backend
from ..errors import NotInArchiveError

_TOPS = ("claims/", "parts/")


def collect(backend: Backend, *, lease: float, wait: Callable[[float], object]) -> int:
    """Remove the claims, beats and parts of keys on which nothing moves; return how many files went.

    Args:
        backend: The bucket.
        lease: The longest that any of its users has, in seconds.
        wait: Waits so many seconds.

    Raises:
        BackendError: Some may have gone.
    """
    before = _looked(backend)
    if not before:
        return 0
    wait(1.5 * lease)
    removed = 0
    now = _looked(backend)
    for key, files in before.items():
        if now.get(key) != files:
            continue
        for name in sorted(files):  # Claims before parts: who comes meanwhile makes a claim of its own.
            backend.delete(name)
            removed += 1
    return removed


def _looked(backend: Backend) -> dict[str, dict[str, bytes]]:
    """Return the files of each key, by the id of the key: of claims and beats what they hold, of parts their names."""
    found: dict[str, dict[str, bytes]] = {}
    for top in _TOPS:
        for name in backend.names(top):
            key = name[len(top) :].partition("/")[0]
            try:
                found.setdefault(key, {})[name] = backend.read(name) if top == "claims/" else b""
            except NotInArchiveError:
                found.setdefault(key, {})[name] = b""  # It went this moment, and the key has moved.
    return found
