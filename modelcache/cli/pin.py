"""``modelcache pin REF …``: keep models until they are unpinned."""

from __future__ import annotations

import argparse

from ..cache import Cache
from .console import Console
from .each import do_each


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="+", metavar="REF", help="a cached model")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Pin each of them."""
    with Cache(arguments.root) as cache:
        return do_each(arguments.refs, cache.pin, "pinned", console)
