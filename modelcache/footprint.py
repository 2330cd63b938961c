"""What lies on the disk: the files at a path, as their inodes, so that what several names share is counted once."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .eviction import File


def object_files(directory: str, name: str = "") -> tuple[File, ...]:
    """Return the files of the object in *directory*, which may be known to hold a file called *name*."""
    if name:
        try:
            found = os.stat(f"{directory}/{name}", follow_symlinks=False)
        except OSError:
            return tuple(files_at(directory))
        # All names of a file object are links of one inode: one that has a single link is all there is.
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return (File((found.st_dev, found.st_ino), found.st_size, 1),)
    return tuple(files_at(directory))


def files_at(path: str) -> list[File]:
    """Return the regular files at and under *path*, each of its names; what goes meanwhile is passed over."""
    found: list[File] = []
    try:
        with os.scandir(path) as inside:
            for one in inside:
                if one.is_dir(follow_symlinks=False):
                    found += files_at(one.path)
                else:
                    found += _file(one)
    except NotADirectoryError:
        found += _file(Path(path))
    except OSError:
        pass
    return found


def _file(one: os.DirEntry[str] | Path) -> tuple[File, ...]:
    try:
        found = one.stat(follow_symlinks=False)
    except OSError:
        return ()
    return (File((found.st_dev, found.st_ino), found.st_size, found.st_nlink),) if stat.S_ISREG(found.st_mode) else ()
