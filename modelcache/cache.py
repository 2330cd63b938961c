"""The cache: wires the parts below into the calls that users make, and owns their lifetimes. No algorithm of its own.

A hit is answered from `memory` with one ``stat``.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from . import configfiles, hit, layout, reference
from .config import (
    SECONDS_MAX,
    ArchiveLimits,
    Capacity,
    RetryPolicy,
    Timeout,
    is_seconds,
    is_whole,
    lifetime,
    span,
)
from .digest import Digest
from .errors import (
    BatchError,
    EntryNotFoundError,
    ModelCacheError,
    NoSourceError,
    UsageError,
)
from .getting import Getter
from .making import Maker
from .policy import Policies, Policy
from .question import Ask, Limits, RefLike, listed, question
from .records import Entry
from .report import Stats

if TYPE_CHECKING:
    from .backends.refs import RefRecord
    from .events import Event
    from .intake import Content
    from .leasing import Lease
    from .levels.base import TierState
    from .levels.bucket import BucketLevel
    from .manifest import LockedModel
    from .reference import Ref
    from .replication import Replication
    from .retry import Deadline
    from .sources import Source
    from .syncing import Synced, SyncReport
    from .tier import Tier
    from .warmup import Documents, PrewarmReport


class Cache(Maker):
    """A cache of models in one directory, shared with every process that names the same directory.

    Args:
        root: The directory; made when something is first stored. Default: ``MODELCACHE_DIR``, then
            ``$XDG_CACHE_HOME/modelcache``, then ``~/.cache/modelcache``.
        sources: Instances that serve a scheme in place of the built-in or installed one, such as
            ``HttpSource(headers={"Authorization": "Bearer …"})``.
        retry: How often and how far apart a source is asked again.
        timeout: Limits on connecting, reading, stalling and on the whole get.
        lock_timeout: Longest wait for another process that fetches the same model, in seconds.
        offline: Never open a connection: the mode ``offline``.
        mode: ``cache-first`` fetches what is not here; ``offline`` opens no connection; ``refresh`` asks the source
            each time, as if every get without ``max_age`` said 0, and serves what is here where it cannot be reached.
        policy: What may be cached and served. Those of files with settings count as well: one refusal is enough.
        max_bandwidth: Limit on what all fetches of this object receive together, in bytes per second.
        capacity: What the cache may use of the disk: bytes (``50_000_000_000``, ``"50GB"``), a share of the file system
            (``"20%"``), or what stays free of it (``"free:10GB"``). Before a fetch, what was least recently used goes
            until there is room. Default: ``MODELCACHE_CAPACITY``, else no limit.
        grace: For how many seconds a path that `get` returned is certain to stay, without a lease, at least. Default:
            ``MODELCACHE_GRACE``, else an hour.
        tiers: What is asked, in order, before any source: roots of other caches, ``"huggingface"``, the cache of
            huggingface_hub, and buckets (``"s3://bucket/prefix"``, ``gs://``, ``az://``, ``directory:///shared``). What
            a cache has is served where it is, all else is copied here; ``",promote"`` or ``",in-place"`` says it
            otherwise, ``",write"`` brings what is new to a bucket. `Tier` says more: docs/tiers.md. Default:
            ``MODELCACHE_TIERS``, else none.
        usage: Count how models are used, on record in the cache: docs/usage.md. Default: ``MODELCACHE_USAGE``, else no.
        usage_archive: Backends that get these counts too: ``s3://bucket/prefix``, ``sqlite:///path``,
            ``directory:///path``; then *usage* is on. Default: ``MODELCACHE_USAGE_ARCHIVE``, else none.
        archive_limits: What an archive may unpack to, for `get_tree` and `put_tree`.
        on_event: Called with each `Event`, in the thread that caused it.

    What no argument says, variables, files with settings and defaults say: docs/configuration.md. They are read here,
    once. All methods may be called from any thread; a Cache may be used after a fork.

    Raises:
        UsageError: An argument makes no sense.
        ConfigurationError: A variable, or a file with settings, has a mistake.
        FormatError: The root was written by a newer modelcache.
        RootError: The root is a file, or may not be entered.
    """

    def __init__(
        self,
        root: RefLike | None = None,
        *,
        sources: Iterable[Source] | None = None,
        retry: RetryPolicy | None = None,
        timeout: Timeout | None = None,
        lock_timeout: float | None = None,
        offline: bool | None = None,
        mode: str | None = None,
        policy: Policy | None = None,
        max_bandwidth: int | None = None,
        capacity: int | str | None = None,
        grace: float | None = None,
        tiers: Iterable[RefLike | Tier] | None = None,
        usage: bool | None = None,
        usage_archive: Iterable[str] | None = None,
        archive_limits: ArchiveLimits | None = None,
        on_event: Callable[[Event], object] | None = None,
    ) -> None:
        _check_kind("offline", offline, bool)
        _check_kind("policy", policy, Policy)
        _check_kind("usage", usage, bool)
        if root is not None and not os.fspath(root):
            raise UsageError(problem="root is empty: give a directory, or leave it out for the default one")
        given = None if root is None else os.fspath(root)
        settings, _, policies = configfiles.load(os.environ, dir=given, offline=offline, mode=mode)
        if root is None:
            root = configfiles.root_of(settings, os.environ)
        root = layout.default_root({"MODELCACHE_DIR": os.fspath(root)})
        _check_kind("timeout", timeout, Timeout)
        _check_kind("retry", retry, RetryPolicy)
        _check_kind("archive_limits", archive_limits, ArchiveLimits)
        if max_bandwidth is not None and not (is_whole(max_bandwidth) and max_bandwidth >= 1):
            raise UsageError(problem=f"max_bandwidth={max_bandwidth!r} makes no sense: whole bytes per second, from 1")
        if lock_timeout is not None and not (is_seconds(lock_timeout) and lock_timeout >= 0):
            raise UsageError(problem=f"lock_timeout={lock_timeout!r} makes no sense: seconds from 0 to {SECONDS_MAX}")
        if not hit.format_is_known(root):
            from .roots import check_format

            check_format(root)
        limits = Limits(
            offline=settings.offline,
            retry=retry or settings.retry,
            timeout=timeout or settings.timeout,
            lock_timeout=settings.lock_timeout if lock_timeout is None else lock_timeout,
            concurrency=settings.concurrency,
            bandwidth=settings.max_bandwidth if max_bandwidth is None else max_bandwidth,
            capacity=settings.capacity if capacity is None else Capacity.parse(capacity),
            grace=settings.grace if grace is None else span("grace", grace),
            tiers=_tiers(settings.tiers if tiers is None else tiers, root),
            refresh=settings.mode == "refresh",
            policies=Policies(policies).and_also(policy),
            verify_derived=settings.verify_derived,
            archives=archive_limits or ArchiveLimits(),
        )
        archives = settings.usage_archive if usage_archive is None else _locations(usage_archive)
        super().__init__(root, limits, on_event)
        if (settings.usage or bool(archives)) if usage is None else usage:
            from .usage.recorder import Recorder

            self._recorder = Recorder(root, self._warm, archives)
        self._getter = Getter(root, limits, _sources(sources), self._tell, self._recorder)
        self._getter.deliver = self._deliver
        self._replicating: Replication | None = None

    # -- getting ---------------------------------------------------------------------------------------------------

    def get(
        self,
        ref: RefLike,
        *,
        digest: str | None = None,
        mirrors: Iterable[RefLike] = (),
        max_age: float | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        verify: str = "stat",
        ttl: float | None = None,
    ) -> str:
        """Return the path of the model *ref*, fetched if it is not here.

        Without *digest* the first use is trusted and recorded, and served from then on.

        Args:
            ref: A URL, a path, or a name that was put.
            digest: What the content must be, ``sha256:<hex>``. If it is here already it is a hit, whatever its ref.
            mirrors: Refs that are asked, in order, when *ref* cannot serve.
            max_age: Ask the source whether the content has changed if it last confirmed it longer ago than this, in
                seconds. A source that cannot be reached is a warning then; what is cached is served.
            local_files_only: Open no connection; as if the cache were offline.
            force_download: Ask the source in any case: with a conditional request where what is cached has
                validators. Its failure is raised.
            verify: ``stat`` compares size and mtime with the record; ``sample`` reads a mebibyte of it as well, always
                the same blocks (the first time all); ``full`` reads and hashes the content.
            ttl: For how long the content is wanted after it came, or was last confirmed, in seconds. Then a get asks
                the source as by *max_age*, and gc removes it, unless it is in use. It holds until another is given.

        Raises:
            UsageError: An argument makes no sense; nothing was read or written.
            ModelCacheError: The leaves are drawn in `modelcache.errors`.
        """
        try:
            warm = self._warm.get(ref)
        except TypeError:
            warm = None  # Not hashable, so no ref; the slow path says so.
        if (
            warm is not None
            and (digest is None or digest == warm.digest)
            and max_age is None
            and not force_download
            and verify == "stat"
            and ttl is None
            and monotonic() < warm.until
        ):
            try:
                found = os.stat(warm.path, follow_symlinks=warm.follow)
            except OSError:
                pass
            else:
                if found.st_mtime_ns == warm.mtime_ns and found.st_size == warm.size:
                    warm.uses += 1  # Which costs the same whether somebody looks at it or not (`usage`).
                    return warm.path
        self._check_open()
        ask = question(self._limits, ref, digest, mirrors, max_age, local_files_only, force_download, verify, ttl=ttl)
        return self._warm.remember(ref, self._getter.entry(ask, self._getter.deadline(ask.ref)))

    async def aget(
        self,
        ref: RefLike,
        *,
        digest: str | None = None,
        mirrors: Iterable[RefLike] = (),
        max_age: float | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        verify: str = "stat",
        ttl: float | None = None,
    ) -> str:
        """Do what `get` does without blocking the event loop; a cancelled task gives up its interest in the fetch."""
        self._check_open()
        ask = question(self._limits, ref, digest, mirrors, max_age, local_files_only, force_download, verify, ttl=ttl)
        entry = await self._getter.aentry(ask, self._getter.deadline(ask.ref))
        return self._warm.remember(ref, entry)

    def get_tree(
        self,
        ref: RefLike,
        *,
        allow_patterns: str | Iterable[str] | None = None,
        ignore_patterns: str | Iterable[str] | None = None,
        digest: str | None = None,
        max_age: float | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        verify: str = "stat",
        ttl: float | None = None,
    ) -> str:
        """Return the path of the directory that *ref* names, fetched if it is not here: complete, or not there at all.

        Files are fetched side by side; each resumes, and what any object holds already is neither fetched nor stored
        again. What is chosen by patterns is a tree of its own.

        Args:
            ref: A repository (``hf://org/name@revision``), a directory, an archive (``https://host/model.tar.gz``,
                ``.zip`` …), which is unpacked, or a name that was put by `put_tree`.
            allow_patterns: Only files that match one of them, such as ``*.json`` or ``onnx/``. Default: all.
            ignore_patterns: No files that match one of them.
            digest: What the content must be, ``tree:<hex>``; of an archive, ``sha256:<hex>`` is what that must be.
            max_age: See `get`; the source is asked for its version, and sends nothing if that is what is here.
            local_files_only: See `get`.
            force_download: See `get`.
            verify: See `get`; ``stat`` compares the time of the directory, ``sample`` looks for every file, and
                ``full`` reads and hashes them.
            ttl: See `get`.

        Raises:
            NothingMatchesError: No file is wanted.
            MissingCompanionError: A file needs one that the repository lacks.
            ArchiveError: An archive is damaged, made to do damage, or (ArchiveLimitError) too large.
            UnsupportedArchiveError: It is none, or needs a library.
            ModelCacheError: As `get`.
        """
        ask = self._tree(
            ref, allow_patterns, ignore_patterns, digest, max_age, local_files_only, force_download, verify, ttl
        )
        return self._standing(ask) or self._tree_path(ask, self._getter.entry(ask, self._getter.deadline(ask.ref)))

    async def aget_tree(
        self,
        ref: RefLike,
        *,
        allow_patterns: str | Iterable[str] | None = None,
        ignore_patterns: str | Iterable[str] | None = None,
        digest: str | None = None,
        max_age: float | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        verify: str = "stat",
        ttl: float | None = None,
    ) -> str:
        """Do what `get_tree` does without blocking the event loop; a cancelled task gives up its interest."""
        ask = self._tree(
            ref, allow_patterns, ignore_patterns, digest, max_age, local_files_only, force_download, verify, ttl
        )
        found = self._standing(ask)
        return found or self._tree_path(ask, await self._getter.aentry(ask, self._getter.deadline(ask.ref)))

    def get_many(self, refs: Iterable[RefLike], *, jobs: int | None = None, **options: Any) -> dict[RefLike, str]:
        """Return the paths of *refs*, by ref as it was given, fetched *jobs* at a time; *options* are those of `get`.

        Raises:
            UsageError: An argument makes no sense; nothing was read or written.
            BatchError: Some failed; the others are cached. ``failures`` maps each of these refs to its error.
        """
        from .jobs import run_all

        self._check_open()
        asks = self._asks(refs, options)

        def one(ref: RefLike, deadline: Deadline) -> str | ModelCacheError:
            try:
                return self._warm.remember(ref, self._getter.entry(asks[ref], deadline))
            except ModelCacheError as error:
                return error

        limit = self._getter.deadline
        outcomes = run_all(list(asks), one, jobs=self._jobs(jobs), deadline=lambda ref: limit(asks[ref].ref))
        return _gathered(dict(zip(asks, outcomes, strict=True)))

    async def aget_many(
        self, refs: Iterable[RefLike], *, jobs: int | None = None, **options: Any
    ) -> dict[RefLike, str]:
        """Do what `get_many` does without blocking the event loop."""
        import asyncio

        self._check_open()
        asks = self._asks(refs, options)
        places = asyncio.Semaphore(self._jobs(jobs))

        async def one(ref: RefLike) -> str | ModelCacheError:
            async with places:
                try:
                    entry = await self._getter.aentry(asks[ref], self._getter.deadline(asks[ref].ref))
                    return self._warm.remember(ref, entry)
                except ModelCacheError as error:
                    return error

        outcomes = await asyncio.gather(*(one(ref) for ref in asks))
        return _gathered(dict(zip(asks, outcomes, strict=True)))

    def lease(self, ref: RefLike, **options: Any) -> Lease:
        """Get *ref*, and hold it until the lease is released, or this process ends: nothing removes it before.

        ``with cache.lease(ref) as lease: load(lease.path)``. *options* are those of `get`. Any number may be held at a
        time, of one object too. A forked child holds what its parent held.

        Raises:
            StorageError, NoSpaceError: The lease could not be written.
            ModelCacheError: As `get`.
        """
        from .leasing import TRIES, take, vanishing

        for _ in range(TRIES):
            path = self.get(ref, **options)
            lease = take(self.root, self._leases(), path)
            if lease is not None:
                return lease
        raise vanishing(path)

    @asynccontextmanager
    async def alease(self, ref: RefLike, **options: Any) -> AsyncIterator[Lease]:
        """Do what `lease` does without blocking the event loop: ``async with cache.alease(ref) as lease``."""
        from .leasing import TRIES, take, vanishing

        for _ in range(TRIES):
            path = await self.aget(ref, **options)
            lease = take(self.root, self._leases(), path)
            if lease is not None:
                with lease:
                    yield lease
                return
        raise vanishing(path)

    def prewarm(
        self,
        manifest: RefLike | Documents,
        *,
        jobs: int | None = None,
        locked: bool = False,
        ready_file: RefLike | None = None,
    ) -> PrewarmReport:
        """Get every model of *manifest*, *jobs* at a time, pin those that it pins, and derive from them what it says.

        Args:
            manifest: Path of a ``models.toml``, or what `warmup.read` read of one.
            jobs: Models at a time. Default: ``MODELCACHE_CONCURRENCY``, then 8.
            locked: Accept exactly the bytes in the ``models.lock`` beside it.
            ready_file: Removed first, and written last if every model is here: what a readiness probe looks for.

        Returns:
            What became of each model. Failures are in it, not raised; ``report.check()`` raises them.

        Raises:
            ManifestError: A mistake, with file, line and key.
            LockDriftError: *locked*, and the lock file does not describe the manifest.
        """
        from . import recipes
        from .warmup import prewarm

        self._check_open()
        return prewarm(
            self._getter,
            manifest,
            jobs=self._jobs(jobs),
            locked=locked,
            ready_file=None if ready_file is None else os.fspath(ready_file),
            pin=self.pin,
            derive=lambda key, step: recipes.apply(step.recipe, self, key, step.options),
        )

    def lock(self, manifest: RefLike, *, jobs: int | None = None, check: bool = False) -> tuple[LockedModel, ...]:
        """Resolve *manifest* into the exact bytes that it means now, and write them to ``models.lock`` beside it.

        A model whose digest the manifest states is taken as it is; of every other one the source is asked.

        Args:
            manifest: Path of a ``models.toml``.
            jobs: Models at a time.
            check: Write nothing; raise LockDriftError if the lock file would change.

        Raises:
            ManifestError, LockDriftError, BatchError: Nothing was written.
        """
        from .warmup import lock

        self._check_open()
        return lock(self._getter, manifest, jobs=self._jobs(jobs), check=check)

    def lookup(self, ref: RefLike) -> Entry | None:
        """Return the entry of *ref* if its content is here and untouched; None otherwise. Never opens a connection."""
        self._check_open()
        return self._getter.find(question(self._limits, ref, local_files_only=True))

    def tiers(self) -> list[TierState]:
        """Return the tiers in the order in which they are asked, and how each is now."""
        return [] if self._getter.tiers is None else self._getter.tiers.states()

    # -- storing ------------------------------------------------------------------------------------

    def put(self, content: Content, *, name: str, digest: str | None = None, ttl: float | None = None) -> Entry:
        """Store *content* under *name*, durably; it is a ref from then on. What was put under it before is replaced.

        Args:
            content: Bytes, the path of a file, or an open binary file.
            name: Such as ``resnet50.onnx`` or ``vision/resnet50.onnx``; its last part becomes the file's name.
            digest: What the content must be.
            ttl: For how long it is wanted, in seconds; then gc removes it, unless it is in use.

        Raises:
            InvalidReferenceError, NotFoundError, DigestMismatchError, PolicyError, NoSpaceError, StorageError
        """
        from .intake import put

        self._check_open()
        parsed = reference.parse(name)
        wanted, ttl = None if digest is None else Digest.parse(digest), None if ttl is None else lifetime(ttl)
        self._prepare()
        filed, file = self._filing()
        entry = put(self.root, content, parsed, wanted, ttl, self._gate(), file)
        self._warm.forget(parsed.key)
        if filed:
            self._deliver(filed, entry.digest)
        return entry

    def put_tree(
        self,
        directory: str | os.PathLike[str],
        *,
        name: str,
        digest: str | None = None,
        ttl: float | None = None,
    ) -> Entry:
        """Store *directory*, or an archive unpacked, with all files in it under *name*, durably, as one.

        It is a ref from then on.

        Files that the cache holds already are not stored again. Links to files are followed; empty directories are
        left out.

        Args:
            directory: Its path; or that of an archive, which is unpacked.
            name: Such as ``Net.mlpackage``; its last part becomes the directory's name.
            digest: What the content must be, ``tree:<hex>``.
            ttl: See `put`.

        Raises:
            InvalidReferenceError, NotFoundError, UsageError, EmptyContentError, MissingCompanionError,
            DigestMismatchError, PolicyError, NoSpaceError, StorageError
        """
        from .intake import put_tree

        self._check_open()
        parsed = reference.parse(name)
        wanted, ttl = None if digest is None else Digest.parse(digest), None if ttl is None else lifetime(ttl)
        self._prepare()
        filed, file = self._filing()
        entry = put_tree(
            self.root, os.fspath(directory), parsed, wanted, self._limits.archives, ttl, self._gate(), file
        )
        self._warm.forget(parsed.key)
        if filed:
            self._deliver(filed, entry.digest)
        return entry

    def flush(self, timeout: float | None = None) -> bool:
        """Bring what waits for the tiers, of whatever process, for *timeout* seconds (30) at most.

        Returns:
            Whether nothing waits any more. What does is tried again by the next process that fetches.

        Raises:
            ConfigurationError: *timeout* makes no sense.
        """
        self._check_open()
        replication = self._replication()
        return replication is None or replication.flush(timeout)

    def sync_tiers(
        self,
        *refs: RefLike,
        to: str | None = None,
        from_: str | None = None,
        jobs: int | None = None,
        dry_run: bool = False,
        on_synced: Callable[[Synced], object] | None = None,
    ) -> SyncReport:
        """Copy what is missing from this cache to buckets among its tiers, or from one of them to this cache.

        What was derived stays where it is. A ref that stands for another content on the other side is left alone.

        Args:
            refs: What to copy; all that there is if none is given, what is private too.
            to: The name of the bucket. Default: all that are written to.
            from_: The name of the bucket to copy from, in place of to. Capacity and policies hold as for `get`.
            jobs: Refs at a time.
            dry_run: Say what would be copied, and copy nothing.
            on_synced: Called with each outcome as it comes.

        Returns:
            What became of each ref. Failures are in it, not raised.

        Raises:
            UsageError: An argument makes no sense, or there is no such tier.
            EntryNotFoundError: One of *refs* is not on the side that is copied from.
            BackendError: What the bucket has cannot be listed.
        """
        from .syncing import Sync

        self._check_open()
        if to is not None and from_ is not None:
            raise UsageError(problem="to and from_ contradict each other: copying has one direction")
        tiers = self._getter.tiers
        if tiers is None:
            raise UsageError(problem="there are no tiers: MODELCACHE_TIERS names them")
        tell = on_synced or (lambda _: None)
        sync = Sync(self.root, tiers, jobs=self._jobs(jobs), dry_run=dry_run, tell=tell)
        if from_ is None:
            entries = [self._recorded(ref) for ref in refs] if refs else self.entries()
            return sync.push([entry for entry in entries if entry.derivation is None], to)
        keys = {reference.parse(ref).key for ref in refs}
        report = sync.pull(lambda key: not keys or key in keys, from_, self._bring)
        found = {one.ref for one in report.refs}
        absent = next((key for key in sorted(keys) if key not in found), None)
        if absent is not None:
            raise EntryNotFoundError(ref=absent, root=from_)
        return report

    def collect_tier(self, *, dry_run: bool = False) -> tuple[str, ...]:
        """Remove what killed machines have left in the tier with single flight: claims, and parts of downloads.

        It looks twice, one and a half leases apart (20 s at least), and takes only what has not moved: machines at
        work lose nothing. Content is never removed.

        Args:
            dry_run: Remove nothing.

        Returns:
            The names of the files that were removed, or would be.

        Raises:
            UsageError: No tier has single flight.
            BackendError: The bucket failed; some may have gone.
        """
        import time

        from .fleet import collect

        self._check_open()
        level = None if self._getter.tiers is None else self._getter.tiers.single_flight()
        if level is None:
            raise UsageError(
                problem="no tier has single flight", hint="Say ,single-flight behind the place of a bucket"
            )
        return collect(level.backend(), lease=level.tier.lease, wait=time.sleep, dry_run=dry_run)

    def waiting(self) -> dict[str, int]:
        """Return how many objects wait for which tier, by its name; of those that something waits for."""
        names = [tier.name for tier in self._limits.tiers if tier.write]
        if not names:
            return {}
        from .outbox import counts

        return counts(self.root, names)

    def stats(self) -> Stats:
        """Return what this object has counted so far. Hits are counted without a lock: threads may lose a few."""
        getter = self._getter
        recorder = self._recorder
        return Stats(
            hits=self._warm.uses + getter.hits,
            misses=getter.misses,
            usage_failures=0 if recorder is None else recorder.failures,
            **asdict(getter.counts()),
        )

    # -- lifetime --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Cancel what is being fetched (it can be resumed) and let go of connections. A second close does nothing."""
        self._closed = True
        self._warm.clear()
        if self._replicating is not None:
            self._replicating.close()
        self._getter.close()
        if self._recorder is not None:
            self._recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Cache({self.root!r})"

    # -- inside ----------------------------------------------------------------------------------------------------

    def _asks(self, refs: Iterable[RefLike], options: dict[str, Any]) -> dict[RefLike, Ask]:
        """Return the questions, by ref as it was given: a relative path and a name may have one text."""
        if "mirrors" in options:
            options = {**options, "mirrors": listed(options["mirrors"])}  # A generator serves one ref only.
        return {ref: question(self._limits, ref, **options) for ref in map(_ref, listed(refs))}

    def _tree(
        self,
        ref: RefLike,
        allow: str | Iterable[str] | None,
        ignore: str | Iterable[str] | None,
        digest: str | None,
        max_age: float | None,
        local: bool,
        force: bool,
        verify: str,
        ttl: float | None,
    ) -> Ask:
        from .patterns import Patterns

        self._check_open()
        patterns = Patterns.of(allow, ignore)
        return question(self._limits, ref, digest, (), max_age, local, force, verify, patterns=patterns, ttl=ttl)

    def _standing(self, ask: Ask) -> str | None:
        """Return the path of the tree that *ask* wants, if it is remembered and stands; else the getter is asked."""
        if ask.max_age is not None or ask.force or ask.verify != "stat" or ask.archive is not None:
            return None
        if ask.ttl is not None:
            return None
        warm = self._warm.standing(ask.ref.key, ask.digest)
        if warm is None or not warm.digest.is_tree:
            return None
        warm.uses += 1
        return warm.path

    def _tree_path(self, ask: Ask, entry: Entry) -> str:
        if not entry.digest.is_tree:
            raise UsageError(problem=f"{entry.key} is a file, not a tree", hint="get() returns its path")
        return self._warm.remember(ask.ref.key, entry)

    def _fetch_again(self, entry: Entry) -> None:
        if entry.derivation is not None:
            self._entries.remove(entry.key)  # A miss: whoever asks for it next builds it.
            return
        # At the revision that it came from: the one that its ref names may be another by now.
        ask = question(
            self._limits, entry.key, entry.digest, entry.mirrors, verify="full", revision=entry.revision, promote=True
        )
        try:
            self._getter.entry(ask, self._getter.deadline(ask.ref))
        except EntryNotFoundError as error:
            raise NoSourceError(ref=entry.key) from error

    def _host_of(self, place: Ref) -> str:
        return self._getter.host_of(place)

    def _filing(self) -> tuple[list[str], Callable[[Entry], object] | None]:
        """Return where the tiers are told that something waits for, and what files it; None if none is written to."""
        tiers = self._getter.tiers
        filed: list[str] = []
        if tiers is None or not tiers.writable():
            return filed, None
        return filed, lambda entry: filed.extend(tiers.file(entry))

    def _deliver(self, names: list[str], digest: Digest) -> None:
        replication = self._replication()
        assert replication is not None
        replication.deliver(names, digest)

    def _replication(self) -> Replication | None:
        """Return what brings objects to tiers, made when it is first needed; None if no tier is written to."""
        tiers = self._getter.tiers
        if self._replicating is None and tiers is not None and tiers.writable():
            from .replication import Replication

            self._replicating = Replication(self.root, tiers)
        return self._replicating

    def _bring(self, level: BucketLevel, record: RefRecord) -> Entry:
        """Return the entry of *record*, brought from *level* alone."""
        patient = replace(level.tier, timeout=max(level.tier.timeout, 60.0))  # Nobody has another place to ask.
        limits = replace(self._limits, tiers=(patient,), offline=True)
        getter = Getter(self.root, limits, (), self._tell)
        getter.reaches = True
        try:
            ask = question(limits, record.key, record.digest, verify="stat", promote=True)
            return getter.entry(ask, self._getter.patience(record.key, limits.timeout.total))
        finally:
            getter.close()

    def _prepare(self) -> None:
        from .roots import prepare_root

        prepare_root(self.root)


def _check_kind(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise UsageError(problem=f"{name}={value!r} makes no sense: a {kind.__name__} is expected")


def _sources(sources: object) -> tuple[Source, ...]:
    """Return *sources* as a tuple; that they are sources is checked when the first one is asked."""
    if sources is None:
        return ()
    if not isinstance(sources, Iterable):
        raise UsageError(problem=f"sources is a list of sources, not a single {type(sources).__name__}")
    return tuple(sources)


def _tiers(tiers: object, root: str) -> tuple[Tier, ...]:
    if isinstance(tiers, str | os.PathLike) or not isinstance(tiers, Iterable):
        raise UsageError(problem=f"tiers is a list of tiers, not a single {type(tiers).__name__}")
    texts = list(tiers)
    if not texts:
        return ()
    from .tier import Tier

    found: list[Tier] = []
    for text in texts:
        tier = Tier.parse(text, os.environ)
        tier.check_with(found, root)
        found.append(tier)
    return tuple(found)


def _locations(places: object) -> tuple[str, ...]:
    if isinstance(places, str) or not isinstance(places, Iterable):
        raise UsageError(problem=f"usage_archive is a list of locations, not a single {type(places).__name__}")
    from .backends.locations import check

    return tuple(check(str(place)) for place in places)


def _ref(ref: RefLike) -> RefLike:
    """Return *ref* if it can be one; else it is no key of a dict either."""
    if not isinstance(ref, str | os.PathLike):
        raise UsageError(problem=f"a ref is a str or a path, not {type(ref).__name__}")
    return ref


def _gathered(outcomes: Mapping[RefLike, str | ModelCacheError]) -> dict[RefLike, str]:
    failures = {ref: outcome for ref, outcome in outcomes.items() if isinstance(outcome, ModelCacheError)}
    if failures:
        raise BatchError(failures=failures, total=len(outcomes))
    return {ref: outcome for ref, outcome in outcomes.items() if isinstance(outcome, str)}
