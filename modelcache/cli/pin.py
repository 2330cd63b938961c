"""``modelcache pin REF …``: keep models until they are unpinned."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..reference import parse
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a cached model")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Pin each of them."""
    keys = [parse(ref).key for ref in arguments.refs]
    with Cache(arguments.root) as cache:
        for key in keys:
            cache.pin(key)
            console.note(f"pinned {key}")
    if console.json:
        console.data_json({"pinned": keys})
    return 0
