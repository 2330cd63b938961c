"""What a cache has on disk, counted: as a whole, and by model."""

from __future__ import annotations

from . import files, layout
from .doctor import health
from .footprint import files_at, object_files
from .objects import Objects
from .partials import Partials
from .pins import Pins
from .records import Entries, Entry
from .report import ModelUsage, Usage


def measure(root: str) -> Usage:
    """Return what is under *root*; bytes that several names share are counted once."""
    objects = list(Objects(root).all())
    seen = {file.inode: file.size for file in files_at(f"{root}/{layout.OBJECTS}")}
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


def measure_models(root: str) -> tuple[list[ModelUsage], int]:
    """Return what each object under *root* takes, the largest first, and the bytes of all."""
    entries: dict[str, list[Entry]] = {}
    for entry in Entries(root).all():
        entries.setdefault(layout.object_name(entry.digest), []).append(entry)
    directory = f"{root}/{layout.OBJECTS}"
    found = {}
    for name in files.listing(directory):
        of = entries.get(name, ())
        found[name] = {one.inode: one.size for one in object_files(f"{directory}/{name}", of[0].name if of else "")}
    owners: dict[tuple[int, int], int] = {}
    sizes: dict[tuple[int, int], int] = {}
    for inodes in found.values():
        sizes.update(inodes)
        for inode in inodes:
            owners[inode] = owners.get(inode, 0) + 1
    models = []
    for name, inodes in found.items():
        own = sum(size for inode, size in inodes.items() if owners[inode] == 1)
        refs = tuple(sorted(entry.key for entry in entries.get(name, ())))
        models.append(ModelUsage(name, refs, own, sum(inodes.values()) - own))
    models.sort(key=lambda one: (-one.own_bytes - one.shared_bytes, one.refs, one.object))
    return models, sum(sizes.values())
