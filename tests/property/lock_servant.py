"""A process with two threads that take and give back locks as they are told: one JSON line in, one out.

Nothing is timed: a wait says that it has begun, ends when it is told to or when the lock comes, and says what it came
to when that is asked.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from modelcache import locks
from modelcache.errors import LockTimeoutError

locks._CHECK_S = 0.004  # So soon a wait says that it has begun, and notices that it is to end.


class GivenUpError(Exception):
    """The caller of a wait wants it no longer."""


class Holder:
    """A thread that holds at most one lock, or waits for it."""

    def __init__(self) -> None:
        self.turn: locks.Turn | None = None
        self._commands: queue.Queue[tuple[str, float]] = queue.Queue()
        self._answers: queue.Queue[str] = queue.Queue()
        self._given_back = threading.Event()
        self._given_up = threading.Event()
        self._says_so = False
        threading.Thread(target=self._run, daemon=True).start()

    def take(self, path: str, timeout: float) -> str:
        """Return ``held`` or ``no``; ``waiting`` once a wait, of at most *timeout* seconds, has begun."""
        self._commands.put((path, timeout))
        return self.outcome()

    def outcome(self) -> str:
        """Return what came of the wait: ``held``, ``no``, ``given up``, or the note."""
        return self._answers.get(timeout=60)

    def give_up(self) -> str:
        self._given_up.set()
        return self.outcome()

    def give_back(self) -> str:
        self._given_back.set()
        return self.outcome()

    def leave_note(self, note: str) -> str:
        assert self.turn is not None
        self.turn.leave_note(note.encode())
        return "left"

    def _run(self) -> None:
        while True:
            path, timeout = self._commands.get()
            self._given_back.clear()
            self._given_up.clear()
            self._says_so = timeout > 0
            try:
                with locks.exclusive(path, timeout=timeout, what="a lock", check=self._check) as turn:
                    if turn.held:
                        self.turn = turn
                        self._answers.put("held")
                        self._given_back.wait()
                        self.turn = None
                # After the block: until then the lock is not free.
                self._answers.put("given back" if turn.held else f"note: {turn.note.decode()}")
            except LockTimeoutError:
                self._answers.put("no")
            except GivenUpError:
                self._answers.put("given up")

    def _check(self) -> None:
        if self._says_so and not self._given_up.is_set():
            self._says_so = False
            self._answers.put("waiting")
        if self._given_up.is_set():
            raise GivenUpError


class Child:
    """A forked child that goes on when it is told to."""

    def __init__(self, path: str, turn: locks.Turn | None = None) -> None:
        told, self._tell = os.pipe()
        ready, done = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            # It ends with its parent, and keeps nobody waiting for the end of what its parent says.
            os.close(self._tell)
            os.close(sys.stdout.fileno())
            if turn is not None:
                turn.release(path)  # What the end of the block does in a child that runs on.
            os.write(done, b"x")
            os.read(told, 1)
            os._exit(0 if locks.probe(path) else 1)
        os.read(ready, 1)
        for descriptor in (told, ready, done):
            os.close(descriptor)

    def probe(self) -> bool:
        """Let it try for the lock, and end; tell whether it got it."""
        os.write(self._tell, b"x")
        os.close(self._tell)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]) == 0


def descriptors(path: str) -> int:
    """Return how many descriptors this process has of the file *path*."""
    found, count = os.stat(path), 0
    for descriptor in range(256):
        try:
            count += os.path.samestat(os.fstat(descriptor), found)
        except OSError:
            continue
    return count


def settled(path: str) -> bool:
    """Wait until no wait that was given up sits in the kernel any more; its lock has been let go of."""
    slot = locks._registry.get(os.path.realpath(path))
    wait = slot.wait if slot is not None else None
    return wait is None or wait.ended.wait(60)


def main() -> None:
    """Serve until the input ends."""
    threads = [Holder(), Holder()]
    children: list[Child] = []
    calls: dict[str, Callable[[Holder, str, Any], object]] = {
        "take": lambda thread, path, _: thread.take(path, 0),
        "wait": lambda thread, path, _: thread.take(path, 60),
        "outcome": lambda thread, _path, _: thread.outcome(),
        "give up": lambda thread, _path, _: thread.give_up(),
        "give": lambda thread, _path, _: thread.give_back(),
        "note": lambda thread, _path, text: thread.leave_note(text),
        "fork": lambda _thread, path, _: Child(path).probe(),
        "fork and release": lambda thread, path, _: children.append(Child(path, thread.turn)),
        "probe of the child": lambda _thread, _path, _: children.pop().probe(),
        "probe": lambda _thread, path, _: locks.probe(path),
        "descriptors": lambda _thread, path, _: descriptors(path),
        "settle": lambda _thread, path, _: settled(path),
    }
    for line in sys.stdin:
        order: dict[str, Any] = json.loads(line)
        thread = threads[order.get("thread", 0)]
        print(json.dumps(calls[order["do"]](thread, order.get("path", ""), order.get("text"))), flush=True)


if __name__ == "__main__":
    main()
