"""A Core ML specification (``model.mlmodel``) in one form, whatever order its maps were written in. No I/O.

coremltools writes the maps of a program, such as the inputs of an operation, in an order that is another one in each
process: two saves of one model differ, and mean the same. Of the protocol buffer (Model.proto and MIL.proto of
coremltools) this knows where the maps of ML programs and of metadata are, and no more; what else a message holds stays
as it is. Models of old kinds have few maps, in custom layers and vectorisers: those keep their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .protobuf import BYTES, encoded, items

_KEY, _VALUE = 1, 2  # Of the entry of a map.
_DEPTH_MAX = 100


@dataclass(slots=True)
class _Kind:
    """A message: the kinds of its fields that hold maps somewhere; and which fields are maps, with those of values."""

    parts: dict[int, _Kind] = field(default_factory=dict)
    maps: dict[int, _Kind | None] = field(default_factory=dict)


_value, _type, _block, _model = _Kind(), _Kind(), _Kind(), _Kind()
_types = _Kind({1: _type})
_tensor = _Kind(maps={4: _value})
_type.parts.update({1: _tensor, 2: _types, 3: _types, 4: _Kind({1: _type, 2: _type}), 5: _types})
_values = _Kind({1: _value})
_dictionary = _Kind({1: _Kind({1: _value, 2: _value})})
_value.parts.update({2: _type, 3: _Kind({2: _values, 3: _values, 4: _dictionary})})
_named = _Kind({2: _type})
_argument = _Kind({1: _Kind({2: _value})})
_operation = _Kind({3: _named, 4: _block}, {2: _argument, 5: _value})
_block.parts.update({1: _named, 3: _operation})
_block.maps[4] = _value
_function = _Kind({1: _named}, {3: _block, 4: _value})
_program = _Kind(maps={2: _function, 4: _value})
_metadata = _Kind(maps={100: None})
_model.parts.update({2: _Kind({100: _metadata}), 202: _Kind({1: _model}), 502: _program})


def settled(specification: bytes) -> bytes:
    """Return *specification* with the entries of each of its maps sorted, where the first of them was.

    What is no such protocol buffer, or has a key of a map twice, is returned as it is.
    """
    try:
        return _message(memoryview(specification), _model, 0)
    except (IndexError, ValueError):
        return specification


def _message(message: memoryview, kind: _Kind, depth: int) -> bytes:
    if depth > _DEPTH_MAX:
        raise ValueError("too deep")
    found: list[bytes | memoryview] = []
    entries: dict[int, dict[bytes, bytes]] = {}
    places: dict[int, int] = {}
    plain = 0  # Up to here all is in *found*: what need not be looked into is taken in one piece.
    for number, start, inside, end in _fields(message):
        if number in kind.maps and inside:
            found.append(message[plain:start])
            plain = end
            if number not in places:
                places[number] = len(found)
                found.append(b"")
            key, entry = _entry(message[inside:end], kind.maps[number], depth)
            if entries.setdefault(number, {}).setdefault(key, entry) is not entry:
                raise ValueError("a key is there twice")
        elif number in kind.parts and inside:
            part = _message(message[inside:end], kind.parts[number], depth + 1)
            found += [message[plain:start], _head(number, len(part)), part]
            plain = end
    found.append(message[plain:])
    for number, place in places.items():
        found[place] = b"".join(_head(number, len(one)) + one for _, one in sorted(entries[number].items()))
    return b"".join(found)


def _entry(message: memoryview, kind: _Kind | None, depth: int) -> tuple[bytes, bytes]:
    """Return the key of an entry of a map, and the entry in its one form."""
    key = b""
    for number, start, inside, end in _fields(message):
        if number == _KEY:
            key = bytes(message[inside or start : end])
    return key, _message(message, _Kind({} if kind is None else {_VALUE: kind}), depth + 1)


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield the number of each field, where it begins, where its bytes do (0: it has none), and where it ends."""
    for one in items(message):
        yield one.number, one.start, one.value if one.kind == BYTES else 0, one.end


def _head(number: int, length: int) -> bytes:
    return encoded(number << 3 | BYTES) + encoded(length)
