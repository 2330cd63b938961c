"""Files that need other files: what a model's own parts say of where the rest of it is.

Read are the indexes of sharded weights (``*.safetensors.index.json``, ``*.bin.index.json``: ``weight_map``), the
manifests of Core ML packages (``*.mlpackage/Manifest.json``: ``itemInfoEntries``), and the external data of an ONNX
model's initializers (onnx.proto3: ModelProto.graph = 7, GraphProto.initializer = 5, TensorProto.external_data = 13,
StringStringEntryProto.key = 1 and value = 2). A tree that lacks one is not published: the error would come at the first
load, on another machine. What cannot be read as such a file says nothing.

An item of a package may be a directory: a file in it must be there, as a tree holds no empty ones.
"""

from __future__ import annotations

import json
import mmap
import posixpath
from collections.abc import Collection, Iterator

from .errors import MissingCompanionError

_INDEXES = (".safetensors.index.json", ".bin.index.json")
_MANIFEST = "Manifest.json"
_INDEX_BYTES_MAX = 1 << 28
_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _KEY, _VALUE = 7, 5, 13, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # Wire types of protocol buffers.


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
    for graph in _fields(model, _GRAPH):
        for tensor in _fields(graph, _INITIALIZER):
            for entry in _fields(tensor, _EXTERNAL_DATA):
                if [bytes(key) for key in _fields(entry, _KEY)] == [b"location"]:
                    yield from (bytes(value).decode() for value in _fields(entry, _VALUE))


def _fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the byte fields *wanted* of a protocol buffer; raise IndexError or ValueError if it is none.

    The encoding: https://protobuf.dev/programming-guides/encoding/
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(message, at)
        elif kind == _BYTES:
            length, at = _varint(message, at)
            if at + length > end:
                raise IndexError(at)
            if tag >> 3 == wanted:
                yield message[at : at + length]
            at += length
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(kind)


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(shift)
