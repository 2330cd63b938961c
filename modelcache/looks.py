"""The use of a look: a hit of a process that makes no `Cache` leaves one line, where usage is counted.

``modelcache path`` and the first ``modelcache.get`` of a process end before anything could be flushed. So each appends
a line to one file a day and host, in one system call, which is all there or not there beside those of others; a line
begins with its own checksum, and behind a line end, so that one that was torn harms no other. What folds the file
away (`usage.store`) may lose a line that is being appended at that moment: usage is lossy by design.

This module is on the path of a warm hit in a new process: it imports nothing that the interpreter has not loaded,
unless a file must be made.
"""

import os
from time import gmtime, strftime, time

from .layout import USAGE, sha256_hex

TYPE_CHECKING = False  # typing takes 10 ms to import; type checkers take this name for its constant.
if TYPE_CHECKING:
    from collections.abc import Iterator

SUFFIX = ".looks"
_MAGIC = "mcu1"
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def add(root: str, key: str, size: int) -> None:
    """Count a hit of the model *key*, of *size* bytes, in the cache at *root*; what cannot be written is dropped."""
    now = time()
    host = os.uname().nodename
    data = _line(f"{int(now)} {size} {_escaped(host)} {_escaped(key)}")
    path = f"{root}/{USAGE}/{strftime('%Y-%m-%d', gmtime(now))}.{sha256_hex(host.encode())[:8]}{SUFFIX}"
    try:
        descriptor = os.open(path, _APPEND)
    except FileNotFoundError:
        if not _made(path):
            return
        try:
            descriptor = os.open(path, _APPEND)
        except OSError:
            return
    except OSError:
        return
    try:
        os.write(descriptor, data)
    except OSError:
        pass  # A full disk: a hit is served all the same.
    finally:
        os.close(descriptor)


def _made(path: str) -> bool:
    """Make the file of this day; False if that cannot be."""
    from . import commit

    try:
        commit.ensure_bucket(os.path.dirname(path), durable=False)
        commit.make_mark(path)
    except FileExistsError:
        pass  # Another process was faster.
    except OSError:
        return False
    return True


def lines(data: bytes) -> "Iterator[tuple[int, int, str, str]]":
    """Yield time (Unix seconds), size (bytes), host and key of each whole line of *data*."""
    for line in data.split(b"\n"):
        try:
            magic, found, rest = line.decode().split(" ", 2)
            if magic != _MAGIC or found != sha256_hex(rest.encode())[:16]:
                continue
            when, size, host, key = rest.split(" ", 3)
            yield int(when), int(size), _plain(host), _plain(key)
        except ValueError:  # Torn, or not ours.
            continue


def _line(rest: str) -> bytes:
    return f"\n{_MAGIC} {sha256_hex(rest.encode())[:16]} {rest}\n".encode()


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _plain(text: str) -> str:
    return text.encode("ascii").decode("unicode_escape")
