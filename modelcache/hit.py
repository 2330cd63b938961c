"""The warm look: from a key to the path of a whole object, or None.

One record read and one ``stat`` (I5, I6): no lock, no write, no parser, no import beyond what the interpreter has
loaded. What it cannot answer (a broken record, a touched object) is a miss here, and the slow path finds out why.
"""

import os
import stat
from time import time

from .layout import FORMAT, OBJECTS, decode_head, key_id, record_path

# A head is some 190 bytes and a name; what a longer one has in excess is read by the slow path.
HEAD_BYTES_MAX = 1024
# Neither a link nor a FIFO that another user has put there: the one is not followed, the other does not block.
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
USE_STAMP_S = 3600.0  # Uses are recorded at most this often, in seconds.


class Hit:
    """A whole object that may be used now: what the head of its record says."""

    __slots__ = ("checked", "expires", "mtime_ns", "name", "object", "path", "size")

    def __init__(self, root: str, head: tuple[str, int, int, int, str, int]) -> None:
        self.object, self.size, self.mtime_ns, self.checked, self.name, self.expires = head
        self.path = f"{root}/{OBJECTS}/{self.object}/{self.name}"


def stands(path: str, size: int, mtime_ns: int) -> bool:
    """Tell whether the object's file is there, with the *size* (bytes) and *mtime_ns* on record: the price of a hit."""
    try:
        return is_same(os.lstat(path), size, mtime_ns)
    except OSError:
        return False


def is_directory(path: str) -> bool:
    """Tell whether *path* is a directory, and no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def is_same(found: os.stat_result, size: int, mtime_ns: int) -> bool:
    """Tell whether *found* is what is on record. Of a tree only its own mtime can be compared: names came or went."""
    if found.st_mtime_ns != mtime_ns:
        return False
    return found.st_size == size if stat.S_ISREG(found.st_mode) else stat.S_ISDIR(found.st_mode)


def look(root: str, key: str, *, recently: bool = False) -> "Hit | None":
    """Return the hit for *key*, or None, also if its time is over.

    With *recently*, a hit whose last use is on record as more than an hour old is left to the slow path, which records
    the use (DESIGN.md section 6); unless the record cannot be written anyhow.
    """
    identity = key_id(key)
    path = record_path(root, key)
    try:
        descriptor = os.open(path, _READ)
    except OSError:
        return None
    try:
        head = decode_head(identity, os.read(descriptor, HEAD_BYTES_MAX))
        if head is None or (head[5] and head[5] <= time()):
            return None
        if recently:
            found = os.fstat(descriptor)
            if abs(time() - found.st_mtime) > USE_STAMP_S and os.access(path, os.W_OK):
                return None
            # Where other users write too, one of them may have put a link in place of the object's directory.
            if found.st_mode & _OTHERS_WRITE and not is_directory(f"{root}/{OBJECTS}/{head[0]}"):
                return None
    except OSError:
        return None
    finally:
        os.close(descriptor)
    hit = Hit(root, head)
    return hit if stands(hit.path, hit.size, hit.mtime_ns) else None


def format_is_known(root: str) -> bool:
    """Tell whether the root's ``format`` is one that this code may read; a missing one is.

    What stands in the way otherwise (a file in the root's place, no permission) is told by `roots.check_format`.
    """
    try:
        descriptor = os.open(f"{root}/format", _READ)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        text = os.read(descriptor, 32).strip()
    except OSError:  # A directory in its place.
        return False
    finally:
        os.close(descriptor)
    return text.isdigit() and int(text) <= FORMAT
