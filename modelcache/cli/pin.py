"""``modelcache pin REF …``: keep models until they are unpinned."""

from __future__ import annotations

import argparse

from ..cache import Cache
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a cached model")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Pin each of them."""
    with Cache(arguments.root) as cache:
        for ref in arguments.refs:
            cache.pin(ref)
            console.note(f"pinned {ref}")
    if console.json:
        console.data_json({"pinned": arguments.refs})
    return 0
