"""The wire form of protocol buffers, as far as a model has to be looked at without its library. No I/O.

The encoding: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

VARINT, _FIXED64, BYTES, _FIXED32 = 0, 1, 2, 5  # Wire types.


class Item(NamedTuple):
    """One field of a message: its *number*, its wire type, where it starts and ends, and where its value starts."""

    number: int
    kind: int
    start: int
    value: int
    end: int


def items(message: memoryview | bytes) -> Iterator[Item]:
    """Yield the fields of *message* in order; raise IndexError or ValueError if it is no protocol buffer."""
    at, length = 0, len(message)
    while at < length:
        start = at
        tag, at = varint(message, at)
        kind, value = tag & 7, at
        if kind == VARINT:
            _, at = varint(message, at)
        elif kind == BYTES:
            size, value = varint(message, at)
            at = value + size
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(kind)
        if at > length:
            raise IndexError(at)
        yield Item(tag >> 3, kind, start, value, at)


def fields(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """Yield the values of the byte fields *wanted* of *message*; raise IndexError or ValueError if it is none."""
    for item in items(message):
        if item.number == wanted and item.kind == BYTES:
            yield message[item.value : item.end]


def varint(data: memoryview | bytes, at: int) -> tuple[int, int]:
    """Return the number that is written at *at*, and where it ends; raise IndexError or ValueError."""
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


def field(number: int, content: bytes) -> bytes:
    """Return a byte field as it is written."""
    return encoded(number << 3 | BYTES) + encoded(len(content)) + content


def encoded(number: int) -> bytes:
    """Return *number*, at least 0, as a varint."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])
