"""Files that need other files: what a model's own parts say of where the rest of it is.

Read are the indexes of sharded weights (``*.safetensors.index.json``, ``*.bin.index.json``: ``weight_map``), the
manifests of Core ML packages (``*.mlpackage/Manifest.json``: ``itemInfoEntries``), and the external data of an ONNX
model's tensors, wherever they are in it: initializers, constants, those of inner graphs and of functions (the numbers
of the fields are those of onnx.proto3). A tree that lacks one is not published: the error would come at the first load,
on another machine. What cannot be read as such a file says nothing.

An item of a package may be a directory: a file in it must be there, as a tree holds no empty ones.
"""

from __future__ import annotations

import json
import mmap
import posixpath
from collections.abc import Collection, Iterator

from .errors import MissingCompanionError
from .protobuf import fields

_INDEXES = (".safetensors.index.json", ".bin.index.json")
_MANIFEST = "Manifest.json"
_INDEX_BYTES_MAX = 1 << 28
_GRAPH, _FUNCTIONS = 7, 25  # Of a model.
_NODE, _INITIALIZER, _SPARSE_INITIALIZER = 1, 5, 15  # Of a graph.
_FUNCTION_NODE, _ATTRIBUTE = 7, 5  # Of a function; of a node.
_TENSORS, _GRAPHS, _SPARSE_TENSORS = (5, 10), (6, 11), (22, 23)  # Of an attribute.
_SPARSE_PARTS, _EXTERNAL_DATA, _KEY, _VALUE = (1, 2), 13, 1, 2
_DEPTH_MAX = 64  # Of graphs in graphs.


def check_companions(directory: str, paths: Collection[str], *, ref: str) -> None:
    """Check that what the files *paths* below *directory* need is among them.

    Raises:
        MissingCompanionError: One file names another that is not there.
        OSError: One cannot be read.
    """
    for path in paths:
        needed: Iterator[str] = iter(())
        if path.endswith(_INDEXES):
            needed = _shards(f"{directory}/{path}")
        elif path.endswith(".onnx"):
            needed = _external_data(f"{directory}/{path}")
        elif posixpath.basename(path) == _MANIFEST:
            needed = _items(f"{directory}/{path}")
        for name in needed:
            companion = posixpath.normpath(posixpath.join(posixpath.dirname(path), name))
            if companion not in paths and not any(one.startswith(f"{companion}/") for one in paths):
                raise MissingCompanionError(ref=ref, path=path, needed=name)


def _shards(path: str) -> Iterator[str]:
    with open(path, "rb") as file:
        data = file.read(_INDEX_BYTES_MAX)
    try:
        found = json.loads(data)["weight_map"].values()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    yield from sorted({name for name in found if isinstance(name, str)})


def _items(path: str) -> Iterator[str]:
    """Yield what the manifest of a package names; nothing if it is another file of that name."""
    with open(path, "rb") as file:
        data = file.read(_INDEX_BYTES_MAX)
    try:
        facts = json.loads(data)
        if not {"fileFormatVersion", "rootModelIdentifier"} <= facts.keys():
            return
        found = [item["path"] for item in facts["itemInfoEntries"].values()]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    yield from sorted({f"Data/{name}" for name in found if isinstance(name, str)})


def _external_data(path: str) -> Iterator[str]:
    with open(path, "rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:  # Empty.
            return
        with data:
            yield from locations(data)


def locations(model: bytes | mmap.mmap) -> list[str]:
    """Return where the bytes of an ONNX *model* say that its external data is; nothing if they are no such model."""
    with memoryview(model) as view:
        try:
            return sorted(set(_locations(view)))
        except (IndexError, ValueError):  # Cut, or no protocol buffer at all: not ours to judge.
            return []


def _locations(model: memoryview) -> Iterator[str]:
    for graph in fields(model, _GRAPH):
        yield from _in_graph(graph)
    for function in fields(model, _FUNCTIONS):
        for node in fields(function, _FUNCTION_NODE):
            yield from _in_node(node, _DEPTH_MAX)


def _in_graph(graph: memoryview, depth: int = _DEPTH_MAX) -> Iterator[str]:
    if depth <= 0:
        raise ValueError(depth)
    for tensor in fields(graph, _INITIALIZER):
        yield from _in_tensor(tensor)
    for sparse in fields(graph, _SPARSE_INITIALIZER):
        yield from _in_sparse(sparse)
    for node in fields(graph, _NODE):
        yield from _in_node(node, depth)


def _in_node(node: memoryview, depth: int) -> Iterator[str]:
    """Constants are tensors of a node, and the branches of a condition are graphs of one."""
    for attribute in fields(node, _ATTRIBUTE):
        for number in _TENSORS:
            for tensor in fields(attribute, number):
                yield from _in_tensor(tensor)
        for number in _SPARSE_TENSORS:
            for sparse in fields(attribute, number):
                yield from _in_sparse(sparse)
        for number in _GRAPHS:
            for graph in fields(attribute, number):
                yield from _in_graph(graph, depth - 1)


def _in_sparse(sparse: memoryview) -> Iterator[str]:
    for number in _SPARSE_PARTS:
        for tensor in fields(sparse, number):
            yield from _in_tensor(tensor)


def _in_tensor(tensor: memoryview) -> Iterator[str]:
    for entry in fields(tensor, _EXTERNAL_DATA):
        if [bytes(key) for key in fields(entry, _KEY)] == [b"location"]:
            yield from (bytes(value).decode() for value in fields(entry, _VALUE))
