"""``modelcache path REF``: the path of a cached model, for scripts. Never opens a connection."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import EntryNotFoundError
from ..reference import parse
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("ref", help="a URL, a path, or a name that was put")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print one path."""
    key = parse(arguments.ref).key
    with Cache(arguments.root, offline=True) as cache:
        if cache.lookup(arguments.ref) is None:
            raise EntryNotFoundError(ref=key, root=cache.root)
        path = cache.get(arguments.ref)  # Not only a look: the use is recorded.
    if console.json:
        console.data_json({"ref": key, "path": path})
    else:
        console.data(path)
    return 0
