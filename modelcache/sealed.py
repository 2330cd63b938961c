"""Small facts on disk that prove themselves whole: one line of JSON behind its checksum. No I/O.

A record that was cut, zeroed, edited or written by another program does not match its checksum and reads as None,
so that callers treat it as a miss (I6) and never as a fact.
"""

from __future__ import annotations

import json
from typing import Any

from .layout import sha256_hex


def seal(facts: dict[str, Any]) -> bytes:
    """Return *facts* as ``<sum> <json>`` and a line end; *sum* is 16 hexadecimal digits of the JSON's SHA-256."""
    body = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
    return b"%s %s\n" % (_sum(body), body)


def unseal(line: bytes) -> dict[str, Any] | None:
    """Return the facts in *line*, or None if it is not whole."""
    found, _, body = line.partition(b" ")
    if not body.endswith(b"\n") or found != _sum(body[:-1]):
        return None
    try:
        facts = json.loads(body.decode())
    except (ValueError, RecursionError):  # The sum is right, so somebody sealed what is not a record of ours.
        return None
    return facts if isinstance(facts, dict) else None


def _sum(body: bytes) -> bytes:
    return sha256_hex(body)[:16].encode()
