"""What the commands that fetch have in common: whom they ask, and how fast."""

from __future__ import annotations

import argparse
from typing import Any

from ..cache import Cache
from ..config import parse_bytes
from ..settings import MODES
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--offline", action="store_true", help="open no connection: --mode offline")
    parser.add_argument(
        "--mode",
        choices=MODES,
        help="cache-first fetches what is not here (the default); offline opens no connection; refresh asks the source "
        "of each model, and serves what is here where it cannot be reached",
    )
    parser.add_argument("--max-bandwidth", metavar="BYTES", help="limit per second for all together, such as 20MB")


def options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what *arguments* say, as `Cache` takes it."""
    limit = arguments.max_bandwidth
    return {
        "offline": arguments.offline or None,
        "mode": arguments.mode,
        "max_bandwidth": parse_bytes(limit, setting="--max-bandwidth") if limit else None,
    }


def say_what_waits(cache: Cache, console: Console) -> None:
    """Say what the closed *cache* has not brought to its tiers in the time that an end takes."""
    for name, count in cache.waiting().items():
        console.note(f"{count} object{'s' if count > 1 else ''} still to go to the tier {name}: the next get goes on")
