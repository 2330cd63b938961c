"""``modelcache unpin REF …``: take pins off."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import EntryNotFoundError
from .console import Console
from .each import do_each


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a pinned model")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Unpin each of them."""
    with Cache(arguments.root) as cache:

        def unpin(key: str) -> None:
            if not cache.unpin(key) and cache.lookup(key) is None:
                raise EntryNotFoundError(ref=key, root=cache.root)

        return do_each(arguments.refs, unpin, "unpinned", console)
