"""Filters and orders of ``modelcache ls``, and what each model takes of the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache import Cache, Entry, errors
from modelcache.digest import Digest
from modelcache.selection import SORTS, Listed, arrange, parse_filter

NOW, DAY = 1_700_000_000.0, 86_400


def listed(
    key: str, *, size: int = 1, age: int = 0, unused: int = 0, pinned: bool = False, kind: str = "sha256"
) -> Listed:
    entry = Entry(
        key=key, digest=Digest(f"{kind}:{'0' * 64}"), path="", size=size, name=key.rpartition("/")[2], source="put",
        created=int(NOW) - age, checked=0, mtime_ns=0,
    )  # fmt: skip
    return Listed(entry, NOW - unused, pinned)


ALL = [
    listed("https://h/a.onnx", size=5_000, age=9 * DAY, unused=DAY),
    listed("b.bin", size=2_000_000_000, age=DAY, unused=40 * DAY, pinned=True),
    listed("c", size=10, kind="tree"),
]


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("size>1GB", "b"), ("size<=5000", "ac"), ("size = 10", "c"), ("size>=5kB", "ab"), ("age>2d", "a"),
        ("age<1h", "c"), ("unused>30d", "b"), ("unused>=1d", "ab"), ("pinned", "b"), ("not-pinned", "ac"),
        ("tree", "c"), ("not-tree", "ab"), ("ref=*.onnx", "a"), ("ref!=*.onnx", "bc"), ("name=b.*", "b"),
        ("source=put", "abc"), ("digest=tree:*", "c"), ("revision=", ""),
        ("revision=x", ""), ("revision!=x", "abc"), ("checked>1d", "abc"),
    ],
)  # fmt: skip
def test_a_filter_lets_through_what_it_says(text: str, passing: str) -> None:
    if text == "revision=":
        with pytest.raises(errors.UsageError):
            parse_filter(text, now=NOW)
        return
    passes = parse_filter(text, now=NOW)
    assert "".join(one.entry.key.replace("https://h/", "")[0] for one in ALL if passes(one)) == passing


@pytest.mark.parametrize(
    "text", ["", "size", "size>big", "siez>1", "size!=3", "ref>a", "pinned=yes", "=3", "unused>-1d"]
)
def test_what_is_no_filter_is_told_with_those_that_are(text: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        parse_filter(text, now=NOW)
    assert "size>1GB" in str(caught.value)


@pytest.mark.parametrize(
    ("sort", "order"), [("size", "bac"), ("age", "abc"), ("unused", "bac"), ("ref", "bca"), ("name", "abc")]
)
def test_an_order_begins_with_the_largest_the_oldest_or_a(sort: str, order: str) -> None:
    for reverse in (False, True):
        found = arrange(ALL, sort=sort, reverse=reverse, now=NOW)
        keys = "".join(one.entry.key.replace("https://h/", "")[0] for one in found)
        assert keys == (order[::-1] if reverse else order)
    assert sort in SORTS


def test_what_models_share_is_counted_once(root: Path, tmp_path: Path) -> None:
    cache = Cache(root)
    for name in ("one", "two"):
        source = tmp_path / name
        source.mkdir()
        (source / "shared").write_bytes(b"s" * 70_000)
        (source / "own").write_bytes(name.encode() * 1000)
        cache.put_tree(source, name=name)
    cache.put(b"f" * 500, name="file")
    cache.put(b"f" * 500, name="again")

    models, total = cache.disk_usage_by_model()

    assert {one.refs: (one.own_bytes, one.shared_bytes) for one in models} == {
        ("one",): (3000 + listing_bytes(root, "one"), 70_000),
        ("two",): (3000 + listing_bytes(root, "two"), 70_000),
        ("again", "file"): (500, 0),
    }
    assert total == 70_000 + 2 * 3000 + 500 + listing_bytes(root, "one") + listing_bytes(root, "two")
    assert total == cache.disk_usage().object_bytes
    assert [one.refs for one in models][-1] == ("again", "file")


def listing_bytes(root: Path, name: str) -> int:
    entry = Cache(root).lookup(name)
    assert entry is not None
    return (Path(entry.path).parent / ".listing").stat().st_size
