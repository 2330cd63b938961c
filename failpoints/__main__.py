"""``python -m failpoints list PACKAGE_OR_PATH [--json]``: the fail points of a program, one a line.

Exit codes: 0 they are listed; 1 the source breaks a rule or cannot be read, as standard error says with the place;
2 usage, or there is no such package or path.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from .source import FailPointSourceError, find_points


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m failpoints", description="Look at the fail points of a program.")
    commands = parser.add_subparsers(required=True)
    listing = commands.add_parser("list", help="list the fail points in a source; fail if it breaks a rule")
    listing.add_argument("source", metavar="PACKAGE_OR_PATH", help="a package's dotted name, a directory or a file")
    listing.add_argument("--json", action="store_true", help="print a list of objects: file, line, name, hooks")
    options = parser.parse_args(arguments)
    try:
        points = find_points(options.source)
    except FailPointSourceError as error:
        print(error, file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps([asdict(point) for point in points], indent=2))
    else:
        for point in points:
            print(f"{point.place}: {point.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
