"""``modelcache rm REF …``: forget models and delete what nothing else needs."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import BatchError, EntryNotFoundError, ModelCacheError
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a URL, a path, or a name that was put")
    parser.add_argument("--force", action="store_true", help="remove pinned models too")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Remove; one that is not there is an error, after the other ones are gone."""
    failures: dict[str, ModelCacheError] = {}
    with Cache(arguments.root) as cache:
        for ref in arguments.refs:
            try:
                if not cache.remove(ref, force=arguments.force):
                    raise EntryNotFoundError(ref=ref, root=cache.root)
                console.note(f"removed {ref}")
            except ModelCacheError as error:
                failures[ref] = error
    if console.json:
        console.data_json({"removed": [ref for ref in arguments.refs if ref not in failures]})
    if len(arguments.refs) == 1 and failures:
        raise failures[arguments.refs[0]]
    if failures:
        raise BatchError(failures=failures, total=len(arguments.refs))
    return 0
