"""``verify="sample"``: a mebibyte of the content, whatever its size."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from modelcache import Cache, errors, files, sampling
from modelcache.digest import Digest
from modelcache.listing import Leaf, Listing
from modelcache.records import Entries
from modelcache.testing import FaultServer, check_cache

LARGE = random.Random(5).randbytes(3 << 20)
DIGEST = Digest.of_bytes([LARGE])


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache(root)


def overwrite(path: str | Path, at: int, data: bytes) -> None:
    """Write *data* into the file, as a failing disk does: without a trace in its times."""
    facts = os.stat(path)
    os.chmod(path, 0o644)
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)
    os.chmod(path, 0o444)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_the_first_look_reads_all_and_the_next_one_a_mebibyte(
    cache: Cache, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/m.onnx", LARGE)
    path = cache.get(url)
    assert cache.get(url, verify="sample") == path
    entry = Entries(cache.root).read(url)
    assert entry is not None
    assert entry.sample is not None

    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: read.append(n) or pread(fd, n, at))  # type: ignore[func-returns-value]
    monkeypatch.setattr(files, "digest_of", None)
    assert cache.get(url, verify="sample") == path
    assert 0 < sum(read) <= sampling.BLOCKS * sampling.BLOCK_BYTES
    assert check_cache(cache.root, hashing=False) == []


@pytest.mark.parametrize("at", [0, len(LARGE) - 1])
def test_damage_that_stat_cannot_see_is_found_set_aside_and_fetched_again(
    cache: Cache, server: FaultServer, at: int
) -> None:
    url = server.add("/m.onnx", LARGE)
    path = cache.get(url)
    cache.get(url, verify="sample")
    overwrite(path, at, b"?" if LARGE[at] != 63 else b"!")

    assert cache.get(url) == path  # What stat says is as it was.
    again = cache.get(url, verify="sample")

    assert Path(again).read_bytes() == LARGE
    assert len(server.seen()) == 2


def test_a_hole_of_a_mebibyte_anywhere_is_found() -> None:
    for start in range(0, len(LARGE) - (1 << 20), 1 << 18):
        starts = sampling._starts(len(LARGE), DIGEST)
        assert any(start <= one < start + (1 << 20) - sampling.BLOCK_BYTES for one in starts), start


@pytest.mark.parametrize("size", [0, 1, sampling.BLOCK_BYTES, 16 * sampling.BLOCK_BYTES, 16 * sampling.BLOCK_BYTES + 1])
def test_small_content_is_read_whole(tmp_path: Path, size: int) -> None:
    content = LARGE[:size]
    (tmp_path / "f").write_bytes(content)
    before = sampling.sample_of(str(tmp_path / "f"), DIGEST)
    for at in {0, size // 2, size - 1} if 0 < size <= 16 * sampling.BLOCK_BYTES else set():
        (tmp_path / "f").write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        assert sampling.sample_of(str(tmp_path / "f"), DIGEST) != before, at
    (tmp_path / "f").write_bytes(content + b"\0")
    assert sampling.sample_of(str(tmp_path / "f"), DIGEST) != before


def test_of_a_tree_every_file_is_looked_for(cache: Cache, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(30):
        (source / str(number)).mkdir(parents=True)
        (source / str(number) / "weights").write_bytes(LARGE[number * 70_000 : (number + 1) * 70_000])
    cache.put_tree(source, name="t")
    tree = Path(cache.get_tree("t", verify="sample"))
    assert cache.get_tree("t", verify="sample") == str(tree)

    victim = tree / "17" / "weights"
    victim.chmod(0o644)
    os.truncate(victim, 69_999)

    with pytest.raises(errors.NotFoundError):
        cache.get_tree("t", verify="sample")
    assert list((Path(cache.root) / "quarantine").iterdir()) != []


def test_a_read_only_root_is_sampled_without_a_note(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(LARGE, name="m")

    def refuse(*_: object) -> None:
        raise errors.StorageError(path="p", action="record", reason="read-only")

    monkeypatch.setattr(Entries, "write", refuse)
    path = cache.get("m", verify="sample")
    assert Path(path).read_bytes() == LARGE


def test_since_reads_only_what_came_then(cache: Cache, root: Path) -> None:
    cache.put(b"old" * 99, name="old")
    cache.put(b"new" * 99, name="new")
    old = Entries(cache.root).read("old")
    assert old is not None
    from dataclasses import replace

    Entries(cache.root).write(replace(old, created=old.created - 1000))
    report = cache.verify(since=old.created - 10)
    assert [finding.entry.key for finding in report.findings] == ["new"]
    assert len(cache.verify().findings) == 2


@pytest.mark.parametrize("first", [10, 100_000])
def test_a_block_goes_on_in_the_next_file(tmp_path: Path, first: int) -> None:
    contents = {"a": bytes(first), "b": bytes(100_000), "c": bytes(50_000)}
    leaves = []
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        leaves.append(Leaf(name, len(content), Digest.of_bytes([content])))
    listing = Listing(leaves, ref="x")
    before = sampling.sample_of(str(tmp_path), listing.digest, listing)

    for name, content in contents.items():
        for at in (0, len(content) // 2, len(content) - 1):
            overwrite(tmp_path / name, at, b"\1")
            assert sampling.sample_of(str(tmp_path), listing.digest, listing) != before, (name, at)
            overwrite(tmp_path / name, at, b"\0")
    assert sampling.sample_of(str(tmp_path), listing.digest, listing) == before


def test_a_file_that_was_touched_is_read_whole_whatever_a_quick_look_finds(cache: Cache, server: FaultServer) -> None:
    url = server.add("/m.onnx", LARGE)
    path = cache.get(url, verify="sample")
    starts = sampling._starts(len(LARGE), DIGEST)
    between = next(at for at in range(len(LARGE)) if all(not s <= at < s + sampling.BLOCK_BYTES for s in starts))
    overwrite(path, between, bytes([LARGE[between] ^ 1]))
    os.utime(path)

    assert Path(cache.get(url, verify="sample")).read_bytes() == LARGE
    assert len(server.seen()) == 2
