"""From usage to a manifest: what a new node should warm, because the others really use it."""

from __future__ import annotations

import os
from collections.abc import Callable

from .. import commit, files, manifest, reference
from ..digest import Digest
from ..errors import ModelCacheError, UsageError, storage_error
from ..manifest import LockedModel, Model
from ..records import Entry
from ..warmup import lock_path, write_lock
from .summary import most_used
from .tally import Tally, Usage


def models(used: Tally, top: int, entry_of: Callable[[str], Entry | None]) -> list[tuple[Model, LockedModel | None]]:
    """Return the *top* most used models that another machine can fetch, with the exact bytes where these are known.

    A name that was put, a path of this machine and what was derived have no source elsewhere, and are left out. What
    the cache has on record of a model, by *entry_of*, is believed before what usage says: it knows size and revision.
    """
    found: list[tuple[Model, LockedModel | None]] = []
    for key, usage in most_used(used):
        if len(found) == top:
            break
        try:
            parsed = reference.parse(key)
        except ModelCacheError:
            continue  # Of a later modelcache, or of no model at all.
        if parsed.scheme in {"", "file"} or parsed.key != key:
            continue
        found.append(_one(key, usage, entry_of(key)))
    return found


def _one(key: str, usage: Usage, entry: Entry | None) -> tuple[Model, LockedModel | None]:
    if entry is not None:
        mirrors = tuple(mirror for mirror in entry.mirrors if reference.parse(mirror).scheme not in {"", "file"})
        model = Model(key, entry.digest, mirrors)
        return model, LockedModel(key, entry.digest, entry.size, entry.revision)
    try:
        digest = Digest.parse(usage.digest)
    except ModelCacheError:
        return Model(key), None  # It never came to a hit where its use was counted.
    return Model(key, digest), LockedModel(key, digest, usage.size)


def write(path: str, chosen: list[tuple[Model, LockedModel | None]]) -> None:
    """Write the manifest *path*, and the lock file beside it if the bytes of all are known; each whole or not at all.

    A lock file of before does not outlive what it locked.

    Raises:
        UsageError: Nothing was chosen: there is no usage on record of a model that has a source. Or what is at *path*
            was not written by this: a manifest of somebody's own is not lost.
        StorageError: It cannot be written.
    """
    if not chosen:
        raise UsageError(
            problem="no model with a source was used, as far as that is on record",
            hint="Turn usage on where models are used (MODELCACHE_USAGE=1), or give --from LOCATION of an archive",
        )
    if os.path.lexists(path) and not _is_ours(path):
        raise UsageError(
            problem=f"{path} was not written by `modelcache lock --from-usage`, and would be lost",
            hint="Name another file, or remove this one",
        )
    lock, locked = lock_path(path), [exact for _, exact in chosen if exact is not None]
    try:
        commit.remove_record(os.path.abspath(lock))
        text = manifest.render([model for model, _ in chosen])
        commit.commit_record(os.path.dirname(os.path.abspath(path)), os.path.abspath(path), text.encode())
    except OSError as error:
        raise storage_error(error, action="write", path=path) from error
    if len(locked) == len(chosen):
        write_lock(locked, lock)


def _is_ours(path: str) -> bool:
    data = files.content(path)
    return data is not None and data.startswith(manifest.OF_USAGE.encode())
