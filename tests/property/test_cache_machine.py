"""Several real processes on one cache, in every order that hypothesis thinks of, against a dict.

They put, get, refresh, link, remove, pin and verify, two at once too; some die at a drawn fail point; content is
altered behind their backs. After each step the one checker looks at the disk (I1, I2, I3, I5, I6), and no process may
ever have been served what its key never stood for. A failure shrinks, and is replayed by the printed blob.

``HYPOTHESIS_PROFILE=large`` tries more of it. Leases, eviction and gc join when they are built.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modelcache import Cache, errors, layout
from modelcache.pins import Pins
from modelcache.records import Entries
from modelcache.testing import FaultServer, check_cache
from tests.support.state import leftovers

CONTENTS = [bytes([number]) * (3_000 + number) for number in range(1, 4)]
DIGESTS = [f"sha256:{hashlib.sha256(content).hexdigest()}" for content in CONTENTS]
NAMES = ["a", "b", "c"]
PAGES = ["/x.onnx", "/y.onnx"]
# About how many points each command comes by. One that comes by fewer, such as a hit, lives.
PASSAGES = {"put": 17, "remove": 8, "drop": 8, "get": 20, "refresh": 16, "link": 9, "pin": 6, "unpin": 2}

which = st.integers(0, 2)
names, pages = st.sampled_from(NAMES), st.sampled_from(PAGES)
commands = st.one_of(
    st.builds(lambda key, number: ("put", key, number), names, which),
    st.builds(lambda key: ("remove", key, 0), names),
    st.builds(lambda key: ("get", key, 0), pages),
    st.builds(lambda key: ("refresh", key, 0), pages),
    st.builds(lambda key: ("drop", key, 0), pages),
    st.builds(lambda key, number: ("link", key, number), st.sampled_from(["/p.onnx", "/q.onnx"]), which),
    st.builds(lambda key: ("pin", key, 0), names),
    st.builds(lambda key: ("unpin", key, 0), names),
    st.just(("verify", "", 0)),
)
Command = tuple[str, str, int]


class Servant:
    """A process that does what it is told."""

    def __init__(self) -> None:
        self._process = self._start()

    def tell(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Return its answer; None if it has died, and then there is another one in its place."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        code = self._process.wait(60)
        self.close()
        self._process = self._start()
        assert code == -9, f"it died by itself: {code}"
        return None

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=60)

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.property.servant"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def staff() -> Iterator[None]:
    """Three servants and a server for all examples: to start them takes longer than an example."""
    with FaultServer() as server:
        CacheMachine.server = server
        CacheMachine.servants = [Servant() for _ in range(3)]
        try:
            yield
        finally:
            for servant in CacheMachine.servants:
                servant.close()
    print(f"{sum(CacheMachine.deaths)} of {len(CacheMachine.deaths)} commands that were to die did")
    if len(CacheMachine.deaths) >= 100:
        assert sum(CacheMachine.deaths) >= len(CacheMachine.deaths) / 5, "most kills miss: see PASSAGES"


class CacheMachine(RuleBasedStateMachine):
    """What each key may stand for on disk, and what it has ever stood for."""

    server: FaultServer
    servants: list[Servant]
    deaths: ClassVar[list[bool]] = []  # Of each command that was to die: whether it came so far.

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.root = self.place / "cache"
        self.allowed: dict[str, set[str | None]] = {}
        self.unsure: set[str] = set()  # Damaged from outside; a call that returns makes them sure again.
        self.ever: dict[str, set[str]] = {}
        self.remembered: set[tuple[int, str]] = set()  # Servants whose cache may answer for a key from its memory.
        self.served: dict[str, str] = {}  # By page: what the server has now.

    @initialize(numbers=st.tuples(which, which))
    def fill(self, numbers: tuple[int, int]) -> None:
        for page, number in zip(PAGES, numbers, strict=True):
            self.change(page, number)

    @rule(page=pages, number=which)
    def change(self, page: str, number: int) -> None:
        """The original changes at its source."""
        url = self.server.add(page, CONTENTS[number])
        self.served[url] = DIGESTS[number]
        self.ever.setdefault(url, set()).add(DIGESTS[number])

    @rule(servant=which, command=commands)
    def one(self, servant: int, command: Command) -> None:
        self._begin(command)
        self._tell(servant, command)
        self._end(servant, command, self.servants[servant].answer(), sure=True)

    @rule(first=commands, second=commands, servants=st.permutations([0, 1, 2]))
    def two_at_once(self, first: Command, second: Command, servants: list[int]) -> None:
        apart = self._key(first) != self._key(second) and "verify" not in {first[0], second[0]}
        for servant, command in zip(servants, (first, second), strict=False):
            self._begin(command)
            self._tell(servant, command)
        # Both first: an answer that nobody took would be taken for that to a later command.
        answers = [self.servants[servant].answer() for servant in servants[:2]]
        for servant, command, answer in zip(servants, (first, second), answers, strict=False):
            self._end(servant, command, answer, sure=apart)

    @rule(servant=which, command=commands.filter(lambda command: command[0] in PASSAGES), data=st.data())
    def one_that_dies(self, servant: int, command: Command, data: st.DataObject) -> None:
        """At the n-th point that it comes by, whichever that is."""
        self._begin(command)
        self._tell(servant, command, dies_at=data.draw(st.integers(0, PASSAGES[command[0]] - 1)))
        answer = self.servants[servant].answer()
        self._end(servant, command, answer, sure=True)
        CacheMachine.deaths += [answer is None]

    @rule(servant=which, number=which)
    def content_is_altered_and_repaired(self, servant: int, number: int) -> None:
        """Another tool writes through the cache. What a source has comes back; what was put is known to be gone."""
        entries = [entry for entry in Entries(str(self.root)).all() if entry.digest == DIGESTS[number]]
        for entry in entries:
            path = Path(entry.path)
            if path.exists():
                path.chmod(0o644)
                path.write_bytes(b"altered")
            self.allowed.pop(entry.key, None)
            self.unsure.add(entry.key)
        command: Command = ("verify", "", 0)
        self._tell(servant, command)
        self._end(servant, command, self.servants[servant].answer(), sure=False)

    @invariant()
    def every_promise_is_kept(self) -> None:
        sure = {key: next(iter(values)) for key, values in self.allowed.items() if len(values) == 1}
        found = check_cache(self.root, sure)
        assert [str(v) for v in found if v.kind != "garbage" and v.where not in self.unsure] == []

    def teardown(self) -> None:
        self.servants[0].tell({"do": "sweep", "root": str(self.root)})
        self.servants[0].answer()
        # A partial waits for the next fetch of its key.
        left = [name for name in leftovers(self.root) if not name.startswith(layout.PARTIALS)]
        for servant in self.servants:
            servant.tell({"do": "forget"})
            servant.answer()
        shutil.rmtree(self.place, ignore_errors=True)
        assert left == []

    def _key(self, command: Command) -> str:
        what, key, _ = command
        return key if what in {"put", "remove", "pin", "unpin"} else self.server.url(key)

    def _tell(self, servant: int, command: Command, **options: int) -> None:
        what, _, number = command
        self.servants[servant].tell({
            "do": "remove" if what == "drop" else what, "root": str(self.root), "key": self._key(command),
            "content": CONTENTS[number].hex(), "digest": DIGESTS[number], **options,
        })  # fmt: skip

    def _begin(self, command: Command) -> None:
        """From here on until it has ended, both the old and the new meaning are allowed."""
        what, _, number = command
        key = self._key(command)
        known = set() if what == "verify" or key in self.unsure else self.allowed.setdefault(key, {None})
        if what in {"put", "link"}:
            known.add(DIGESTS[number])
            self.ever.setdefault(key, set()).add(DIGESTS[number])
        elif what in {"remove", "drop"}:
            known.add(None)
        elif what in {"get", "refresh"}:
            known.add(self.served[key])

    def _end(self, servant: int, command: Command, answer: dict[str, Any] | None, *, sure: bool) -> None:
        what, _, number = command
        key = self._key(command)
        if answer is None:
            self.remembered = {(of, known) for of, known in self.remembered if of != servant}
            return  # It died: either meaning is allowed.
        got = answer.get("digest")
        from_memory = what == "get" and (servant, key) in self.remembered
        if got is not None and what in {"get", "refresh", "link"}:
            self.remembered.add((servant, key))
        if got is not None:
            assert got in self.ever[key], f"{key} was served as {got}"
        if not sure:
            return
        if what == "put":
            assert got == DIGESTS[number], answer
            self._settle(key, got)
        elif what in {"remove", "drop"}:
            assert "error" not in answer, answer
            self._settle(key, None)
        elif what == "refresh":
            assert got == self.served[key], answer
            self._settle(key, got)
        elif what == "get":
            assert got is not None, answer
            if from_memory:
                return  # Whole, and perhaps not what is on record by now: another process may have changed that.
            assert key in self.unsure or got in self.allowed[key], f"{key} is {got}, and may be {self.allowed[key]}"
            self._settle(key, got)
        elif what == "link" and got is not None:
            assert got == DIGESTS[number], answer
            self._settle(key, got)

    def _settle(self, key: str, digest: str | None) -> None:
        self.allowed[key] = {digest}
        self.unsure.discard(key)


def test_a_pin_does_not_outlive_an_entry_that_is_removed_while_it_is_set(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Pins.add

    def removed_first(self: Pins, key: str) -> None:
        Cache(root).remove(key, force=True)  # What another process does between the look and the pin.
        add(self, key)

    monkeypatch.setattr(Pins, "add", removed_first)
    with Cache(root) as cache:
        cache.put(CONTENTS[0], name="a")
        with contextlib.suppress(errors.EntryNotFoundError):
            cache.pin("a")

    assert [str(v) for v in check_cache(root) if v.kind != "garbage"] == []


TestCacheMachine = CacheMachine.TestCase
# Half of the examples of the others: each of them takes half a second.
TestCacheMachine.settings = settings(max_examples=settings().max_examples // 2, stateful_step_count=12)
