"""A tree from its source: listed once, its files fetched side by side, published as one (DESIGN.md section 9).

The listing pins each file to one version, so that a repository that changes meanwhile is fetched as it was listed. What
the cache holds already, in any object, is neither asked for nor stored again. Files that have come wait in partials: a
fetch that is interrupted goes on where it was.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from failpoints import fail_point

from . import files, retry
from .companions import check_companions
from .config import RetryPolicy
from .digest import Digest
from .download import BELOW, Download, Job, Means, reason
from .errors import (
    CancelledError,
    DigestMismatchError,
    ModelCacheError,
    NoSpaceError,
    NothingMatchesError,
    PolicyError,
    SizeMismatchError,
    StorageError,
    storage_error,
)
from .events import Event
from .jobs import run_all
from .listing import Leaf, check_paths
from .partials import Partial
from .patterns import Patterns
from .policy import NONE, PLACE_RULES
from .records import Entry
from .retry import Deadline
from .sources import RemoteFile, RemoteListing, Request, Validators
from .staged import Present, StagedTree
from .stamps import stamp_of

_TELL_S = 0.1


class TreeDownload:
    """The fetch of one tree: *jobs* files at a time; of those that its source lists, unless a *listing* is given."""

    def __init__(
        self,
        means: Means,
        job: Job,
        patterns: Patterns,
        policy: RetryPolicy,
        deadline: Deadline,
        *,
        jobs: int,
        listing: RemoteListing | None = None,
    ) -> None:
        self._listing = listing
        self._means, self._job, self._patterns = means, job, patterns
        self._policy, self._deadline, self._jobs = policy, deadline, jobs
        self._kept: list[tuple[Partial, Leaf]] = []
        self._first_error: ModelCacheError | None = None
        self._guard = threading.Lock()
        self._done: dict[str, int] = {}
        self._total: int | None = None
        self._stamp: str | None = None
        self._told = 0.0
        self._started = time.monotonic()

    def run(self) -> Entry:
        """Return the entry of the tree, whole and durable.

        Raises:
            ModelCacheError: Any leaf; nothing of the tree is visible, and files that have come are not asked for again.
        """
        listing = self._listing or self._listed()
        wanted = [file for file in listing.files if self._patterns.match(file.path)]
        if not wanted:
            raise NothingMatchesError(ref=self._job.ref.key, files=len(listing.files))
        check_paths((file.path for file in wanted), ref=self._job.ref.key)
        if self._job.gate is not None:
            self._job.gate.policies.check_names(self._job.ref.key, (file.path for file in wanted))
            self._job.gate.policies.check_size(self._job.ref.key, sum(file.size or 0 for file in wanted))
        self._stamp = stamp_of((file.path, file.stamp) for file in wanted)
        confirmed = self._confirmed(listing)
        if confirmed is not None:
            return confirmed
        staged = None
        try:
            staged = StagedTree(self._means.root, self._job.ref.name, ref=self._job.ref.key)
            self._fill(staged, wanted)
            return self._publish(staged, listing)
        except PolicyError as error:
            for partial, _ in self._kept if error.rule not in PLACE_RULES else ():
                partial.discard()  # What is refused is kept for nobody.
            raise
        except OSError as error:
            if isinstance(error, ModelCacheError):
                raise
            raise storage_error(error, action="stage", path=self._means.root) from error
        finally:
            for partial, _ in self._kept:
                partial.release()
            if staged is not None:
                staged.discard()

    def _listed(self) -> RemoteListing:
        source = self._means.registry.source(self._job.ref)
        policies = NONE if self._job.gate is None else self._job.gate.policies
        policies.check_place(self._job.ref, source.host(self._job.ref.key))
        request = Request(
            self._job.ref.url, self._job.ref.key, self._means.timeout, self._deadline,
            only=self._patterns.literal, policies=policies,
        )  # fmt: skip

        def attempt() -> RemoteListing:
            self._deadline.check()
            self._means.counts.requests += 1
            return source.listing(request)

        return retry.call(
            attempt, policy=self._policy, deadline=self._deadline, progress=lambda: 0, on_retry=self._on_retry
        )

    def _on_retry(self, error: ModelCacheError, seconds: float) -> None:
        self._means.counts.retries += 1
        self._tell("retry", seconds=round(seconds, 3), detail=reason(error))

    def _confirmed(self, listing: RemoteListing) -> Entry | None:
        """Return what is known if the source still has the same version of it."""
        known = self._job.known
        if known is None or not self._job.unless_changed:
            return None
        said, told = (listing.revision, known.revision) if listing.revision else (self._stamp, known.etag)
        if not said or said != told:
            return None
        with self._means.objects.announced(known.digest):
            if self._means.objects.find(known.digest, known.name) is None:
                return None
            self._means.counts.unchanged += 1
            self._tell("unchanged", total=known.size)
            return self._means.entries.confirm(known)

    def _fill(self, staged: StagedTree, wanted: list[RemoteFile]) -> None:
        present = Present(self._means.root)
        missing = [file for file in wanted if not self._is_shared(staged, present, file)]
        sizes = [file.size for file in missing]
        self._total = None if None in sizes else sum(size or 0 for size in sizes)
        if self._total:
            if self._means.room is not None:
                self._means.room.make(self._job.ref.key, self._total)
            self._means.check_space(self._job.ref.key, self._total)
        self._tell("started", done=0, total=self._total)
        with self._deadline.part() as part:  # What ends the others of these files does not end the whole get.
            run_all(missing, self._fetch, jobs=self._jobs, deadline=lambda _: part)
        self._deadline.check()
        if self._first_error is not None:
            raise self._first_error
        for partial, leaf in self._kept:
            staged.adopt(partial, leaf)

    def _is_shared(self, staged: StagedTree, present: Present, file: RemoteFile) -> bool:
        """Make *file* another name of what the cache holds already; False if it does not."""
        self._deadline.check()
        for existing, digest in self._same(present, file):
            size = os.stat(existing).st_size if file.size is None else file.size
            leaf = Leaf(file.path, size, digest, file.executable)
            if staged.link(existing, leaf) or staged.copy(existing, leaf):
                return True
        return False

    def _same(self, present: Present, file: RemoteFile) -> Iterator[tuple[str, Digest]]:
        """Yield files that hold the content of *file*, each read and hashed."""
        if file.digest is not None:
            existing = present.find(file.digest, executable=file.executable)
            if existing is not None:
                yield existing, file.digest
        elif file.blob is not None and file.size is not None:
            for existing in present.at(file.path, file.size):
                try:
                    if files.blob_id(existing) == file.blob:
                        yield existing, files.digest_of(existing)[0]
                except OSError:
                    continue  # It was removed this moment.

    def _fetch(self, file: RemoteFile, deadline: Deadline) -> None:
        """Fetch *file* into a partial. The first one that fails ends the others: their bytes are kept."""
        if self._first_error is not None:
            return
        try:
            means = copy.copy(self._means)
            means.emit = lambda event: self._hear(file, event)
            means.room = None  # It was made for all of them at once.
            partial = self._partial(means, file, deadline)
            leaf = Leaf(file.path, partial.length, partial.digest, file.executable)
            with self._guard:
                self._kept.append((partial, leaf))
            self._check(file, partial)
            if means.sharing is not None:
                means.sharing.whole(file.ref.key, partial.path, partial.digest, partial.length)
        except ModelCacheError as error:
            with self._guard:
                if self._first_error is None or isinstance(self._first_error, CancelledError):
                    self._first_error = error
            deadline.cancel()

    def _partial(self, means: Means, file: RemoteFile, deadline: Deadline) -> Partial:
        """Return the content of *file*: from a tier that has it, else from its source."""
        gate = None if self._job.gate is None else self._job.gate.for_a_part
        job = Job(file.ref, file.digest, file.size, gate=gate)
        if self._listing is not None:
            return _whole(Download(means, job, file.ref, BELOW, deadline, below=True))
        copy_of = None if means.tiers is None else means.tiers.copy_of(file)
        if copy_of is not None:
            try:
                return _whole(Download(means, job, copy_of, BELOW, deadline, below=True))
            except (CancelledError, StorageError, NoSpaceError):
                raise
            except ModelCacheError as error:
                self._tell("mirror", detail=f"{reason(error)}; {file.ref.key} is asked")
        return _whole(Download(means, job, file.ref, self._policy, deadline))

    def _check(self, file: RemoteFile, partial: Partial) -> None:
        if file.size is not None and partial.length != file.size:
            raise SizeMismatchError(ref=file.ref.key, expected=file.size, actual=partial.length)
        if file.digest is None and file.blob is not None:
            found = files.blob_id(partial.path)
            if found != file.blob:
                with self._guard:
                    self._kept = [(one, leaf) for one, leaf in self._kept if one is not partial]
                partial.discard()
                raise DigestMismatchError(ref=file.ref.key, expected=f"git {file.blob}", actual=f"git {found}")

    def _publish(self, staged: StagedTree, listing: RemoteListing) -> Entry:
        job, objects = self._job, self._means.objects
        found = staged.listing()
        if job.digest is not None and found.digest != job.digest:
            raise DigestMismatchError(ref=job.ref.key, expected=job.digest, actual=found.digest)
        if self._patterns.all:
            check_companions(staged.path, {leaf.path for leaf in found.files}, ref=job.ref.key)
        if job.gate is not None:
            job.gate.check_tree(job.ref.key, staged.path, ((leaf.path, leaf.size) for leaf in found.files))
        staged.seal()
        # Their files are the tree's by now, and what is published has no name where a writer could find it (I5).
        for partial, _ in self._kept:
            partial.unname()
        with objects.announced(found.digest):
            fail_point("repository.before-publish")
            stored = staged.publish(objects)
            entry = self._means.entry(
                job, stored, source=job.ref.key, validators=Validators(self._stamp, revision=listing.revision)
            )
            fail_point("repository.before-record")
            self._means.record(job, entry, job.ref if self._listing is None else None)
        self._means.counts.fetched += 1
        seconds = round(time.monotonic() - self._started, 3)
        self._tell("fetched", done=stored.size, total=stored.size, seconds=seconds)
        return entry

    def _hear(self, file: RemoteFile, event: Event) -> None:
        """Pass on what a file tells: progress as that of the whole tree, all else as it is."""
        if event.kind == "received":  # That counts for the tree.
            event = replace(event, ref=self._job.ref.key)
        if event.kind not in {"started", "progress"}:
            self._means.emit(event)
            return
        with self._guard:
            self._done[file.path] = event.done or 0
            now = time.monotonic()
            if now - self._told < _TELL_S:
                return
            self._told = now
            done = sum(self._done.values())
        self._tell("progress", done=done, total=self._total)

    def _tell(self, kind: str, **facts: Any) -> None:
        self._means.emit(Event(kind, self._job.ref.key, **facts))


def _whole(download: Download) -> Partial:
    kept = download.keep()
    assert isinstance(kept, Partial), "nothing was known that could be confirmed"
    return kept
