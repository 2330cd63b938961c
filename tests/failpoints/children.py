"""Child processes for tests: a real interpreter that runs a few lines, with fail points set by its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT = 60  # In seconds; only a hang comes near it.


def environment(settings: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **{f"FAILPOINTS{name}": value for name, value in settings.items()}}


def run(code: str, *arguments: str | Path, spec: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run *code* to its end. *settings* are environment variables without their prefix ``FAILPOINTS``."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment({"": spec, **settings}),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@contextmanager
def running(code: str, *, spec: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """Run *code* beside the block; what is still alive after it is killed."""
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment({"": spec, **settings}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=TIMEOUT)
