"""``modelcache unpin REF …``: take pins off."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import EntryNotFoundError
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a pinned model")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Unpin each of them."""
    with Cache(arguments.root) as cache:
        for ref in arguments.refs:
            if not cache.unpin(ref) and cache.lookup(ref) is None:
                raise EntryNotFoundError(ref=ref, root=cache.root)
            console.note(f"unpinned {ref}")
    if console.json:
        console.data_json({"unpinned": arguments.refs})
    return 0
