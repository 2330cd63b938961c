"""What of options counts in the key of an ONNX product, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from modelcache import errors, platforms
from modelcache.onnx import options, runtime
from modelcache.onnx.options import CPU, GRAPH_ENTRIES, Options

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelcache[onnx]'")

_MACHINE = {"system", "machine", "onnxruntime"}


def given(**changed: Any) -> Options:
    arguments: dict[str, Any] = {
        "level": None, "prepack": True, "providers": None, "provider_options": None, "config": None,
        "free_dimensions": None, "custom_ops": (),
    }  # fmt: skip
    return options.given(**{**arguments, **changed})


def test_the_key_has_all_of_it(tmp_path: Path) -> None:
    library = tmp_path / "ops.so"
    library.write_bytes(b"ops")
    found = Options(
        level="basic", prepack=False, providers=(("A", {"b": "c"}), (CPU, {})), config={"d": "e"},
        free_dimensions={"f": 2}, custom_ops=(str(library),), deterministic=True, compared={"rtol": 0.1},
    )  # fmt: skip

    (digest,) = found.params["custom_ops"]
    assert digest.startswith("sha256:")
    assert found.params == {
        "level": "basic", "prepack": False, "providers": [["A", {"b": "c"}], [CPU, {}]], "config": {"d": "e"},
        "free_dimensions": {"f": 2}, "custom_ops": [digest], "deterministic": True, "external_bytes_min": 16384,
        "compared": {"rtol": 0.1},
    }  # fmt: skip
    assert "compared" not in Options().params


@pytest.mark.parametrize(
    ("made", "portable"),
    [
        (Options(level="extended", prepack=False), True),
        (Options(level="basic", prepack=False), True),
        (Options(level="disable", prepack=False), True),
        (Options(level="layout", prepack=False), False),
        (Options(level="all", prepack=False), False),
        (Options(level="disable", prepack=True), False),
        (Options(level="disable", prepack=False, providers=(("Other", {}), (CPU, {}))), False),
    ],
)
def test_the_processor_and_the_system_count_unless_the_product_fits_any(
    made: Options, portable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platforms, "cpu", lambda: {"flags": "sse2"})
    monkeypatch.setattr(platforms, "os_build", lambda: "24A335")
    for name in options._VARIABLES:
        monkeypatch.delenv(name, raising=False)

    found = made.platform

    assert set(found) == _MACHINE | (set() if portable else {"cpu", "os_build"})
    if not portable:
        assert (found["cpu"], found["os_build"]) == ({"flags": "sse2"}, "24A335")


@pytest.mark.parametrize("name", options._VARIABLES)
def test_a_variable_that_onnxruntime_reads_counts_where_it_is_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in options._VARIABLES:
        monkeypatch.delenv(one, raising=False)
    monkeypatch.setenv(name, "")
    assert "environment" not in Options().platform
    monkeypatch.setenv(name, "1")
    assert Options().platform["environment"] == {name: "1"}


@pytest.mark.parametrize(("config", "prepack"), [({}, True), ({"session.disable_prepacking": True}, False)])
def test_weights_that_are_not_to_be_prepacked_are_not_saved_so(config: dict[str, Any], prepack: bool) -> None:
    assert given(config=config).prepack is prepack
    assert given(config=config, prepack=False).prepack is False


def test_each_entry_that_changes_a_graph_is_read_from_the_callers_options() -> None:
    settings = runtime.library().SessionOptions()
    for name in GRAPH_ENTRIES:
        settings.add_session_config_entry(name, "1")
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")

    assert given(session_options=settings).config == dict.fromkeys(GRAPH_ENTRIES, "1")


def test_a_level_that_is_asked_for_goes_before_that_of_the_callers_options() -> None:
    settings = runtime.library().SessionOptions()
    settings.graph_optimization_level = runtime.level("basic")

    assert given(session_options=settings).level == "basic"
    assert given(session_options=settings, level="layout").level == "layout"


def test_the_options_of_a_session_are_these(tmp_path: Path) -> None:
    made = Options(config={"session.disable_quant_qdq": "1"}, deterministic=True).session_options()

    assert made.get_session_config_entry("session.disable_quant_qdq") == "1"
    assert made.use_deterministic_compute is True
    with pytest.raises(Exception, match=r"ops\.so"):
        Options(custom_ops=(str(tmp_path / "ops.so"),)).session_options()


def test_a_library_that_changed_is_another_one(tmp_path: Path) -> None:
    library = tmp_path / "ops.so"
    library.write_bytes(b"one")
    before = Options(custom_ops=(str(library),)).params["custom_ops"]
    assert Options(custom_ops=(str(library),)).params["custom_ops"] == before
    library.write_bytes(b"another")
    assert Options(custom_ops=(str(library),)).params["custom_ops"] != before


def test_libraries_are_known_by_their_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ops.so").write_bytes(b"ops")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    assert given(custom_ops=["ops.so", "~/ops.so"]).custom_ops == (os.path.realpath(tmp_path / "ops.so"),) * 2


@pytest.mark.parametrize(
    "changed",
    [
        {"providers": [CPU], "provider_options": []},
        {"providers": [(CPU, {"a": "b"})], "provider_options": [{}]},
        {"providers": [CPU, CPU]},
        {"free_dimensions": {"n": True}},
        {"free_dimensions": {"n": 0}},
        {"custom_ops": b"ops.so"},
    ],
)
def test_what_makes_no_sense_is_told(changed: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageError):
        given(**changed)


@pytest.mark.parametrize("value", ["/etc/passwd", "a/b", "evil.so", "1\n"])
def test_an_option_of_a_strangers_provider_is_a_plain_word(value: str) -> None:
    options.of_recipe({"providers": [[CPU, {"a": "kSameAsRequested"}]]})
    with pytest.raises(errors.UsageError, match="could name a file"):
        options.of_recipe({"providers": [[CPU, {"a": value}]]})
