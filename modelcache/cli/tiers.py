"""``modelcache tiers``: what is asked before any source, and how it is; ``sync`` copies, ``collect`` clears up."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..errors import UsageError
from ..levels.base import TierState
from ..syncing import Synced
from .console import Console, duration, size
from .tierstates import described


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(metavar="[sync | collect]", dest="action")
    sync = actions.add_parser(
        "sync",
        help="copy what is missing, to or from a bucket",
        description="Copy what is missing from this cache to buckets, or from one to this cache.",
    )
    collect = actions.add_parser(
        "collect",
        help="remove what killed machines have left in the bucket of a fleet",
        description="Remove claims and parts of downloads that killed machines have left in the tier with single "
        "flight. It looks twice, a lease and a half apart, and takes only what has not moved; never content.",
    )
    for names, options in (
        (("--root",), {"metavar": "DIR"}),
        (("--json",), {"action": "store_true"}),
        (("-q", "--quiet"), {"action": "store_true"}),
        (("--progress",), {}),
    ):
        for action in (sync, collect):
            action.add_argument(*names, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)  # type: ignore[arg-type]
    collect.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    sync.add_argument("refs", nargs="*", metavar="REF", help="what to copy")
    sync.add_argument("--all", action="store_true", help="everything, what is private too")
    sync.add_argument("--to", metavar="NAME", help="to this tier (default: all that are written to)")
    sync.add_argument("--from", dest="from_", metavar="NAME", help="from this tier, to the cache")
    sync.add_argument("--dry-run", action="store_true", help="say what would be copied, and copy nothing")
    sync.add_argument("-j", "--jobs", type=int, metavar="N", help="refs at a time (default: MODELCACHE_CONCURRENCY, 8)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """List the tiers in order, or sync; a problem with a tier is no failure of a list."""
    if arguments.action == "sync":
        return _sync(arguments, console)
    if arguments.action == "collect":
        return _collect(arguments, console)
    with Cache(arguments.root) as cache:
        states = cache.tiers()
    if console.json:
        console.data_json([state.as_dict() for state in states])
        return 0
    if not states:
        console.note("there are no tiers: MODELCACHE_TIERS names them, or `tiers` in a file with settings")
        return 0
    rows = [("NAME", "KIND", "HITS ARE", "WRITES", "STATE", "WAITING", "PATH")]
    for state in states:
        how = "promoted" if state.promote else "in place"
        rows.append((state.name, state.kind, how, state.write or "-", described(state), _waiting(state), state.path))
    console.table(rows)
    return 0


def _waiting(state: TierState) -> str:
    if not state.write:
        return "-"
    return f"{state.waiting}, {duration(state.lag)}" if state.waiting else "0"


def _sync(arguments: argparse.Namespace, console: Console) -> int:
    """Copy; 3 if some failed. What failed is told on stderr as it does."""
    if bool(arguments.refs) == arguments.all:
        raise UsageError(problem="name what to copy, or say --all")

    def tell(one: Synced) -> None:
        if one.error is not None:
            console.say(f"failed: {one.ref}: {one.error.summary}")

    with Cache(arguments.root, on_event=console.event) as cache:
        report = cache.sync_tiers(
            *arguments.refs, to=arguments.to, from_=arguments.from_, jobs=arguments.jobs, dry_run=arguments.dry_run,
            on_synced=tell,
        )  # fmt: skip
    console.close()
    counts = report.counts()
    if console.json:
        console.data_json(report.as_dict())
        return 3 if report.failures else 0
    for one in report.refs:
        if one.state in {"copied", "missing", "other"}:
            console.data(f"{one.state:<8} {size(one.bytes):>9}  {one.tier}  {one.ref}")
    parts = [f"{counts[state]} {state}" for state in ("copied", "missing", "there", "other", "failed") if counts[state]]
    console.note(f"{', '.join(parts) or 'there is nothing'}; {size(counts['bytes'])} in {duration(report.seconds)}")
    return 3 if report.failures else 0


def _collect(arguments: argparse.Namespace, console: Console) -> int:
    """Remove, or say what would be."""
    with Cache(arguments.root) as cache:
        names = cache.collect_tier(dry_run=arguments.dry_run)
    if console.json:
        console.data_json({"dry_run": arguments.dry_run, "files": list(names)})
        return 0
    for name in names:
        console.data(name)
    what = "would be removed" if arguments.dry_run else "removed"
    console.note(f"{len(names)} files of the fleet {what}" if names else "nothing is left of any fetch")
    return 0
