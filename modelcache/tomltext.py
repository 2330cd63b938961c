"""TOML as people write it: parsed, and searched for the line of a key, so that an error can name it. No I/O.

Files with settings, manifests and lock files are all read through here.
"""

from __future__ import annotations

import re
import tomllib
from typing import Any

_HEADER = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?$")


class TomlError(ValueError):
    """A text that is no TOML. ``line`` counts from 1, None where it is not known."""

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem, line)
        self.problem, self.line = problem, line


def parse(text: str) -> dict[str, Any]:
    """Return the document in *text*; raise TomlError."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and what a hostile file makes int() say.
        # Python 3.14 gives .lineno; before it the position is only in the message.
        position = str(error).rpartition("at line ")[2].partition(",")[0]
        line = int(position) if position.isdigit() else None
        if "at end of document" in str(error):
            line = len(text.rstrip("\n").split("\n"))
        raise TomlError(f"not TOML: {error}", line) from None


def line_of(text: str, table: str, key: str) -> int | None:
    """Return the line of *key* in the table called *table* (``""`` is the top), or of the table's header, or None."""
    inside, header = "", None
    for number, line in enumerate(text.split("\n"), 1):
        found = _HEADER.match(line)
        if found:
            inside = ".".join(_bare(part) for part in found[1].split("."))
            if inside == table:
                header = number
            if inside == f"{table}.{key}".lstrip("."):
                return number
            continue
        name = ".".join(_bare(part) for part in line.partition("=")[0].split("."))
        if name and f"{inside}.{name}".lstrip(".") == f"{table}.{key}".lstrip("."):
            return number
    return header


def _bare(part: str) -> str:
    return part.strip().strip("\"'")
