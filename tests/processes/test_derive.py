"""Builds and processes: one build for all, and a builder that dies, or is killed with all that it has started."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache import Cache, Workspace
from modelcache.isolation import DiedError, ForeignError, TimedOutError, run
from modelcache.testing import check_cache, spawn
from tests.support.state import leftovers

SOURCE = random.Random(9).randbytes(100_000)
# Waits for the word, derives, and tells what it found and how often it has built.
_ASKER = """
import hashlib, os, sys
from modelcache import Cache
cache = Cache(sys.argv[1])
built = 0
def build(workspace):
    global built
    built += 1
    content = open(workspace.inputs["0"], "rb").read()
    os.mkdir(f"{workspace}/d")
    for number in range(5):
        with open(f"{workspace}/d/{number}", "wb") as file:
            file.write(content * 3)
if sys.argv[2] == "fail":
    def build(workspace):
        global built
        built += 1
        raise ValueError("no such operator")
print("ready", flush=True)
sys.stdin.readline()
try:
    path = cache.derive(build, recipe="r", version="1", inputs=["m.bin"])
    content = b"".join(open(f"{path}/{number}", "rb").read() for number in range(5))
    print(hashlib.sha256(content).hexdigest(), built, flush=True)
except Exception as error:
    print(type(error).__name__, built, flush=True)
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    with Cache(tmp_path / "cache") as cache:
        cache.put(SOURCE, name="m.bin")
    yield tmp_path / "cache"
    assert [one for one in check_cache(tmp_path / "cache") if one.kind != "garbage"] == []


def herd(root: Path, what: str, count: int) -> list[tuple[str, int]]:
    """Let *count* processes derive the same at the same moment; return what each says, and how often it has built."""
    command = [sys.executable, "-c", _ASKER, str(root), what]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate(timeout=120)[0].split() for process in processes]
    return [(found, int(built)) for found, built in said]


def test_sixteen_processes_that_ask_at_once_cause_one_build(root: Path) -> None:
    outcomes = herd(root, "build", 16)

    assert len({found for found, _ in outcomes}) == 1
    assert len(outcomes[0][0]) == 64
    assert sum(built for _, built in outcomes) == 1
    assert leftovers(root) == []


def test_a_build_that_fails_fails_for_all_who_wait_for_it(root: Path) -> None:
    outcomes = herd(root, "fail", 16)

    assert {found for found, _ in outcomes} <= {"BuildFailedError", "RepeatedFailureError"}
    # Who comes after the note was left tries once more; after the third nobody does.
    assert 1 <= sum(built for _, built in outcomes) <= 3


_VICTIM = """
import os, sys
from modelcache import Cache
from modelcache.testing import acknowledge
from tests.processes.test_derive import endless
options = {"recipe": "r", "version": "1", "inputs": ["m.bin"], "params": {"pipe": sys.argv[2]}}
Cache(sys.argv[1]).derive(endless, **options, isolate=True)
"""


def endless(workspace: Workspace) -> None:
    """Say which process this is, and work on for ever."""
    with open(workspace.params["pipe"], "w") as pipe:
        pipe.write(f"{os.getpid()} {workspace}\n")
    number = 0
    while True:
        Path(workspace, "half").write_bytes(b"x" * (number % 1000))
        number += 1


def small(workspace: Workspace) -> None:
    Path(workspace, "m.bin").write_bytes(b"whole")


def test_a_build_in_a_process_of_its_own_ends_with_who_wanted_it(root: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with spawn(_VICTIM, root, str(pipe)) as victim:
        with pipe.open() as told:
            pid = int(told.readline().split()[0])
        builder = os.pidfd_open(pid)
        victim.kill()
        victim.wait()

    _ended(builder)
    with Cache(root) as cache:
        path = cache.derive(small, recipe="r", version="1", inputs=["m.bin"], params={"pipe": str(pipe)})
    assert Path(path).read_bytes() == b"whole"
    assert leftovers(root) == []


def test_a_build_that_takes_too_long_is_killed_with_all_that_it_has_started(tmp_path: Path) -> None:
    with pytest.raises(TimedOutError):
        run(starts_another, str(tmp_path / "pid"), timeout=2)

    pid = (tmp_path / "pid").read_text()
    if pid:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]


def starts_another(place: str) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(place).write_text(str(child.pid))
    child.wait()


def _ended(builder: int) -> None:
    import select

    try:
        poll = select.poll()
        poll.register(builder, select.POLLIN)
        assert poll.poll(60_000), "the builder outlives who wanted it"
    finally:
        os.close(builder)


# -- a function in a process of its own --------------------------------------------------------------------------------


def doubled(value: bytes) -> bytes:
    return value * 2


def shouts() -> None:
    print("loud", flush=True)
    os.write(2, b"and louder\n")
    os.kill(os.getpid(), signal.SIGABRT)


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def odd() -> None:
    raise OddError(1, 2)


def gives_what_cannot_travel() -> object:
    return lambda: None


def gives_up_at_once() -> None:
    raise KeyError("x")


def working_directory() -> str:
    return os.getcwd()


def test_what_a_function_returns_or_raises_comes_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    large = os.urandom(3_000_000)

    assert run(doubled, large) == large * 2
    assert run(working_directory, directory=str(tmp_path)) == os.path.realpath(tmp_path)
    with pytest.raises(KeyError, match="x"):
        run(gives_up_at_once)
    with pytest.raises(ForeignError, match="1 and 2"):
        run(odd)
    with pytest.raises(ForeignError, match="cannot be pickled"):
        run(gives_what_cannot_travel)
    with pytest.raises(DiedError, match="SIGABRT") as caught:
        run(shouts)
    assert "loud and louder" in caught.value.said
    assert capfd.readouterr() == ("", "")


def test_who_gives_up_ends_the_process() -> None:
    class GaveUpError(Exception):
        pass

    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks > 3:
            raise GaveUpError

    with pytest.raises(GaveUpError):
        run(signal.pause, check=check)


def test_it_leaves_no_descriptor_behind() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        run(doubled, b"x")
        with pytest.raises(DiedError):
            run(shouts)
    assert os.listdir("/proc/self/fd") == before


def test_a_function_of_the_program_itself_can_be_sent(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from modelcache.isolation import run\n"
        "def answer():\n    return 42\n"
        "if __name__ == '__main__':\n    print(run(answer))\n"
    )

    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=True)

    assert done.stdout == "42\n"
