"""``modelcache gc``: remove what nothing names, what crashed processes left, and what a limit leaves no room for."""

from __future__ import annotations

import argparse
import time

from ..cache import Cache
from ..config import parse_seconds
from .console import Console, duration, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--dry-run", action="store_true", help="say what would go, and remove nothing")
    parser.add_argument(
        "--capacity",
        metavar="SIZE",
        help="evict what was least recently used until the cache uses no more: 50GB, 20%% of the disk, or free:10GB "
        "(default: MODELCACHE_CAPACITY)",
    )
    parser.add_argument("--unused-for", metavar="TIME", help="evict what was not used for so long: 12h, 30d, 4w")
    parser.add_argument(
        "--grace",
        metavar="TIME",
        help="keep what was used within this time (default: MODELCACHE_GRACE, 1h); 0: only what is pinned or leased",
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Plan, show, execute; the exit code is 8 if a limit cannot be kept."""
    seconds = {
        name: None if text is None else parse_seconds(text, setting=f"--{name.replace('_', '-')}")
        for name, text in (("unused_for", arguments.unused_for), ("grace", arguments.grace))
    }
    with Cache(arguments.root) as cache:
        plan = cache.plan_gc(capacity=arguments.capacity, **seconds)
        collected = None if arguments.dry_run else plan.execute()
    now = time.time()
    code = 8 if plan.missing_bytes else 0
    if console.json:
        console.data_json({**plan.as_dict(), "collected": None if collected is None else collected.as_dict()})
        return code
    items = plan.items if collected is None else collected.removed
    if items:
        rows = [("SIZE", "UNUSED", "REASON", "REF")]
        rows += [
            (size(item.size), duration(item.age(now)), item.reason, " ".join(item.keys) or f"({item.kind}) {item.name}")
            for item in items
        ]
        console.table(rows, right=frozenset({0, 1}))
    freed = plan.freed_bytes if collected is None else collected.freed_bytes
    console.note(f"{len(items)} {'would go' if collected is None else 'removed'}, {size(freed)}")
    for name, why in ({} if collected is None else collected.stayed).items():
        console.note(f"{name} stays: {why}")
    if plan.missing_bytes:
        kept = ", ".join(f"{size(count)} {why}" for why, count in plan.kept.items() if count) or "nothing else may go"
        console.say(f"the cache is {size(plan.missing_bytes)} above its limit: {kept}")
    return code
