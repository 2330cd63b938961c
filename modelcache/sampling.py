"""A quick look at a large content: the digest of some of its blocks, always the same ones.

What the look finds: content that became shorter or longer, files of a tree that are gone, and damage of any extent that
reaches one of the blocks: the first, the last, and fourteen between them whose places follow from the digest. What it
cannot find is a flipped bit anywhere else; ``verify="full"`` does. It reads a mebibyte, whatever the size.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

from . import files
from .digest import Digest
from .listing import Listing

BLOCK_BYTES = 1 << 16
BLOCKS = 16


def sample_of(path: str, digest: Digest, listing: Listing | None = None) -> str:
    """Return the SHA-256 over the blocks of the file *path*, or of the tree there, whose *listing* is given.

    Raises:
        OSError: Something of it cannot be read, or is not there.
    """
    parts = [(path, -1)] if listing is None else [(f"{path}/{leaf.path}", leaf.size) for leaf in listing.files]
    sizes = [(part, _size(part, expected)) for part, expected in parts]
    total = sum(size for _, size in sizes)
    state = hashlib.sha256(f"{total} ".encode())
    for start in _starts(total, digest):
        for block in _read(sizes, start):
            state.update(block)
    return state.hexdigest()


def _starts(total: int, digest: Digest) -> list[int]:
    """Return where the blocks begin, in order; all of a small content is one run of them."""
    last = total - BLOCK_BYTES
    if last <= BLOCK_BYTES * (BLOCKS - 1):
        return list(range(0, total, BLOCK_BYTES))
    drawn = hashlib.shake_256(digest.encode()).digest(8 * (BLOCKS - 2))
    places = (int.from_bytes(drawn[at : at + 8]) % last for at in range(0, len(drawn), 8))
    return sorted({0, last, *places})


def _size(path: str, expected: int) -> int:
    size = os.stat(path, follow_symlinks=False).st_size
    if expected not in {-1, size}:
        raise OSError(f"{path} has {size} bytes, {expected} were stored")
    return size


def _read(sizes: Sequence[tuple[str, int]], start: int) -> Iterator[bytes]:
    """Yield the bytes of one block, which may reach over several files."""
    left = BLOCK_BYTES
    for path, size in sizes:
        if start >= size:
            start -= size
            continue
        descriptor = files.open_regular(path, follow=False)
        try:
            block = os.pread(descriptor, min(left, size - start), start)
        finally:
            os.close(descriptor)
        yield block
        start, left = 0, left - len(block)
        if left <= 0 or not block:
            return
