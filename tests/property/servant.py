"""A process that does what the machine in test_cache_machine.py tells it: one JSON line in, one out.

Its caches stay open from one command to the next, so that what they remember is put to the test too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import sys
from typing import Any

import failpoints
from failpoints.source import find_points
from modelcache import Cache, RetryPolicy, errors
from modelcache.sweep import sweep

# A line at each point, whichever it is.
_EVERY_POINT = ";".join(f"{point.name}=print(.)" for point in find_points("modelcache"))


class Countdown(io.StringIO):
    """Takes the place of stderr, where points print, and is the end of the process at the point number *left*."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self._left = left

    def write(self, text: str) -> int:
        if text.startswith("."):
            self._left -= 1
            if self._left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return len(text)


def do(cache: Cache, command: dict[str, Any]) -> str | None:
    """Do *command*; return the digest of what it came to, None for nothing."""
    what, key = command["do"], command.get("key", "")
    if what == "put":
        return cache.put(bytes.fromhex(command["content"]), name=key).digest
    if what == "remove":
        cache.remove(key, force=True)
    elif what == "pin":
        cache.pin(key)
    elif what == "unpin":
        cache.unpin(key)
    elif what == "sweep":
        sweep(cache.root)
    elif what == "verify":
        cache.verify(repair=True)
    else:
        options = {
            "get": {},
            "refresh": {"force_download": True},
            "link": {"digest": command.get("digest"), "local_files_only": True},
        }[what]
        path = cache.get(key, **options)  # type: ignore[arg-type]
        with open(path, "rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    return None


def main() -> None:
    """Serve until the input ends, or a countdown ends it."""
    caches: dict[str, Cache] = {}
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "forget":
            caches.clear()
            print("{}", flush=True)
            continue
        cache = caches.setdefault(command["root"], Cache(command["root"], retry=RetryPolicy(attempts=2, base=0)))
        dies_at = command.get("dies_at")
        points = "" if dies_at is None else _EVERY_POINT
        stderr = sys.stderr if dies_at is None else Countdown(dies_at)
        try:
            with failpoints.scenario(points), contextlib.redirect_stderr(stderr):
                answer = {"digest": do(cache, command)}
        except errors.ModelCacheError as error:
            answer = {"error": type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
