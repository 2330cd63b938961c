"""What tells one version of a file of this machine from another: the entity tag of ``file://``. It reads no content."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable

from . import trees


def stamp(found: os.stat_result) -> str:
    """Return the entity tag of a file: inode, size and mtime."""
    return f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"'


def stamp_of(files: Iterable[tuple[str, str | None]]) -> str | None:
    """Return that of several *files*, path and stamp; None if there are none, or one has no stamp."""
    found = sorted(files)
    if not found or any(one is None for _, one in found):
        return None
    text = "".join(f"{one} {path}\n" for path, one in found)
    return f'"tree-{hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]}"'


def is_current(path: str, etag: str | None, wanted: Callable[[str], bool] = lambda _path: True) -> bool:
    """Tell whether *etag* is that of what is at *path* now: a file, or those files of a directory that are *wanted*."""
    try:
        if os.path.isdir(path):
            inside = ((name, stamp(facts)) for name, facts in trees.walk(path, follow=True) if wanted(name))
            return etag is not None and stamp_of(inside) == etag
        return etag == stamp(os.stat(path))
    except OSError:
        return False
