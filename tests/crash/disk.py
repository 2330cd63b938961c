"""What a disk may hold after the power was cut, given what was asked of it: the two models of a file system.

ordered: ext4 with data=ordered. Names appear in order and are lost only from the end, never past the last sync of
    anything. The bytes of a file that was not synced are there independently of all else: all of them, none, zeros, a
    first part, or what the file held at its last sync.
weak: what POSIX says and no more. A synced file keeps its bytes, a synced directory its names. Every other change of a
    name may be lost on its own; a rename between two directories is two changes. Unsynced bytes may also be garbage, or
    hold only their end.

A state is drawn with a seed: a moment of the cut, which names survive, and what each unsynced file holds.
"""

from __future__ import annotations

import hashlib
import os
import random
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.recorder import Change

State = tuple[bytes, int | None, int]  # A file's bytes, its mtime, and whether it may be executed.
MODELS = ("ordered", "weak")
_MOMENTS = {"sync-file", "sync-directory", "expect"}


@dataclass
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes | None = None
    mtime_ns: int | None = None  # At the last sync.
    mode: int = 0  # Whether it may be executed, and the same at the last sync.
    synced_mode: int = 0

    def options(self, model: str, chance: random.Random) -> list[bytes]:
        """Return what the file may hold after a cut now."""
        now = bytes(self.data)
        if now == self.synced:
            return [now]
        before = self.synced or b""
        # What was synced stays, where it was only added to; what was written over may be anything.
        kept = before if now.startswith(before) else b""
        new = now[len(kept) :]
        cut = chance.randrange(len(new) + 1)
        found = [now, before, kept + bytes(len(new)), kept + new[:cut]]
        if model == "weak":
            found += [kept + chance.randbytes(len(new)), kept + bytes(cut) + new[cut:]]
        return found


@dataclass(frozen=True)
class _Step:
    """A change of one name in one directory; all of one *group* happen together."""

    group: int
    directory: int
    name: str
    node: int | None  # None: the name goes.


class Disk:
    """The log of an operation, played up to a moment, and what may be left of it then."""

    def __init__(self, start: Path, log: Sequence[Change], until: int, model: str) -> None:
        self._model = model
        self._files: dict[int, _File] = {}
        self._tree: dict[int, dict[str, int]] = {0: {}}  # Directories as they are now.
        self._start: dict[int, dict[str, int]] = {}
        self._steps: list[_Step] = []
        self._durable: set[int] = set()  # Groups of steps that no cut takes back.
        self._handles: dict[int, int] = {}
        self._groups = 0
        self._load(start, 0)
        self._start = {node: dict(names) for node, names in self._tree.items()}
        self.expected: dict[str, frozenset[str | None]] = {}
        for change in log[:until]:
            self._play(change)

    @property
    def possible(self) -> int:
        """The number of states, roughly: drawn cuts within a file count once."""
        loose = len({step.group for step in self._steps} - self._durable)
        names = loose + 1 if self._model == "ordered" else 2**loose
        for file in self._files.values():
            names *= len(file.options(self._model, random.Random(0)))
        return names

    def draw(self, chance: random.Random, *, least: bool = False) -> dict[str, State | None]:
        """Return one state: what is at each path: a file, or None for a directory.

        With *least*, of the names there is what no cut may take back, and nothing more.
        """
        loose = sorted({step.group for step in self._steps} - self._durable)
        if least:
            kept = set()
        elif self._model == "ordered":
            kept = set(loose[: chance.randrange(len(loose) + 1)])
        else:
            share = chance.choice([0.0, 0.2, 0.5, 0.8, 1.0])
            kept = {group for group in loose if chance.random() < share}
        tree = {node: dict(names) for node, names in self._start.items()}
        for step in self._steps:
            if step.group in self._durable or step.group in kept:
                names = tree.setdefault(step.directory, {})
                if step.node is None:
                    names.pop(step.name, None)
                else:
                    names[step.name] = step.node
        lazy = chance.random() < 0.5  # Half of the states are extreme: all files lost in one way.
        way = chance.randrange(6)
        content: dict[int, State] = {}
        for node, file in self._files.items():
            options = file.options(self._model, chance)
            data = options[way % len(options)] if lazy else chance.choice(options)
            content[node] = data, file.mtime_ns, chance.choice([file.synced_mode, file.mode])
        state: dict[str, State | None] = {}
        self._walk(tree, content, 0, "", state, depth=0)
        return state

    def _walk(
        self,
        tree: dict[int, dict[str, int]],
        content: dict[int, State],
        node: int,
        path: str,
        state: dict[str, State | None],
        depth: int,
    ) -> None:
        assert depth < 20, "a directory within itself"
        for name, child in sorted(tree.get(node, {}).items()):
            where = f"{path}{name}"
            if child in self._files:
                state[where] = content[child]
            else:
                state[where] = None
                self._walk(tree, content, child, f"{where}/", state, depth + 1)

    def _load(self, path: Path, node: int) -> None:
        for found in sorted(path.iterdir()):
            child = self._new()
            self._tree[node][found.name] = child
            if found.is_dir():
                self._tree[child] = {}
                self._load(found, child)
            else:
                data = found.read_bytes()
                facts = found.stat()
                mode = facts.st_mode & stat.S_IXUSR
                self._files[child] = _File(bytearray(data), data, facts.st_mtime_ns, mode, mode)

    def _new(self) -> int:
        return len(self._tree) + len(self._files)

    def _find(self, path: str) -> tuple[int, str]:
        """Return the directory of *path* and the name in it."""
        node = 0
        *parents, name = path.split("/")
        for part in parents:
            node = self._tree[node][part]
        return node, name

    def _change(self, *changes: tuple[int, str, int | None], together: bool) -> None:
        for number, (directory, name, node) in enumerate(changes):
            self._groups += number == 0 or not together
            self._steps.append(_Step(self._groups, directory, name, node))
            if node is None:
                self._tree[directory].pop(name, None)
            else:
                self._tree[directory][name] = node

    def _play(self, change: Change) -> None:
        if change.what == "expect":
            self.expected[change.key] = change.allowed
            return
        if change.what in {"write", "truncate", "sync-file", "mode"}:
            self._play_file(change, self._files[self._handles[change.handle]])
            return
        directory, name = self._find(change.path)
        node = self._tree[directory].get(name)
        if change.what in {"create", "mkdir"}:
            node = self._new()
            if change.what == "mkdir":
                self._tree[node] = {}
            else:
                self._files[node] = _File()
                self._handles[change.handle] = node
            self._change((directory, name, node), together=True)
        elif change.what == "open":
            assert node is not None
            self._handles[change.handle] = node
        elif change.what in {"unlink", "rmdir"}:
            self._change((directory, name, None), together=True)
        elif change.what in {"rename", "link"}:
            target, new = self._find(change.target)
            steps: list[tuple[int, str, int | None]] = [(target, new, node)]
            if change.what == "rename":
                steps.append((directory, name, None))
            # A rename within one directory is one change in every model; between two, it is two where nothing orders.
            self._change(*steps, together=self._model == "ordered" or target == directory)
        elif change.what == "sync-directory":
            node = self._tree[directory][name] if change.path else 0
            self._sync_names(node)
        else:
            raise AssertionError(change.what)

    def _play_file(self, change: Change, file: _File) -> None:
        if change.what == "write":
            end = change.offset + len(change.data)
            if len(file.data) < end:
                file.data.extend(bytes(end - len(file.data)))
            file.data[change.offset : end] = change.data
        elif change.what == "truncate":
            del file.data[change.offset :]
        elif change.what == "mode":
            file.mode = change.offset
        else:
            file.synced, file.mtime_ns, file.synced_mode = bytes(file.data), change.mtime_ns, file.mode
            self._sync_names(None)

    def _sync_names(self, directory: int | None) -> None:
        """Make names durable: in the ordered model all of them, by a sync of anything."""
        for step in self._steps:
            if self._model == "ordered" or step.directory == directory:
                self._durable.add(step.group)


def moments(log: Sequence[Change]) -> list[int]:
    """Return how far the log is played for each moment of a cut: before each sync and acknowledgement, and the end."""
    return [*(index for index, change in enumerate(log) if change.what in _MOMENTS), len(log)]


def digest_of(state: dict[str, State | None]) -> bytes:
    """Return what tells states apart."""
    total = hashlib.sha256()
    for path, found in sorted(state.items()):
        total.update(f"{path}\0{'directory' if found is None else (len(found[0]), found[2])}\0".encode())
        total.update(b"" if found is None else found[0])
    return total.digest()


def materialise(state: dict[str, State | None], place: Path) -> None:
    """Make *state* real in the empty directory *place*."""
    for path, found in sorted(state.items()):
        if found is None:
            (place / path).mkdir()
            continue
        (place / path).write_bytes(found[0])
        (place / path).chmod(0o644 | found[2])
        if found[1] is not None:
            os.utime(place / path, ns=(found[1], found[1]))
