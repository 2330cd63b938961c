"""``modelcache export REF … --to FILE|DIR``: cached models, for a machine without a network."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..warmup import read_manifest
from .console import Console, size


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("refs", nargs="*", metavar="REF", help="a URL, a path, or a name that was put")
    parser.add_argument(
        "--to", required=True, metavar="FILE|DIR", help="one file if the name ends in .tar, else a folder"
    )
    parser.add_argument("--all", action="store_true", help="everything that is cached")
    parser.add_argument("--manifest", metavar="FILE", help="every model of a models.toml")
    parser.add_argument("--base", metavar="PATH", help="leave out what this earlier bundle, or its index, has")
    parser.add_argument(
        "--verify",
        choices=("stat", "full"),
        default="stat",
        help="how contents that are there already are checked: by size, or read and hashed (default: stat)",
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Export; the digest of the bundle on stdout."""
    with Cache(arguments.root, on_event=console.event) as cache:
        refs = list(arguments.refs)
        if arguments.all:
            refs += [entry.key for entry in cache.entries() if entry.derivation is None]  # Derived where it is used.
        if arguments.manifest is not None:
            refs += [model.ref for model in read_manifest(arguments.manifest)]
        report = cache.export(*refs, to=arguments.to, base=arguments.base, verify=arguments.verify)
    console.close()
    if console.json:
        console.data_json(report.as_dict())
        return 0
    console.data(report.digest)
    left_out = f", {size(report.bytes_left_out)} left out" if report.bytes_left_out else ""
    console.note(
        f"{len(report.refs)} models in {report.path}: {size(report.bytes_written)} written, "
        f"{size(report.bytes_there)} were there{left_out}"
    )
    return 0
