"""The lock registry under processes, threads, forks, waits, notes and kills, against one name a lock: who holds it.

Every close of a descriptor of a lock file drops a process's POSIX lock, a forked child's copy owns nothing, and a
second lock object in one process would be granted at once: each of these would show as two holders, or as none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modelcache import locks

LOCKS = ["one", "two"]
Member = tuple[int, int]  # Process and thread.
MEMBERS: list[Member] = [(process, thread) for process in range(2) for thread in range(2)]


class Servant:
    """A process that holds locks."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.property.lock_servant"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, do: str, **facts: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **facts}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def staff() -> Iterator[None]:
    LockMachine.servants = [Servant(), Servant()]
    try:
        yield
    finally:
        for servant in LockMachine.servants:
            servant.kill()


class LockMachine(RuleBasedStateMachine):
    """Who holds what, and who waits for it: a process and one of its threads, by lock."""

    servants: list[Servant]

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.holders: dict[str, Member] = {}
        self.waiters: dict[str, Member] = {}  # One a lock, so that it is known who comes next.
        self.notes: dict[str, str] = {}  # What the holder of now has left.
        self.in_kernel: set[tuple[int, str]] = set()  # Processes that wait there, or whose wait was given up there.

    @precondition(lambda self: self._idle())
    @rule(data=st.data(), name=st.sampled_from(LOCKS))
    def take(self, data: st.DataObject, name: str) -> None:
        self.takes(data.draw(st.sampled_from(self._idle())), name)

    @precondition(lambda self: self._possible_waits())
    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        self.waits(*data.draw(st.sampled_from(self._possible_waits())))

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        self.gives_up(data.draw(st.sampled_from(sorted(self.waiters))))

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), text=st.sampled_from(["it failed", ""]))
    def leave_a_note(self, data: st.DataObject, text: str) -> None:
        self.notes_down(data.draw(st.sampled_from(sorted(self.holders))), text)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.gives_back(data.draw(st.sampled_from(sorted(self.holders))))

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def fork_and_give_back(self, data: st.DataObject) -> None:
        self.forks_and_gives_back(data.draw(st.sampled_from(sorted(self.holders))))

    @rule(process=st.integers(0, 1), name=st.sampled_from(LOCKS), how=st.sampled_from(["fork", "probe"]))
    def look(self, process: int, name: str, how: str) -> None:
        """A forked child, or another thread, tries the lock and lets go: the holder must not notice."""
        assert self._ask((process, 0), how, name) == (name not in self.holders)

    @rule(process=st.integers(0, 1))
    def die(self, process: int) -> None:
        """SIGKILL: what it held goes to who waits for it, and what it waited for to nobody."""
        self.servants[process].kill()
        self.servants[process] = Servant()
        self.waiters = {name: waiter for name, waiter in self.waiters.items() if waiter[0] != process}
        self.in_kernel = {(of, name) for of, name in self.in_kernel if of != process}
        for name in [name for name, holder in self.holders.items() if holder[0] == process]:
            del self.holders[name]
            self._pass_on(name, noted=self.notes.pop(name))

    @invariant()
    def files_are_there_only_while_a_lock_is_held_or_its_holder_was_killed(self) -> None:
        for name in self.holders:
            assert Path(self._path(name)).exists()

    @invariant()
    def a_process_has_one_descriptor_of_a_lock_at_most(self) -> None:
        """Whoever closes a second one drops the lock that came with the first."""
        for name, holder in self.holders.items():
            for process in range(len(self.servants)):
                wanted = 1 if process == holder[0] or (process, name) in self.in_kernel else 0
                assert self._ask((process, 0), "descriptors", name) == wanted

    def teardown(self) -> None:
        try:
            self._clear_up()
        except BaseException:
            for process, servant in enumerate(
                self.servants
            ):  # Who knows what they hold: the next example needs others.
                servant.kill()
                self.servants[process] = Servant()
            raise

    def _clear_up(self) -> None:
        for name, member in self.waiters.items():
            self._ask(member, "give up", name)
        self.waiters.clear()
        while self.holders:
            self.gives_back(next(iter(self.holders)))
        for name in LOCKS:
            assert self._ask((0, 0), "probe", name)
        assert list(self.place.iterdir()) == []
        shutil.rmtree(self.place)

    # -- the steps -----------------------------------------------------------------------------------------------------

    def takes(self, member: Member, name: str) -> None:
        got = self._ask(member, "take", name)
        assert got == ("no" if name in self.holders else "held")
        if got == "held":
            self._now_holds(member, name)

    def waits(self, member: Member, name: str) -> None:
        assert self._ask(member, "wait", name) == "waiting"
        self.waiters[name] = member
        if member[0] != self.holders[name][0]:
            self.in_kernel.add((member[0], name))

    def gives_up(self, name: str) -> None:
        """The wait stays in the kernel, with one descriptor, however many of them were given up there."""
        assert self._ask(self.waiters.pop(name), "give up", name) == "given up"

    def notes_down(self, name: str, text: str) -> None:
        assert self._ask(self.holders[name], "note", name, text=text) == "left"
        self.notes[name] += text

    def gives_back(self, name: str) -> None:
        process, thread = self.holders.pop(name)
        assert self._ask((process, thread), "give", name) == "given back"
        self._pass_on(name, noted=self.notes.pop(name), by=process)

    def forks_and_gives_back(self, name: str) -> None:
        """A child lets go of nothing that its parent holds, and can have it once the parent has let go."""
        holder = self.holders[name]
        self._ask(holder, "fork and release", name)
        assert not self._ask((1 - holder[0], 0), "probe", name)
        self.gives_back(name)
        assert self._ask(holder, "probe of the child", name) == (name not in self.holders)

    def _pass_on(self, name: str, *, noted: str, by: int | None = None) -> None:
        """The lock is free: the waiter has it, or the note that was left for other processes than that of *by*."""
        waiter = self.waiters.pop(name, None)
        if waiter is not None:
            outcome = self._ask(waiter, "outcome", name)
            heeds = noted and waiter[0] != by
            assert outcome == (f"note: {noted}" if heeds else "held")
            if not heeds:
                self._now_holds(waiter, name)
        for process in [process for process, of in self.in_kernel if of == name]:
            assert self._ask((process, 0), "settle", name)
            self.in_kernel.remove((process, name))

    def _now_holds(self, member: Member, name: str) -> None:
        """A lock file says who holds it, and nothing that an earlier holder has left."""
        self.holders[name], self.notes[name] = member, ""
        found = Path(self._path(name)).read_bytes()
        pid = self.servants[member[0]].process.pid
        assert found == f"process {pid} on {os.uname().nodename}\n".encode()

    def _idle(self) -> list[Member]:
        return [member for member in MEMBERS if member not in {*self.holders.values(), *self.waiters.values()}]

    def _possible_waits(self) -> list[tuple[Member, str]]:
        wanted = [name for name in self.holders if name not in self.waiters]
        pairs = [(member, name) for member in self._idle() for name in wanted]
        return sorted((member, name) for member, name in pairs if not self._would_be_a_circle(member, name))

    def _would_be_a_circle(self, member: Member, name: str) -> bool:
        """Tell whether the kernel, which sees only processes, would call this wait a deadlock: see below."""
        process, other = member[0], self.holders[name][0]
        mine = {held for held, holder in self.holders.items() if holder[0] == process}
        return process != other and any(waits == other and of in mine for waits, of in self.in_kernel)

    def _ask(self, member: Member, do: str, name: str, **facts: Any) -> Any:
        return self.servants[member[0]].ask(do, thread=member[1], path=self._path(name), **facts)

    def _path(self, name: str) -> str:
        return f"{self.place}/{name}.lock"


def test_a_wait_that_the_kernel_refuses_asks_its_caller_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{tmp_path}/x.lock"
    asked: list[int] = []
    naps: list[int] = []
    holder = Servant()
    assert holder.ask("take", path=path) == "held"

    class Refused:
        """What a wait comes to that closes a circle (fcntl(2), EDEADLK)."""

        note, refused = b"", True

        def __init__(self, file: IO[bytes]) -> None:
            file.close()
            self.ended = threading.Event()
            self.ended.set()

        def holder(self) -> str:
            return "another process"

    def nap(_seconds: float) -> None:
        naps.append(1)
        assert asked or len(naps) < 100, "a hundred naps, and nobody was asked whether they are still wanted"

    def give_up() -> None:
        asked.append(1)
        raise InterruptedError

    monkeypatch.setattr(locks, "_KernelWait", Refused)
    monkeypatch.setattr(locks, "_nap", nap)
    try:
        with pytest.raises(InterruptedError), locks.exclusive(path, timeout=60, what="a lock", check=give_up):
            pass
    finally:
        holder.kill()


@pytest.fixture
def machine() -> Iterator[LockMachine]:
    """The machine, driven by hand: what must not depend on luck to be met."""
    found = LockMachine()
    yield found
    found.teardown()


def test_two_waits_that_were_given_up_cost_one_descriptor(machine: LockMachine) -> None:
    machine.takes((0, 0), "one")
    for thread in (0, 1, 0):
        machine.waits((1, thread), "one")
        machine.gives_up("one")
        machine.a_process_has_one_descriptor_of_a_lock_at_most()


def test_a_note_reaches_who_waits_in_another_process_and_nobody_else(machine: LockMachine) -> None:
    for waiter in [(1, 0), (0, 1)]:
        machine.takes((0, 0), "one")
        machine.waits(waiter, "one")
        machine.notes_down("one", "it failed")
        machine.gives_back("one")
        if "one" in machine.holders:
            machine.gives_back("one")


def test_the_note_of_a_holder_that_was_killed_is_not_the_next_ones(machine: LockMachine) -> None:
    machine.takes((0, 0), "one")
    machine.notes_down("one", "it failed")
    machine.die(0)
    machine.takes((1, 0), "one")  # It looks into the file.


def test_a_child_lets_go_of_nothing_and_gets_the_lock_once_its_parent_has_let_go(machine: LockMachine) -> None:
    machine.takes((0, 0), "one")
    machine.forks_and_gives_back("one")
    assert machine.holders == {}


TestLockMachine = LockMachine.TestCase
TestLockMachine.settings = settings(stateful_step_count=20)
