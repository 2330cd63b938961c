"""A disk that is full, before and in the middle: its own error, a whole cache, a download that can go on."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, errors
from modelcache.testing import Fault, FaultServer
from tests.support.state import wrong_objects

MIB = 1 << 20
CONTENT = random.Random(8).randbytes(6 * MIB)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def fill(mount: Path, *, leave: int) -> Path:
    facts = os.statvfs(mount)
    ballast = mount / "ballast"
    ballast.write_bytes(b"x" * (facts.f_bavail * facts.f_frsize - leave))
    return ballast


def test_a_model_that_cannot_fit_is_refused_before_a_byte_is_stored(small_disk: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    fill(small_disk, leave=2 * MIB)

    with Cache(small_disk / "cache") as cache, pytest.raises(errors.NoSpaceError) as caught:
        cache.get(url)

    assert caught.value.exit_code == 8
    assert caught.value.facts["needed"] >= len(CONTENT)
    assert list((small_disk / "cache" / "partial-v1").iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_keeps_the_partial_and_it_is_resumed(
    small_disk: Path, server: FaultServer
) -> None:
    # Without a length the need is not known before.
    url = server.add("/m.onnx", CONTENT, [Fault(framing="chunked")], etag='"one"')
    ballast = fill(small_disk, leave=3 * MIB)
    root = small_disk / "cache"

    with Cache(root, retry=RetryPolicy(base=0)) as cache:
        with pytest.raises(errors.NoSpaceError):
            cache.get(url)
        ballast.unlink()
        path = cache.get(url)
        resumed = cache.stats().bytes_resumed

    assert Path(path).read_bytes() == CONTENT
    assert resumed >= MIB
    assert wrong_objects(root) == []


def test_a_put_onto_a_full_disk_leaves_the_old_content(small_disk: Path) -> None:
    root = small_disk / "cache"
    with Cache(root) as cache:
        cache.put(b"old", name="model.bin")
        fill(small_disk, leave=MIB)

        with pytest.raises(errors.NoSpaceError):
            cache.put(CONTENT, name="model.bin")

        assert Path(cache.get("model.bin")).read_bytes() == b"old"
        assert list((root / "staging").iterdir()) == []


def test_hits_need_no_space(small_disk: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT[:1000])
    with Cache(small_disk / "cache") as cache:
        cache.get(url)
    fill(small_disk, leave=0)

    with Cache(small_disk / "cache") as cache:
        assert Path(cache.get(url)).read_bytes() == CONTENT[:1000]


def test_usage_that_finds_no_room_costs_no_get_and_is_on_record_when_there_is_some(
    small_disk: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.add("/m.onnx", CONTENT[:1000])
    with Cache(small_disk / "cache", usage=True) as cache:
        cache.get(url)
        ballast = fill(small_disk, leave=0)
        cache.get(url)
        cache.usage()
        assert cache.stats().usage_failures == 1
        cache.usage()
        assert caplog.text.count("cannot be recorded") == 1
        assert os.listdir(small_disk / "cache" / "staging") == []
        ballast.unlink()
        assert cache.usage().total.usage.hits == 1
