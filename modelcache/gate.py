"""The last look before content becomes visible, and before content that is here is served: what policies say of it.

What was let in is recorded with the entry as the *mark* of the policies that did, so that a later get under the same
policies looks at the record only. Other policies, and other keys in the files that they name, make another mark: then
all of it is looked at again, once.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from failpoints import fail_point

from . import commit, signatures, trees
from .errors import SignatureError, storage_error
from .objects import Objects
from .policy import Policies, refused_pickle
from .records import Entry
from .reference import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORM = "1"  # Another number makes all be looked at again: when a check finds more than it did.

# What brings the signature that lies beside a file; it raises SignatureError where there is none.
BringSignature = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Gate:
    """What *policies* let into the cache at *root*."""

    root: str
    policies: Policies

    @property
    def mark(self) -> str:
        """What tells these policies, and whom they trust, from all others; raise ConfigurationError."""
        state = hashlib.sha256(_FORM.encode())
        for policy in self.policies:
            state.update(repr(replace(policy, origin="")).encode())
            for path in policy.signatures.files if policy.signatures is not None else ():
                state.update(hashlib.sha256(signatures.trusted(policy, path)).digest())
        return state.hexdigest()[:32]

    @property
    def for_a_part(self) -> Gate:
        """The gate for one file of a tree: what is asked of the whole is not asked of each."""
        return Gate(self.root, self.policies.for_resolving())

    def prepare(self) -> None:
        """Check that all can be checked, before anything is fetched; see `signatures.prepare`."""
        for policy in self.policies.signed:
            signatures.prepare(policy)

    def check_file(self, ref: str, path: str, *, name: str, bring: BringSignature) -> None:
        """Check the file at *path*, which is to be called *name*.

        Raises:
            PolicyError: It may not be.
            StorageError: It could not be read.
        """
        fail_point("gate.before-look")
        try:
            self.policies.check_size(ref, os.stat(path).st_size)
            self.policies.check_names(ref, [name])
            self._check_pickle(ref, path, name)
        except OSError as error:
            raise storage_error(error, action="read", path=path) from error
        if self.policies.signed:
            with self._written(bring()) as signature:
                for policy in self.policies.signed:
                    signatures.verify(policy, ref, path, signature, None)

    def check_tree(self, ref: str, directory: str, leaves: Iterable[tuple[str, int]]) -> None:
        """Check the tree in *directory*: *leaves* are the path and the size in bytes of each of its files.

        Raises:
            PolicyError: It may not be.
            StorageError: A file could not be read.
        """
        fail_point("gate.before-look-at-tree")
        sizes = dict(leaves)
        self.policies.check_size(ref, sum(sizes.values()))
        self.policies.check_names(ref, sizes)
        try:
            for path in sizes:
                self._check_pickle(ref, f"{directory}/{path}", path)
        except OSError as error:
            raise storage_error(error, action="read", path=directory) from error
        for policy in self.policies.signed:
            if signatures.IN_TREE not in sizes:
                problem = f"there is no signature in it, {signatures.IN_TREE}"
                raise SignatureError(ref=ref, origin=policy.origin, problem=problem)
            signatures.verify(policy, ref, directory, f"{directory}/{signatures.IN_TREE}", sizes.keys())

    def check_entry(self, entry: Entry, host: str, bring: BringSignature) -> Entry:
        """Check *entry*, which is here already, from *host*; return it with the mark, which its caller may record.

        Raises:
            PolicyError: It may not be served.
            StorageError: It could not be read.
        """
        mark = self.mark
        if entry.source != "put":
            self.policies.check_place(parse(entry.source), host)
        objects = Objects(self.root)
        if entry.digest.is_tree:
            listing = trees.listing_on_record(objects.path(entry.digest), entry.digest)
            leaves = [(leaf.path, leaf.size) for leaf in listing.files] if listing is not None else _walked(entry.path)
            self.check_tree(entry.key, entry.path, leaves)
        else:
            self.check_file(entry.key, entry.path, name=entry.name, bring=bring)
        return replace(entry, admitted=mark)

    def _check_pickle(self, ref: str, path: str, name: str) -> None:
        policy = self.policies.forbid_pickle
        if policy is None:
            return
        from . import formats  # With zipfile and tarfile it takes 20 ms to import.

        why = formats.pickled(path, name)
        if why is not None:
            raise refused_pickle(policy, ref, name, why)

    @contextmanager
    def _written(self, content: bytes) -> Iterator[str]:
        """Put *content* where the library can read it, for the block."""
        directory = commit.stage_directory(self.root)
        try:
            path = f"{directory}/signature"
            descriptor = commit.create_file(path)
            try:
                commit.write(descriptor, content)
            finally:
                os.close(descriptor)
            yield path
        except OSError as error:
            raise storage_error(error, action="read", path=directory) from error
        finally:
            commit.discard(directory)


def missing(gate: Gate, ref: str, problem: str) -> SignatureError:
    """Return the error for a file whose signature cannot be had, which *problem* tells."""
    return SignatureError(ref=ref, origin=gate.policies.signed[0].origin, problem=problem)


def _walked(directory: str) -> list[tuple[str, int]]:
    try:
        return [(path, facts.st_size) for path, facts in trees.walk(directory)]
    except OSError as error:
        raise storage_error(error, action="read", path=directory) from error
