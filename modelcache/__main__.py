"""The door of the command line: ``modelcache …`` and ``python -m modelcache …``.

``path REF`` and ``get REF`` of a cached model are answered here, before a parser or anything else is imported; all
other calls go to `modelcache.cli`.
"""

import os
import sys

TYPE_CHECKING = False  # typing takes 10 ms to import; type checkers take this name for its constant.
if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> int:
    """Run the command line on ``sys.argv``; return its exit code."""
    if len(sys.argv) == 3 and sys.argv[1] in {"path", "get"}:
        found = _cached(sys.argv[2])
        if found is not None and _printed(os.fsencode(found[0]) + b"\n"):
            found[1]()
            # Nothing was opened and nothing is buffered: to take the interpreter apart would double the cost.
            os._exit(0)
    from .cli import run

    return run(sys.argv[1:])


def _cached(ref: str) -> "tuple[str, Callable[[], None]] | None":
    """Return the path of *ref*, and what counts its use, if it is cached and its use need not be stamped.

    None leaves all to the command.
    """
    from .configfiles import place_for_a_look
    from .hit import format_is_known, look
    from .reference import parse

    if ref[:1] == "-":
        return None
    try:
        key, place = parse(ref).key, place_for_a_look(os.environ)
    except (ValueError, OSError):  # The command says it in its own words.
        return None
    if place is None or not format_is_known(place[0]):
        return None
    root, counts = place
    found = look(root, key, recently=True)
    if found is None:
        return None
    size = found.size

    def count() -> None:
        if counts:
            from .looks import add

            add(root, key, size)

    return found.path, count


def _printed(line: bytes) -> bool:
    """Write *line* to standard output; False if that cannot be done, which the command will tell."""
    try:
        return os.write(1, line) == len(line)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
