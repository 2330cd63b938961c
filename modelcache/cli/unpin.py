"""``modelcache unpin REF …``: take pins off."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import EntryNotFoundError
from ..reference import parse
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a pinned model")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Unpin each of them."""
    keys = [parse(ref).key for ref in arguments.refs]
    with Cache(arguments.root) as cache:
        for key in keys:
            if not cache.unpin(key) and cache.lookup(key) is None:
                raise EntryNotFoundError(ref=key, root=cache.root)
            console.note(f"unpinned {key}")
    if console.json:
        console.data_json({"unpinned": keys})
    return 0
