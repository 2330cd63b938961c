"""The door of the command line: ``modelcache …`` and ``python -m modelcache …``.

``path REF`` and ``get REF`` of a cached model are answered here, before a parser or anything else is imported; all
other calls go to `modelcache.cli`.
"""

import os
import sys


def main() -> int:
    """Run the command line on ``sys.argv``; return its exit code."""
    if len(sys.argv) == 3 and sys.argv[1] in {"path", "get"}:
        path = _cached(sys.argv[2])
        if path is not None and _printed(os.fsencode(path) + b"\n"):
            # Nothing was opened and nothing is buffered: to take the interpreter apart would double the cost.
            os._exit(0)
    from .cli import run

    return run(sys.argv[1:])


def _cached(ref: str) -> "str | None":
    """Return the path of *ref* if it is cached and its use need not be recorded; None leaves all to the command."""
    from .configfiles import root_for_a_look
    from .hit import format_is_known, look
    from .reference import parse

    if ref[:1] == "-":
        return None
    try:
        key, root = parse(ref).key, root_for_a_look(os.environ)
    except (ValueError, OSError):  # The command says it in its own words.
        return None
    found = look(root, key, recently=True) if root is not None and format_is_known(root) else None
    return None if found is None else found.path


def _printed(line: bytes) -> bool:
    """Write *line* to standard output; False if that cannot be done, which the command will tell."""
    try:
        return os.write(1, line) == len(line)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
