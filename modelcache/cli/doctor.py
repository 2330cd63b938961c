"""``modelcache doctor``: examine the cache directory and its file system."""

from __future__ import annotations

import argparse
import os

from ..doctor import examine
from ..layout import default_root
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print every check; 1 if one failed. A warning is no failure: the cache works, with less."""
    root = default_root({"MODELCACHE_DIR": arguments.root} if arguments.root else os.environ)
    checks = []
    for check in examine(root):
        checks.append(check)
        if not console.json:
            console.data(f"{check.level:<8} {check.name:<12} {check.detail}")
    if console.json:
        console.data_json([{"name": c.name, "level": c.level, "detail": c.detail} for c in checks])
    return 1 if any(check.level == "failed" for check in checks) else 0
