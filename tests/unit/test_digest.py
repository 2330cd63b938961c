"""The names of content."""

from __future__ import annotations

import hashlib
import pickle

import pytest

from modelcache.digest import Digest
from modelcache.errors import InvalidDigestError

HEX = hashlib.sha256(b"model").hexdigest()


@pytest.mark.parametrize("text", [f"sha256:{HEX}", HEX, HEX.upper(), f"SHA256:{HEX.upper()}", f"  sha256:{HEX}\n"])
def test_every_spelling_of_a_digest_is_one_digest(text: str) -> None:
    assert Digest.parse(text) == f"sha256:{HEX}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "sha256:",
        "sha256",
        HEX[:-1],
        HEX + "0",
        f"sha256:{HEX[:-1]}g",
        f"md5:{HEX}",
        f":{HEX}",
        f"sha256:sha256:{HEX}",
        f"sha256: {HEX}",
        f"sha256:{HEX[:-1]}\0",
        f"sha256:{HEX[:-1]}\ud800",
        f"sha256:{'٣' * 64}",
    ],
)
def test_what_is_no_digest_is_refused(text: str) -> None:
    with pytest.raises(InvalidDigestError) as raised:
        Digest.parse(text)

    assert str(raised.value).isprintable()


@pytest.mark.parametrize("value", [None, 7, HEX.encode(), [HEX]])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(InvalidDigestError):
        Digest.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("chunks", [[b"model"], [b"mo", b"", b"del"], [bytes([byte]) for byte in b"model"]])
def test_the_digest_does_not_depend_on_how_the_bytes_are_cut(chunks: list[bytes]) -> None:
    assert Digest.of_bytes(chunks) == f"sha256:{HEX}"


def test_the_digest_of_nothing_is_that_of_fips_180() -> None:
    assert Digest.of_bytes([]).hex == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_digest_survives_pickling_as_a_digest() -> None:
    digest = Digest.parse(HEX)

    copy = pickle.loads(pickle.dumps(digest))

    assert copy == digest
    assert type(copy) is Digest
