"""Many models at once, from a manifest: what a node runs before it serves."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

from . import commit, files, recipes, reference
from . import manifest as manifests
from .errors import (
    BatchError,
    DigestMismatchError,
    LockDriftError,
    ManifestError,
    MirrorsExhaustedError,
    ModelCacheError,
    SizeMismatchError,
    UsageError,
    storage_error,
)
from .getting import Getter
from .jobs import run_all
from .policy import Policies
from .question import question
from .records import Entry
from .retry import Deadline


@dataclass(frozen=True, slots=True)
class Documents:
    """A manifest as text, and its lock file where that was asked for: read once, so that all that is made of it agrees.

    ``file`` is the path of the manifest: relative paths in it start there, and errors name it.
    """

    file: str
    text: str
    lock: str | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model to warm: the manifest's wish, and what the lock file says of it; ``revision`` has those bytes."""

    ref: str
    digest: str | None
    size: int | None
    mirrors: tuple[str, ...]
    pin: bool
    ttl: float | None = None
    revision: str | None = None
    derive: tuple[manifests.Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Warmed:
    """What became of one model.

    Attributes:
        ref: The key of the model; never holds credentials.
        state: ``cached`` (it was here), ``fetched``, or ``failed``.
        entry: Of the model, None if it failed.
        error: Why it failed.
        seconds: How long it took.
        derived: The paths of what was derived from it, in the manifest's order.
    """

    ref: str
    state: str
    entry: Entry | None = None
    error: ModelCacheError | None = None
    seconds: float = 0.0
    derived: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PrewarmReport:
    """What became of every model, in the manifest's order.

    Attributes:
        models: One each.
        bytes_from_origin: Bytes of content that came from sources meanwhile; of an archive, those of the archive.
        bytes_from_tiers: Bytes that were copied from tiers meanwhile.
    """

    models: tuple[Warmed, ...]
    bytes_from_origin: int = 0
    bytes_from_tiers: int = 0

    @property
    def bytes(self) -> int:
        """The sizes of all models that are ready, together."""
        return sum(model.entry.size for model in self.models if model.entry is not None)

    @property
    def bytes_here(self) -> int:
        """How many of these did not have to come: cached, resumed, shared, or brought by another process."""
        return max(0, self.bytes - self.bytes_from_origin - self.bytes_from_tiers)

    @property
    def failures(self) -> dict[str, ModelCacheError]:
        """The errors by ref."""
        return {model.ref: model.error for model in self.models if model.error is not None}

    def check(self) -> None:
        """Raise what failed: the error of an only model, drift before anything else, a BatchError of the rest."""
        failures = self.failures
        for error in failures.values():
            if isinstance(error, LockDriftError):
                raise error
        if failures and len(self.models) == 1:
            raise next(iter(failures.values()))
        if failures:
            raise BatchError(failures=failures, total=len(self.models))


def prewarm(
    getter: Getter,
    manifest: str | os.PathLike[str] | Documents,
    *,
    jobs: int,
    locked: bool,
    ready_file: str | None,
    pin: Callable[[str], object],
    derive: Callable[[str, manifests.Step], str],
) -> PrewarmReport:
    """Do what `Cache.prewarm` says.

    *pin* is called with the key of each model that is to be pinned, *derive* with a key and a step, one at a time: what
    compiles takes all processors by itself.
    """
    if ready_file is not None:
        remove_ready_file(ready_file, manifest.file if isinstance(manifest, Documents) else manifest)
    documents = manifest if isinstance(manifest, Documents) else read(manifest, locked=locked)
    items = wanted(documents)
    policies = _policies(getter, documents)
    before = copy(getter.counts())
    building = threading.Lock()
    for step in (step for item in items for step in item.derive):
        recipes.find(step.recipe)  # One that is not known is told before anything is fetched.

    def one(item: Wanted, deadline: Deadline) -> Warmed:
        started = time.monotonic()
        key = reference.parse(item.ref).key
        try:
            ask = question(
                getter.limits,
                item.ref,
                item.digest,
                item.mirrors,
                size=item.size,
                promote=item.pin,
                ttl=item.ttl,
                policies=policies,
                revision=item.revision,
                for_use=False,
            )
            try:
                entry = getter.look(ask)
                state = "cached" if entry is not None else "fetched"
                entry = entry or getter.fetched(ask, deadline)
            except ModelCacheError as error:
                getter.count_error(ask, error)
                raise
            if item.pin:
                pin(entry.key)
            derived = []
            for step in item.derive:
                with building:
                    deadline.check()
                    derived.append(derive(entry.key, step))
        except ModelCacheError as error:
            told = as_drift(error, documents.file) if locked else error
            return Warmed(key, "failed", error=told, seconds=time.monotonic() - started)
        return Warmed(key, state, entry, seconds=time.monotonic() - started, derived=tuple(derived))

    models = run_all(items, one, jobs=jobs, deadline=lambda item: getter.deadline(reference.parse(item.ref)))
    after = getter.counts()
    report = PrewarmReport(
        tuple(models),
        bytes_from_origin=after.bytes_received - before.bytes_received,
        bytes_from_tiers=after.bytes_promoted - before.bytes_promoted,
    )
    if ready_file is not None and not report.failures:
        write_ready_file(ready_file, len(models))
    return report


def lock(
    getter: Getter, manifest: str | os.PathLike[str], *, jobs: int, check: bool
) -> tuple[manifests.LockedModel, ...]:
    """Do what `Cache.lock` says."""
    path = lock_path(manifest)
    documents = read(manifest, locked=False)
    models = manifests.parse_manifest(documents.text, file=documents.file)
    policies = _policies(getter, documents).for_resolving()

    def one(model: manifests.Model, deadline: Deadline) -> Entry | ModelCacheError:
        try:
            fresh = model.digest is None and not getter.limits.offline
            ask = question(
                getter.limits, model.ref, model.digest, model.mirrors, force_download=fresh, policies=policies,
                for_use=False,
            )  # fmt: skip
            return getter.entry(ask, deadline)
        except ModelCacheError as error:
            return error

    found = run_all(models, one, jobs=jobs, deadline=lambda model: getter.deadline(reference.parse(model.ref)))
    keys = [reference.parse(model.ref).key for model in models]
    failures = {key: outcome for key, outcome in zip(keys, found, strict=True) if isinstance(outcome, ModelCacheError)}
    if failures and len(models) == 1:
        raise next(iter(failures.values()))
    if failures:
        raise BatchError(failures=failures, total=len(models))
    locked = resolve([entry for entry in found if isinstance(entry, Entry)])
    if check:
        check_lock(locked, path)
    else:
        write_lock(locked, path)
    return locked


def _policies(getter: Getter, manifest: Documents) -> Policies:
    """Return the policies in force for the models of *manifest*: the cache's, and its own."""
    return getter.limits.policies.and_also(manifests.parse_policy(manifest.text, file=manifest.file))


def read(path: str | os.PathLike[str], *, locked: bool) -> Documents:
    """Return the text of the manifest at *path*; *locked*, of its lock file too.

    Raises:
        ManifestError: One of them cannot be read.
        UsageError: *locked*, and *path* is that of a lock file itself.
    """
    return Documents(os.fspath(path), _text(path), _text(lock_path(path)) if locked else None)


def read_manifest(path: str | os.PathLike[str]) -> tuple[manifests.Model, ...]:
    """Return the models of the manifest at *path*; raise ManifestError."""
    return manifests.parse_manifest(_text(path), file=os.fspath(path))


def read_lock(path: str | os.PathLike[str]) -> tuple[manifests.LockedModel, ...]:
    """Return the models of the lock file at *path*; raise ManifestError."""
    return manifests.parse_lock(_text(path), file=os.fspath(path))


def lock_path(path: str | os.PathLike[str]) -> str:
    """Return the lock file that belongs to the manifest at *path*: ``models.toml`` → ``models.lock``.

    Raises:
        UsageError: *path* is that of a lock file itself.
    """
    stem, suffix = os.path.splitext(os.fspath(path))
    if suffix == ".lock":
        hint = f"Give the manifest that it was made from, such as {stem}.toml"
        raise UsageError(problem=f"{os.fspath(path)} is a lock file, and a manifest is expected", hint=hint)
    return f"{stem}.lock"


def wanted(documents: Documents) -> list[Wanted]:
    """Return what a manifest asks for; with a lock file, exactly the bytes in that.

    Raises:
        ManifestError: One of the two has a mistake.
        LockDriftError: They disagree.
    """
    models = manifests.parse_manifest(documents.text, file=documents.file)
    if documents.lock is None:
        return [
            Wanted(model.ref, model.digest, None, model.mirrors, model.pin, model.ttl, derive=model.derive)
            for model in models
        ]
    file = lock_path(documents.file)
    lock = manifests.parse_lock(documents.lock, file=file)
    manifests.check_drift(models, lock, file=file)
    exactly = {reference.parse(model.ref).key: model for model in lock}
    both = [(model, exactly[reference.parse(model.ref).key]) for model in models]
    return [
        Wanted(model.ref, exact.digest, exact.size, model.mirrors, model.pin, model.ttl, exact.revision, model.derive)
        for model, exact in both
    ]


def as_drift(error: ModelCacheError, path: str | os.PathLike[str]) -> ModelCacheError:
    """Return *error* as drift where it says that the source no longer serves what is locked."""
    causes = error.errors if isinstance(error, MirrorsExhaustedError) else (error,)
    if all(isinstance(cause, DigestMismatchError | SizeMismatchError) for cause in causes):
        return LockDriftError(file=lock_path(path), differences=tuple(cause.summary for cause in causes))
    return error


def resolve(entries: Sequence[Entry]) -> tuple[manifests.LockedModel, ...]:
    """Return what a lock file says of *entries*: by key, which holds no credentials."""
    return tuple(manifests.LockedModel(entry.key, entry.digest, entry.size, entry.revision) for entry in entries)


def write_lock(models: Sequence[manifests.LockedModel], path: str) -> None:
    """Replace the lock file at *path*, atomically and durably."""
    try:
        text = manifests.render_lock(models, file=path)
        commit.commit_record(os.path.dirname(os.path.abspath(path)), os.path.abspath(path), text.encode())
    except OSError as error:
        raise storage_error(error, action="write", path=path) from error


def check_lock(models: Sequence[manifests.LockedModel], path: str) -> None:
    """Check that the lock file at *path* says exactly *models*; raise LockDriftError or ManifestError."""
    found = {reference.parse(model.ref).key: model for model in read_lock(path)}
    differences = [
        f"{model.ref} is {model.digest} now, locked is {found[model.ref].digest if model.ref in found else 'nothing'}"
        for model in models
        if model.ref not in found or found[model.ref].digest != model.digest
    ]
    differences += [f"{ref} is locked and not in the manifest" for ref in found.keys() - {m.ref for m in models}]
    if not differences and _text(path) != manifests.render_lock(models, file=path):
        differences.append("its sizes, its revisions or their order are others now")
    if differences:
        raise LockDriftError(file=path, differences=tuple(differences))


def remove_ready_file(path: str, manifest: str | os.PathLike[str]) -> None:
    """Remove the file of an earlier run, durably: what it said may hold no longer.

    Raises:
        UsageError: It is the manifest itself, a lock file, or no file.
        StorageError: It could not be removed.
    """
    if os.path.realpath(path) == os.path.realpath(manifest) or path.endswith(".lock"):
        raise UsageError(problem=f"the ready file {path} is the manifest or a lock file", hint="Name another file")
    files.check_replaceable(path)
    try:
        commit.remove_record(os.path.abspath(path))
    except OSError as error:
        raise storage_error(error, action="remove", path=path) from error


def write_ready_file(path: str, count: int) -> None:
    """Write the file that a readiness probe looks for, atomically and durably."""
    try:
        target = os.path.abspath(path)
        commit.commit_record(os.path.dirname(target), target, f"{count} models\n".encode())
    except OSError as error:
        raise storage_error(error, action="write", path=path) from error


def _text(path: str | os.PathLike[str]) -> str:
    file = os.fspath(path)
    try:
        with open(file, encoding="utf-8") as stream:
            return stream.read()
    except OSError as error:
        raise ManifestError(file=file, problem=error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ManifestError(file=file, problem=f"not UTF-8: {error.reason} at byte {error.start}") from error
