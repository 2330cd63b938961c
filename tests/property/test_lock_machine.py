"""The lock registry under processes, threads, forks, closes and kills, against one name a lock: who holds it.

Every close of a descriptor of a lock file drops a process's POSIX lock, a forked child's copy owns nothing, and a
second lock object in one process would be granted at once: each of these would show as two holders, or as none.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

LOCKS = ["one", "two"]
members = st.tuples(st.integers(0, 1), st.integers(0, 1))  # Process and thread.


class Servant:
    """A process that holds locks."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.property.lock_servant"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, do: str, **facts: Any) -> bool:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": do, **facts}) + "\n")
        self.process.stdin.flush()
        return bool(json.loads(self.process.stdout.readline()))

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
    """Who holds what: a process and one of its threads, by lock."""

    servants: list[Servant]

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.holders: dict[str, tuple[int, int]] = {}

    @rule(member=members, name=st.sampled_from(LOCKS))
    def take(self, member: tuple[int, int], name: str) -> None:
        if member in self.holders.values():
            return
        got = self.servants[member[0]].ask("take", thread=member[1], path=self._path(name))
        assert got == (name not in self.holders)
        if got:
            self.holders[name] = member

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.holders)))
        process, thread = self.holders.pop(name)
        assert self.servants[process].ask("give", thread=thread)

    @rule(process=st.integers(0, 1), name=st.sampled_from(LOCKS), how=st.sampled_from(["fork", "probe"]))
    def look(self, process: int, name: str, how: str) -> None:
        """A forked child, or another thread, tries the lock and lets go: the holder must not notice."""
        assert self.servants[process].ask(how, path=self._path(name)) == (name not in self.holders)

    @rule(process=st.integers(0, 1))
    def die(self, process: int) -> None:
        self.servants[process].kill()
        self.servants[process] = Servant()
        self.holders = {name: holder for name, holder in self.holders.items() if holder[0] != process}

    @invariant()
    def files_are_there_only_while_a_lock_is_held_or_its_holder_was_killed(self) -> None:
        for name in self.holders:
            assert Path(self._path(name)).exists()

    def teardown(self) -> None:
        while self.holders:
            _, (process, thread) = self.holders.popitem()
            self.servants[process].ask("give", thread=thread)
        for name in LOCKS:
            assert self.servants[0].ask("probe", path=self._path(name))
        assert list(self.place.iterdir()) == []
        shutil.rmtree(self.place)

    def _path(self, name: str) -> str:
        return f"{self.place}/{name}.lock"


TestLockMachine = LockMachine.TestCase
TestLockMachine.settings = settings(stateful_step_count=20)
