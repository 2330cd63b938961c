"""P9: the lock of a key: taken when nobody wants it, and handed from one process to the next."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from ..lock_worker import KINDS
from ..measure import Check, Context, MissingError, Result, alternate, tabulate

# Few: ext4 gives no inode number away again within five seconds, and looks past each one that was just let go.
_CALLS = 20


def run(context: Context) -> Result:
    """Time both ways against fcntl(2)."""
    with ExitStack() as stack:
        pairs = {}
        for kind in KINDS if context.peers else ("fcntl(2)", "modelcache"):
            path = context.directory / f"{kind}.lock"
            pairs[kind] = [_Process(stack, kind, path) for _ in range(2)]
        alone = alternate({kind: partial(_alone, pair) for kind, pair in pairs.items()}, context.turns(15))
        over = alternate({kind: partial(_handed, pair) for kind, pair in pairs.items()}, context.turns(60))
    result = Result(
        [
            tabulate("P9 lock that nobody else wants: taken and let go", "µs", alone, floor="fcntl(2)", scale=1e6),
            tabulate("P9 lock that another process waits for: from letting go to having it", "ms", over,
                     floor="fcntl(2)", scale=1e3),
        ]
    )  # fmt: skip
    ours, handed = alone["modelcache"], over["modelcache"]
    assert isinstance(ours, list)
    assert isinstance(handed, list)
    result.checks.append(Check("P9", "taken and let go, µs", tuple(one * 1e6 for one in ours), 15))
    result.checks.append(Check("P9", "hand-off, ms", tuple(one * 1e3 for one in handed), 1))
    result.checks.append(Check("P9", "hand-off, the longest, ms", (max(handed) * 1e3,), 5))
    return result


class _Process:
    def __init__(self, stack: ExitStack, kind: str, path: Path) -> None:
        command = [sys.executable, "-m", "bench.lock_worker", kind, str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(self._process.communicate)
        self.is_here = self.line() == "ready"

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def tell(self, command: str) -> None:
        if not self.is_here:
            raise MissingError("not installed")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()

    def ask(self, command: str) -> float:
        self.tell(command)
        return float(self.line())


def _alone(pair: list[_Process]) -> float:
    return pair[0].ask(f"time {_CALLS}")


def _handed(pair: list[_Process]) -> float:
    holder, waiter = pair
    holder.ask("take")
    waiter.tell("take")
    time.sleep(0.06)  # So that it waits by now; what is measured begins later.
    let_go = holder.ask("release")
    had = float(waiter.line())
    waiter.ask("release")
    return max(1e-6, had - let_go)
