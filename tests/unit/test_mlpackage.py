"""A Core ML package: one digest for every save of one model, and no package that its manifest does not describe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache import mlpackage
from modelcache.digest import Digest
from modelcache.errors import PackageError
from modelcache.listing import Leaf
from tests.support.coreml import AUTHOR, MODEL, WEIGHTS, manifest, package

NAMES = st.text("abcXYZ09.-_ é", min_size=1, max_size=8).filter(lambda name: name.strip(".") == name.strip() == name)
TEXTS = st.text(max_size=20)


def leaf(path: str, content: bytes = b"x") -> Leaf:
    return Leaf(path, len(content), Digest.of_bytes([content]))


def test_two_saves_of_one_model_have_one_digest(tmp_path: Path) -> None:
    one, other = package(tmp_path / "A.mlpackage"), package(tmp_path / "B.mlpackage")
    assert (one / "Manifest.json").read_bytes() != (other / "Manifest.json").read_bytes()

    assert mlpackage.canonical_digest(one) == mlpackage.canonical_digest(other)


def test_the_digest_is_that_of_the_documented_text(tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage")

    facts = json.loads((directory / "Manifest.json").read_bytes())
    items = {item["path"]: item for item in facts["itemInfoEntries"].values()}
    facts |= {"itemInfoEntries": items, "rootModelIdentifier": f"{AUTHOR}/model.mlmodel"}
    text = f"modelcache-mlpackage 1\n{json.dumps(facts, sort_keys=True, separators=(',', ':'))}\n"
    for path in (MODEL, WEIGHTS):
        content = (directory / path).read_bytes()
        text += f"{Digest.of_bytes([content]).hex} {len(content)} {path}\n"
    assert mlpackage.canonical_digest(directory) == Digest.of_bytes([text.encode()])


def test_one_bit_of_the_weights_is_another_digest(tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage")
    before = mlpackage.canonical_digest(directory)

    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (directory / WEIGHTS).write_bytes(content)

    assert mlpackage.canonical_digest(directory) != before


@pytest.mark.parametrize("name", ["author", "description", "name"])
def test_what_the_manifest_says_of_an_item_is_part_of_the_digest(name: str, tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage")
    before = mlpackage.canonical_digest(directory)

    facts = json.loads((directory / "Manifest.json").read_bytes())
    next(iter(facts["itemInfoEntries"].values()))[name] += "!"
    (directory / "Manifest.json").write_text(json.dumps(facts))

    assert mlpackage.canonical_digest(directory) != before


def test_what_a_later_format_says_beyond_is_part_of_the_digest() -> None:
    leaves = [leaf(MODEL), leaf(WEIGHTS)]

    plain, later = (mlpackage.Package.of(one, leaves, ref="x") for one in (manifest(), manifest(encrypted=True)))

    assert plain.digest != later.digest


def test_modes_times_and_what_finder_leaves_are_no_part_of_the_digest(tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage")
    before = mlpackage.canonical_digest(directory)

    for name in (".DS_Store", "Data/.DS_Store", f"Data/{AUTHOR}/._model.mlmodel"):
        (directory / name).write_bytes(os.urandom(9))
    (directory / MODEL).chmod(0o755)
    os.utime(directory / WEIGHTS, (1, 1))

    assert mlpackage.canonical_digest(directory) == before


def test_a_file_in_an_item_counts_whatever_its_name(tmp_path: Path) -> None:
    """A program may read its weights from any file there, also from one that looks like Finder's or like ours."""
    directory = package(tmp_path / "A.mlpackage")
    seen = {mlpackage.canonical_digest(directory)}

    for name in ("._weight.bin", ".DS_Store", mlpackage.PLACEHOLDER):
        for content in (b"one", b"two"):
            (directory / WEIGHTS).with_name(name).write_bytes(content)
            seen.add(mlpackage.canonical_digest(directory))

    assert len(seen) == 7


def test_a_model_without_weights_has_one_digest_with_and_without_a_placeholder(tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage", weights=None)
    before = mlpackage.read(directory.as_posix())

    (directory / WEIGHTS).with_name(mlpackage.PLACEHOLDER).touch()

    after = mlpackage.read(directory.as_posix())
    assert before.hollow == (f"Data/{AUTHOR}/weights",)
    assert after.hollow == ()
    assert after.digest == before.digest


def test_links_to_files_are_followed_as_a_snapshot_of_the_hub_has_them(tmp_path: Path) -> None:
    directory, linked = package(tmp_path / "A.mlpackage"), tmp_path / "L.mlpackage"
    for path in ("Manifest.json", MODEL, WEIGHTS):
        (linked / path).parent.mkdir(parents=True, exist_ok=True)
        (linked / path).symlink_to(directory / path)

    assert mlpackage.canonical_digest(linked) == mlpackage.canonical_digest(directory)


ITEM = f"{AUTHOR}/model.mlmodel"
BROKEN: dict[str, bytes] = {
    "empty": b"",
    "no JSON": b"{",
    "no object": b"[]",
    "deep": b"[" * 100_000,
    "no UTF-8": b'{"a": "\xff"}',
    "huge": b" " * (1 << 20) + b"{}",
    "no items": b'{"fileFormatVersion": "1.0.0", "rootModelIdentifier": "x"}',
    "items of another kind": b'{"fileFormatVersion": "1.0.0", "itemInfoEntries": [], "rootModelIdentifier": "x"}',
    "no root": manifest().replace(b"rootModelIdentifier", b"rootModel"),
    "a root that is no item": manifest(root="nobody"),
    "a root that is a directory": manifest(root=f"{AUTHOR}/weights"),
    "no version": manifest().replace(b"fileFormatVersion", b"version"),
    "an item without a path": manifest().replace(b'"path"', b'"place"'),
    "an item that is a number": manifest().replace(b'"itemInfoEntries": {', b'"itemInfoEntries": {"0": 1, '),
    "a key twice": manifest().replace(b'{"fileFormat', b'{"fileFormatVersion": "2", "fileFormat', 1),
    "NaN": manifest().replace(b'"1.0.0"', b'"1.0.0", "x": NaN', 1),
    "a number that is too large": manifest().replace(b'"1.0.0"', b'"1.0.0", "x": 1e999', 1),
    "an absolute path": manifest({ITEM: "", "/etc/passwd": ""}),
    "a path that leaves": manifest({ITEM: "", "../../secret": ""}),
    "a path that leaves from within": manifest({ITEM: "", f"{AUTHOR}/../../../secret": ""}),
    "a path with NUL": manifest({ITEM: "", "a\0b": ""}),
    "an empty path": manifest({ITEM: "", "": ""}),
    "an item in an item": manifest({ITEM: "", f"{ITEM}/more": ""}),
    "one name on macOS": manifest({ITEM: "", ITEM.upper(): ""}),
    "an item that is not there": manifest({ITEM: "", f"{AUTHOR}/weights": "", f"{AUTHOR}/more": ""}),
    "a file that no item names": manifest({ITEM: ""}),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_manifest_is_a_typed_error(text: bytes, tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage")
    (directory / "Manifest.json").write_bytes(text)

    with pytest.raises(PackageError) as caught:
        mlpackage.canonical_digest(directory)

    assert caught.value.facts["path"]
    assert str(directory) in str(caught.value)


def _delete(path: str) -> Callable[[Path], object]:
    return lambda directory: (directory / path).unlink()


def _link(directory: Path) -> None:
    (directory / MODEL).unlink()
    (directory / MODEL).symlink_to("nowhere")


def _weights_elsewhere(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).parent.rmdir()
    (directory / WEIGHTS).parent.symlink_to("/tmp")


@pytest.mark.parametrize(
    ("harm", "path"),
    [
        (_delete("Manifest.json"), "Manifest.json"),
        (_delete(MODEL), MODEL),
        (lambda directory: ((directory / WEIGHTS).unlink(), (directory / WEIGHTS).parent.rmdir()), WEIGHTS[:-11]),
        (lambda directory: (directory / "Manifest.6f2a").write_text("left by a crash"), "Manifest.6f2a"),
        (lambda directory: os.mkfifo(directory / "Data" / "pipe"), "Data/pipe"),
    ],
    ids=["no manifest", "no model", "no weights", "a file too many", "a pipe"],
)
def test_a_package_that_is_not_whole_says_which_file_is_to_blame(harm: Any, path: str, tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage")
    harm(directory)

    with pytest.raises(PackageError) as caught:
        mlpackage.read(directory.as_posix())

    assert caught.value.facts["path"] == path


@pytest.mark.parametrize("harm", [_link, _weights_elsewhere])
def test_a_link_that_leads_to_no_file_is_refused(harm: Callable[[Path], None], tmp_path: Path) -> None:
    directory = package(tmp_path / "A.mlpackage")
    harm(directory)

    with pytest.raises((PackageError, OSError)):
        mlpackage.read(directory.as_posix())


def test_a_directory_that_is_no_package_is_not_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"large")
    (tmp_path / "Manifest.json").write_text("{}")
    monkeypatch.setattr("modelcache.files.chunks", lambda _: pytest.fail("it was read"))

    with pytest.raises(PackageError):
        mlpackage.canonical_digest(tmp_path)


@given(st.dictionaries(NAMES, TEXTS, min_size=1, max_size=5), st.data())
def test_only_the_identifiers_of_a_manifest_do_not_count(items: dict[str, str], data: st.DataObject) -> None:
    root = data.draw(st.sampled_from(sorted(items)))
    leaves = [leaf(f"Data/{path}", path.encode()) for path in items]
    try:
        one = mlpackage.Package.of(manifest(items, root), leaves, ref="x")
    except PackageError as error:  # Two names that are one on macOS.
        assert "one name" in str(error)  # noqa: PT017
        return
    order = data.draw(st.permutations(sorted(items)))

    other = mlpackage.Package.of(manifest({path: items[path] for path in order}, root), leaves[::-1], ref="y")

    assert one.digest == other.digest
    assert one.manifest.settled() == other.manifest.settled()
    again = mlpackage.Package.of(one.manifest.settled(), leaves, ref="z")
    assert again.digest == one.digest
    assert again.manifest.settled() == one.manifest.settled()
    changed = data.draw(st.sampled_from(sorted(items)))
    assert mlpackage.Package.of(manifest({**items, changed: items[changed] + "!"}, root), leaves, ref="").digest != (
        one.digest
    )


@given(st.binary(max_size=200) | st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=5),
       lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
           ["fileFormatVersion", "itemInfoEntries", "rootModelIdentifier", "path", "name", "author", "description"]
       ), inner, max_size=7)).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_whatever_a_manifest_holds_it_is_parsed_or_refused(text: bytes) -> None:
    try:
        mlpackage.Manifest.parse(text, ref="x").canonical()
    except PackageError as error:
        assert error.facts["path"] == "Manifest.json"  # noqa: PT017


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (["Manifest.json", MODEL], ""),
        (["README.md", "nets/Net.mlpackage/Manifest.json"], "nets/Net.mlpackage"),
        (["Net.mlpackage/Manifest.json", "__MACOSX/Net.mlpackage/Manifest.json"], "Net.mlpackage"),
    ],
)
def test_the_one_package_in_a_tree_is_found(paths: list[str], found: str) -> None:
    assert mlpackage.find(paths, ref="x") == found


@pytest.mark.parametrize(
    "paths", [[], ["web/Manifest.json"], ["a.mlpackage/Manifest.json", "b.mlpackage/Manifest.json"]]
)
def test_no_package_or_several_are_refused(paths: list[str]) -> None:
    with pytest.raises(PackageError, match=r"no package in it|several packages: a\.mlpackage, b\.mlpackage"):
        mlpackage.find(paths, ref="x")
