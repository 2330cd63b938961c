"""The module-level functions: those of one `Cache` that a process shares, for scripts.

The default cache is made when it is first needed, from the environment at that time. A program that needs other
settings, or two caches, makes its own `Cache`.
"""

import os

from . import configfiles, hit, reference

TYPE_CHECKING = False  # typing takes 10 ms to import; type checkers take this name for its constant.
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .cache import Cache
    from .derivation import Derivation
    from .exporting import ExportReport
    from .importing import ImportReport
    from .intake import Content
    from .leasing import Lease
    from .making import Build
    from .mending import Difference
    from .question import RefLike
    from .records import Entry
    from .report import Health, Stats
    from .verification import Finding, Report
    from .warmup import PrewarmReport

_default: "Cache | None" = None
_asked = False


def default_cache() -> "Cache":
    """Return the cache behind the module-level functions."""
    global _default
    if _default is None:
        from .cache import Cache

        # Two threads may both come here first: one of the two objects stays, and both are the same directory.
        _default = Cache()
    return _default


def get(
    ref: "RefLike",
    *,
    digest: "str | None" = None,
    mirrors: "Iterable[RefLike]" = (),
    max_age: "float | None" = None,
    local_files_only: bool = False,
    force_download: bool = False,
    verify: str = "stat",
    ttl: "float | None" = None,
) -> str:
    """Return the path of the model *ref*, fetched if it is not here. See `Cache.get`."""
    global _asked
    if not _asked and digest is None and max_age is None and not force_download and verify == "stat" and ttl is None:
        # The first get of a process, as a rule its only one: a hit needs no Cache, which takes 20 ms to import.
        _asked = True
        place = configfiles.place_for_a_look(os.environ)
        if place is not None and hit.format_is_known(place[0]):
            root, counts = place
            key = reference.parse(ref).key
            found = hit.look(root, key, recently=True)
            if found is not None:
                if counts:
                    from . import looks

                    looks.add(root, key, found.size)
                return found.path
    return default_cache().get(
        ref,
        digest=digest,
        mirrors=mirrors,
        max_age=max_age,
        local_files_only=local_files_only,
        force_download=force_download,
        verify=verify,
        ttl=ttl,
    )


async def aget(ref: "RefLike", **options: "Any") -> str:
    """Do what `get` does without blocking the event loop. See `Cache.aget`."""
    return await default_cache().aget(ref, **options)


def get_many(refs: "Iterable[RefLike]", *, jobs: "int | None" = None, **options: "Any") -> "dict[RefLike, str]":
    """Return the paths of *refs* by ref. See `Cache.get_many`."""
    return default_cache().get_many(refs, jobs=jobs, **options)


async def aget_many(refs: "Iterable[RefLike]", *, jobs: "int | None" = None, **options: "Any") -> "dict[RefLike, str]":
    """Do what `get_many` does without blocking the event loop. See `Cache.aget_many`."""
    return await default_cache().aget_many(refs, jobs=jobs, **options)


def get_tree(ref: "RefLike", **options: "Any") -> str:
    """Return the path of the directory that *ref* names. See `Cache.get_tree`."""
    return default_cache().get_tree(ref, **options)


async def aget_tree(ref: "RefLike", **options: "Any") -> str:
    """Do what `get_tree` does without blocking the event loop. See `Cache.get_tree`."""
    return await default_cache().aget_tree(ref, **options)


def derive(build: "Build", **options: "Any") -> str:
    """Return the path of what *build* makes of its inputs, built if it is not here. See `Cache.derive`."""
    return default_cache().derive(build, **options)


async def aderive(build: "Build", **options: "Any") -> str:
    """Do what `derive` does without blocking the event loop. See `Cache.aderive`."""
    return await default_cache().aderive(build, **options)


def explain(ref: "RefLike") -> "Derivation":
    """Return all that a derived artefact depends on, and how it was made. See `Cache.explain`."""
    return default_cache().explain(ref)


def lease(ref: "RefLike", **options: "Any") -> "Lease":
    """Get *ref*, and hold it until the lease is released. See `Cache.lease`."""
    return default_cache().lease(ref, **options)


def lookup(ref: "RefLike") -> "Entry | None":
    """Return the entry of *ref*, None if it is not cached. See `Cache.lookup`."""
    return default_cache().lookup(ref)


def entries() -> "list[Entry]":
    """Return every entry. See `Cache.entries`."""
    return default_cache().entries()


def put(content: "Content", *, name: str, digest: "str | None" = None, ttl: "float | None" = None) -> "Entry":
    """Store *content* under *name*. See `Cache.put`."""
    return default_cache().put(content, name=name, digest=digest, ttl=ttl)


def put_tree(directory: "str | os.PathLike[str]", *, name: str, **options: "Any") -> "Entry":
    """Store *directory* and all files in it under *name*. See `Cache.put_tree`."""
    return default_cache().put_tree(directory, name=name, **options)


def verify(
    *refs: "RefLike",
    repair: bool = False,
    jobs: "int | None" = None,
    since: "float | None" = None,
    on_finding: "Callable[[Finding], object] | None" = None,
) -> "Report":
    """Read and hash what is cached. See `Cache.verify`."""
    return default_cache().verify(*refs, repair=repair, jobs=jobs, since=since, on_finding=on_finding)


def export(*refs: "RefLike", to: "RefLike", base: "RefLike | None" = None, verify: str = "stat") -> "ExportReport":
    """Write *refs* to a bundle for another machine. See `Cache.export`."""
    return default_cache().export(*refs, to=to, base=base, verify=verify)


def import_(
    path: "RefLike",
    *refs: "RefLike",
    digest: "str | None" = None,
    conflict: str = "newer",
    dry_run: bool = False,
) -> "ImportReport":
    """Take *refs*, or everything, from a bundle into the cache. See `Cache.import_`."""
    return default_cache().import_(path, *refs, digest=digest, conflict=conflict, dry_run=dry_run)


def prewarm(
    manifest: "RefLike",
    *,
    jobs: "int | None" = None,
    locked: bool = False,
    ready_file: "RefLike | None" = None,
) -> "PrewarmReport":
    """Get every model of *manifest*. See `Cache.prewarm`."""
    return default_cache().prewarm(manifest, jobs=jobs, locked=locked, ready_file=ready_file)


def init(directory: "RefLike", *, access: str, group: str = "") -> "list[Difference]":
    """Let *access* and *group* decide who may use the cache in *directory*, which is made if it is missing.

    See docs/sharing.md, and `mending.init` for what it returns and raises.
    """
    from .mending import init

    return init(os.path.abspath(os.path.expanduser(os.fspath(directory))), access=access, group=group)


def health() -> "Health":
    """Return whether the default cache can do its work. See `Cache.health`."""
    return default_cache().health()


def stats() -> "Stats":
    """Return what the default cache has counted in this process. See `Cache.stats`."""
    return default_cache().stats()


def close() -> None:
    """Close the default cache; the next call makes a new one."""
    global _default, _asked
    cache, _default, _asked = _default, None, False
    if cache is not None:
        cache.close()
