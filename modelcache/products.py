"""What a build has left in its directory: looked at, staged as an object, and published.

Nothing is believed of a build but the bytes that it leaves. A link is none of its product's, a file that has a second
name somewhere is copied (nobody else can write what is published, I5), and what changes while it is hashed is refused.
"""

from __future__ import annotations

import json
import os
import stat
import time
from typing import TYPE_CHECKING

from failpoints import fail_point

from . import commit, files, layout, sharing, trees
from .digest import Digest
from .errors import InvalidReferenceError, ProductError
from .listing import clash
from .objects import Objects, Stored
from .reference import check_name
from .staged import Present, StagedTree, of_file, written

if TYPE_CHECKING:
    from .derivation import Derivation

WORK = "work"  # The directory that a build is called with, in a staged one.


class Product:
    """The product of a build, in staging; whoever makes one publishes it or discards it.

    Attributes:
        path: Where it is, a file or a directory, until it is published.
        digest: Of its content, once it was hashed.
        size: Its bytes, once it was hashed.
    """

    def __init__(self, root: str, staged: str, returned: object, name: str | None, derivation: Derivation) -> None:
        """Take what the build that was called with ``<staged>/work``, and has *returned*, has left there.

        Raises:
            ProductError: It is no product.
            OSError
        """
        self._root, self._derivation = root, derivation
        source, name = self._found(staged, returned, name)
        self._is_tree = os.path.isdir(source)
        self._tree = StagedTree(root, name, ref=derivation.ref) if self._is_tree else None
        self._directory = self._tree.directory if self._tree is not None else commit.stage_directory(root)
        self.path = f"{self._directory}/{name}"
        self.digest, self.size = Digest(""), 0  # Not known yet.
        try:
            self._move(source)
        except PermissionError as error:
            self.discard()
            raise self.problem(f"{os.path.basename(error.filename or source)!r:.100} cannot be read") from error
        except BaseException:
            self.discard()
            raise

    def problem(self, detail: str) -> ProductError:
        """Return the error that says *detail* of it."""
        return ProductError(ref=self._derivation.ref, model=self._derivation.model, detail=detail)

    def hash(self) -> Digest:
        """Read and hash it; from then on it must not change.

        Raises:
            ProductError: It changes, or holds what cannot be stored.
            OSError
        """
        before = self.seen()
        if self._tree is None:
            self.digest, found = files.digest_of(self.path)
            self.size = found.st_size
        else:
            try:
                listing = trees.listing_of(self.path)
            except InvalidReferenceError as error:
                raise self.problem(f"a name in it cannot be kept: {error.facts['problem']}") from error
            self._tree.hold(listing.files)
            self.digest, self.size = listing.digest, listing.size
        if self.seen() != before:
            raise self.problem("it was still being written when it was looked at")
        return self.digest

    def seen(self) -> dict[str, tuple[int, int, int]]:
        """Return inode, size and mtime of each file, by path."""
        if self._tree is None:
            found = os.lstat(self.path)
            return {"": (found.st_ino, found.st_size, found.st_mtime_ns)}
        return {path: (found.st_ino, found.st_size, found.st_mtime_ns) for path, found in trees.walk(self.path)}

    def leaves(self) -> dict[str, str]:
        """Return the digest of each file, by path."""
        return {leaf.path: leaf.digest for leaf in self._tree.listing().files} if self._tree else {"": self.digest}

    def share(self) -> None:
        """Make what any object holds already another name of that file: it is read and hashed for that."""
        if self._tree is None:
            return
        present = Present(self._root)
        for leaf in self._tree.listing().files:
            if leaf.size and present.has_size(leaf.size):
                existing = present.find(leaf.digest, executable=leaf.executable)
                if existing is not None:
                    self._tree.replace(existing, leaf)

    def publish(self, objects: Objects) -> Stored:
        """Make it an object, durably. The caller announces its digest before, and records it after."""
        fail_point("products.before-publish")
        if self._tree is not None:
            return self._tree.publish(objects)
        stored = objects.publish(self._directory, self.digest, os.path.basename(self.path))
        self._directory = ""
        return stored

    def set_aside(self, reason: str) -> str:
        """Move it to quarantine with the *reason* beside it; return where it is. One of an action is kept."""
        place, action = f"{self._root}/{layout.QUARANTINE}", self._derivation.action
        for name in files.listing(place):
            if name.partition(".")[0] == action:
                commit.discard(f"{place}/{name}")
        target = f"{place}/{action}.{time.time_ns()}"
        commit.move_durably(self._directory, target)
        note = json.dumps({**self._derivation.as_dict(), "reason": reason, "time": int(time.time())}) + "\n"
        commit.commit_record(f"{self._root}/{layout.STAGING}", f"{target}/REASON.json", note.encode())
        return target

    def discard(self) -> None:
        """Remove it, if it is still there."""
        if self._directory:
            commit.discard(self._directory)

    def _found(self, staged: str, returned: object, name: str | None) -> tuple[str, str]:
        """Return where the product is, and what it is called."""
        work = f"{staged}/{WORK}"
        beside = [found for found in files.listing(staged) if found != WORK]
        if beside:
            raise self.problem(f"the build wrote outside its directory: {beside[0]!r:.100}")
        inside = files.listing(work)
        if returned is not None:
            source = self._returned(work, returned)
        elif not inside:
            raise self.problem("the build wrote nothing")
        elif len(inside) == 1:
            source = f"{work}/{inside[0]}"
        elif name is None:
            problem = (
                f"the build left {len(inside)} things ({', '.join(inside[:3])} …): name= says what they are together"
            )
            raise self.problem(problem)
        else:
            source = work
        found = os.lstat(source)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise self.problem(f"{os.path.basename(source)!r:.100} is neither a file nor a directory")
        if stat.S_ISREG(found.st_mode) and found.st_size == 0:
            raise self.problem("the build wrote nothing: its file is empty")
        name = name or os.path.basename(source)
        try:
            check_name(name, ref=self._derivation.ref)
        except InvalidReferenceError as error:
            raise self.problem(f"its name cannot be kept: {error.facts['problem']}") from error
        return source, name

    def _returned(self, work: str, returned: object) -> str:
        """Return where what the build has *returned* is, which must be in its directory."""
        path = os.fspath(returned) if isinstance(returned, str | os.PathLike) else None
        if not isinstance(path, str):
            raise self.problem(f"the build returned {returned!r:.100}: it is to return a path, or nothing")
        inside = os.path.normpath(os.path.join(work, path))
        if (
            not f"{inside}/".startswith(f"{work}/")
            or os.path.realpath(inside) != os.path.realpath(work) + inside[len(work) :]
        ):
            raise self.problem(f"the build returned a path outside its directory: {path!r:.200}")
        if not os.path.lexists(inside):
            raise self.problem(f"the build returned {path!r:.200}, where nothing is")
        return inside

    def _move(self, source: str) -> None:
        """Move what is at *source* to its place in staging; copy what others may have open, or share."""
        try:
            found = dict(trees.walk(source)) if self._is_tree else {"": os.lstat(source)}
        except files.NotRegularError as error:
            raise self.problem(f"{os.path.relpath(error.filename, source)!r:.200} is a link, or a device") from error
        if not found:
            raise self.problem("the build wrote no file")
        if self._is_tree:
            problem = clash(found)
            if problem:
                raise self.problem(problem)
        alone = all(
            facts.st_nlink == 1 and not files.has_writer(f"{source}/{path}" if path else source)
            for path, facts in found.items()
        )
        if sharing.of(self.path) is None and alone and self._is_open(source):
            commit.rename(source, self.path)
            return
        for path, facts in found.items():
            self._copy(f"{source}/{path}" if path else source, path, executable=trees.is_executable(facts))

    def _is_open(self, source: str) -> bool:
        """Tell whether all directories in *source* have the mode that ours are made with: mkdtemp(3) hides its own."""
        usual = os.lstat(self._directory).st_mode
        return not self._is_tree or all(os.lstat(directory).st_mode == usual for directory, _, _ in os.walk(source))

    def _copy(self, existing: str, path: str, *, executable: bool) -> None:
        if self._tree is not None:
            self._tree.write(path, of_file(existing), executable=executable)
            return
        descriptor = commit.create_file(self.path, executable=executable)
        try:
            written(descriptor, of_file(existing))
        finally:
            os.close(descriptor)
