"""Owners: a token names a process for all time, and death is only claimed where it is certain."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelcache import layout, process
from modelcache.roots import prepare_root
from modelcache.sweep import sweep

_TOKEN = "from modelcache import process; import sys; print(process.token(), flush=True); sys.stdin.readline()"


def other(*, position: int, value: str) -> str:
    parts = process.token().split("-")
    parts[position] = value
    return "-".join(parts)


def child() -> tuple[subprocess.Popen[str], str]:
    running = subprocess.Popen([sys.executable, "-c", _TOKEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    return running, running.stdout.readline().strip()


def test_two_tokens_of_one_process_differ_and_neither_is_dead() -> None:
    one, two = process.token(), process.token()

    assert one != two
    assert process.is_dead(one) is False
    assert process.is_dead(two) is False


def test_a_live_process_is_not_dead_and_a_killed_one_is_even_before_it_is_reaped() -> None:
    running, token = child()
    assert process.is_dead(token) is False

    running.kill()
    os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)  # A zombie now.

    assert process.is_dead(token) is True
    running.communicate()
    assert process.is_dead(token) is True


@pytest.mark.skipif(sys.platform != "linux", reason="start times come from /proc")
def test_a_pid_that_came_back_is_another_process() -> None:
    assert process.is_dead(other(position=4, value="1")) is True


@pytest.mark.skipif(sys.platform != "linux", reason="start times come from /proc")
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.ENOENT])
def test_a_live_process_that_cannot_be_looked_at_is_not_taken_for_dead(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No descriptor is free, or other users' processes are hidden: what it uses would be removed under it."""
    running, token = child()
    real = os.open

    def failing(path: str, *arguments: int) -> int:
        if path.startswith("/proc/") and path.endswith("/stat"):
            raise OSError(number, os.strerror(number), path)
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        assert process.is_dead(token) is None
        patch.setattr(process, "_own_starts", {})
        blind = process.token()
    assert process.is_dead(blind) is None
    running.communicate("\n")


def test_every_process_of_an_earlier_boot_is_dead() -> None:
    assert process.is_dead(other(position=1, value="00000000")) is True


def test_nothing_is_known_of_other_machines_and_containers() -> None:
    assert process.is_dead(other(position=0, value="00000000")) is None
    assert process.is_dead(other(position=2, value="1")) is None


@pytest.mark.parametrize("text", ["", "x", "a-b-c", "free-12", "a-b-c-notapid-1-x", "a-b-c-1-1-x-y"])
def test_what_is_no_token_is_nobodys(text: str) -> None:
    assert process.is_dead(text) is None


def test_a_forked_child_has_tokens_of_its_own() -> None:
    import warnings

    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        os.write(writing, process.token().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    token = os.read(reading, 200).decode()
    os.close(reading)
    os.close(writing)

    assert token.split("-")[3] == str(pid)
    assert process.is_dead(token) is True


def test_a_sweep_takes_what_the_dead_left_and_leaves_what_the_living_use(root: Path) -> None:
    prepare_root(str(root))
    running, alive = child()
    dead_process, dead = child()
    dead_process.kill()
    dead_process.communicate()
    for token in (alive, dead, "somebody-elses"):
        (root / layout.STAGING / token).mkdir()
        (root / layout.STAGING / token / "file").write_text("x")
    (root / layout.LOCKS / "stale.lock").write_text("process 1 on nowhere\n")

    swept = sweep(str(root))

    assert sorted(os.listdir(root / layout.STAGING)) == sorted([alive, "somebody-elses"])
    assert os.listdir(root / layout.LOCKS) == []
    assert swept == 2
    running.communicate("\n")
