"""An archive into a staged tree, file by file: what may be unpacked, where to, and how much of it.

Rules for each member, before a byte of it is written:
  * Its path stays in the tree and can be a file's everywhere: no ``..``, no absolute path, no drive, no NUL, no name
    that is there twice, or that is one with another where capital letters and normal form do not count.
  * A link may lead to a file of the same archive, and becomes that file once more (a hard link, or a copy). It may not
    lead anywhere else, nor to a directory.
  * The limits of `ArchiveLimits` hold for what is unpacked, not for what the archive states, and there is room for it.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Iterator

from failpoints import fail_point

from . import files, packed
from .config import ArchiveLimits
from .errors import ArchiveError, ArchiveLimitError, InvalidReferenceError, NothingMatchesError
from .listing import Leaf, Names, check_paths
from .packed import DIRECTORY, FILE, HARD_LINK, Member
from .patterns import Patterns
from .staged import Present, StagedTree, of_file

_HOPS_MAX = 20
_RATIO_FROM_BYTES = 1 << 26  # What is smaller than this harms nobody, however well it was packed.


class Unpacking:
    """Fills *staged* from the archive behind *descriptor*.

    Args:
        staged: Of this process; the caller publishes or discards it.
        descriptor: Of the archive, which nobody writes to meanwhile.
        ref: How errors name it.
        patterns: Choose the members.
        limits: On what is unpacked.
        present: What the cache holds already: it becomes another name of that.
        make_room: Called with the bytes that are about to come, as far as is known.
        check: Called often; what it raises ends it.
    """

    def __init__(
        self,
        staged: StagedTree,
        descriptor: int,
        *,
        ref: str,
        patterns: Patterns,
        limits: ArchiveLimits,
        present: Present,
        make_room: Callable[[int], object],
        check: Callable[[], object],
    ) -> None:
        self._staged, self._descriptor, self._ref = staged, descriptor, ref
        self._patterns, self._limits, self._present = patterns, limits, present
        self._make_room, self._check = make_room, check
        self._packed_bytes = os.fstat(descriptor).st_size
        self._names = Names()
        self._leaves: dict[str, Leaf] = {}
        self._links: dict[str, str] = {}  # Where each one leads, as a path in the tree.
        self._seen: set[str] = set()  # Files that are there, wanted or not.
        self._bytes = self._members = 0
        self.directories: set[str] = (
            set()
        )  # Those that are members themselves: trees hold no empty ones, and some need them.

    def run(self) -> None:
        """Unpack.

        Raises:
            ArchiveError: With the member that is to blame; the staged tree is of no use then.
            ArchiveLimitError: It is larger than the limits allow; what was written is bounded by them.
            NothingMatchesError: No member is wanted.
            NoSpaceError, StorageError
        """
        for member in packed.members(self._descriptor, ref=self._ref, files_max=self._limits.files_max):
            self._check()
            self._members += 1
            self._limit("files_max", self._members, member.path)
            path = self._path(member)
            if member.kind == DIRECTORY:
                self.directories.add(path)
                continue
            problem = self._names.add(path)
            if problem is not None:
                raise self._error(member.path, problem)
            if member.kind == FILE:
                self._file(member, path)
            else:
                self._links[path] = self._target(member, path)
        for path in self._links:
            if self._patterns.match(path):
                self._link(path)
        if not self._leaves:
            raise NothingMatchesError(ref=self._ref, files=len(self._seen) + len(self._links))

    def _file(self, member: Member, path: str) -> None:
        self._seen.add(path)
        wanted = self._patterns.match(path)
        self._limit("bytes_max", self._bytes + member.size, member.path)
        if not wanted:
            for chunk in member.chunks():  # What is not wanted costs time too.
                self._count(len(chunk), member.path)
            return
        if member.size:
            self._make_room(member.size)
            files.check_space(self._staged.directory, member.size, what=self._ref)
        fail_point("unpacking.before-file")
        leaf = self._staged.write(path, self._counted(member), executable=member.executable)
        if self._present.has_size(leaf.size):
            existing = self._present.find(leaf.digest, executable=leaf.executable)
            if existing is not None:
                self._staged.replace(existing, leaf)
        self._leaves[path] = leaf

    def _counted(self, member: Member) -> Iterator[bytes]:
        for chunk in member.chunks():
            self._count(len(chunk), member.path)
            self._check()
            yield chunk

    def _count(self, size: int, member: str) -> None:
        self._bytes += size
        self._limit("bytes_max", self._bytes, member)
        if self._bytes > _RATIO_FROM_BYTES:
            self._limit("ratio_max", self._bytes / max(1, self._packed_bytes), member)

    def _limit(self, name: str, value: float, member: str) -> None:
        limit = getattr(self._limits, name)
        if value > limit:
            raise ArchiveLimitError(ref=self._ref, member=member, limit=name, allowed=limit, problem="")

    def _path(self, member: Member) -> str:
        """Return where in the tree *member* belongs; raise ArchiveError if that is nowhere."""
        path = member.path.removesuffix("/") if member.kind == DIRECTORY else member.path
        if "\0" in path:
            raise self._error(member.path, "its name holds a NUL")
        if path.startswith(("/", "\\")) or (path[1:2] == ":" and path[:1].isalpha()):
            raise self._error(member.path, "its name is absolute")
        while path.startswith("./"):
            path = path[2:].lstrip("/")
        if path in {"", "."} and member.kind == DIRECTORY:
            return ""
        for part in path.split("/"):
            self._limit("name_bytes_max", len(part.encode("utf-8", "surrogatepass")), member.path)
        self._limit("depth_max", path.count("/") + 1, member.path)
        try:
            check_paths([path], ref=self._ref)
        except InvalidReferenceError as error:
            raise self._error(member.path, str(error.facts["problem"])) from error
        return path

    def _target(self, member: Member, path: str) -> str:
        """Return the path in the tree that a link leads to."""
        start = "" if member.kind == HARD_LINK else posixpath.dirname(path)
        target = posixpath.normpath(posixpath.join(start, member.target))
        if not member.target or "\0" in target or target.startswith(("/", "../")) or target in {".", ".."}:
            raise self._error(member.path, f"it is a link that leads out of the archive, to {member.target!r:.100}")
        return target

    def _link(self, path: str) -> None:
        """Make the link *path* the file that it leads to, once more."""
        target, hops = self._links[path], 1
        while target in self._links and hops < _HOPS_MAX:
            target, hops = self._links[target], hops + 1
        leaf = self._leaves.get(target)
        if leaf is None:
            problem = f"it is a link to {target!r:.100}, which is no file of the archive"
            if target in self._seen:
                problem = f"it is a link to {target!r:.100}, which the patterns leave out"
            raise self._error(path, problem)
        existing = f"{self._staged.path}/{leaf.path}"
        if not self._staged.link(existing, Leaf(path, leaf.size, leaf.digest, leaf.executable)):
            self._count(leaf.size, path)
            files.check_space(self._staged.directory, leaf.size, what=self._ref)
            self._staged.write(path, of_file(existing), executable=leaf.executable)

    def _error(self, member: str, problem: str) -> ArchiveError:
        return ArchiveError(ref=self._ref, member=member, problem=problem)
