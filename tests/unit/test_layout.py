"""The names on disk."""

from __future__ import annotations

import pytest

from modelcache import layout

IDENTITY = layout.key_id("https://example.org/m.onnx")
FACTS = (f"sha256-{'ab' * 32}", 97, 1_700_000_000_123_456_789, 1_700_000_000, "a model.onnx", 0)


@pytest.mark.parametrize(
    ("environ", "root"),
    [
        ({"MODELCACHE_DIR": "/a", "MODELCACHE_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/a"),
        ({"MODELCACHE_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b"),
        ({"MODELCACHE_DIR": "", "XDG_CACHE_HOME": "/c"}, "/c/modelcache"),
        ({"XDG_CACHE_HOME": "/c/"}, "/c/modelcache"),
        ({"XDG_CACHE_HOME": "/"}, "/modelcache"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/somebody/.cache/modelcache"),
        ({"XDG_CACHE_HOME": ""}, "/home/somebody/.cache/modelcache"),
        ({}, "/home/somebody/.cache/modelcache"),
        ({"MODELCACHE_DIR": "~/models"}, "/home/somebody/models"),
        ({"MODELCACHE_DIR": "/a/../b//c/"}, "/b/c"),
    ],
)
def test_the_root_is_the_first_that_is_named(
    environ: dict[str, str], root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")

    assert layout.default_root(environ) == root


@pytest.mark.parametrize("key", ["resnet50", "../../etc/passwd", "\0", "\ud800", "x" * 10_000, ""])
def test_a_record_is_called_by_64_digits_whatever_its_key(key: str) -> None:
    identity = layout.key_id(key)

    assert len(identity) == 64
    assert set(identity) <= set("0123456789abcdef")


def test_a_head_comes_back_whatever_follows_it() -> None:
    head = layout.encode_head(IDENTITY, *FACTS)

    assert layout.decode_head(IDENTITY, head) == FACTS
    assert layout.decode_head(IDENTITY, head + b"\xff\0 the second line\n") == FACTS


def test_a_head_under_another_name_reads_as_nothing() -> None:
    head = layout.encode_head(IDENTITY, *FACTS)

    assert layout.decode_head(layout.key_id("another key"), head) is None


@pytest.mark.parametrize("data", [b"", b"\n", b"mc1\n", b"mc1 0 \n", b"\0" * 512, b"\xff\xfe\n", b"x" * 4096])
def test_what_is_no_head_reads_as_nothing(data: bytes) -> None:
    assert layout.decode_head(IDENTITY, data) is None


def test_the_head_of_a_later_form_reads_as_nothing() -> None:
    head = layout.encode_head(IDENTITY, *FACTS)

    assert layout.decode_head(IDENTITY, head.replace(b"mc1", b"mc2", 1)) is None


def test_the_longest_head_fits_in_what_a_hit_reads() -> None:
    head = layout.encode_head(IDENTITY, FACTS[0], 2**63, 2**63, 2**63, "x" * layout.NAME_BYTES_MAX, 2**63)

    assert len(head) < 1024
