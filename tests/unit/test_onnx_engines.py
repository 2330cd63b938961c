"""Providers that keep a cache of their own, or compile: what they are told, what the keys hold, whose copy they write.

No such provider runs here. The runtime is a stand-in in these tests: it writes down what it is given.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, errors, platforms
from modelcache.testing import check_cache, spawn

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelcache[onnx]'")
pytest.importorskip("onnx", reason="onnx is not installed, and the models of these tests are made with it")

import onnx

import modelcache.onnx
from modelcache.onnx import building, contexts, engines, graph, options, runtime
from tests.support.models import perceptron

TENSORRT, OPENVINO, CPU = "TensorrtExecutionProvider", "OpenVINOExecutionProvider", "CPUExecutionProvider"
ALL = [TENSORRT, OPENVINO, engines.COREML, "NvTensorRTRTXExecutionProvider", CPU]


def chosen(*providers: Any) -> options.Options:
    return options.given(
        level=None, prepack=True, providers=list(providers), provider_options=None, config=None,
        free_dimensions=None, custom_ops=(), installed=ALL,
    )  # fmt: skip


def task_of(path: Path, found: options.Options) -> building.Task:
    return building.Task(str(path), path.stat().st_size, "net.engines", found, "derived:x", "net.onnx")


@pytest.mark.parametrize(
    ("provider", "told"),
    [
        (engines.COREML, {"ModelCacheDirectory": "/private/CoreMLExecutionProvider"}),
        (
            TENSORRT,
            {
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": "/private/TensorrtExecutionProvider",
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": "/private/TensorrtExecutionProvider",
            },
        ),
        (OPENVINO, {"cache_dir": "/private/OpenVINOExecutionProvider"}),
        ("NvTensorRTRTXExecutionProvider", {"nv_runtime_cache_path": "/private/NvTensorRTRTXExecutionProvider"}),
    ],
)
def test_each_provider_is_told_its_directory_by_its_own_options(provider: str, told: dict[str, str]) -> None:
    found = engines.with_directory(chosen((provider, {"device_id": "1"}), CPU), "/private")

    assert found.providers == ((provider, {**told, "device_id": "1"}), (CPU, {}))


def test_a_directory_that_the_caller_gives_is_his_own() -> None:
    mine = chosen((OPENVINO, {"cache_dir": "/mine"}), CPU)

    assert engines.managed(mine) == []
    assert engines.with_directory(mine, "/private") == mine
    assert engines.managed(chosen(CPU)) == []


def test_an_option_that_the_caller_gives_stays() -> None:
    found = engines.with_directory(chosen((TENSORRT, {"trt_timing_cache_enable": "0"})), "/private")

    assert found.providers[0][1]["trt_timing_cache_enable"] == "0"


def test_the_key_of_coreml_is_of_letters_and_digits_and_no_longer_than_it_may_be() -> None:
    for digest in (f"sha256:{'a1' * 32}", f"tree:{'b2' * 32}"):
        key = engines.coreml_key(digest)
        assert key.isalnum()
        assert len(key) <= 64
    assert engines.coreml_key(f"sha256:{'a1' * 32}") != engines.coreml_key(f"sha256:{'a2' * 32}")


def test_the_key_is_a_property_of_the_model_that_coreml_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = perceptron(tmp_path / "net.onnx")
    seen: list[tuple[Any, Any]] = []
    monkeypatch.setattr(runtime, "create", lambda model, _options, providers: seen.append((model, providers)))

    engines.session(task_of(path, chosen(engines.COREML)), f"sha256:{'a1' * 32}", None)
    engines.session(task_of(path, chosen(TENSORRT)), f"sha256:{'a1' * 32}", None)

    loaded = onnx.load_from_string(seen[0][0])
    assert {one.key: one.value for one in loaded.metadata_props} == {"COREML_CACHE_KEY": "a1" * 32}
    assert loaded.graph == onnx.load(str(path)).graph
    assert seen[1][0] == str(path)


def test_a_property_is_added_to_any_model(tmp_path: Path) -> None:
    model = perceptron(tmp_path / "net.onnx").read_bytes()

    twice = onnx.load_from_string(graph.with_metadata(graph.with_metadata(model, "a", "1"), "b", "ü" * 100))

    assert {one.key: one.value for one in twice.metadata_props} == {"a": "1", "b": "ü" * 100}


def test_driver_device_and_build_of_the_system_are_parts_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(TENSORRT)
    before = engines.platform(found)

    for name, value in (("gpu", {"driver": "600"}), ("os_build", "24A335"), ("cpu", {"flags": "sse2"})):
        with monkeypatch.context() as patched:
            patched.setattr(platforms, name, lambda value=value: value)
            assert engines.platform(found) != before, name


def fill(task: building.Task, feeds: Any, digest: str, workspace: str) -> None:
    """Do what a provider would: write into the directory that it is told."""
    told = engines.with_directory(task.options, f"{workspace}/{task.name}")
    for name in engines.managed(task.options):
        directory = Path(dict(told.providers)[name][engines.ENGINE_CACHES[name].directory])
        directory.mkdir(parents=True)
        (directory / "engine.bin").write_bytes(b"compiled")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Providers that are installed, and a runtime that notes what they are told."""
    told: list[dict[str, str]] = []

    def session(task: building.Task, _digest: str, _options: Any) -> str:
        told.append(dict(task.options.providers)[OPENVINO])
        return "a session"

    def check_installed(names: Sequence[str], installed: Sequence[str] | None = None) -> None:
        assert set(names) <= set(ALL)

    monkeypatch.setattr(runtime, "check_installed", check_installed)
    monkeypatch.setattr(engines, "fill", fill)
    monkeypatch.setattr(engines, "session", session)
    return told


def test_a_session_gets_a_private_copy_and_never_the_shared_directory(
    root: Path, tmp_path: Path, stand_in: list[dict[str, str]]
) -> None:
    model = perceptron(tmp_path / "net.onnx")
    with Cache(root) as cache:
        for _ in range(2):
            modelcache.onnx.session(model, providers=[OPENVINO, CPU], cache=cache)
        (product,) = [entry for entry in cache.entries() if entry.derivation]

        first, second = (Path(one["cache_dir"]) for one in stand_in)
        assert first == second
        assert (first / "engine.bin").read_bytes() == b"compiled"
        (first / "more.bin").write_bytes(b"what the runtime adds")
        (first / "engine.bin").write_bytes(b"what the runtime changes")
        assert not str(first).startswith(product.path)
        assert (Path(product.path) / OPENVINO / "engine.bin").read_bytes() == b"compiled"
        assert product.key.startswith("derived:onnx-engines/")
        assert check_cache(root) == []

        engines.copies.discard()
        assert not first.exists()


def test_a_provider_that_has_written_nothing_has_a_directory_too(root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "engines"
    (directory / TENSORRT).mkdir(parents=True)
    (directory / TENSORRT / "engine.bin").write_bytes(b"compiled")
    with Cache(root) as cache:
        cache.put(b"x", name="x")

    told = engines.privately(chosen(TENSORRT, OPENVINO, CPU), str(root), str(directory))

    assert Path(told.providers[1][1]["cache_dir"]).is_dir()
    assert (Path(told.providers[0][1]["trt_engine_cache_path"]) / "engine.bin").is_file()
    engines.copies.discard()


def test_the_copy_of_a_process_that_has_died_is_swept(root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "engines"
    directory.mkdir()
    (directory / "engine.bin").write_bytes(b"compiled")
    with Cache(root) as cache:
        cache.put(b"x", name="x")
        code = """
        from modelcache.onnx.engines import Copies
        from modelcache.testing import acknowledge
        acknowledge(Copies().of(sys.argv[1], sys.argv[2]))
        os.kill(os.getpid(), 9)
        """
        with spawn(code, root, directory) as victim:
            victim.wait()
            (path,) = victim.acknowledged()
        assert Path(path).exists()

    from modelcache.sweep import sweep

    sweep(str(root))
    assert not Path(path).exists()


def test_a_copy_goes_when_its_process_ends(root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "engines"
    directory.mkdir()
    (directory / "engine.bin").write_bytes(b"compiled")
    with Cache(root) as cache:
        cache.put(b"x", name="x")
    code = """
    from modelcache.onnx.engines import Copies
    from modelcache.testing import acknowledge
    acknowledge(Copies().of(sys.argv[1], sys.argv[2]))
    """

    with spawn(code, root, directory) as ended:
        assert ended.wait() == 0, ended.errors()
        (path,) = ended.acknowledged()

    assert not Path(path).exists()


def test_where_no_engines_can_be_made_the_source_is_used(
    root: Path, tmp_path: Path, stand_in: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = perceptron(tmp_path / "net.onnx")
    monkeypatch.setattr(engines, "fill", nothing)
    monkeypatch.setattr(building, "source_session", lambda _task: "the source")

    with Cache(root) as cache, pytest.warns(modelcache.onnx.SourceModelWarning, match="wrote no"):
        assert modelcache.onnx.session(model, providers=[OPENVINO], cache=cache) == "the source"


def nothing(task: building.Task, feeds: Any, digest: str, workspace: str) -> None:
    os.mkdir(f"{workspace}/{task.name}")


def test_a_compiler_is_told_to_write_beside_the_product_and_to_refuse_what_it_cannot_compile(tmp_path: Path) -> None:
    path = perceptron(tmp_path / "net.onnx")

    given = contexts.arguments(task_of(path, chosen(CPU)))

    flags = runtime.library().OrtCompileApiFlags
    assert given["input_model_path_or_bytes"] == str(path)
    assert given["external_initializers_file_path"] == "model.onnx.data"
    assert given["embed_compiled_data_into_model"] is False
    assert given["flags"] & int(flags.ERROR_IF_NO_NODES_COMPILED)


def test_a_provider_that_compiles_nothing_is_refused_by_onnxruntime_itself(root: Path, tmp_path: Path) -> None:
    model = perceptron(tmp_path / "net.onnx")

    with Cache(root) as cache, pytest.raises(errors.ModelRefusedError, match="derived:onnx-context/") as caught:
        modelcache.onnx.compile_context(model, providers=[CPU], cache=cache)

    assert caught.value.providers == (CPU,)
    assert not list(root.glob("derived-v1/*"))


def test_what_a_compiler_writes_is_published_and_loads(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onnxruntime's own compiler, without the flag that refuses: on the processor it only optimises."""
    model = perceptron(tmp_path / "net.onnx")
    monkeypatch.setattr(contexts, "build", build_without_refusal)

    with Cache(root) as cache:
        path = modelcache.onnx.compile_context(model, providers=[CPU], cache=cache)

        assert Path(path).parent.name == "net.compiled"
        assert runtime.library().InferenceSession(path, providers=[CPU]).get_inputs()[0].name == "x"
        assert modelcache.onnx.compile_context(model, providers=[CPU], cache=cache) == path
        assert check_cache(root) == []


def build_without_refusal(task: building.Task, workspace: str) -> None:
    plain = contexts.arguments
    contexts.arguments = lambda task: {**plain(task), "flags": 0}
    try:
        contexts.build(replace(task), workspace)
    finally:
        contexts.arguments = plain
