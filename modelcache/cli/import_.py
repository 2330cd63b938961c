"""``modelcache import PATH [REF …]``: models out of what `modelcache export` wrote."""

from __future__ import annotations

import argparse

from ..cache import Cache
from .console import Console, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("path", metavar="PATH", help="the folder or the file that an export wrote")
    parser.add_argument("refs", nargs="*", metavar="REF", help="default: everything in it")
    parser.add_argument(
        "--digest", metavar="sha256:HEX", help="accept only the bundle of which the export printed this"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be imported, and do nothing")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--replace", action="store_true", help="take the bundle's content where the cache has another")
    group.add_argument("--keep", action="store_true", help="keep the cache's (default: what was confirmed later)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Import; what became of each model on stdout."""
    conflict = "replace" if arguments.replace else "keep" if arguments.keep else "newer"
    with Cache(arguments.root, on_event=console.event) as cache:
        report = cache.import_(
            arguments.path, *arguments.refs, digest=arguments.digest, conflict=conflict, dry_run=arguments.dry_run
        )
    console.close()
    if console.json:
        console.data_json(report.as_dict())
        return 0
    rows = [("STATE", "SIZE", "REF")]
    rows += [(model.state, size(model.size), model.ref) for model in report.models]
    console.table(rows, right=frozenset({1}))
    verb = "would be read" if arguments.dry_run else "read"
    console.note(f"{report.contents} contents, {size(report.bytes_read)}, {verb} from {report.path}")
    return 0
