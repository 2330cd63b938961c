"""What is at a path, a file or a tree of files: its digest and its listing. It reads, and changes nothing."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from . import files, layout
from .digest import ALGORITHM, TREE, Digest
from .errors import InvalidReferenceError
from .listing import Leaf, Listing, digest_of_text

_NO_FILE = Digest(f"{ALGORITHM}:{'0' * 64}")  # Of no content that anybody knows.
_NO_TREE = Digest(f"{TREE}:{'0' * 64}")  # What holds a link or a device, or a name that none has, is no tree of ours.
_IN_PARALLEL_BYTES = 1 << 26


def digest_of(path: str, like: Digest) -> tuple[Digest, os.stat_result]:
    """Return the digest, of the same kind as *like*, of what is at *path*, and its ``stat``; raise OSError."""
    found = os.lstat(path)
    if not like.is_tree:
        # A link, or a FIFO, that somebody has put there is what no object holds, whatever is behind it.
        return files.digest_of(path) if stat.S_ISREG(found.st_mode) else (_NO_FILE, found)
    try:
        return listing_of(path).digest, found
    except (InvalidReferenceError, files.NotRegularError):
        return _NO_TREE, found


def listing_of(directory: str) -> Listing:
    """Read and hash all files below *directory*.

    Raises:
        OSError: One cannot be read.
        NotRegularError: Something in it is neither a file nor a directory.
        InvalidReferenceError: A name in it can be none of a tree's.
    """
    found = list(walk(directory))
    jobs = os.cpu_count() or 1 if sum(facts.st_size for _, facts in found) > _IN_PARALLEL_BYTES else 1

    def leaf(item: tuple[str, os.stat_result]) -> Leaf:
        digest, facts = files.digest_of(f"{directory}/{item[0]}")
        return Leaf(item[0], facts.st_size, digest, is_executable(facts))

    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(jobs, thread_name_prefix="modelcache-hash") as pool:
        return Listing(pool.map(leaf, found), ref=directory)


def walk(directory: str, *, follow: bool = False, below: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield the path below *directory*, and the ``stat``, of each file in it, in no order that means anything.

    Args:
        directory: Where to begin.
        follow: Take a link to a file for the file, as a user's own directory may hold some. Never one to a directory.
        below: Begin further down, and say so in each path.

    Raises:
        OSError: A directory cannot be read.
        NotRegularError: Something is neither a file nor a directory.
    """
    with os.scandir(f"{directory}/{below}") as found:
        entries = list(found)
    for entry in entries:
        path = f"{below}{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from walk(directory, follow=follow, below=f"{path}/")
            continue
        facts = entry.stat(follow_symlinks=follow)
        if not stat.S_ISREG(facts.st_mode):
            raise files.NotRegularError(errno.EINVAL, "it is neither a file nor a directory", f"{directory}/{path}")
        yield path, facts


def listing_on_record(directory: str, digest: Digest) -> Listing | None:
    """Return the listing in the *directory* of the tree object *digest*, unchecked; None if it is broken."""
    data = files.content(f"{directory}/{layout.LISTING}")
    if data is None or digest_of_text(data) != digest:
        return None
    return Listing.decode(data)


def is_executable(facts: os.stat_result) -> bool:
    """Tell whether its owner may execute the file."""
    return bool(facts.st_mode & stat.S_IXUSR)
