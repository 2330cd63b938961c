"""``modelcache get REF``: the path alone on stdout; of a repository, that of its directory."""

from __future__ import annotations

import argparse

from ..cache import Cache
from ..config import parse_seconds
from . import asking
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("ref", help="a URL, a path, hf://org/name[@revision][/file], or a name that was put")
    parser.add_argument("--digest", metavar="sha256:HEX", help="what the content must be; of a tree, tree:HEX")
    parser.add_argument(
        "--include", action="append", metavar="PATTERN", help="only these files of a repository; repeatable"
    )
    parser.add_argument(
        "--exclude", action="append", metavar="PATTERN", help="not these files of a repository; repeatable"
    )
    parser.add_argument(
        "--unpack", action="store_true", help="REF is an archive (.tar.gz, .zip …): its files, as a directory"
    )
    parser.add_argument(
        "--mirror", action="append", default=[], metavar="URL", help="asked when REF cannot serve; repeatable"
    )
    parser.add_argument(
        "--max-age", type=float, metavar="S", help="ask the source if it confirmed the content longer ago, in seconds"
    )
    parser.add_argument("--force", action="store_true", help="ask the source in any case")
    parser.add_argument(
        "--verify", choices=("stat", "sample", "full"), default="stat", help="how a hit is checked (default: stat)"
    )
    parser.add_argument("--ttl", metavar="SPAN", help="how long it is wanted, such as 30d; then gc removes it")
    asking.add(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Get one model."""
    with Cache(arguments.root, on_event=console.event, **asking.options(arguments)) as cache:
        options = {
            "digest": arguments.digest,
            "max_age": arguments.max_age,
            "force_download": arguments.force,
            "verify": arguments.verify,
            "ttl": parse_seconds(arguments.ttl, setting="--ttl") if arguments.ttl else None,
        }
        if arguments.include or arguments.exclude or arguments.unpack:
            path = cache.get_tree(
                arguments.ref, allow_patterns=arguments.include, ignore_patterns=arguments.exclude, **options
            )
        else:
            path = cache.get(arguments.ref, mirrors=arguments.mirror, **options)
        console.close()
        if console.json:
            entry = cache.lookup(arguments.ref)
            if entry is None or entry.path != path:  # A tree that was chosen or unpacked has a ref of its own.
                entry = next((one for one in cache.entries() if one.path == path), None)
            stats = cache.stats().as_dict()
            console.data_json({**(entry.as_dict() if entry else {"path": path}), "stats": stats})
        else:
            console.data(path)
    asking.say_what_waits(cache, console)
    return 0
