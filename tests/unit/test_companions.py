"""What a model's own parts say of the rest of it; what is broken or foreign says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache import Cache, companions, errors
from tests.support.coreml import WEIGHTS, manifest, package


def field(number: int, content: bytes) -> bytes:
    assert len(content) < 128
    return bytes([number << 3 | 2, len(content)]) + content


def onnx(location: str) -> bytes:
    """Return a model with one initializer outside of it, and fields of every wire type around it."""
    entry = field(1, b"location") + field(2, location.encode())
    other = field(1, b"offset") + field(2, b"0")
    tensor = b"\x08\x03" + field(8, b"weight") + field(13, other) + field(13, entry) + b"\x70\x01"
    return (
        b"\x08\x07"
        + field(2, b"pytest")
        + field(7, field(1, field(4, b"Add")) + field(5, tensor))
        + b"\x15abcd\x11abcdefgh"
    )


def put(root: Path, files: dict[str, bytes]) -> None:
    source = root.parent / "source"
    for path, content in files.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    Cache(root).put_tree(source, name="t")


@pytest.mark.parametrize(
    ("path", "content", "needed"),
    [
        ("sub/net.onnx", onnx("weights/w.data"), "sub/weights/w.data"),
        ("net.onnx", onnx("../w.data"), "../w.data"),
        ("m.safetensors.index.json", json.dumps({"weight_map": {"a": "m-1.safetensors"}}).encode(), "m-1.safetensors"),
        ("m.bin.index.json", json.dumps({"weight_map": {"a": "m-1.bin"}}).encode(), "m-1.bin"),
        ("Net.mlpackage/Manifest.json", manifest({"model.mlmodel": ""}), "Net.mlpackage/Data/model.mlmodel"),
    ],
)
def test_a_tree_that_lacks_what_one_of_its_files_names_is_not_stored(
    root: Path, path: str, content: bytes, needed: str
) -> None:
    with pytest.raises(errors.MissingCompanionError) as caught:
        put(root, {path: content, "other": b"x"})

    assert caught.value.facts["path"] == path
    assert caught.value.facts["needed"] in needed
    assert list((root / "objects-v1").iterdir()) == []
    if not needed.startswith(".."):
        put(root, {needed: b"weights"})
        assert Path(Cache(root).get("t"), needed).exists()


def test_a_directory_that_a_package_names_must_hold_a_file(root: Path, tmp_path: Path) -> None:
    """A tree holds no empty directories, and coremltools loads no package without them."""
    Cache(root).put_tree(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage")
    hollow = package(tmp_path / "Hollow.mlpackage", weights=None)

    with pytest.raises(errors.MissingCompanionError) as caught:
        Cache(root).put_tree(hollow, name="Hollow.mlpackage")

    assert caught.value.facts["needed"] == str(Path(WEIGHTS).parent)


def test_a_manifest_of_something_else_says_nothing(root: Path) -> None:
    put(root, {"web/Manifest.json": b'{"itemInfoEntries": {"0": {"path": "x"}}}', "x/Manifest.json": b"\xff[1"})


def test_a_real_model_with_external_data(root: Path) -> None:
    model = pytest.importorskip("onnx", reason="onnx is not installed")
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2048], bytes(8192), raw=True)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2048])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2048])],
        [weight],
    )  # fmt: skip
    source = root.parent / "source"
    source.mkdir()
    model.save_model(
        helper.make_model(graph), str(source / "net.onnx"), save_as_external_data=True, location="net.data",
        size_threshold=100,
    )  # fmt: skip
    assert Cache(root).put_tree(source, name="t")
    (source / "net.data").unlink()

    with pytest.raises(errors.MissingCompanionError, match=r"net\.onnx needs .*net\.data"):
        Cache(root).put_tree(source, name="t")


@given(st.binary(max_size=200))
def test_noise_needs_nothing_and_is_no_error(noise: bytes) -> None:
    assert all(isinstance(found, str) for found in companions.locations(noise))


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("net.onnx", b""), ("net.onnx", b"not a model"), ("net.onnx", onnx("w")[:-20]),
        ("x.safetensors.index.json", b"{"),
        ("x.safetensors.index.json", b"[1]"), ("x.safetensors.index.json", b'{"weight_map": 3}'),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_stored_as_it_is(root: Path, path: str, content: bytes) -> None:
    put(root, {path: content, "w": b"x"})

    assert Path(Cache(root).get("t"), path).read_bytes() == content
