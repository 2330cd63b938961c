"""``modelcache path REF``: the path of a cached model, for scripts. Never opens a connection."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import EntryNotFoundError
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("ref", help="a URL, a path, or a name that was put")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print one path."""
    with Cache(arguments.root, offline=True) as cache:
        if cache.lookup(arguments.ref) is None:
            raise EntryNotFoundError(ref=arguments.ref, root=cache.root)
        path = cache.get(arguments.ref)  # Not only a look: the use is recorded.
    if console.json:
        console.data_json({"ref": arguments.ref, "path": path})
    else:
        console.data(path)
    return 0
