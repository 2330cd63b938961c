"""``modelcache du``: what each model takes of the disk; what several share is counted once."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import EntryNotFoundError
from ..reference import parse
from .console import Console, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="*", metavar="REF", help="default: everything, the largest first")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print a line for each object, with the entries that name it."""
    keys = [parse(ref).key for ref in arguments.refs]
    with Cache(arguments.root) as cache:
        found, total = cache.disk_usage_by_model()
        missing = set(keys) - {key for one in found for key in one.refs}
        if missing:
            raise EntryNotFoundError(ref=min(missing), root=cache.root)
    if keys:
        found = [one for one in found if not set(keys).isdisjoint(one.refs)]
    if console.json:
        console.data_json({"models": [one.as_dict() for one in found], "total_bytes": total})
        return 0
    rows = [("OWN", "SHARED", "REF")]
    rows += [(size(one.own_bytes), size(one.shared_bytes), " ".join(one.refs) or f"({one.object})") for one in found]
    console.table(rows, right=frozenset({0, 1}))
    console.note(f"{size(total)} in all objects; what several models share is counted once there")
    return 0
