"""What tells one version of a file of this machine from another without reading it: inode, size, mtime."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from .layout import sha256_hex

_TAKEN_MAX = 64


def stamp(found: os.stat_result) -> str:
    """Return the entity tag of a file: inode, size and mtime."""
    return f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"'


def stamp_of(files: Iterable[tuple[str, str | None]]) -> str | None:
    """Return that of several *files*, path and stamp; None if there are none, or one has no stamp."""
    found = sorted(files)
    if not found or any(one is None for _, one in found):
        return None
    text = "".join(f"{one} {path}\n" for path, one in found)
    return f'"tree-{sha256_hex(text.encode("utf-8", "surrogatepass"))[:32]}"'


def is_current(path: str, etag: str | None, wanted: Callable[[str], bool] = lambda _path: True) -> bool:
    """Tell whether *etag* is that of what is at *path* now: a file, or those files of a directory that are *wanted*."""
    try:
        if os.path.isdir(path):
            from . import trees  # A first look at one file needs none.

            inside = ((name, stamp(facts)) for name, facts in trees.walk(path, follow=True) if wanted(name))
            return etag is not None and stamp_of(inside) == etag
        return etag == stamp(os.stat(path))
    except OSError:
        return False


def taken(directory: str) -> dict[str, tuple[int, int]]:
    """Return size and mtime of each file in *directory*, by path, as `hold` compares them; of a large one, of none."""
    from . import trees

    found = {path: (facts.st_size, facts.st_mtime_ns) for path, facts in trees.walk(directory)}
    return found if len(found) <= _TAKEN_MAX else {}


def hold(directory: str, known: Mapping[str, Sequence[int]]) -> bool:
    """Tell whether each file in *directory* is as it was when `taken`.

    The look of a hit sees the directory only, and a runtime that maps a file does not look at what it maps.
    """
    try:
        for path, (size, mtime_ns) in known.items():
            found = os.lstat(f"{directory}/{path}")
            if found.st_size != size or found.st_mtime_ns != mtime_ns:
                return False
    except (OSError, TypeError, ValueError, AttributeError):  # It is gone, or the record makes no sense.
        return False
    return True
