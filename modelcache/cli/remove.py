"""``modelcache rm REF …``: forget models and delete what nothing else needs."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import EntryNotFoundError
from .console import Console
from .each import do_each


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a URL, a path, or a name that was put")
    parser.add_argument("--force", action="store_true", help="remove pinned models too")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Remove; one that is not there is an error, after the other ones are gone."""
    with Cache(arguments.root) as cache:

        def remove(key: str) -> None:
            if not cache.remove(key, force=arguments.force):
                raise EntryNotFoundError(ref=key, root=cache.root)

        return do_each(arguments.refs, remove, "removed", console)
