"""Many processes over one bucket: its content is read once, and brought there once."""

from __future__ import annotations

import os
from pathlib import Path

from modelcache import Cache, Tier
from modelcache.archive import DirectoryBackend
from modelcache.backends import base as backends_base
from modelcache.promises import check_cache
from modelcache.testing import FaultServer
from tests.crash.world import forked
from tests.support.state import leftovers

CONTENT = bytes(range(256)) * 20_000


class Counting(DirectoryBackend):
    """A directory that notes each blob that is read and each that is written, for all processes."""

    def __init__(self, path: Path, notes: Path) -> None:
        super().__init__(path)
        self.notes = notes

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        if name.startswith("blobs/"):
            self._note(f"read {start}")
        return super().read(name, start, length)

    def upload(self, name: str, path: str, size: int) -> None:
        self._note("upload")
        super().upload(name, path, size)

    def _note(self, what: str) -> None:
        descriptor = os.open(self.notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(descriptor, f"{what}\n".encode())
        os.close(descriptor)


def in_processes(count: int, root: Path, tier: Tier, ref: str) -> list[int]:
    """Let so many processes get *ref* at once; return how each ended."""
    begin, go = os.pipe()

    def work() -> None:
        os.close(go)
        os.read(begin, 1)  # Until all have begun, and the other end is closed.
        with Cache(root, tiers=[tier]) as cache:
            assert Path(cache.get(ref)).read_bytes() == CONTENT

    children = [forked(work) for _ in range(count)]
    os.close(begin)
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def test_sixteen_processes_read_a_cold_model_from_a_bucket_once(
    root: Path, tmp_path: Path, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    notes = tmp_path / "notes"
    with Cache(root.parent / "first", tiers=[Tier("b", backend=DirectoryBackend(tmp_path / "b"), write="direct")]) as c:
        c.get(url)
    seen = len(server.seen())

    ended = in_processes(16, root, Tier("b", backend=Counting(tmp_path / "b", notes), timeout=60.0), url)

    assert ended == [0] * 16
    pieces = -(-len(CONTENT) // backends_base.PIECE_BYTES)
    assert notes.read_text().splitlines() == [f"read {n * backends_base.PIECE_BYTES}" for n in range(pieces)]
    assert len(server.seen()) == seen
    assert check_cache(root) == []
    assert leftovers(root) == []


def test_sixteen_processes_bring_what_they_fetched_to_a_bucket_once(
    root: Path, tmp_path: Path, server: FaultServer
) -> None:
    url = server.add("/model.onnx", CONTENT)
    notes = tmp_path / "notes"
    backend = Counting(tmp_path / "b", notes)

    ended = in_processes(16, root, Tier("b", backend=backend, timeout=60.0, write=True), url)

    assert ended == [0] * 16
    with Cache(root, tiers=[Tier("b", backend=backend, timeout=60.0, write=True)]) as last:
        assert last.flush(60)
    assert notes.read_text().splitlines() == ["upload"]
    assert len(server.seen()) == 1
    assert leftovers(root) == []
