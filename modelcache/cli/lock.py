"""``modelcache lock models.toml``: resolve a manifest into ``models.lock``; or write both from usage."""

from __future__ import annotations

import argparse
import os
import time

from ..cache import Cache
from ..config import parse_moment
from ..errors import UsageError
from ..warmup import lock_path
from . import asking
from .console import Console, one_line, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("manifest", nargs="?", default="models.toml", help="default: models.toml")
    parser.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="models at a time (default: MODELCACHE_CONCURRENCY, 8)"
    )
    asking.add(parser)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if models.lock would change")
    parser.add_argument("--from-usage", action="store_true", help="write the manifest: the models that are used most")
    parser.add_argument("--top", type=int, metavar="N", help="with --from-usage: how many models")
    parser.add_argument("--since", metavar="TIME", help="with --from-usage: of the last 30d, say, or since a date")
    parser.add_argument("--from", dest="archive", metavar="LOCATION", help="with --from-usage: read it there: s3://…")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write the lock file, or compare with it."""
    if arguments.from_usage:
        return _from_usage(arguments, console)
    given = [name for name in ("top", "since", "archive") if getattr(arguments, name) is not None]
    if given:
        option = "--from" if given[0] == "archive" else f"--{given[0]}"
        raise UsageError(problem=f"{option} says what to take from usage: --from-usage is missing")
    with Cache(arguments.root, on_event=console.event, **asking.options(arguments)) as cache:
        models = cache.lock(arguments.manifest, jobs=arguments.jobs, check=arguments.check)
    console.close()
    if console.json:
        console.data_json([{"ref": m.ref, "digest": m.digest, "size": m.size, "revision": m.revision} for m in models])
    else:
        for model in models:
            console.data(f"{model.digest}  {size(model.size):>8}  {model.ref}")
    return 0


def _from_usage(arguments: argparse.Namespace, console: Console) -> int:
    if arguments.top is None or arguments.check:
        problem = "--check compares a lock file" if arguments.check else "--top N says how many models: it is missing"
        raise UsageError(problem=f"--from-usage writes a manifest, and {problem}")
    since = None if arguments.since is None else parse_moment(arguments.since, now=time.time(), setting="--since")
    lock = lock_path(arguments.manifest)  # Raises for the name of a lock file.
    with Cache(arguments.root, **asking.options(arguments)) as cache:
        refs = cache.usage_manifest(arguments.manifest, top=arguments.top, since=since, archive=arguments.archive)
    if os.path.exists(lock):
        console.note(f"wrote {arguments.manifest} and {lock}")
    else:
        console.note(f"wrote {arguments.manifest}; for {lock}, bytes are missing: `modelcache lock` finds them")
    if console.json:
        console.data_json(refs)
    for ref in [] if console.json else refs:
        console.data(one_line(ref))
    return 0
