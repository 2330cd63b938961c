"""What a cache has on disk, counted."""

from __future__ import annotations

from . import files, layout
from .doctor import health
from .objects import Objects
from .partials import Partials
from .pins import Pins
from .records import Entries
from .report import Usage


def measure(root: str) -> Usage:
    """Return what is under *root*; bytes that several names share are counted once."""
    objects = Objects(root)
    found = [objects.find(digest) for digest in objects.all()]
    partials, partial_bytes = Partials(root).size()
    return Usage(
        root=root,
        entries=sum(1 for _ in Entries(root).all()),
        pinned=len(Pins(root).all()),
        objects=len(found),
        object_bytes=sum(stored.size for stored in found if stored is not None),
        partials=partials,
        partial_bytes=partial_bytes,
        quarantined=len(files.listing(f"{root}/{layout.QUARANTINE}")),
        free_bytes=health(root, offline=True).free_bytes,
    )
