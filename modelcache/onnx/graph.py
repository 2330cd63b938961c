"""A model's bytes, edited without a library: what onnxruntime would stumble over, and what a cache key is written to.

Up to IR version 3 each initializer is an input as well. onnxruntime counts them as constants there, and writes an
optimised model in which they are inputs that the caller must give. So such a model is brought to version 4 first, where
an initializer that is no input is a constant.
"""

from __future__ import annotations

import mmap
import os

from ..protobuf import BYTES, VARINT, Item, encoded, field, fields, items, varint

PROTOBUF_BYTES_MAX = (1 << 31) - 1  # No larger message can be read: a larger model keeps its data outside.
_IR_VERSION, _GRAPH, _METADATA = 1, 7, 14  # Of a model.
_INITIALIZER, _INPUT, _SPARSE_INITIALIZER = 5, 11, 15  # Of a graph.
_TENSOR_NAME, _VALUE_NAME, _SPARSE_VALUES = 8, 1, 1
_CONSTANTS_FROM = 4


def normalised(path: str) -> bytes | None:
    """Return the model at *path* as one whose initializers are constants; None if it is that already, or no model."""
    with open(path, "rb") as file:
        if not 0 < os.fstat(file.fileno()).st_size <= PROTOBUF_BYTES_MAX:
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data, memoryview(data) as model:
            try:
                return _normalised(model)
            except (IndexError, ValueError):  # No protocol buffer: onnxruntime says better what is wrong with it.
                return None


def with_metadata(model: bytes, key: str, value: str) -> bytes:
    """Return *model* with one more property; a protocol buffer takes a field at its end."""
    return model + field(_METADATA, field(1, key.encode()) + field(2, value.encode()))


def _normalised(model: memoryview) -> bytes | None:
    parts = list(items(model))
    versions = [varint(model, part.value)[0] for part in parts if (part.number, part.kind) == (_IR_VERSION, VARINT)]
    graphs = [part for part in parts if (part.number, part.kind) == (_GRAPH, BYTES)]
    if len(versions) != 1 or not 0 < versions[0] < _CONSTANTS_FROM or len(graphs) != 1:
        return None
    with model[graphs[0].value : graphs[0].end] as graph:
        edited = _without_constants(graph)
    if edited is None:
        return None
    found = bytearray()
    for part in parts:
        if part.number == _IR_VERSION:
            found += encoded(_IR_VERSION << 3 | VARINT) + encoded(_CONSTANTS_FROM)
        elif part.number == _GRAPH:
            found += field(_GRAPH, edited)
        else:
            found += model[part.start : part.end]
    return bytes(found)


def _without_constants(graph: memoryview) -> bytes | None:
    """Return *graph* without the inputs that are initializers; None if there are none."""
    constants = {name for tensor in fields(graph, _INITIALIZER) for name in _names(tensor, _TENSOR_NAME)}
    for sparse in fields(graph, _SPARSE_INITIALIZER):
        for values in fields(sparse, _SPARSE_VALUES):
            constants.update(_names(values, _TENSOR_NAME))
    found, dropped, start = bytearray(), 0, 0
    for part in items(graph):
        if _is_input(part) and constants.issuperset(_names(graph[part.value : part.end], _VALUE_NAME)):
            found += graph[start : part.start]
            start, dropped = part.end, dropped + 1
    return bytes(found + graph[start:]) if dropped else None


def _is_input(part: Item) -> bool:
    return (part.number, part.kind) == (_INPUT, BYTES)


def _names(message: memoryview, number: int) -> list[bytes]:
    return [bytes(name) for name in fields(message, number)]
