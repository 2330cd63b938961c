"""Processes that are made to be killed: run a snippet for real, hear what it acknowledges, stop it at any moment.

A test of recovery needs to know what was promised before the end. So a victim calls `acknowledge` after each call that
returned; the line is in its parent's pipe before the next instruction runs, whatever happens then::

    with spawn('''
        from modelcache import Cache
        from modelcache.testing import acknowledge
        acknowledge(Cache(sys.argv[1]).put(b"content", name="m").digest)
    ''', root, failpoints="commit.after-record=kill") as victim:
        victim.wait()
    assert check_cache(root, dict.fromkeys(victim.acknowledged(), …)) == []
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

_PIPE = "MODELCACHE_TESTING_PIPE"


def acknowledge(text: str) -> None:
    """Tell the parent, from within a victim, that *text* (one line) has been done."""
    # One write of a short line is all there or not there (POSIX, pipes: PIPE_BUF).
    os.write(int(os.environ[_PIPE]), text.encode() + b"\n")


class Victim:
    """A process that was started by `spawn`."""

    def __init__(self, process: subprocess.Popen[str], pipe: int) -> None:
        self._process, self._pipe = process, pipe
        self._received = b""

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group if it leads one."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def acknowledged(self) -> list[str]:
        """Return the lines that have been acknowledged so far."""
        while self._pipe >= 0 and select.select([self._pipe], [], [], 0)[0]:
            if not self._receive():
                break
        return self._received.decode().split("\n")[:-1]

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Wait until the line *text* has been acknowledged; raise AssertionError if that cannot be any more."""
        until = time.monotonic() + timeout
        while text not in self.acknowledged():
            left = until - time.monotonic()
            waiting = self._pipe >= 0 and left > 0
            if not waiting or not select.select([self._pipe], [], [], left)[0] or not self._receive():
                assert text in self.acknowledged(), f"{text!r} was not acknowledged, only {self.acknowledged()}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that is gone gets none."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """SIGKILL it, and return its exit code."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def kill_group(self) -> None:
        """SIGKILL it and all processes of its group at once: what a power button does to processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        return self._process.wait(timeout)

    def errors(self) -> str:
        """Return what it wrote to stderr; it must have ended."""
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()
        self.acknowledged()
        if self._process.stderr is not None:
            self._process.stderr.close()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _receive(self) -> bool:
        data = os.read(self._pipe, 1 << 16)
        self._received += data
        return bool(data)


def spawn(
    code: str,
    *arguments: str | os.PathLike[str],
    failpoints: str = "",
    environment: Mapping[str, str] | None = None,
    group: int | None = None,
) -> Victim:
    """Start *code* in a Python process of its own, with *arguments* in ``sys.argv[1:]``.

    Args:
        code: Source text, indented as it likes; ``os`` and ``sys`` are imported.
        arguments: What it finds in ``sys.argv``.
        failpoints: A spec for the variable ``FAILPOINTS`` (see failpoints/README.md).
        environment: Added to this process's own.
        group: The process group it joins; 0 makes it the leader of a new one, None leaves it in ours.
    """
    reading, writing = os.pipe()
    variables = {**os.environ, **(environment or {}), _PIPE: str(writing), "FAILPOINTS": failpoints}
    if not failpoints:
        del variables["FAILPOINTS"]
    source = "import os, sys\n" + textwrap.dedent(code)
    try:
        process = subprocess.Popen(  # noqa: S603  # The caller's own code.
            [sys.executable, "-c", source, *(os.fspath(argument) for argument in arguments)],
            env=variables,
            pass_fds=[writing],
            process_group=group,
            stderr=subprocess.PIPE,
            text=True,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return Victim(process, reading)


class Barrier:
    """A place where *parties* processes wait until all have come; it serves once.

    Args:
        directory: An existing, empty directory that all of them can write.
        parties: How many there are.
    """

    def __init__(self, directory: str | os.PathLike[str], parties: int) -> None:
        self._directory, self._parties = os.fspath(directory), parties

    def wait(self, timeout: float = 60.0) -> None:
        """Wait for the others.

        Raises:
            TimeoutError: They did not come, within *timeout* seconds.
        """
        descriptor, _ = tempfile.mkstemp(dir=self._directory)
        os.close(descriptor)
        until = time.monotonic() + timeout
        while (here := len(os.listdir(self._directory))) < self._parties:
            if time.monotonic() > until:
                raise TimeoutError(f"{here} of {self._parties} processes came within {timeout:g} s")
            time.sleep(0.001)
