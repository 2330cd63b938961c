"""What was locked at a revision of a hub comes from that revision, wherever the branch is by then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelcache
from modelcache import Cache, RetryPolicy
from modelcache.errors import LockDriftError
from tests.support.hub import Hub

OLD = {"config.json": b'{"v": 1}', "sub/w.bin": b"old" * 9000}
NEW = {"config.json": b'{"v": 2}', "sub/w.bin": b"new" * 9000}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.mark.parametrize(
    ("ref", "patterns"),
    [
        ("hf://org/name", ""),
        ("hf://org/name@main", ""),
        ("hf://org/name", 'allow_patterns = ["*.json"]'),
        ("hf://org/name/config.json", ""),
        ("hf://org/name/sub/w.bin", ""),
        ("hf://datasets/org/name", ""),
    ],
)
def test_prewarm_locked_fetches_at_the_revision_of_the_lock(
    ref: str, patterns: str, hub: Hub, root: Path, tmp_path: Path
) -> None:
    repository = "datasets/org/name" if "datasets" in ref else "org/name"
    hub.add(repository, OLD)
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[[model]]\nref = "{ref}"\n{patterns}\n')
    with Cache(tmp_path / "builder") as cache:
        (locked,) = cache.lock(manifest)
    hub.add(repository, NEW)

    with Cache(root) as cache:
        report = cache.prewarm(manifest, locked=True)
        report.check()
    assert report.models[0].entry is not None
    assert (report.models[0].entry.digest, report.models[0].entry.revision) == (locked.digest, locked.revision)

    with Cache(root, offline=True) as cache:  # Under the ref of the manifest, for those who use it.
        path = Path(cache.get_tree(ref, allow_patterns="*.json") if patterns else cache.get(ref))
        found = {path.name: path.read_bytes()} if path.is_file() else read(path)
    assert found.items() <= {**OLD, "w.bin": OLD["sub/w.bin"]}.items()
    with Cache(root) as cache:
        assert cache.prewarm(manifest, locked=True).models[0].state == "cached"


def read(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_digest_that_the_locked_revision_does_not_have_is_drift(hub: Hub, root: Path, tmp_path: Path) -> None:
    hub.add("org/name", OLD)
    manifest = tmp_path / "models.toml"
    manifest.write_text('[[model]]\nref = "hf://org/name/sub/w.bin"\n')
    with Cache(tmp_path / "builder") as cache:
        (locked,) = cache.lock(manifest)
    moved = hub.add("org/name", NEW)
    lock = tmp_path / "models.lock"
    lock.write_text(lock.read_text().replace(str(locked.revision), moved))

    with Cache(root, retry=RetryPolicy(attempts=1)) as cache, pytest.raises(LockDriftError):
        cache.prewarm(manifest, locked=True).check()


def test_repair_fetches_at_the_revision_that_was_recorded(hub: Hub, root: Path) -> None:
    hub.add("org/name", OLD)
    with Cache(root) as cache:
        path = Path(cache.get("hf://org/name/sub/w.bin"))
        hub.add("org/name", NEW)
        path.chmod(0o644)
        path.write_bytes(b"Old" * 9000)

        assert cache.verify(repair=True).ok

        assert Path(cache.get("hf://org/name/sub/w.bin")).read_bytes() == OLD["sub/w.bin"]


def test_the_default_cache_gives_leases(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_DIR", str(root))
    try:
        modelcache.put(b"content", name="m")

        with modelcache.lease("m") as held:
            modelcache.api.default_cache().plan_gc(unused_for=0, grace=0).execute()
            assert Path(held.path).read_bytes() == b"content"
        modelcache.api.default_cache().plan_gc(unused_for=0, grace=0).execute()
        assert not os.path.exists(held.path)
    finally:
        modelcache.close()
