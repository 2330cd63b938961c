"""``modelcache rm REF …``: forget models and delete what nothing else needs."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import BatchError, EntryNotFoundError, ModelCacheError
from ..reference import parse
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a URL, a path, or a name that was put")
    parser.add_argument("--force", action="store_true", help="remove pinned models too")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Remove; one that is not there is an error, after the other ones are gone."""
    keys = [parse(ref).key for ref in arguments.refs]
    failures: dict[str, ModelCacheError] = {}
    with Cache(arguments.root) as cache:
        for key in keys:
            try:
                if not cache.remove(key, force=arguments.force):
                    raise EntryNotFoundError(ref=key, root=cache.root)
                console.note(f"removed {key}")
            except ModelCacheError as error:
                failures[key] = error
    if console.json:
        console.data_json({"removed": [key for key in keys if key not in failures]})
    if len(keys) == 1 and failures:
        raise failures[keys[0]]
    if failures:
        raise BatchError(failures=failures, total=len(keys))
    return 0
