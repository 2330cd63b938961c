"""A process with two threads that take and give back locks as they are told: one JSON line in, one out."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import warnings
from typing import Any

from modelcache import locks
from modelcache.errors import LockTimeoutError


class Holder:
    """A thread that holds at most one lock."""

    def __init__(self) -> None:
        self._commands: queue.Queue[str | None] = queue.Queue()
        self._answers: queue.Queue[bool] = queue.Queue()
        threading.Thread(target=self._run, daemon=True).start()

    def tell(self, path: str | None) -> bool:
        """Take *path* now or not at all; None gives back what is held."""
        self._commands.put(path)
        return self._answers.get(timeout=60)

    def _run(self) -> None:
        while True:
            path = self._commands.get()
            assert path is not None
            try:
                with locks.exclusive(path, timeout=0, what="a lock"):
                    self._answers.put(True)
                    self._commands.get()  # None: give it back.
                self._answers.put(True)
            except LockTimeoutError:
                self._answers.put(False)


def forked(path: str) -> bool:
    """Tell whether a forked child gets *path*."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os._exit(0 if locks.probe(path) else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main() -> None:
    """Serve until the input ends."""
    threads = [Holder(), Holder()]
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        if command["do"] == "fork":
            got = forked(command["path"])
        elif command["do"] == "probe":
            got = locks.probe(command["path"])
        else:
            got = threads[command["thread"]].tell(command.get("path"))
        print(json.dumps(got), flush=True)


if __name__ == "__main__":
    main()
