"""What a cache has on disk, counted."""

from __future__ import annotations

import os

from . import files, layout
from .doctor import health
from .objects import Objects
from .partials import Partials
from .pins import Pins
from .records import Entries
from .report import Usage


def measure(root: str) -> Usage:
    """Return what is under *root*; bytes that several names share are counted once."""
    objects = list(Objects(root).all())
    seen: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(f"{root}/{layout.OBJECTS}"):
        for name in names:
            try:
                found = os.stat(f"{directory}/{name}", follow_symlinks=False)
            except OSError:
                continue  # It was removed this moment.
            seen[found.st_dev, found.st_ino] = found.st_size
    partials, partial_bytes = Partials(root).size()
    return Usage(
        root=root,
        entries=sum(1 for _ in Entries(root).all()),
        pinned=len(Pins(root).all()),
        objects=len(objects),
        object_bytes=sum(seen.values()),
        partials=partials,
        partial_bytes=partial_bytes,
        quarantined=len(files.listing(f"{root}/{layout.QUARANTINE}")),
        free_bytes=health(root, offline=True).free_bytes,
    )
