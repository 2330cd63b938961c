"""When records alone may answer for an ONNX product, and what of a comparison is in its key."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelcache import api, configfiles, glance
from modelcache.errors import UsageError
from modelcache.onnx import sessions
from modelcache.onnx.options import MODEL

pytest.importorskip("numpy", reason="numpy is not installed: it comes with modelcache[onnx]")

import numpy as np


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("why", ["configuration", "verification"])
def test_a_cache_that_is_configured_is_asked_itself(why: str, plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configfiles, "plain", lambda _environ: why != "configuration")
    monkeypatch.setenv("MODELCACHE_VERIFY_DERIVED", "1" if why == "verification" else "0")
    monkeypatch.setattr(configfiles, "root_for_a_look", lambda _environ: "/another")
    monkeypatch.setattr(api, "default_cache", lambda: SimpleNamespace(root="/cache", is_plain=plain))

    assert sessions._root(None) == ("/cache" if plain else None)


@pytest.mark.parametrize(
    ("stamps", "held"),
    [
        ({MODEL: [5, 7]}, True),
        ({MODEL: [5, 8]}, False),
        ({MODEL: [4, 7]}, False),
        ({MODEL: [5, 7], "gone": [1, 1]}, False),
        ({}, False),
        ({"other": [5, 7]}, False),
        ({MODEL: 5}, False),
        (None, False),
    ],
)
def test_a_product_without_its_stamps_is_not_taken_for_whole(
    stamps: Any, held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (MODEL, "other"):
        (tmp_path / name).write_bytes(b"12345")
        os.utime(tmp_path / name, ns=(7, 7))
    monkeypatch.setattr(glance, "facts", lambda _root, _ref: {"derivation": {"stamps": stamps}})

    assert sessions._stamped("/cache", "derived:x", str(tmp_path)) is held


def test_a_comparison_is_known_by_all_of_its_feeds() -> None:
    one, other = np.arange(6, dtype=np.float32), np.ones(2)

    def digest(feeds: dict[str, Any]) -> str:
        found = sessions.comparison(feeds, 0.1, 0.2)
        assert found is not None
        assert (found["rtol"], found["atol"]) == (0.1, 0.2)
        return str(found["feeds"])

    same = digest({"a": one, "b": other})
    assert digest({"b": other, "a": one}) == same
    different: list[dict[str, Any]] = [
        {"a": one}, {"a": one, "c": other}, {"a": other, "b": one}, {"a": one.reshape(2, 3), "b": other},
        {"a": one.view(np.int32), "b": other}, {"a": one + 1, "b": other},
    ]  # fmt: skip
    assert len({same, *(digest(feeds) for feeds in different)}) == len(different) + 1
    assert digest({"a": one.reshape(2, 3)}) != digest({"a": one.reshape(3, 2)})
    assert digest({"s": np.array(["a"], dtype=object)}) != digest({"s": np.array(["b"], dtype=object)})
    assert sessions.comparison(None, 0, 0) is None
    wrong: list[Any] = [[one], {}, 3]
    for senseless in wrong:
        with pytest.raises(UsageError):
            sessions.comparison(senseless, 0, 0)
