"""The canonical listing of a tree: what a directory holds, as text that has one form only. No I/O.

One line a file, sorted by the bytes of its path, after a first line that names the form::

    modelcache-tree 1
    <sha256, 64 hexadecimal digits> <size in bytes> <x or -> <path>

A tree's digest is ``tree:`` and the SHA-256 of this text. Empty directories, times and owners are no part of it; of the
mode, whether it may be executed is.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from .digest import TREE, Digest
from .errors import InvalidReferenceError
from .reference import check_name

_HEAD = "modelcache-tree 1\n"
_DEPTH_MAX = 64
_PATH_BYTES_MAX = 2048  # With the root before it, it must stay below PATH_MAX.


@dataclass(frozen=True, slots=True)
class Leaf:
    """A file of a tree: its path in it, parted by ``/``; its size in bytes; its digest; whether it may be executed."""

    path: str
    size: int
    digest: Digest
    executable: bool = False


class Listing:
    """The files of a tree, sorted.

    Raises:
        InvalidReferenceError: A path could leave the tree, is there twice, or is a directory as well.
    """

    __slots__ = ("files",)

    def __init__(self, files: Iterable[Leaf], *, ref: str) -> None:
        self.files = tuple(sorted(files, key=lambda leaf: leaf.path.encode("utf-8", "surrogatepass")))
        check_paths((leaf.path for leaf in self.files), ref=ref)

    def encode(self) -> bytes:
        """Return the text."""
        lines = (
            f"{leaf.digest.hex} {leaf.size} {'x' if leaf.executable else '-'} {leaf.path}\n" for leaf in self.files
        )
        return (_HEAD + "".join(lines)).encode("utf-8", "surrogatepass")

    @classmethod
    def decode(cls, data: bytes) -> Listing | None:
        """Return the listing in *data*, None if that is not the text of one."""
        try:
            text = data.decode("utf-8", "surrogatepass")
            files = [_leaf(line) for line in text.removeprefix(_HEAD).split("\n")[:-1]]
            found = cls(files, ref="")
        except (ValueError, InvalidReferenceError):
            return None
        return found if found.encode() == data else None

    @property
    def digest(self) -> Digest:
        """The tree's digest."""
        return digest_of_text(self.encode())

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(leaf.size for leaf in self.files)


def digest_of_text(text: bytes) -> Digest:
    """Return the digest of the tree whose listing is *text*."""
    return Digest(f"{TREE}:{hashlib.sha256(text).hexdigest()}")


def check_paths(paths: Iterable[str], *, ref: str) -> None:
    """Check that *paths* can be files of one tree, below its directory.

    Raises:
        InvalidReferenceError: One could leave the tree, is there twice, or is a directory of another one.
    """
    seen: set[str] = set()
    directories: set[str] = set()
    for path in paths:
        parts = path.split("/")
        for part in parts:
            check_name(part, ref=ref)
        if len(parts) > _DEPTH_MAX or len(path.encode("utf-8", "surrogatepass")) > _PATH_BYTES_MAX:
            raise InvalidReferenceError(ref=ref, problem=f"the path {path[:80]!r}… in it is too deep or too long")
        if path in seen:
            raise InvalidReferenceError(ref=ref, problem=f"it holds {path!r} twice")
        seen.add(path)
        directories.update("/".join(parts[:count]) for count in range(1, len(parts)))
    both = seen & directories
    if both:
        raise InvalidReferenceError(ref=ref, problem=f"it holds {min(both)!r} as a file and as a directory")


class Names:
    """Paths that shall be files of one tree, also where case and normal form do not count (macOS)."""

    def __init__(self) -> None:
        self._files: dict[str, str] = {}
        self._directories: dict[str, str] = {}  # With a file in each.

    def add(self, path: str) -> str | None:
        """Add *path*; return why it cannot be there with the others: one name with one, or a directory of one."""
        folded = _folded(path)
        if folded in self._files:
            return f"{brief(self._files[folded])} and {brief(path)} are one name on some file systems"
        if folded in self._directories:
            return f"{brief(path)} is a file, and {brief(self._directories[folded])} is in it"
        parents = folded.split("/")[:-1]
        for count in range(1, len(parents) + 1):
            parent = "/".join(parents[:count])
            if parent in self._files:
                return f"{brief(self._files[parent])} is a file, and {brief(path)} is in it"
            self._directories.setdefault(parent, path)
        self._files[folded] = path
        return None


def clash(paths: Iterable[str]) -> str | None:
    """Return why *paths* cannot all be files of one tree where case and normal form do not count; else None."""
    names = Names()
    return next((problem for problem in map(names.add, paths) if problem is not None), None)


def brief(path: str) -> str:
    """Return *path* as it may be printed."""
    return repr(path) if len(path) <= 100 else f"{path[:100]!r}…"


def _folded(path: str) -> str:
    """Return what two paths have in common that are one name where case and normal form do not count."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _leaf(line: str) -> Leaf:
    digits, size, flag, path = line.split(" ", 3)
    if flag not in {"x", "-"}:
        raise ValueError(flag)
    return Leaf(path, int(size), Digest.parse(digits), flag == "x")
