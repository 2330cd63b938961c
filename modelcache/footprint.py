"""What lies on the disk: bytes by inode, so that what several names share is counted once."""

from __future__ import annotations

import os
import stat

from .eviction import File, Footprint


def object_footprint(directory: str, name: str = "") -> Footprint:
    """Return that of the object in *directory*, which may be known to hold a file called *name*."""
    if name:
        try:
            found = os.stat(f"{directory}/{name}", follow_symlinks=False)
        except OSError:
            return footprint_of(directory)
        # All names of a file object are links of one inode: one that has a single link is all there is.
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return Footprint(found.st_size)
    return footprint_of(directory)


def footprint_of(path: str) -> Footprint:
    """Return that of the regular files at and under *path*; what goes meanwhile is passed over."""
    own = 0
    shared: list[File] = []
    pending = [path]
    while pending:
        try:
            inside = os.scandir(pending.pop())
        except NotADirectoryError:
            return _of_file(path)
        except OSError:
            continue
        with inside:
            for one in inside:
                try:
                    if one.is_dir(follow_symlinks=False):
                        pending.append(one.path)
                        continue
                    found = one.stat(follow_symlinks=False)
                except OSError:
                    continue
                if found.st_nlink == 1:  # Only what has several names is remembered by its inode.
                    own += found.st_size if stat.S_ISREG(found.st_mode) else 0
                elif stat.S_ISREG(found.st_mode):
                    shared.append(File((found.st_dev, found.st_ino), found.st_size, found.st_nlink))
    return Footprint(own, tuple(shared))


def _of_file(path: str) -> Footprint:
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return Footprint()
    if not stat.S_ISREG(found.st_mode):
        return Footprint()
    if found.st_nlink == 1:
        return Footprint(found.st_size)
    return Footprint(0, (File((found.st_dev, found.st_ino), found.st_size, found.st_nlink),))
