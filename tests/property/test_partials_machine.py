"""Partials against a plain model: whatever dies and whatever the disk forgets, a claim is a prefix of the content."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from modelcache import layout, process, roots
from modelcache.digest import Digest
from modelcache.objects import Objects
from modelcache.partials import Partial, Partials

KEY, NAME = "https://example.org/m.onnx", "m.onnx"
CONTENT = hashlib.shake_256(b"content").digest(4000)
FACTS = {"place": KEY, "etag": '"v1"'}
TAILS = ("kept", "cut", "zeroed", "longer")


@dataclass
class Loose:
    """A partial without a living owner, as the model knows it.

    ``sure`` bytes of it must come back, ``synced`` of these also after a power cut. ``known`` is whether its owner is
    certainly dead: of an unknown one only a copy is made.
    """

    directory: str
    sure: int
    synced: int
    known: bool = True


class PartialsMachine(RuleBasedStateMachine):
    """One process at a time fills a partial; any number of dead ones have left theirs."""

    @initialize()
    def start(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="modelcache-machine-")
        self.root = f"{self.directory}/cache"
        self.real_boot_id = process.boot_id
        self.boots = 0
        roots.prepare_root(self.root)
        self.partials = Partials(self.root)
        self.mine: Partial | None = None
        self.synced = 0
        self.loose: list[Loose] = []

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            process.boot_id = self.real_boot_id
            if self.mine is not None:
                self.mine._close()
            shutil.rmtree(self.directory)

    # -- the life of one partial ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.mine is not None)
    @rule(count=st.integers(1, 1500), waiting=st.sampled_from([0, 1, 300]), journal=st.booleans())
    def receive(self, count: int, waiting: int, journal: bool) -> None:
        """Append *count* bytes; the last *waiting* of them are not hashed yet."""
        assert self.mine is not None
        self.mine.append(CONTENT[self.mine.length : self.mine.length + count])
        self.mine.hash(CONTENT[self.mine.hashed : max(self.mine.hashed, self.mine.length - waiting)])
        if journal:
            self.mine.journal(self.mine.hashed, self.mine.digest)
            self.synced = self.mine.hashed

    @precondition(lambda self: self.mine is not None)
    @rule()
    def restart(self) -> None:
        assert self.mine is not None
        self.mine.restart()
        self.mine.describe(FACTS, len(CONTENT))
        self.synced = 0

    @precondition(lambda self: self.mine is not None)
    @rule()
    def finish(self) -> None:
        assert self.mine is not None
        self.receive(len(CONTENT), 0, journal=False)
        stored = self.mine.publish(Objects(self.root))
        self.mine = None
        assert Path(stored.path).read_bytes() == CONTENT

    # -- letting go, willingly or not ----------------------------------------------------------------------------------

    @precondition(lambda self: self.mine is not None)
    @rule()
    def release(self) -> None:
        assert self.mine is not None
        length, hashed, before = self.mine.length, self.mine.hashed, set(self.found())
        self.mine.release()
        if length:
            (directory,) = set(self.found()) - before
            self.loose.append(Loose(directory, length, hashed if hashed == length else self.synced))
        self.mine = None

    @precondition(lambda self: self.mine is not None)
    @rule(known=st.booleans())
    def crash(self, known: bool) -> None:
        assert self.mine is not None
        self.mine._close()
        stem, _, token = self.mine._directory.rpartition(".")
        parts = token.split("-")
        parts[4 if known else 0] = "1" if known else "elsewhere"
        os.rename(self.mine._directory, f"{stem}.{'-'.join(parts)}")
        directory = os.path.basename(f"{stem}.{'-'.join(parts)}")
        self.loose.append(Loose(directory, self.mine.length if known else self.synced, self.synced, known))
        self.mine = None

    @rule(data=st.data())
    def power_cut(self, data: st.DataObject) -> None:
        if self.mine is not None:
            self.crash(known=True)
        for loose in self.loose:
            if not loose.known:
                continue  # Another machine, which has not lost its power.
            file = self.file(loose.directory)
            tail = data.draw(st.sampled_from(TAILS))
            with file.open("r+b") as stream:
                size = file.stat().st_size
                if tail != "kept":
                    stream.truncate(loose.synced)
                if tail in {"zeroed", "longer"}:
                    stream.truncate(size + (100 if tail == "longer" else 0))
            loose.sure = loose.synced
        self.boots += 1
        boot = f"boot{self.boots:04}"
        process.boot_id = lambda: boot  # type: ignore[assignment]

    # -- taking over ---------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.mine is None)
    @rule()
    def begin(self) -> None:
        """Claim what there is, and begin anew where there is nothing, as a fetch does."""
        self.claim()
        if self.mine is None:
            self.mine = self.partials.create(KEY, NAME)
            self.mine.describe(FACTS, len(CONTENT))

    def claim(self) -> None:
        claimed = self.partials.claim(KEY, NAME)

        sure = max((loose.sure for loose in self.loose), default=0)
        assert (claimed.length if claimed is not None else 0) >= sure, "bytes that must come back did not"
        inodes = {self.file(loose.directory).stat().st_ino for loose in self.loose if not loose.known}
        self.loose = [loose for loose in self.loose if not loose.known]
        self.mine, self.synced = claimed, 0
        if claimed is not None:
            assert os.fstat(claimed._descriptor).st_ino not in inodes, "an inode that another process may have open"
            assert (claimed.facts, claimed.total) == (FACTS, len(CONTENT))
            assert claimed.hashed == claimed.length
            self.synced = claimed._synced
            claimed.describe(FACTS, len(CONTENT))

    @precondition(lambda self: self.mine is not None)
    @rule()
    def claim_beside_a_living_owner(self) -> None:
        assert self.mine is not None
        mine = self.mine
        self.mine = None
        self.claim()
        if self.mine is not None:
            other: Partial = self.mine
            other.discard()
        self.mine = mine
        self.synced = mine._synced

    # -- always --------------------------------------------------------------------------------------------------------

    @invariant()
    def what_is_mine_is_a_prefix_of_the_content(self) -> None:
        if getattr(self, "mine", None) is None:
            return
        mine = self.mine
        assert mine is not None
        assert self.file(os.path.basename(mine._directory)).read_bytes() == CONTENT[: mine.length]
        assert mine.digest == Digest.of_bytes([CONTENT[: mine.hashed]])
        assert mine._synced <= mine.length

    @invariant()
    def nothing_is_left_that_the_model_does_not_know(self) -> None:
        if not hasattr(self, "root"):
            return
        mine = [os.path.basename(self.mine._directory)] if self.mine is not None else []
        assert sorted(self.found()) == sorted([*mine, *(loose.directory for loose in self.loose)])
        assert os.listdir(f"{self.root}/{layout.STAGING}") == []

    def found(self) -> list[str]:
        return os.listdir(f"{self.root}/{layout.PARTIALS}")

    def file(self, directory: str) -> Path:
        return Path(self.root, layout.PARTIALS, directory, "object", NAME)


# A step is quick, and what goes wrong takes several in the right order.
PartialsMachine.TestCase.settings = settings(max_examples=2 * settings().max_examples)
test_what_a_claim_returns_is_a_prefix_of_the_content = PartialsMachine.TestCase
