"""``modelcache ls``: what is cached."""

from __future__ import annotations

import argparse
import time

from ..cache import Cache
from ..pins import Pins
from .console import Console, duration, size


def add(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(arguments: argparse.Namespace, console: Console) -> int:
    """List the entries, one a line."""
    with Cache(arguments.root) as cache:
        entries = cache.entries()
        pins = Pins(cache.root)
        if console.json:
            console.data_json([{**entry.as_dict(), "pinned": pins.has(entry.key)} for entry in entries])
            return 0
        if not entries:
            console.note(f"nothing is cached at {cache.root}")
            return 0
        now = time.time()
        rows = [("SIZE", "AGE", "PIN", "REF")]
        rows += [
            (size(entry.size), duration(max(0, now - entry.created)), "pin" if pins.has(entry.key) else "", entry.key)
            for entry in entries
        ]
    console.table(rows, right=frozenset({0, 1}))
    return 0
