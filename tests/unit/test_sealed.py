"""Small facts that prove themselves whole."""

from __future__ import annotations

import hashlib

import pytest

from modelcache.sealed import seal, unseal


def sealed(body: bytes) -> bytes:
    """Return *body* with the right sum, whatever it is."""
    return hashlib.sha256(body).hexdigest()[:16].encode() + b" " + body + b"\n"


def test_what_was_sealed_comes_back() -> None:
    facts = {"text": "ü\n\0\ud800", "number": 2**70, "none": None, "list": [1.5, True], "nested": {"": {}}}

    assert unseal(seal(facts)) == facts


def test_a_sealed_line_is_one_line_of_ascii() -> None:
    line = seal({"text": "ü\n\r\u2028"})

    assert line.isascii()
    assert line.splitlines() == [line[:-1]]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"7", b"null", b'"text"', b"{", b"\xff", b"not json", b"[" * 100_000, b'{"a":1}{"a":1}'],
    ids=["empty", "list", "number", "null", "text", "cut", "not-utf8", "not-json", "deep", "two"],
)
def test_a_right_sum_over_something_else_reads_as_nothing(body: bytes) -> None:
    assert unseal(sealed(body)) is None


@pytest.mark.parametrize("line", [b"", b"\n", b" ", b" \n", b"\0" * 512, b"0123456789abcdef", b'{"a":1}\n'])
def test_what_has_no_sum_reads_as_nothing(line: bytes) -> None:
    assert unseal(line) is None
