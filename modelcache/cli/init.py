"""``modelcache init``: make a cache that several users share, or change who may use one."""

from __future__ import annotations

import argparse

from ..mending import init
from ..sharing import ACCESS
from .console import Console
from .sharing import root_of, said


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("directory", nargs="?", metavar="DIR", help="the cache directory (default: as for --root)")
    parser.add_argument(
        "--access",
        required=True,
        choices=ACCESS,
        help="private: only its owner; group-read, everyone-read: they read what its owner stores; group: its members "
        "store and read; group-everyone-read: its members store, everybody reads",
    )
    parser.add_argument("--group", default="", help="its name or number (default: that of the directory)")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Write the config, make what is missing, and mend what is there; 1 if something had to be left as it is."""
    root = root_of(arguments.directory if arguments.directory is not None else arguments.root)
    found = init(root, access=arguments.access, group=arguments.group)
    if console.json:
        console.data_json({"root": root, "changes": [one.as_dict() for one in found]})
    else:
        console.data(root)
        for one in found:
            console.note(said(one))
    return 1 if any(not one.mended for one in found) else 0
