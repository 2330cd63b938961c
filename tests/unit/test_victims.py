"""Victims and barriers, which other tests rely on: nothing that a victim does makes its parent wait for ever."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from modelcache.testing import Barrier, acknowledge, check_cache, spawn, victims


@pytest.mark.parametrize(
    "code",
    [
        "sys.stderr.write('x' * 3_000_000)",
        "from modelcache.testing import acknowledge\nfor number in range(20_000): acknowledge(f'line {number}')",
    ],
    ids=["stderr", "acknowledgements"],
)
def test_a_victim_that_says_much_comes_to_its_end(code: str) -> None:
    with spawn(code) as victim:
        assert victim.wait() == 0
    assert len(victim.errors()) + len(victim.acknowledged()) in {3_000_000, 20_000}


def test_what_it_said_can_be_read_while_it_runs_and_after_all() -> None:
    with spawn("""
        import signal
        from modelcache.testing import acknowledge
        os.write(2, b"first \\xff ")
        acknowledge("said")
        signal.pause()
        os.write(2, b"second")
    """) as victim:
        victim.wait_for("said")
        before = victim.errors()
        victim.kill()
    assert before == victim.errors() == "first \\xff "


def test_a_victim_that_ends_without_the_word_is_told_at_once_also_without_asserts() -> None:
    code = "from modelcache.testing import spawn\nwith spawn('pass') as victim: victim.wait_for('x')"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert "'x' was not acknowledged" in done.stderr


def test_a_program_that_a_victim_starts_cannot_acknowledge(tmp_path: Path) -> None:
    with spawn("""
        import subprocess
        code = "from modelcache.testing import acknowledge; acknowledge('done')"
        with open(sys.argv[1], "wb") as file:
            os.dup2(file.fileno(), 50)
            os.environ["MODELCACHE_TESTING_PIPE"] = "50 " + os.environ["MODELCACHE_TESTING_PIPE"].split()[1]
            sys.exit(subprocess.run([sys.executable, "-c", code], pass_fds=[50]).returncode)
    """, tmp_path / "model.bin") as victim:  # fmt: skip
        assert victim.wait() != 0
    assert "RuntimeError" in victim.errors()
    assert (tmp_path / "model.bin").read_bytes() == b""
    with pytest.raises(RuntimeError):
        acknowledge("here")


def test_the_end_of_the_block_ends_the_group(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "held")
    reading = os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK)
    code = """
        import signal
        from modelcache.testing import acknowledge
        if os.fork() == 0:
            os.open(sys.argv[1], os.O_WRONLY)
            acknowledge("held")
            signal.pause()
        os.wait()
    """
    with spawn(code, tmp_path / "held", group=0) as victim:
        victim.wait_for("held")

    assert select.select([reading], [], [], 60)[0]  # Its end: nobody has it open for writing any more.
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_group_that_is_ours_is_not_killed() -> None:
    with spawn("import signal; signal.pause()") as victim, pytest.raises(ValueError, match="group=0"):
        victim.kill_group()


def test_a_group_that_has_ended_can_be_killed_again() -> None:
    with spawn("pass", group=0) as victim:
        victim.wait()
        victim.kill_group()
        victim.kill_group()


def test_a_spec_in_the_environment_counts_and_our_own_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILPOINTS", "commit.before-sync-file=kill")
    code = "print(os.environ.get('FAILPOINTS', 'none'), file=sys.stderr)"
    with spawn(code) as one, spawn(code, environment={"FAILPOINTS": "a=off"}) as other:
        assert (one.wait(), other.wait()) == (0, 0)

    assert (one.errors().strip(), other.errors().strip()) == ("none", "a=off")


def test_many_descriptors_are_no_trouble() -> None:
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with spawn("from modelcache.testing import acknowledge; acknowledge('here')") as victim:
            victim.wait_for("here")
    finally:
        for descriptor in kept:
            os.close(descriptor)


def test_who_came_and_died_does_not_count_at_a_barrier(tmp_path: Path) -> None:
    code = "from modelcache.testing import Barrier; Barrier(sys.argv[1], 2).wait(float(sys.argv[2]))"
    with spawn(code, tmp_path, "60") as dead:
        while not os.listdir(tmp_path):
            assert dead.alive
        dead.signal(signal.SIGKILL)
        dead.wait()
    with pytest.raises(TimeoutError, match="1 of 2"):
        Barrier(tmp_path, 2).wait(0.05)
    with pytest.raises(TimeoutError, match="1 of 2"):  # Nor does who gave up.
        Barrier(tmp_path, 2).wait(0.05)


def test_a_barrier_lets_the_last_one_pass_although_the_first_ones_have_ended(tmp_path: Path) -> None:
    code = "from modelcache.testing import Barrier; Barrier(sys.argv[1], 3).wait()"
    with spawn(code, tmp_path) as one, spawn(code, tmp_path) as other:
        Barrier(tmp_path, 3).wait()
        assert (one.wait(), other.wait()) == (0, 0)
        Barrier(tmp_path, 3).wait(0)


@pytest.mark.parametrize("parties", [0, -1])
def test_a_barrier_for_nobody_makes_no_sense(parties: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="makes no sense"):
        Barrier(tmp_path, parties)


def test_the_example_of_the_module_runs(root: Path) -> None:
    text = textwrap.dedent((victims.__doc__ or "").partition("::\n")[2])
    exec(compile(text, "example", "exec"), {"spawn": spawn, "check_cache": check_cache, "root": root})
