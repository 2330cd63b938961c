"""``modelcache lock models.toml``: resolve a manifest into ``models.lock``."""

from __future__ import annotations

import argparse

from ..cache import Cache
from . import asking
from .console import Console, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("manifest", nargs="?", default="models.toml", help="default: models.toml")
    parser.add_argument(
        "-j", "--jobs", type=int, metavar="N", help="models at a time (default: MODELCACHE_CONCURRENCY, 8)"
    )
    asking.add(parser)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if models.lock would change")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write the lock file, or compare with it."""
    with Cache(arguments.root, on_event=console.event, **asking.options(arguments)) as cache:
        models = cache.lock(arguments.manifest, jobs=arguments.jobs, check=arguments.check)
    console.close()
    if console.json:
        console.data_json([{"ref": m.ref, "digest": m.digest, "size": m.size, "revision": m.revision} for m in models])
    else:
        for model in models:
            console.data(f"{model.digest}  {size(model.size):>8}  {model.ref}")
    return 0
