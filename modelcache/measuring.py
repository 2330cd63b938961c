"""What a cache has on disk, counted: as a whole, and by model."""

from __future__ import annotations

from . import files, layout
from .doctor import health
from .footprint import footprint_of, object_footprint
from .objects import Objects
from .partials import Partials
from .pins import Pins
from .records import Entries
from .report import DiskUsage, ModelDiskUsage


def measure(root: str) -> DiskUsage:
    """Return what is under *root*; bytes that several names share are counted once."""
    objects = list(Objects(root).all())
    partials, partial_bytes = Partials(root).size()
    return DiskUsage(
        root=root,
        entries=sum(1 for _ in Entries(root).all()),
        pinned=len(Pins(root).all()),
        objects=len(objects),
        object_bytes=footprint_of(f"{root}/{layout.OBJECTS}").size,
        partials=partials,
        partial_bytes=partial_bytes,
        quarantined=len(files.listing(f"{root}/{layout.QUARANTINE}")),
        free_bytes=health(root, offline=True).free_bytes,
    )


def measure_models(root: str) -> tuple[list[ModelDiskUsage], int]:
    """Return what each object under *root* takes, the largest first, and the bytes of all."""
    refs: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for entry in Entries(root).all():
        refs.setdefault(layout.object_name(entry.digest), []).append(entry.key)
        names[layout.object_name(entry.digest)] = entry.name
    directory = f"{root}/{layout.OBJECTS}"
    found = {}
    owners: dict[tuple[int, int], int] = {}
    total = 0
    for name in files.listing(directory):
        one = object_footprint(f"{directory}/{name}", names.get(name, ""))
        inodes = {file.inode: file.size for file in one.shared}
        total += one.own + sum(size for inode, size in inodes.items() if inode not in owners)
        for inode in inodes:
            owners[inode] = owners.get(inode, 0) + 1
        found[name] = one.own, inodes
    models = []
    for name, (alone, inodes) in found.items():
        own = alone + sum(size for inode, size in inodes.items() if owners[inode] == 1)
        models.append(ModelDiskUsage(name, tuple(sorted(refs.get(name, ()))), own, alone + sum(inodes.values()) - own))
    models.sort(key=lambda one: (-one.own_bytes - one.shared_bytes, one.refs, one.object))
    return models, total
