"""A tree from an archive at its source: fetched like any file, unpacked file by file, published as one.

The archive itself is not kept: it waits in a partial, resumable, until the tree is durable. Its digest is the tree's
*revision*: so ``digest="sha256:…"``, of the archive, is a hit later, and a source that sends the same archive once more
costs no second unpacking.
"""

from __future__ import annotations

import copy
import os
import time
from dataclasses import replace
from typing import Any

from failpoints import fail_point

from . import files, layout, packed
from .companions import check_companions
from .config import ArchiveLimits, RetryPolicy
from .digest import Digest
from .download import Download, Job, Means, validators_of
from .errors import (
    ArchiveError,
    ArchiveLimitError,
    CapacityError,
    DigestMismatchError,
    ModelCacheError,
    PolicyError,
    UnsupportedArchiveError,
    storage_error,
)
from .events import Event
from .partials import Partial
from .patterns import Patterns
from .records import Entry
from .retry import Deadline
from .sources import Validators
from .staged import Present, StagedTree
from .unpacking import Unpacking

_AHEAD_BYTES = 1 << 24


class ArchiveDownload:
    """The fetch of one tree from an archive."""

    def __init__(
        self, means: Means, job: Job, patterns: Patterns, policy: RetryPolicy, deadline: Deadline, limits: ArchiveLimits
    ) -> None:
        self._means, self._job, self._patterns = means, job, patterns
        self._policy, self._deadline, self._limits = policy, deadline, limits
        self._promised = 0  # Bytes that there is room for within the capacity.
        self._started = time.monotonic()

    def run(self) -> Entry:
        """Return the entry of the tree, whole and durable.

        Raises:
            ArchiveError: It cannot be unpacked; nothing of it is visible.
            ModelCacheError: Any other leaf; what has come of the archive is not asked for again.
        """
        packed.check_form(self._job.ref.name, ref=self._job.ref.key)
        if self._job.gate is not None:  # Also if the archive is here: what is recorded comes from this place.
            place = self._job.ref
            self._job.gate.policies.check_place(place, self._means.registry.source(place).host(place.key))
        here = self._here()
        if here is not None:
            return self._unpacked(here, self._job.archive, Validators())
        found = self._fetched()
        if isinstance(found, Entry):
            return found
        try:
            entry = self._known(found) or self._unpacked(found.path, found.digest, validators_of(found))
            found.discard()
            return entry
        except (ArchiveLimitError, UnsupportedArchiveError):
            raise  # It is whole: with other limits, or a library, the next try needs no request.
        except (ArchiveError, PolicyError):
            found.discard()
            raise
        finally:
            found.release()

    def _here(self) -> str | None:
        """Return the path of the archive if its digest is known, and the cache holds it as a file."""
        if self._job.archive is None or self._job.refresh:
            return None
        return Present(self._means.root).find(self._job.archive, executable=False)

    def _fetched(self) -> Partial | Entry:
        job, place = self._job, self._job.ref.file
        means = copy.copy(self._means)
        means.emit = lambda event: self._means.emit(replace(event, ref=job.ref.key))
        inner = Job(
            place,
            job.archive,
            gate=None if job.gate is None else job.gate.for_a_part,
            known=job.known,
            refresh=job.refresh,
            unless_changed=job.unless_changed and self._may_stay,
        )
        return Download(means, inner, place, self._policy, self._deadline).keep()

    @property
    def _may_stay(self) -> bool:
        """Whether what is known is what is wanted, as long as its source has nothing else."""
        known = self._job.known
        return known is not None and self._job.archive in {None, known.revision}

    def _known(self, archive: Partial) -> Entry | None:
        """Return what is known if it came from this very archive, confirmed."""
        known, means = self._job.known, self._means
        if known is None or known.revision != archive.digest or self._job.digest not in {None, known.digest}:
            return None
        if not self._job.unless_changed:
            return None  # What is here is not whole, or could not be looked at.
        with means.objects.announced(known.digest):
            if means.objects.find(known.digest, known.name) is None:
                return None
            means.counts.unchanged += 1
            self._tell("unchanged", total=known.size)
            validators = validators_of(archive)
            return means.entries.confirm(replace(known, etag=validators.etag, last_modified=validators.last_modified))

    def _unpacked(self, path: str, archive: Digest | None, validators: Validators) -> Entry:
        job, means = self._job, self._means
        staged = None
        try:
            staged = StagedTree(means.root, layout.unpacked_name(job.ref.name), ref=job.ref.key)
            self._fill(staged, path)
            found = staged.listing().digest
            if job.digest is not None and found != job.digest:
                raise DigestMismatchError(ref=job.ref.key, expected=job.digest, actual=found)
            if self._patterns.all:
                check_companions(staged.path, staged.paths, ref=job.ref.key)
            if job.gate is not None:
                leaves = ((leaf.path, leaf.size) for leaf in staged.listing().files)
                job.gate.check_tree(job.ref.key, staged.path, leaves)
            staged.seal()
            with means.objects.announced(found):
                fail_point("archived.before-publish")
                stored = staged.publish(means.objects)
                versioned = replace(validators, revision=archive)
                entry = means.entry(job, stored, source=job.ref.file.key, validators=versioned)
                fail_point("archived.before-record")
                means.record(job, entry, job.ref.file)
        except OSError as error:
            if isinstance(error, ModelCacheError):
                raise
            raise storage_error(error, action="unpack into", path=means.root) from error
        finally:
            if staged is not None:
                staged.discard()
        means.counts.fetched += 1
        seconds = round(time.monotonic() - self._started, 3)
        self._tell("fetched", done=stored.size, total=stored.size, seconds=seconds)
        return entry

    def _fill(self, staged: StagedTree, path: str) -> None:
        descriptor = files.open_regular(path)
        try:
            Unpacking(
                staged, descriptor, ref=self._job.ref.key, patterns=self._patterns, limits=self._limits,
                present=Present(self._means.root), make_room=self._make_room, check=self._deadline.check,
            ).run()  # fmt: skip
        finally:
            os.close(descriptor)

    def _make_room(self, size: int) -> None:
        """Make room for a file within the capacity; for several small ones at once, as a look counts all."""
        if self._means.room is not None and size > self._promised:
            ahead = max(size, _AHEAD_BYTES)
            try:
                self._means.room.make(self._job.ref.key, ahead)
            except CapacityError:
                ahead = size
                self._means.room.make(self._job.ref.key, ahead)
            self._promised = ahead
        self._promised -= size

    def _tell(self, kind: str, **facts: Any) -> None:
        self._means.emit(Event(kind, self._job.ref.key, **facts))
