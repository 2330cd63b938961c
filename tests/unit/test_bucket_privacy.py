"""What only somebody's credentials gave goes to no tier that does not say ``private``; what all get does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, Tier
from modelcache.archive import MemoryBackend
from modelcache.backends import refs
from modelcache.sources.hf import HfSource
from modelcache.testing import FaultServer
from tests.support.hub import Answer, Hub

CONTENT = bytes(range(256)) * 200
SMALL = b"{}"
FILES = {"config.json": SMALL, "model.onnx": CONTENT}
TOKEN = "hf_secret"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as made:
        made.token = TOKEN
        yield made


@pytest.fixture
def bucket() -> MemoryBackend:
    return MemoryBackend()


def tier(backend: Any, name: str = "b", **options: Any) -> Tier:
    return Tier("bucket", name=name, backend=backend, **{"timeout": 30.0, **options})


def on_record(bucket: MemoryBackend) -> list[str]:
    found = (refs.read_file(bucket, name) for name in bucket.names("refs/"))
    return sorted(record.key for record in found if record is not None)


def fetched(root: Path, hub: Hub, *tiers: Tier) -> Cache:
    return Cache(root, sources=[HfSource(token=TOKEN, endpoint=hub.endpoint)], tiers=tiers)


def test_what_the_hub_shows_to_all_is_shared_though_a_token_is_set(root: Path, hub: Hub, bucket: MemoryBackend) -> None:
    hub.add("org/model", FILES)
    with fetched(root, hub, tier(bucket, write="direct")) as cache:
        cache.get("hf://org/model/model.onnx")
        cache.get("hf://org/model/config.json")
        cache.get_tree("hf://org/model")
        entries = list(cache.entries())

    assert len(on_record(bucket)) == 3
    assert not any(entry.personal for entry in entries)
    assert all(TOKEN.encode() not in bucket.read(name) for name in bucket.names())


@pytest.mark.parametrize("way", ["a file", "a tree"])
def test_what_the_hub_shows_to_the_token_alone_stays_here(
    root: Path, hub: Hub, bucket: MemoryBackend, way: str
) -> None:
    hub.add("org/model", FILES, token=TOKEN)
    with fetched(root, hub, tier(bucket, write="direct")) as cache:
        if way == "a tree":
            cache.get_tree("hf://org/model")
        else:
            cache.get("hf://org/model/model.onnx")
        entries = list(cache.entries())

    assert list(bucket.names()) == []
    assert [entry.personal for entry in entries] == [True]


def test_what_is_gated_stays_here_though_its_listing_is_shown_to_all(
    root: Path, hub: Hub, bucket: MemoryBackend
) -> None:
    hub.add("org/model", FILES)
    hub.override = lambda asked: (
        Answer(401, {"X-Error-Code": "GatedRepo"})
        if "authorization" not in asked.headers and "/resolve/" in asked.path
        else None
    )
    with fetched(root, hub, tier(bucket, write="direct")) as cache:
        cache.get_tree("hf://org/model")
        cache.get("hf://org/model/model.onnx")

    assert list(bucket.names()) == []


def test_where_all_get_another_content_this_one_stays_here(root: Path, hub: Hub, bucket: MemoryBackend) -> None:
    commit = hub.add("org/model", FILES)
    other = {"X-Repo-Commit": commit, "X-Linked-Etag": '"' + "0" * 64 + '"', "X-Linked-Size": str(len(CONTENT))}
    other["Location"] = hub.cdn.add("/other", CONTENT)
    hub.override = lambda asked: (
        Answer(302, other) if "authorization" not in asked.headers and "/resolve/" in asked.path else None
    )
    with fetched(root, hub, tier(bucket, write="direct")) as cache:
        cache.get("hf://org/model/model.onnx")

    assert list(bucket.names()) == []


def test_who_cannot_ask_shares_nothing(root: Path, hub: Hub, bucket: MemoryBackend) -> None:
    hub.add("org/model", FILES)
    hub.override = lambda asked: Answer(503) if "authorization" not in asked.headers else None
    with fetched(root, hub, tier(bucket, write="direct")) as cache:
        cache.get("hf://org/model/config.json")

    assert list(bucket.names()) == []


def test_where_no_tier_is_shared_the_hub_is_not_asked_once_more(root: Path, hub: Hub, bucket: MemoryBackend) -> None:
    hub.add("org/model", FILES)
    with fetched(root, hub, tier(bucket, write="direct", private=True)) as cache:
        cache.get("hf://org/model/config.json")

    assert on_record(bucket) == ["hf://org/model/config.json"]
    assert all("authorization" in asked.headers for asked in hub.seen())


def test_what_a_private_tier_had_goes_to_no_shared_one(root: Path, bucket: MemoryBackend, server: FaultServer) -> None:
    url = server.add("/model.onnx", CONTENT)
    private = MemoryBackend()
    with Cache(root.parent / "first", tiers=[tier(private, private=True, write="direct")]) as first:
        first.get(url.replace("://", "://user:secret@"))
    with Cache(root, tiers=[tier(bucket, write="direct"), tier(private, "private", private=True)]) as second:
        second.get(url)
        assert second.stats().bytes_promoted == len(CONTENT)

    assert list(bucket.names()) == []


@pytest.mark.parametrize("personal", [False, True])
def test_what_another_cache_fetched_with_credentials_goes_to_no_shared_tier(
    root: Path, bucket: MemoryBackend, server: FaultServer, personal: bool
) -> None:
    url = server.add("/model.onnx", CONTENT)
    with Cache(root.parent / "first") as first:
        first.get(url.replace("://", "://user:secret@") if personal else url)
    with Cache(root, tiers=[tier(bucket, write="direct"), Tier(str(root.parent / "first"), promote=True)]) as second:
        second.get(url)
        second.get(url, max_age=0)
        entry = second.lookup(url)

    assert entry is not None
    assert entry.personal is personal
    assert on_record(bucket) == ([] if personal else [url])


def test_what_a_directory_has_by_its_digest_alone_goes_to_no_shared_tier(
    root: Path, bucket: MemoryBackend, server: FaultServer
) -> None:
    with Cache(root.parent / "first") as first:
        digest = first.put(CONTENT, name="whose").digest
    with Cache(root, tiers=[tier(bucket, write="direct"), str(root.parent / "first")]) as second:
        second.get(server.url("/model.onnx"), digest=digest)

    assert list(bucket.names()) == []
