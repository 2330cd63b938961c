"""What a cache does with what it holds: remove, collect, pin, list, verify, export. Every `Cache` is a `Keeper`.

No algorithm of its own; each call imports the part that does the work.
"""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import eventlog, reference
from .config import Capacity, is_whole, span
from .digest import Digest
from .errors import ClosedError, EntryNotFoundError, UsageError
from .events import Event
from .memory import Memory
from .question import Limits, RefLike
from .records import Entries, Entry
from .report import DiskUsage, Health, ModelDiskUsage

if TYPE_CHECKING:
    from .exporting import ExportReport
    from .gate import Gate
    from .gc import Plan
    from .importing import ImportReport
    from .leases import Leases
    from .reference import Ref
    from .usage.recorder import Recorder
    from .usage.summary import UsageReport
    from .verification import Finding, Report


class Keeper(ABC):
    """The half of a `Cache` that needs no source.

    Attributes:
        root: The directory.
        offline: Whether no connection is ever opened.
        archive_limits: What an archive may unpack to.
    """

    def __init__(self, root: str, limits: Limits, on_event: Callable[[Event], object] | None) -> None:
        self.root, self.offline, self.archive_limits = root, limits.offline, limits.archives
        self._limits, self._listener = limits, on_event
        self._entries = Entries(root)
        self._warm = Memory(keeps=not limits.refresh and not limits.policies.ask_for_digests)
        self._leases_here: Leases | None = None
        self._recorder: Recorder | None = None
        self._closed = False

    def remove(self, ref: RefLike, *, force: bool = False) -> bool:
        """Forget *ref* and delete what nothing else needs, partials included; False if there was nothing.

        What was derived from it goes with it, unless another ref stands for the same content.

        Args:
            ref: What to forget.
            force: Also if it is pinned, or in use: then its content stays until the last lease is over, and goes with
                the next gc.

        Raises:
            PinnedError: It is pinned, and *force* is false.
            LeasedError: A live process holds a lease of it, and *force* is false.
        """
        from .retention import remove

        self._check_open()
        key = reference.parse(ref).key
        removed = remove(self.root, key, self._leases(), force=force)
        self._warm.forget(key)
        return removed

    def plan_gc(
        self,
        *,
        capacity: int | str | None = None,
        unused_for: float | None = None,
        grace: float | None = None,
        now: float | None = None,
    ) -> Plan:
        """Return what a garbage collection would remove: ``print(plan.table())``, then ``plan.execute()``.

        What nothing names and what crashed processes left goes in any case. What is pinned, leased, or was used within
        the grace period stays in any case.

        Args:
            capacity: What the cache may use, as for `Cache`: more goes, least recently used first, until it does.
            unused_for: All goes that has not been used for so many seconds.
            grace: In place of the cache's own, in seconds; 0 keeps nothing for having been used just now.
            now: In Unix seconds, in place of the clock.

        Raises:
            UsageError: An argument makes no sense.
        """
        from .gc import Collector

        self._check_open()
        limits = self._limits
        return Collector(self.root, self._tell).plan(
            grace=limits.grace if grace is None else span("grace", grace),
            capacity=limits.capacity if capacity is None else Capacity.parse(capacity),
            unused_for=None if unused_for is None else span("unused_for", unused_for),
            now=now,
        )

    def pin(self, ref: RefLike) -> None:
        """Keep *ref* until it is unpinned: `remove` refuses it, and nothing evicts it.

        Raises:
            EntryNotFoundError: It is not in the cache.
        """
        from .retention import pin

        pin(self.root, self._recorded(ref))

    def unpin(self, ref: RefLike) -> bool:
        """Take the pin off *ref*; False if it had none."""
        from .pins import Pins

        return Pins(self.root).remove(reference.parse(ref).key)

    def entries(self) -> list[Entry]:
        """Return every entry, sorted by ref. Objects are not looked at."""
        return sorted(self._entries.all(), key=lambda entry: entry.key)

    def verify(
        self,
        *refs: RefLike,
        repair: bool = False,
        jobs: int | None = None,
        since: float | None = None,
        on_finding: Callable[[Finding], object] | None = None,
    ) -> Report:
        """Read and hash the content of *refs*, of everything if none is given. What is corrupt is set aside.

        Args:
            refs: What to verify.
            repair: Fetch again what is corrupt or missing, from where it came or a mirror; set aside broken records,
                and corrupt objects that no entry names.
            jobs: How many are hashed at a time. Default: one for each processor.
            since: Only content that came here at that time, in Unix seconds, or later; and nothing that no entry names.
            on_finding: Called with each finding as it is made.

        Raises:
            EntryNotFoundError: One of *refs* is not in the cache.
        """
        from .verification import verify

        self._check_open()
        _check_moment(since)
        entries = [self._recorded(ref) for ref in refs] if refs else self.entries()
        entries = [entry for entry in entries if since is None or entry.created >= since]
        done, total = 0, sum(entry.size for entry in entries)

        def found(finding: Finding) -> None:
            nonlocal done
            if finding.state in {"ok", "corrupt"}:
                done += finding.entry.size  # Threads may lose some: it is for a bar.
                self._tell(Event("progress", self.root, done=done, total=total))
            if finding.state == "corrupt":
                self._tell(Event("quarantined", finding.entry.key, detail=finding.moved_to))
                self._warm.forget(finding.entry.key)
            if on_finding is not None:
                on_finding(finding)

        self._tell(Event("started", self.root, total=total))
        report = verify(
            self.root,
            entries,
            everything=not refs and since is None,
            jobs=os.cpu_count() or 1 if jobs is None else self._jobs(jobs),
            on_finding=found,
            fetch_again=self._fetch_again if repair else None,
        )
        self._tell(Event("verified", self.root, done=report.bytes_read, total=total))
        return report

    def export(self, *refs: RefLike, to: RefLike, base: RefLike | None = None, verify: str = "stat") -> ExportReport:
        """Write *refs*, with all that a `get` of them needs, to a bundle that `import_` takes on another machine.

        Each content is read, hashed and written once. What an export that was interrupted, or an earlier one, has left
        at *to* is used again. The bundle has its name only when it is whole and durable.

        Args:
            refs: What to export.
            to: A folder, or, where the name ends in ``.tar``, one file. A folder goes on naming what it held before.
            base: An earlier bundle, or the file ``index`` out of it: what it has is left out.
            verify: ``stat`` believes a content that is there already by its size; ``full`` reads and hashes it.

        Raises:
            UsageError: An argument makes no sense; nothing was written.
            EntryNotFoundError: One of *refs* is not in the cache.
            CorruptObjectError: What is cached is not what its name says; it is set aside.
            BundleError: *base*, or what is at *to*, is a bundle that is not whole.
            NoSpaceError, StorageError: What was written is used by the next try.
        """
        from .exporting import export

        self._check_open()
        if verify not in {"stat", "full"}:
            raise UsageError(problem=f"verify={verify!r} makes no sense: one of stat, full")
        if not refs:
            raise UsageError(problem="nothing to export: no ref was given")
        target, before = _path("to", to), None if base is None else _path("base", base)
        entries = {entry.key: entry for entry in map(self._recorded, refs)}
        derived = next((key for key, entry in entries.items() if entry.derivation is not None), None)
        if derived is not None:
            hint = "Export what it was derived from: the other machine derives it, for its own runtime and processor"
            raise UsageError(problem=f"{derived} was derived, and is not exported", hint=hint)
        return export(
            self.root,
            list(entries.values()),
            target,
            base=before,
            full=verify == "full",
            leases=self._leases(),
            tell=self._tell,
        )

    def import_(
        self,
        path: RefLike,
        *refs: RefLike,
        digest: str | None = None,
        conflict: str = "newer",
        dry_run: bool = False,
    ) -> ImportReport:
        """Take *refs*, everything if none is given, from the bundle at *path* into the cache.

        All contents are read and hashed before anything of them is visible. What the cache holds already, in any
        object, is not read from the bundle. An import that was interrupted goes on by the same call.

        Args:
            path: A folder or a file that `export` wrote.
            refs: What to import.
            digest: What the bundle's index must hash to, as the export reported it: no other bundle is accepted then.
            conflict: What becomes of a ref that stands for another content here: ``newer`` takes what its source
                confirmed later, ``replace`` the bundle's, ``keep`` this cache's. What is pinned stays in any case.
            dry_run: Say what would be done, and do nothing.

        Raises:
            UsageError: An argument makes no sense.
            NotFoundError: There is no such bundle, or one of *refs* is not in it.
            BundleError: It is damaged, or made to do damage; nothing was imported. MissingContentsError: it leaves out
                what is not here.
            DigestMismatchError: It is another bundle than *digest* says.
            PolicyError: A policy refuses something in it; nothing was imported.
            NoSpaceError, StorageError: Entries are as they were, or as they were to be; the same call goes on.
        """
        from .importing import CONFLICTS, Importer, Wish

        self._check_open()
        if conflict not in CONFLICTS:
            raise UsageError(problem=f"conflict={conflict!r} makes no sense: one of {', '.join(CONFLICTS)}")
        path = _path("path", path)
        wanted = None if digest is None else Digest.parse(digest)
        wish = Wish(os.path.abspath(path), tuple(reference.parse(ref).key for ref in refs), wanted, conflict)
        limits, room = self._limits, None
        if limits.capacity is not None:
            from .gc import Room

            room = Room(self.root, limits.capacity, limits.grace, self._tell)
        importer = Importer(
            self.root, wish, leases=self._leases(), room=room, gate=self._gate(), host_of=self._host_of,
            lock_timeout=limits.lock_timeout, tell=self._tell,
        )  # fmt: skip
        if dry_run:
            return importer.plan()
        report = importer.run()
        for model in report.models:
            self._warm.forget(model.ref)
        return report

    def disk_usage(self) -> DiskUsage:
        """Return what is on disk, counted; bytes that several names share are counted once."""
        from .measuring import measure

        return measure(self.root)

    def disk_usage_by_model(self) -> tuple[list[ModelDiskUsage], int]:
        """Return what each object takes of the disk, the largest first, and the bytes of all, each counted once."""
        from .measuring import measure_models

        return measure_models(self.root)

    def usage(self, *, since: float | None = None, by: str = "model", archive: str | None = None) -> UsageReport:
        """Return how models were used, by all processes that counted it: docs/usage.md.

        What this process has counted and not written yet is written first.

        Args:
            since: Of the day of that time, in Unix seconds, and later; None for all that is on record.
            by: What the rows are by: ``model``, ``host`` or ``day``.
            archive: Read it from there, such as ``sqlite:///srv/usage.db``, in place of the cache.

        Raises:
            UsageError: An argument makes no sense.
            BackendError: The archive cannot be read.
        """
        from .usage import store
        from .usage.summary import BY, summed

        self._check_open()
        if by not in BY:
            raise UsageError(problem=f"by={by!r} makes no sense: one of {', '.join(BY)}")
        _check_moment(since)
        if archive is not None:
            from .usage import archive as archives

            parts = archives.read(archive, since=0.0 if since is None else since - since % 86_400)
        else:
            if self._recorder is not None:
                self._recorder.flush()
            parts = store.read(self.root)
        return summed(parts, by=by, since=None if since is None else store.day_of(since))

    def usage_manifest(
        self, path: RefLike, *, top: int, since: float | None = None, archive: str | None = None
    ) -> list[str]:
        """Write a manifest of the *top* most used models that have a source, for a new node to warm; return their refs.

        Used most is what was asked for, and came to something, most often. Their digests are in it, and, if these are
        known of all, a lock file is written beside it. Names that were put, paths and what was derived are left out.

        Args:
            path: Of the manifest, such as ``models.toml``; one that was written by this is replaced whole.
            top: How many models.
            since: See `usage`.
            archive: See `usage`.

        Raises:
            UsageError: An argument makes no sense; no model with a source was used; or there is another file at *path*.
            StorageError: It cannot be written.
            BackendError: The archive cannot be read.
        """
        from .usage import wanted

        if not (is_whole(top) and top >= 1):
            raise UsageError(problem=f"top={top!r} makes no sense: a whole number from 1")
        target = _path("path", path)
        used = self.usage(since=since, archive=archive).models
        chosen = wanted.models(used, top, self._entries.read)
        wanted.write(target, chosen)
        return [model.ref for model, _ in chosen]

    def health(self) -> Health:
        """Return whether the cache can do its work; nothing is written."""
        from .doctor import health

        return health(self.root, offline=self.offline)

    # -- inside ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def _fetch_again(self, entry: Entry) -> None:
        """Fetch what *entry* names, from where it came."""

    @abstractmethod
    def _host_of(self, place: Ref) -> str:
        """Return whom a request for *place* would go to."""

    def _gate(self) -> Gate | None:
        """Return what policies have to say of what comes in: of its size, format and signature."""
        if not self._limits.policies:
            return None
        from .gate import Gate

        gate = Gate(self.root, self._limits.policies)
        gate.prepare()
        return gate

    def _recorded(self, ref: RefLike) -> Entry:
        key = reference.parse(ref).key
        entry = self._entries.read(key)
        if entry is None:
            raise EntryNotFoundError(ref=key, root=self.root)
        return entry

    def _leases(self) -> Leases:
        if self._leases_here is None:
            from .leases import Leases

            self._leases_here = Leases(self.root)
        return self._leases_here

    def _jobs(self, jobs: int | None) -> int:
        if jobs is not None and not (is_whole(jobs) and jobs >= 1):
            raise UsageError(problem=f"jobs={jobs!r} makes no sense: a whole number from 1")
        return jobs or self._limits.concurrency

    def _tell(self, event: Event) -> None:
        if self._recorder is not None:
            self._recorder.hear(event)
        eventlog.log(event)
        if self._listener is None:
            return
        try:
            self._listener(event)
        except Exception:  # A listener's fault never costs a download.
            import logging

            logging.getLogger("modelcache").exception("on_event raised for %s", event)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(root=self.root)


def _check_moment(since: object) -> None:
    if since is not None and not (isinstance(since, int | float) and math.isfinite(since)):
        raise UsageError(problem=f"since={since!r} makes no sense: a time in Unix seconds")


def _path(name: str, value: RefLike) -> str:
    """Return the path *value* as a text; raise UsageError, which names the argument, if it can be none."""
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise UsageError(problem=f"{name}={value!r} makes no sense: the path of a file or a directory")
    return text
