"""A time to live: for how long content is wanted after it came, or was last confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, errors, hit
from modelcache.records import Entries
from modelcache.testing import Fault, FaultServer, check_cache

CONTENT, OTHER = b"a model" * 900, b"another" * 700
DAY = 86_400.0
Later = Callable[[float], None]


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache(root, retry=RetryPolicy(attempts=1))


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> Later:
    """Let time pass, for all who look at whether an entry's is over."""

    def pass_by(seconds: float) -> None:
        cache._warm.clear()
        for module in ("getting", "question", "hit", "memory"):
            monkeypatch.setattr(f"modelcache.{module}.time", lambda: time.time() + seconds)

    return pass_by


def test_until_its_time_is_over_it_is_served_and_then_its_source_is_asked(
    cache: Cache, server: FaultServer, later: Later
) -> None:
    url = server.add("/m.onnx", CONTENT)
    path = cache.get(url, ttl=DAY)
    later(DAY / 2)
    assert cache.get(url) == path
    assert hit.look(cache.root, url) is not None
    assert len(server.seen()) == 1

    later(DAY + 1)
    assert hit.look(cache.root, url) is None  # The short path leaves it to who asks.
    assert cache.get(url) == path

    assert [seen.sent for seen in server.seen()][1:] == [[0]]  # A conditional request.
    entry = cache.lookup(url)
    assert entry is not None
    assert entry.ttl == DAY


def test_what_has_changed_by_then_comes_with_the_same_time(cache: Cache, server: FaultServer, later: Later) -> None:
    url = server.add("/m.onnx", CONTENT)
    cache.get(url, ttl=DAY)
    server.add("/m.onnx", OTHER)
    later(DAY + 1)

    assert Path(cache.get(url)).read_bytes() == OTHER
    entry = cache.lookup(url)
    assert entry is not None
    assert entry.ttl == DAY


def test_what_no_source_can_confirm_is_served_until_gc(cache: Cache, server: FaultServer, later: Later) -> None:
    url = server.add("/m.onnx", CONTENT)
    cache.get(url, ttl=DAY)
    cache.put(OTHER, name="put", ttl=DAY)
    server.add("/m.onnx", CONTENT, [Fault(status=503)] * 9)
    later(2 * DAY)

    assert Path(cache.get(url)).read_bytes() == CONTENT
    assert Path(cache.get("put")).read_bytes() == OTHER
    assert Path(cache.get(url, local_files_only=True)).read_bytes() == CONTENT


def test_memory_does_not_outlive_it(cache: Cache, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    cache.get(url, ttl=5)
    warm = cache._warm[url]
    assert warm.until - time.monotonic() <= 5


def test_a_get_gives_another_time_and_one_without_leaves_it(cache: Cache, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    found = []
    for ttl in (None, DAY, None, 2 * DAY):
        cache.get(url, ttl=ttl)
        entry = Entries(cache.root).read(url)
        assert entry is not None
        found.append(entry.ttl)
    assert found == [None, DAY, DAY, 2 * DAY]
    assert cache.put(OTHER, name="n", ttl=DAY).ttl == DAY
    assert cache.put(OTHER, name="n").ttl is None  # It is new.
    assert check_cache(cache.root) == []


def test_gc_removes_what_is_over_unless_it_is_in_use(cache: Cache, root: Path) -> None:
    for name in ("over", "pinned", "leased", "wanted", "second"):
        cache.put(name.encode() * 99, name=name, ttl=None if name == "wanted" else DAY)
    cache.put(b"second" * 99, name="second, for ever")
    cache.pin("pinned")
    with cache.lease("leased"):
        early = cache.plan_gc(now=time.time() + DAY / 2)
        plan = cache.plan_gc(now=time.time() + DAY + 3 * 3600)
        assert early.items == ()
        assert [(item.keys, item.reason) for item in plan.items] == [(("over",), "its time is over")]
        plan.execute()
    assert [entry.key for entry in cache.entries()] == ["leased", "pinned", "second", "second, for ever", "wanted"]
    assert check_cache(root) == []


def test_what_was_used_of_late_stays_though_its_time_is_over(cache: Cache) -> None:
    cache.put(CONTENT, name="m", ttl=60)
    assert cache.plan_gc(now=time.time() + 120).items == ()
    assert [item.keys for item in cache.plan_gc(now=time.time() + 120, grace=0).items] == [("m",)]


def test_what_was_confirmed_after_the_plan_stays(cache: Cache, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    cache.get(url, ttl=60)
    plan = cache.plan_gc(now=time.time() + 120, grace=0)
    assert len(plan.items) == 1

    cache.get(url, max_age=0)

    assert list(plan.execute().stayed.values()) == ["used since it was planned"]


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf"), "30d", True])
def test_senseless_times_are_refused_before_anything_is_done(
    cache: Cache, root: Path, server: FaultServer, ttl: object
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with pytest.raises(errors.UsageError, match="ttl"):
        cache.get(url, ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="ttl"):
        cache.get_tree(url, ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="ttl"):
        cache.put(b"x", name="n", ttl=ttl)  # type: ignore[arg-type]
    with pytest.raises(errors.UsageError, match="ttl"):
        cache.put_tree(root.parent, name="n", ttl=ttl)  # type: ignore[arg-type]
    assert not root.exists()
    assert server.seen() == []


def test_a_manifest_gives_a_time(cache: Cache, server: FaultServer, tmp_path: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[[model]]\nref = "{url}"\nttl = "30d"\n')
    cache.prewarm(manifest).check()
    entry = cache.lookup(url)
    assert entry is not None
    assert entry.ttl == 30 * DAY
    for bad in ('"0"', '"-1"', '"soon"', "3"):
        manifest.write_text(f'[[model]]\nref = "{url}"\nttl = {bad}\n')
        with pytest.raises(errors.ManifestError, match="ttl"):
            cache.prewarm(manifest)


def test_a_time_that_another_process_gives_while_the_source_is_asked_stays(
    cache: Cache, root: Path, server: FaultServer
) -> None:
    url = server.add("/m.onnx", CONTENT)
    cache.get(url)
    known = cache.lookup(url)
    assert known is not None
    Cache(root).get(url, ttl=DAY)

    confirmed = Entries(cache.root).confirm(known)  # What was read before that.

    found = Entries(cache.root).read(url)
    assert found is not None
    assert found.ttl == confirmed.ttl == DAY
