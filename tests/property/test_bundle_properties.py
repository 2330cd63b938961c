"""A bundle that was damaged in any way is refused, and the cache is as it was; or what comes is exactly what left."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache import Cache, bundle
from modelcache.digest import Digest
from modelcache.errors import BundleError, ModelCacheError
from modelcache.listing import Leaf, Listing
from modelcache.promises import check_cache

CONTENTS = {"a.bin": bytes(range(256)) * 3, "b/c.onnx": b"x" * 700, "empty": b""}
texts = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"], exclude_characters="/:\\"), min_size=1, max_size=30
)


@dataclass(frozen=True)
class Exported:
    """A bundle as one file, its folder, and what each ref of it stands for."""

    file: bytes
    folder: Path
    digests: dict[str, str]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    place = tmp_path_factory.mktemp("exported")
    origin = Cache(place / "origin")
    for path, content in CONTENTS.items():
        (place / "tree" / path).parent.mkdir(parents=True, exist_ok=True)
        (place / "tree" / path).write_bytes(content)
    origin.put(CONTENTS["a.bin"], name="a.bin")
    origin.put_tree(place / "tree", name="tree")
    origin.export("a.bin", "tree", to=place / "b.tar")
    origin.export("a.bin", "tree", to=place / "b")
    digests = {entry.key: str(entry.digest) for entry in origin.entries()}
    return Exported((place / "b.tar").read_bytes(), place / "b", digests)


def is_refused_or_right(path: Path, place: Path, digests: dict[str, str]) -> bool:
    """Import *path*; tell whether that was refused. Whatever it was, the cache is whole, and has nothing else."""
    with Cache(place / "cache") as cache:
        cache.put(b"mine", name="a.bin")
        before = {entry.key: str(entry.digest) for entry in cache.entries()}
        try:
            cache.import_(path, conflict="replace")
            refused = False
        except ModelCacheError:
            refused = True
        after = {entry.key: str(entry.digest) for entry in cache.entries()}
        assert after == (before if refused else digests)
        assert cache.verify().ok
        assert [one for one in check_cache(cache.root) if one.kind != "garbage"] == []
    return refused


@given(st.data())
def test_a_file_with_any_damage_is_refused_or_holds_what_it_held(exported: Exported, data: st.DataObject) -> None:
    whole = exported.file
    at = data.draw(st.integers(0, len(whole) - 1), "at")
    length = data.draw(st.integers(1, 2000), "length")
    kind = data.draw(st.sampled_from(["flip", "cut", "cut out", "twice", "zeros", "moved"]), "kind")
    to = data.draw(st.integers(0, len(whole) - 1), "to")
    damaged = {
        "flip": whole[:at] + bytes([whole[at] ^ (1 << (length % 8))]) + whole[at + 1 :],
        "cut": whole[:at],
        "cut out": whole[:at] + whole[at + length :],
        "twice": whole[: at + length] + whole[at:],
        "zeros": whole[:at] + bytes(len(whole[at : at + length])) + whole[at + length :],
        "moved": whole[:to] + whole[at : at + length] + whole[to + len(whole[at : at + length]) :],
    }[kind]
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "b.tar")
        path.write_bytes(damaged)

        refused = is_refused_or_right(path, Path(scratch), exported.digests)

    assert refused or len(damaged) == len(whole)


@given(st.data())
def test_a_folder_with_any_damage_is_refused_or_holds_what_it_held(exported: Exported, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "b")
        shutil.copytree(exported.folder, folder)
        files = sorted(one for one in folder.rglob("*") if one.is_file())
        file = data.draw(st.sampled_from(files), "file")
        content = file.read_bytes()
        at = data.draw(st.integers(0, len(content)), "at")
        kind = data.draw(st.sampled_from(["flip", "cut", "longer", "gone", "swapped", "again"]), "kind")
        other = data.draw(st.sampled_from(files), "other")
        if kind == "flip" and at < len(content):
            file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        elif kind == "cut":
            file.write_bytes(content[:at])
        elif kind == "longer":
            file.write_bytes(content + b"\0")
        elif kind == "gone":
            file.unlink()
        elif kind == "swapped":
            file.write_bytes(other.read_bytes())
        else:
            (file.parent / f"{file.name}.copy").write_bytes(content)
        changed = not file.exists() or file.read_bytes() != content

        refused = is_refused_or_right(folder, Path(scratch), exported.digests)

    assert refused == changed


@given(st.binary(max_size=4000))
def test_bytes_that_are_no_index_are_a_bundle_error(data: bytes) -> None:
    for given_ in (data, b"modelcache-bundle 1 " + data):
        with pytest.raises(BundleError):
            bundle.Index.decode(given_, path="b")


@given(
    st.dictionaries(
        texts.filter(lambda text: text not in {".", ".."} and "~" not in text and text.strip() == text),
        st.binary(max_size=30),
        max_size=5,
    ),
    st.binary(min_size=32, max_size=32),
)
def test_an_index_comes_back_as_it_was_encoded(names: dict[str, bytes], raw: bytes) -> None:
    items = []
    for name, content in names.items():
        digest = Digest.of_bytes([content])
        items.append(bundle.Item(f"k/{name}", digest, "name", len(content), "put", len(content)))
    leaf = Leaf("deep/file", 5, Digest(f"sha256:{raw.hex()}"), True)
    tree = Listing([leaf], ref="")
    items.append(bundle.Item("t", tree.digest, "t", 5, "put", 0, mirrors=("https://host/m",)))
    index = bundle.Index.of(items, {tree.digest: tree}, [leaf.digest])

    found = bundle.Index.decode(index.encoded, path="b")

    assert (found.items, found.contents, found.without) == (index.items, index.contents, index.without)
    assert found.digest == index.digest
    assert found.leaves(found.items[-1]) == (leaf,)
