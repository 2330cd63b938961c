"""Processes that are made to be killed: run a snippet for real, hear what it acknowledges, stop it at any moment.

A test of recovery needs to know what was promised before the end. So a victim calls `acknowledge` after each call that
returned; the line is in its parent's pipe before the next instruction runs, whatever happens then::

    code = '''
        from modelcache import Cache
        from modelcache.testing import acknowledge
        cache = Cache(sys.argv[1])
        for name in "abcdef":
            entry = cache.put(name.encode(), name=name)
            acknowledge(f"{entry.key} {entry.digest}")
    '''
    with spawn(code, root, failpoints="commit.before-rename-record=4*off->kill") as victim:
        victim.wait()
    promised = dict(line.split() for line in victim.acknowledged())
    assert promised
    assert all(violation.kind == "garbage" for violation in check_cache(root, promised))  # What the dead leave.
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
from typing import IO, Self

from .. import commit, process

_PIPE = "MODELCACHE_TESTING_PIPE"
_DRAIN_S = 0.02


def acknowledge(text: str) -> None:
    """Tell the parent, from within a victim, that *text* (one line) has been done.

    Raises:
        RuntimeError: This is no process that `spawn` started, nor a fork of one.
    """
    descriptor, _, identity = os.environ.get(_PIPE, "").partition(" ")
    # A program that a victim starts inherits the variable and not the pipe: the number may be that of any file.
    try:
        here = bool(descriptor) and _identity(int(descriptor)) == identity
    except OSError:
        here = False
    if not here:
        raise RuntimeError("acknowledge() is for the process that spawn() started")
    # One write of a short line is all there or not there (POSIX, pipes: PIPE_BUF).
    os.write(int(descriptor), text.encode() + b"\n")


def _identity(descriptor: int) -> str:
    found = os.fstat(descriptor)
    return f"{found.st_dev}:{found.st_ino}"


class Victim:
    """A process that was started by `spawn`."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int, errors: IO[bytes], *, leads: bool) -> None:
        self._process, self._pipe, self._errors, self._leads = process, pipe, errors, leads
        self._received = b""
        self._said = ""

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
        while self._receive(0):
            pass
        return self._received.decode().split("\n")[:-1]

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Wait until the line *text* has been acknowledged; raise AssertionError if that cannot be any more."""
        until = time.monotonic() + timeout
        while text not in self.acknowledged():
            # Not an assert statement: with -O it would wait for ever.
            if not self._receive(until - time.monotonic()) and text not in self.acknowledged():
                raise AssertionError(f"{text!r} was not acknowledged, only {self.acknowledged()}")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal; one that is gone gets none."""
        self._process.send_signal(number)

    def kill(self) -> int:
        """SIGKILL it, and return its exit code."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def kill_group(self) -> None:
        """SIGKILL it and all processes of its group at once: what a power button does to processes.

        Raises:
            ValueError: It was not spawned with ``group=0``: its group is ours.
        """
        if not self._leads:
            raise ValueError("it leads no group of its own: spawn it with group=0")
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # All of them are gone.
        self.wait()

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; return its exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: It still runs, after *timeout* seconds.
        """
        until = time.monotonic() + timeout
        while True:
            self.acknowledged()  # One that acknowledges much would stand still before a full pipe.
            try:
                return self._process.wait(max(0.0, min(_DRAIN_S, until - time.monotonic())))
            except subprocess.TimeoutExpired:
                if time.monotonic() >= until:
                    raise subprocess.TimeoutExpired(self._process.args, timeout) from None

    def errors(self) -> str:
        """Return what it has written to stderr so far."""
        if not self._errors.closed:
            # Not seek() and read(): the victim writes at the offset that it shares with us.
            descriptor = self._errors.fileno()
            self._said = os.pread(descriptor, os.fstat(descriptor).st_size, 0).decode(errors="backslashreplace")
        return self._said

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._leads:
            self.kill_group()
        elif self._process.poll() is None:
            self.kill()
        self.acknowledged()
        self.errors()
        self._errors.close()
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def _receive(self, seconds: float) -> bool:
        """Take what is in the pipe, or comes within so many *seconds*; False if there is nothing."""
        if self._pipe < 0:
            return False
        waiting = select.poll()  # select(2) itself takes no descriptor above 1023.
        waiting.register(self._pipe, select.POLLIN)
        if not waiting.poll(max(0.0, seconds) * 1000):
            return False
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
        failpoints: A spec for the variable ``FAILPOINTS`` (see failpoints/README.md). This process's own is not
            handed on.
        environment: Added to this process's own.
        group: The process group it joins; 0 makes it the leader of a new one, None leaves it in ours.
    """
    reading, writing = os.pipe()
    variables = {**os.environ, _PIPE: f"{writing} {_identity(writing)}"}
    variables.pop("FAILPOINTS", None)
    variables.update(environment or {})
    if failpoints:
        variables["FAILPOINTS"] = failpoints
    source = "import os, sys\n" + textwrap.dedent(code)
    errors = tempfile.TemporaryFile()  # noqa: SIM115  # The victim has it. Not a pipe: nobody may read it, and it fills up.
    try:
        started = subprocess.Popen(  # noqa: S603  # The caller's own code.
            [sys.executable, "-c", source, *(os.fspath(argument) for argument in arguments)],
            env=variables,
            pass_fds=[writing],
            process_group=group,
            stderr=errors,
        )
    except BaseException:
        os.close(reading)
        errors.close()
        raise
    finally:
        os.close(writing)
    return Victim(started, reading, errors, leads=group == 0)


class Barrier:
    """A place where *parties* processes wait until all have come; it serves once.

    Args:
        directory: An existing, empty directory that all of them can write.
        parties: How many there are.
    """

    def __init__(self, directory: str | os.PathLike[str], parties: int) -> None:
        if parties < 1:
            raise ValueError(f"a barrier for {parties} processes makes no sense")
        self._directory, self._parties = os.fspath(directory), parties

    def wait(self, timeout: float = 60.0) -> None:
        """Wait for the others. Who came and died, or gave up, does not count.

        Raises:
            TimeoutError: They did not come, within *timeout* seconds.
        """
        ours, opened = f"{self._directory}/{process.token()}", f"{self._directory}/open"
        _make(ours)
        until = time.monotonic() + timeout
        while not os.path.exists(opened):
            here = sum(not process.is_dead(name) for name in os.listdir(self._directory))
            if here >= self._parties:
                _make(opened)  # For those who look only when the first ones have gone on, and ended.
            elif time.monotonic() > until:
                commit.remove_quietly(ours)
                raise TimeoutError(f"{here} of {self._parties} processes came within {timeout:g} s")
            else:
                time.sleep(0.001)


def _make(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
