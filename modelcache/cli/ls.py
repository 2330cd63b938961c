"""``modelcache ls``: what is cached."""

from __future__ import annotations

import argparse
import time

from ..cache import Cache
from ..pins import Pins
from ..records import Entries
from ..selection import HELP, SORTS, Listed, arrange, parse_filter
from .console import Console, duration, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--sort", choices=SORTS, default="ref", help="largest and oldest first; texts from a to z")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument("--filter", action="append", default=[], metavar="EXPR", help=f"only these; repeatable: {HELP}")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """List the entries, one a line."""
    now = time.time()
    filters = [parse_filter(text, now=now) for text in arguments.filter]
    with Cache(arguments.root) as cache:
        pins, records = Pins(cache.root), Entries(cache.root)
        found = [Listed(entry, records.used(entry.key), pins.has(entry.key)) for entry in cache.entries()]
        listed = [one for one in found if all(passes(one) for passes in filters)]
        listed = arrange(listed, sort=arguments.sort, reverse=arguments.reverse, now=now)
    if console.json:
        console.data_json([{**one.entry.as_dict(), "used": int(one.used), "pinned": one.pinned} for one in listed])
        return 0
    if not listed:
        console.note(f"nothing is cached at {cache.root}" if not found else "no entry passes the filter")
        return 0
    rows = [("SIZE", "AGE", "UNUSED", "PIN", "REF")]
    rows += [
        (
            size(one.entry.size),
            duration(max(0, now - one.entry.created)),
            duration(max(0, now - one.used)),
            "pin" if one.pinned else "",
            one.entry.key,
        )
        for one in listed
    ]
    console.table(rows, right=frozenset({0, 1, 2}))
    return 0
