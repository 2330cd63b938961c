"""The door of the command line: ``modelcache …`` and ``python -m modelcache …``.

``path REF`` and ``get REF`` of a cached model are answered here, before a parser or anything else is imported; all
other calls go to `modelcache.cli`.
"""

import os
import sys

TYPE_CHECKING = False  # typing takes 10 ms to import; type checkers take this name for its constant.
if TYPE_CHECKING:
    from .hit import Hit


def main() -> int:
    """Run the command line on ``sys.argv``; return its exit code."""
    if len(sys.argv) == 3 and sys.argv[1] in {"path", "get"}:
        found = _cached(sys.argv[2])
        if found is not None and _printed(os.fsencode(found[1].path) + b"\n"):
            _count(*found)
            # Nothing was opened and nothing is buffered: to take the interpreter apart would double the cost.
            os._exit(0)
    from .cli import run

    return run(sys.argv[1:])


def _cached(ref: str) -> "tuple[str, Hit, str] | None":
    """Return root, hit and key of *ref* if it is cached and its use need not be stamped; None: ask the command."""
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
    return None if root is None or found is None else (root, found, key)


def _count(root: str, found: "Hit", key: str) -> None:
    from .configfiles import LOOKS_COUNT

    if LOOKS_COUNT.get(os.environ.get("MODELCACHE_USAGE", "")):
        from .looks import add

        add(root, key, found.size)


def _printed(line: bytes) -> bool:
    """Write *line* to standard output; False if that cannot be done, which the command will tell."""
    try:
        return os.write(1, line) == len(line)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
