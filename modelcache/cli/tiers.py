"""``modelcache tiers``: the caches that are asked before any source."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..cache import Cache
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(arguments: argparse.Namespace, console: Console) -> int:
    """List the tiers in order; a problem with one is no failure."""
    with Cache(arguments.root) as cache:
        states = cache.tiers()
    if console.json:
        console.data_json([asdict(state) for state in states])
        return 0
    if not states:
        console.note("there are no tiers: MODELCACHE_TIERS names them, or `tiers` in a file with settings")
        return 0
    rows = [("KIND", "HITS ARE", "STATE", "PATH")]
    rows += [
        (state.kind, "promoted" if state.promote else "in place", state.problem or "ok", state.path) for state in states
    ]
    console.table(rows)
    return 0
