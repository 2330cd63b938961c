"""``modelcache stats``: what is on disk, counted."""

from __future__ import annotations

import argparse

from ..cache import Cache
from .console import Console, size


def add(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Count entries, objects (shared bytes once), partials and what is in quarantine."""
    with Cache(arguments.root) as cache:
        usage = cache.usage()
    if console.json:
        console.data_json(usage.as_dict())
        return 0
    console.data(f"root         {usage.root}")
    console.data(f"entries      {usage.entries} ({usage.pinned} pinned)")
    console.data(f"objects      {usage.objects}, {size(usage.object_bytes)}")
    console.data(f"partials     {usage.partials}, {size(usage.partial_bytes)}")
    console.data(f"quarantine   {usage.quarantined}")
    console.data(f"free         {size(usage.free_bytes)}")
    return 0
