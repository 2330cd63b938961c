"""What is kept until it is unpinned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcache import layout
from modelcache.errors import StorageError
from modelcache.pins import Pins
from modelcache.sealed import seal


def record(store: str, key: str) -> Path:
    return Path(store) / layout.PINS / layout.key_id(key)


def test_a_pin_lasts_until_it_is_removed(store: str) -> None:
    pins = Pins(store)
    pins.add("b")
    pins.add("a")
    pins.add("a")

    assert (pins.has("a"), pins.all()) == (True, ["a", "b"])
    assert pins.remove("a") is True
    assert pins.remove("a") is False
    assert (pins.has("a"), pins.all()) == (False, ["b"])


def test_a_cache_without_pins_has_no_directory_for_them(store: str) -> None:
    assert Pins(store).all() == []
    assert Pins(store).remove("a") is False
    assert not os.path.exists(f"{store}/{layout.PINS}")


@pytest.mark.parametrize("data", [b"", b"\0" * 64, seal({"time": 1}), b"7"])
def test_a_broken_pin_keeps_and_is_not_listed(store: str, data: bytes) -> None:
    pins = Pins(store)
    pins.add("a")
    record(store, "a").write_bytes(data)

    assert pins.has("a")
    assert pins.all() == []


def test_pinning_again_mends_a_broken_pin(store: str) -> None:
    pins = Pins(store)
    pins.add("a")
    record(store, "a").write_bytes(b"")

    pins.add("a")

    assert pins.all() == ["a"]


def test_a_pin_that_cannot_be_written_is_a_typed_error(store: str) -> None:
    Path(store, layout.PINS).write_text("a file in the way")

    with pytest.raises(StorageError):
        Pins(store).add("a")
