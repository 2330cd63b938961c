"""``modelcache doctor``: examine the cache directory and its file system."""

from __future__ import annotations

import argparse
import os

from .. import configfiles
from ..doctor import examine
from ..errors import UsageError
from ..layout import default_root
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--locks", action="store_true", help="of the probes, only that of locks")
    parser.add_argument("--durability", action="store_true", help="of the probes, only those of rename, link and sync")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print every check; 1 if one failed. A warning is no failure: the cache works, with less."""
    if arguments.root == "":
        raise UsageError(problem="--root is empty: give a directory, or leave it out for the default one")
    if arguments.root:
        root = default_root({"MODELCACHE_DIR": arguments.root})
    else:
        root = configfiles.root_of(configfiles.load(os.environ)[0], os.environ)
    checks = []
    everything = arguments.locks == arguments.durability
    for check in examine(root, locking=arguments.locks or everything, durability=arguments.durability or everything):
        checks.append(check)
        if not console.json:
            console.data(f"{check.level:<8} {check.name:<12} {check.detail}")
    if console.json:
        console.data_json([{"name": c.name, "level": c.level, "detail": c.detail} for c in checks])
    return 1 if any(check.level == "failed" for check in checks) else 0
