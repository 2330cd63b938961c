"""``python -m bench.worker SUBJECT ROOT SERVER DIGESTS``: a process that asks one subject, as its parent commands.

One JSON object a line, in and out. A worker stays until its input ends: a process that exits would take processor
time from those that are still being measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

from .measure import MissingError
from .peers import SUBJECTS


def main(name: str, root: str, server: str, digests: str) -> None:
    """Make the subject, then do what each line says."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What a peer prints is no answer.

    def answer(**facts: Any) -> None:
        answers.write(json.dumps(facts) + "\n")
        answers.flush()

    try:
        subject = SUBJECTS[name](root, server, json.loads(digests))
    except ImportError as error:
        answer(missing=f"not installed ({error})")
        return
    answer(ready=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer(**_COMMANDS[command.pop("do")](subject, **command))
        except MissingError as error:
            answer(missing=str(error))
        except Exception as error:  # noqa: BLE001  # A peer's failure is a row that says so.
            answer(missing=f"failed: {type(error).__name__}: {str(error)[:120]}")


def _get(subject: Any, name: str, at: float = 0.0) -> dict[str, Any]:
    """Get *name* once, when the monotonic clock says *at*.

    Returns wall time, processor time, what it added to the peak of resident memory, and when it began and ended.
    """
    peak, used = peak_kib(), _processor_time()
    time.sleep(max(0.0, at - time.monotonic()))
    started = time.monotonic()
    path = subject.get(name)
    ended = time.monotonic()
    added = peak_kib() - peak
    return {
        "wall": ended - started, "cpu": _processor_time() - used, "added_kib": added,
        "started": started, "ended": ended, "bytes": os.stat(path).st_size,
    }  # fmt: skip


def _get_many(subject: Any, names: list[str], at: float = 0.0) -> dict[str, Any]:
    time.sleep(max(0.0, at - time.monotonic()))
    started = time.monotonic()
    subject.get_many(names)
    return {"started": started, "ended": time.monotonic()}


def _time(subject: Any, name: str, calls: int) -> dict[str, Any]:
    """Return the seconds that one of *calls* warm gets takes."""
    get = subject.get
    started = time.perf_counter()
    for _ in range(calls):
        get(name)
    return {"seconds": (time.perf_counter() - started) / calls}


def _rate(subject: Any, name: str, until: float) -> dict[str, Any]:
    """Get *name* until the monotonic clock says *until*; count the calls, the hits and the bytes of what was named."""
    get, calls, hits = subject.get, 0, subject.hits
    started = time.monotonic()
    path = ""
    while time.monotonic() < until:
        for _ in range(50):
            path = get(name)
        calls += 50
    ended = time.monotonic()
    counted = subject.hits - hits if hits >= 0 else calls
    return {"calls": calls, "hits": counted, "seconds": ended - started, "bytes": os.stat(path).st_size}


def peak_kib() -> int:
    """Return the peak of resident memory, in KiB. Linux hands getrusage's on through exec; proc(5) has our own."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _processor_time() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


_COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {"get": _get, "get_many": _get_many, "time": _time, "rate": _rate}

if __name__ == "__main__":
    main(*sys.argv[1:])
