"""The wire form of protocol buffers: what is written is read again; what is cut or foreign is an error."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache import protobuf

NUMBERS = st.integers(min_value=1, max_value=(1 << 29) - 1)


@given(st.lists(st.tuples(NUMBERS, st.binary(max_size=300))))
def test_fields_come_back_as_they_were_written(written: list[tuple[int, bytes]]) -> None:
    message = b"".join(protobuf.field(number, content) for number, content in written)

    found = list(protobuf.items(message))

    assert [(one.number, message[one.value : one.end]) for one in found] == written
    assert b"".join(message[one.start : one.end] for one in found) == message
    for wanted in {number for number, _ in written}:
        with memoryview(message) as view:
            values = [bytes(value) for value in protobuf.fields(view, wanted)]
        assert values == [content for number, content in written if number == wanted]


@given(st.integers(min_value=0, max_value=(1 << 64) - 1))
def test_a_number_comes_back(number: int) -> None:
    written = protobuf.encoded(number)

    assert protobuf.varint(written, 0) == (number, len(written))


@given(st.binary(max_size=200))
def test_any_bytes_end_in_fields_or_in_one_of_two_errors(message: bytes) -> None:
    with contextlib.suppress(IndexError, ValueError):
        assert sum(one.end - one.start for one in protobuf.items(message)) == len(message)


@given(st.binary(min_size=1, max_size=50), st.integers(min_value=1))
def test_a_field_that_is_cut_is_an_error(content: bytes, cut: int) -> None:
    message = protobuf.field(3, content)

    with pytest.raises((IndexError, ValueError)):
        list(protobuf.items(message[: -(cut % len(content) + 1)]))


def test_a_number_without_an_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="70"):
        protobuf.varint(b"\xff" * 20, 0)
