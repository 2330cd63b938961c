"""ONNX models through onnxruntime itself: the same answers, the right misses, and no way to a wrong or missing one."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, errors, isolation, platforms
from modelcache.testing import FaultServer, check_cache

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelcache[onnx]'")
pytest.importorskip("onnx", reason="onnx is not installed, and the models of these tests are made with it")

import numpy as np

import modelcache.onnx
from modelcache.onnx import building, graph, options, runtime, sessions
from tests.support.models import WIDTH, answers, perceptron, plain

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = runpy.run_path(str(REPOSITORY / "examples" / "onnx_models.py"))


@pytest.fixture
def cache(root: Path) -> Iterator[Cache]:
    with Cache(root) as made:
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return perceptron(tmp_path / "models" / "net.onnx")


def load(ref: Any, cache: Cache, **given: Any) -> Any:
    return modelcache.onnx.session(ref, cache=cache, **given)


def derived(cache: Cache) -> list[Path]:
    return sorted((Path(cache.root) / "derived-v1").glob("*"))


def trees(cache: Cache) -> list[Path]:
    return sorted((Path(cache.root) / "objects-v1").glob("tree-*"))


def close(one: list[Any], other: list[Any]) -> bool:
    return all(np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(one, other, strict=True))


# -- the same model ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["transformer", "dynamic", "resnet50", "densenet121", "squeezenet"])
def test_the_product_answers_what_the_source_answers(name: str, cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.onnx"
    if name in EXAMPLES["LIGHT"]:
        EXAMPLES["light"](name, str(path))
    else:
        EXAMPLES["transformer"](str(path), layers=2, width=96, dynamic=name == "dynamic")

    ours, source = load(path, cache), plain(path)

    assert close(answers(ours), answers(source))
    assert runtime.interface(ours) == runtime.interface(source)
    assert check_cache(cache.root) == []


@pytest.mark.parametrize("external", ["", "weights/net.data"])
@pytest.mark.parametrize("ir_version", [3, 8])
def test_a_model_of_any_form_answers_the_same(external: str, ir_version: int, cache: Cache, tmp_path: Path) -> None:
    path = perceptron(tmp_path / "net.onnx", external=external, ir_version=ir_version)

    ours = load(path, cache)

    assert [one.name for one in ours.get_inputs()] == ["x"]
    assert close(answers(ours), answers(plain(path)))
    assert not ours.get_overridable_initializers()


def test_the_product_is_one_tree_that_is_loaded_by_its_path(cache: Cache, model: Path) -> None:
    path = Path(modelcache.onnx.optimize(model, cache=cache))

    assert path.name == "model.onnx"
    assert path.parent.name == "net.optimized"
    assert path.with_name("model.onnx.data").stat().st_size >= 2 * 4 * WIDTH * WIDTH
    assert load(model, cache)._model_path == str(path)
    explained = cache.explain(str(path))
    assert (explained.recipe, explained.params["level"]) == ("onnx-optimize", "all")
    assert explained.inputs[0].ref == f"file://{model}"
    assert explained.platform["onnxruntime"] == runtime.facts()


def test_a_name_a_url_and_a_tree_that_was_put_are_sources_too(cache: Cache, model: Path, server: FaultServer) -> None:
    expected = answers(plain(model))
    url = server.add("/net.onnx", model.read_bytes())
    cache.put(model, name="put")
    perceptron(model.parent / "tree" / "onnx" / "model.onnx", external="model.data")
    cache.put_tree(model.parent / "tree", name="a-tree")

    for ref in (url, "put", "a-tree"):
        assert close(answers(load(ref, cache)), expected), ref
    again = modelcache.onnx.session("a-tree", file="onnx/model.onnx", cache=cache)
    inside = modelcache.onnx.session(cache.get_tree("a-tree"), file="onnx/model.onnx", cache=cache)

    assert close(answers(again), expected)
    assert again._model_path == inside._model_path
    assert len(server.seen("/net.onnx")) == 1


# -- misses, and hits --------------------------------------------------------------------------------------------------


def other_runtime(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(runtime, "facts", lambda: {"version": "1.32.0", "build": "another"})
    return {}


def other_build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    facts = runtime.facts()
    monkeypatch.setattr(runtime, "facts", lambda: {**facts, "build": "Debug"})
    return {}


def other_cpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(platforms, "cpu", lambda: {"flags": "sse2"})
    return {}


def other_variable(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("ORT_QMOE_CPU_QNBIT_GEMM", "1")
    return {}


def given(**changed: Any) -> Callable[[pytest.MonkeyPatch], dict[str, Any]]:
    return lambda _monkeypatch: changed


def of_session_options(change: Callable[[Any], object]) -> Callable[[pytest.MonkeyPatch], dict[str, Any]]:
    def made(_monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        found = runtime.library().SessionOptions()
        change(found)
        return {"session_options": found}

    return made


@pytest.mark.parametrize(
    "change",
    [
        other_runtime,
        other_build,
        other_cpu,
        other_variable,
        given(level="basic"),
        given(prepack=False),
        given(config={"session.set_denormal_as_zero": "1"}),
        given(config={"session.disable_prepacking": True}),
        given(free_dimensions={"batch": 3}),
        given(providers=[("CPUExecutionProvider", {"arena_extend_strategy": "kSameAsRequested"})]),
        of_session_options(lambda found: found.add_session_config_entry("session.disable_prepacking", "1")),
        of_session_options(lambda found: setattr(found, "use_deterministic_compute", True)),
    ],
    ids=[
        "runtime", "build", "cpu", "variable", "level", "prepack", "config", "no-prepacking", "dimensions",
        "provider-options", "entry", "mode"
    ],
)  # fmt: skip
def test_whatever_the_product_depends_on_is_a_miss_when_it_differs(
    change: Callable[[pytest.MonkeyPatch], dict[str, Any]], cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = modelcache.onnx.optimize(model, cache=cache)
    assert modelcache.onnx.optimize(model, cache=cache) == before
    assert len(derived(cache)) == 1

    changed = change(monkeypatch)
    after = modelcache.onnx.optimize(model, cache=cache, **changed)

    assert len(derived(cache)) == 2
    assert close(answers(load(model, cache, **changed)), answers(plain(model)))
    assert Path(after).is_file()
    assert len(derived(cache)) == 2


def test_a_processor_is_no_part_of_a_product_that_fits_any(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = modelcache.onnx.optimize(model, cache=cache, level="extended", prepack=False)
    monkeypatch.setattr(platforms, "cpu", lambda: {"flags": "sse2"})

    assert modelcache.onnx.optimize(model, cache=cache, level="extended", prepack=False) == before


def test_a_truth_of_a_manifest_is_what_onnxruntime_takes_for_one(cache: Cache, model: Path) -> None:
    path = modelcache.onnx.optimize(model, cache=cache, config={"session.disable_quant_qdq": True})

    assert modelcache.onnx.optimize(model, cache=cache, config={"session.disable_quant_qdq": "1"}) == path
    assert len(derived(cache)) == 1


def test_threads_make_no_other_product(cache: Cache, model: Path) -> None:
    settings = runtime.library().SessionOptions()
    settings.intra_op_num_threads = 3

    path = modelcache.onnx.optimize(model, cache=cache)

    assert modelcache.onnx.optimize(model, cache=cache, session_options=settings) == path


def test_a_local_model_that_changes_is_another_one(cache: Cache, model: Path) -> None:
    before = answers(load(model, cache))
    perceptron(model, seed=2)

    after = answers(load(model, cache))

    assert not close(before, after)
    assert close(after, answers(plain(model)))


def test_local_external_data_that_changes_is_another_model(cache: Cache, tmp_path: Path) -> None:
    path = perceptron(tmp_path / "models" / "net.onnx", external="net.data")
    before = answers(load(path, cache))
    perceptron(path, seed=2, external="net.data")

    after = answers(load(path, cache))

    assert not close(before, after)
    assert close(after, answers(plain(path)))


def test_external_data_that_changed_while_no_process_ran_is_another_model(cache: Cache, tmp_path: Path) -> None:
    path = perceptron(tmp_path / "models" / "net.onnx", external="net.data")
    load(path, cache)
    for seed in (2, 3):
        perceptron(path, seed=seed, external="net.data")
        sessions._seen.forget()
        assert close(answers(load(path, cache)), answers(plain(path)))
    data, facts = path.with_name("net.data"), path.with_name("net.data").stat()
    content = bytearray(data.read_bytes())
    content[1] ^= 1
    data.write_bytes(content)
    os.utime(data, ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))  # Of the same size, in the same inode.
    sessions._seen.forget()
    before = len(derived(cache))

    assert close(answers(load(path, cache)), answers(plain(path)))
    assert len(derived(cache)) == before + 1


def test_a_relative_path_means_what_is_there_now(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        perceptron(tmp_path / str(number) / "net.onnx", seed=number)

    for number in (1, 2, 1):
        monkeypatch.chdir(tmp_path / str(number))
        assert close(answers(load("./net.onnx", cache)), answers(plain(Path("net.onnx")))), number


def test_an_offline_cache_serves_what_was_built_and_local_files(cache: Cache, model: Path, server: FaultServer) -> None:
    url = server.add("/net.onnx", model.read_bytes())
    external = perceptron(model.parent / "e" / "net.onnx", external="net.data")
    for ref in (url, model, external):
        load(ref, cache)

    with Cache(cache.root, offline=True) as offline:
        for ref in (url, model, external):
            sessions._seen.forget()
            assert Path(modelcache.onnx.optimize(ref, cache=offline)).is_file()


def test_only_the_files_that_a_model_needs_become_its_input(cache: Cache, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    path = perceptron(folder / "net.onnx", external="weights/net[1].data")
    (folder / "other.bin").write_bytes(b"x" * 100_000)
    (folder / "net.data").write_bytes(b"x")

    made = cache.explain(modelcache.onnx.optimize(path, cache=cache))

    (tree,) = [one for one in trees(cache) if one.name == made.inputs[0].object.replace(":", "-")]
    inside = {str(one.relative_to(tree / "models")) for one in (tree / "models").rglob("*") if one.is_file()}
    assert inside == {"net.onnx", "weights/net[1].data"}


def test_options_of_a_session_are_honoured_and_left_as_they_were(cache: Cache, model: Path) -> None:
    library = runtime.library()
    settings = library.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 2, 4
    settings.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")

    made = load(model, cache, session_options=settings)

    assert made.get_session_options().intra_op_num_threads == 2
    assert made.get_session_options().get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert made.get_session_options().graph_optimization_level == library.GraphOptimizationLevel.ORT_DISABLE_ALL
    assert settings.graph_optimization_level == library.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert runtime.entry_of(settings, "session.save_external_prepacked_constant_initializers") is None
    assert settings.optimized_model_filepath == ""
    assert cache.explain(made._model_path).params["level"] == "basic"


def test_a_size_for_a_free_dimension_holds_in_the_product(cache: Cache, model: Path) -> None:
    made = load(model, cache, free_dimensions={"batch": 2})

    assert made.get_inputs()[0].shape == [2, WIDTH]


def test_a_warm_session_hashes_nothing_starts_nothing_and_asks_nobody(
    cache: Cache, model: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.add("/net.onnx", model.read_bytes())
    for ref in (url, model):
        load(ref, cache)
    requests = len(server.seen("/net.onnx"))

    def forbidden(*_args: object, **_options: object) -> None:
        raise AssertionError("a warm session must not do that")

    for place, name in ((isolation, "run"), (subprocess, "Popen"), (sessions, "resolve"), (sessions, "product")):
        monkeypatch.setattr(place, name, forbidden)
    monkeypatch.setattr("hashlib.file_digest", forbidden)
    for ref in (url, model):
        load(ref, cache)

    assert len(server.seen("/net.onnx")) == requests


FRESH = """
import sys, warnings
warnings.simplefilter("error")
import modelcache.onnx
assert "onnxruntime" not in sys.modules
import onnxruntime
brought = set(sys.modules)  # By onnxruntime itself.
for ref in sys.argv[1:]:
    modelcache.onnx.session(ref)
heavy = {"modelcache.cache", "urllib3", "tenacity", "fasteners", "modelcache.deriving"}
print(sorted(heavy & set(sys.modules) - brought))
"""


def test_a_new_process_loads_what_is_here_without_a_cache(cache: Cache, model: Path, server: FaultServer) -> None:
    url = server.add("/net.onnx", model.read_bytes())
    cache.put(model, name="put")
    external = perceptron(model.parent / "e" / "net.onnx", external="sub/net.data")
    for ref in (url, model, "put", external):
        load(ref, cache)

    done = subprocess.run(
        [sys.executable, "-c", FRESH, url, str(model), "put", str(external)],
        env={**os.environ, "MODELCACHE_DIR": cache.root, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stderr == ""
    assert done.stdout.strip() == "[]"
    assert len(derived(cache)) == 2


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_a_model_that_onnxruntime_refuses_names_model_provider_and_key(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"\x08\x08no model at all")

    with pytest.raises(errors.ModelRefusedError) as caught:
        load(path, cache)

    message = str(caught.value)
    assert caught.value.exit_code == 13
    for part in ("broken.onnx", "CPUExecutionProvider", "derived:onnx-optimize/"):
        assert part in message
    assert derived(cache) == []
    assert trees(cache) == []


def test_a_provider_that_is_not_installed_is_told_with_those_that_are(cache: Cache, model: Path) -> None:
    with pytest.raises(errors.ProviderNotInstalledError, match="CPUExecutionProvider") as caught:
        load(model, cache, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])

    assert caught.value.exit_code == 2
    assert not Path(cache.root).exists() or derived(cache) == []


@pytest.mark.parametrize("location", ["../outside.data", "/etc/hostname", "sub/../../outside.data"])
def test_external_data_outside_of_the_models_directory_is_refused(location: str, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "outside.data").write_bytes(b"x" * 4 * WIDTH * WIDTH * 2)
    path = _located(tmp_path / "models" / "net.onnx", location)

    with pytest.raises(errors.ExternalDataError, match="is not below") as caught:
        load(path, cache)

    assert caught.value.facts["location"] == location
    assert not (Path(cache.root) / "objects-v1").exists()


def test_external_data_that_is_missing_is_told_before_anything_is_stored(cache: Cache, tmp_path: Path) -> None:
    path = perceptron(tmp_path / "net.onnx", external="net.data")
    (tmp_path / "net.data").unlink()

    with pytest.raises(errors.ExternalDataError, match=r"'net\.data', which is missing"):
        load(path, cache)

    assert not (Path(cache.root) / "objects-v1").exists()


def test_a_single_file_that_needs_another_one_is_told(cache: Cache, tmp_path: Path, server: FaultServer) -> None:
    path = perceptron(tmp_path / "net.onnx", external="net.data")
    url = server.add("/net.onnx", path.read_bytes())

    with pytest.raises(errors.ExternalDataError, match="is not part of what this ref names"):
        load(url, cache)


def test_a_model_above_the_limit_of_its_format_is_told_at_once(cache: Cache, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(graph.PROTOBUF_BYTES_MAX + 1)

    with pytest.raises(errors.ModelTooLargeError, match="external data"):
        load(path, cache)

    assert not (Path(cache.root) / "objects-v1").exists()


def test_a_model_of_more_than_two_gigabytes_works_with_external_data(
    cache: Cache, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("crash_budget") != "large":
        pytest.skip("it takes 8 GB of disk: --crash-budget=large")
    rows, width = 600_000, 1024
    path = _table(tmp_path / "large.onnx", rows, width)

    made = load(path, cache)

    numbers = np.array([0, rows - 1], dtype=np.int64)
    (found,) = made.run(None, {"x": numbers})
    assert found.shape == (2, width)
    assert found[1, -1] == 7.0
    assert Path(made._model_path).with_name("model.onnx.data").stat().st_size > graph.PROTOBUF_BYTES_MAX


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"level": "fast"}, "level='fast'"),
        ({"verify": "no"}, "verify='no'"),
        ({"providers": []}, "providers="),
        ({"providers": ["CPUExecutionProvider"] * 2}, "twice"),
        ({"provider_options": [{}]}, "provider_options"),
        ({"config": {"session.save_model_format": "ORT"}}, "set by modelcache itself"),
        ({"free_dimensions": {"batch": 0}}, "free_dimensions"),
        ({"file": "../net.onnx"}, "file="),
        ({"custom_ops": ["/nowhere/ops.so"]}, "cannot be read"),
        ({"custom_ops": "/nowhere/ops.so"}, "a list of libraries"),
        ({"session_options": 3}, "session_options=3"),
        ({"feeds": {}}, "feeds"),
    ],
)
def test_a_senseless_argument_is_told(given: dict[str, Any], said: str, cache: Cache, model: Path) -> None:
    with pytest.raises(errors.UsageError, match=said):
        load(model, cache, **given)

    assert derived(cache) == []


def test_a_directory_with_several_models_needs_the_name_of_one(cache: Cache, model: Path) -> None:
    perceptron(model.with_name("other.onnx"), seed=3)

    with pytest.raises(errors.UsageError, match=r"2 models \(net\.onnx, other\.onnx\)"):
        load(model.parent, cache)

    assert close(answers(load(model.parent, cache, file="other.onnx")), answers(plain(model.with_name("other.onnx"))))


# -- what is damaged ---------------------------------------------------------------------------------------------------


def damaged(path: Path, *, keep_time: bool) -> None:
    """Flip one bit in the middle of *path*, as a disk does, or (with its time) a program."""
    before = path.stat()
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)
    path.chmod(0o444)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_flipped_bit_is_found_set_aside_and_built_anew(name: str, cache: Cache, model: Path) -> None:
    product = Path(modelcache.onnx.optimize(model, cache=cache))
    damaged(product.with_name(name), keep_time=True)

    made = load(model, cache, verify="full")

    assert close(answers(made), answers(plain(model)))
    assert len(list((Path(cache.root) / "quarantine").glob("*/REASON.json"))) == 1
    assert check_cache(cache.root) == []


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_product_that_was_written_to_is_noticed_by_a_plain_call(name: str, cache: Cache, model: Path) -> None:
    product = Path(modelcache.onnx.optimize(model, cache=cache))
    damaged(product.with_name(name), keep_time=False)

    assert close(answers(load(model, cache)), answers(plain(model)))
    assert check_cache(cache.root) == []


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_deleted_file_of_a_product_is_built_anew(name: str, fresh: bool, cache: Cache, model: Path) -> None:
    product = Path(modelcache.onnx.optimize(model, cache=cache))
    directory = product.parent
    directory.chmod(0o755)
    before = directory.stat()
    (directory / name).unlink()
    os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))  # So that the directory alone does not tell.
    if fresh:
        sessions._seen.forget()

    assert close(answers(load(model, cache)), answers(plain(model)))
    assert (directory / name).exists()
    assert check_cache(cache.root) == []


def test_what_no_stamp_tells_is_found_when_it_does_not_load(cache: Cache, model: Path) -> None:
    product = Path(modelcache.onnx.optimize(model, cache=cache))
    facts = product.stat()
    product.chmod(0o644)
    product.write_bytes(b"\xff" * facts.st_size)
    product.chmod(0o444)
    os.utime(product, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    assert close(answers(load(model, cache)), answers(plain(model)))
    assert check_cache(cache.root) == []


# -- builds that fail --------------------------------------------------------------------------------------------------


def crash(*_args: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def build_other(task: building.Task, workspace: str) -> None:
    """Write a model with other numbers, and the right inputs and outputs."""
    perceptron(Path(workspace) / task.name / "model.onnx", seed=99, external="model.onnx.data")


def build_foreign(task: building.Task, workspace: str) -> None:
    """Write a model with another output."""
    perceptron(Path(workspace) / task.name / "model.onnx", external="model.onnx.data", out="z")


def test_a_product_that_crashes_the_runtime_is_set_aside_and_the_source_is_used(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "check", crash)

    for _ in range(3):
        with pytest.warns(modelcache.onnx.SourceModelWarning, match="SIGSEGV"):
            made = load(model, cache)
        assert close(answers(made), answers(plain(model)))

    assert derived(cache) == []
    (reason,) = (Path(cache.root) / "quarantine").glob("*/REASON.json")
    assert "SIGSEGV" in reason.read_text()

    def forbidden(*_args: object, **_options: object) -> None:
        raise AssertionError("a failure that is remembered starts no process")

    monkeypatch.setattr(isolation, "run", forbidden)
    with pytest.warns(modelcache.onnx.SourceModelWarning, match="3 times"):
        assert close(answers(load(model, cache)), answers(plain(model)))
    with pytest.raises(errors.RepeatedFailureError):
        load(model, cache, fallback=False)


def test_a_build_that_dies_leaves_the_source_to_be_used(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "build", crash)

    with pytest.warns(modelcache.onnx.SourceModelWarning, match="SIGSEGV"):
        assert close(answers(load(model, cache)), answers(plain(model)))

    assert derived(cache) == []
    assert trees(cache) == []


def test_a_model_that_kills_who_loads_it_does_not_kill_who_asks(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "build", crash)
    monkeypatch.setattr(building, "probe", crash)
    monkeypatch.setattr(building, "source_session", crash)  # Here it would be the end of this process.

    with pytest.raises(errors.BuildDiedError, match="SIGSEGV"):
        load(model, cache)


@pytest.mark.parametrize(("build", "said"), [(build_foreign, "its outputs are not those of the source")])
def test_a_product_with_another_interface_is_refused(
    build: Callable[..., None], said: str, cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "build", build)

    with pytest.raises(errors.ProductRefusedError, match=said):
        modelcache.onnx.optimize(model, cache=cache)
    with pytest.warns(modelcache.onnx.SourceModelWarning, match=said):
        assert close(answers(load(model, cache)), answers(plain(model)))

    assert derived(cache) == []


def test_a_product_with_other_answers_is_refused_where_feeds_are_given(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "build", build_other)
    some = {"x": np.ones((2, WIDTH), dtype=np.float32)}

    with pytest.raises(errors.ProductRefusedError, match=r"output 'y' differs by up to \d"):
        modelcache.onnx.optimize(model, cache=cache, feeds=some)
    assert derived(cache) == []
    monkeypatch.undo()
    path = modelcache.onnx.optimize(model, cache=cache, feeds=some)

    assert cache.explain(path).params["compared"]["rtol"] == 1e-3
    assert modelcache.onnx.optimize(model, cache=cache) == path  # Another key, and the same content.
    assert len(derived(cache)) == 2
    assert len(trees(cache)) == 1


def test_a_cache_that_cannot_be_written_leaves_the_source_to_be_used(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_args: object, **_options: object) -> str:
        raise errors.StorageError(path=cache.root, action="stage", reason="Read-only file system")

    monkeypatch.setattr(sessions, "product", refused)

    with pytest.warns(modelcache.onnx.SourceModelWarning, match="Read-only"):
        assert close(answers(load(model, cache)), answers(plain(model)))
    with pytest.raises(errors.StorageError):
        load(model, cache, fallback=False)


def test_a_build_that_takes_too_long_ends(cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "build", hang)

    with pytest.raises(errors.BuildTimeoutError):
        modelcache.onnx.optimize(model, cache=cache, timeout=1.5)

    assert derived(cache) == []


def hang(*_args: object) -> None:
    signal.pause()


def test_a_model_without_a_product_still_loads_with_the_callers_own_options(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "check", crash)
    settings = runtime.library().SessionOptions()
    settings.intra_op_num_threads = 2

    with pytest.warns(modelcache.onnx.SourceModelWarning):
        made = load(model, cache, session_options=settings)

    assert made.get_session_options().intra_op_num_threads == 2
    assert close(answers(made), answers(plain(model)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(mount)]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)  # What a session maps keeps it busy.


@pytest.mark.parametrize("leave", [0, 700_000, 3_600_000])
def test_a_full_disk_is_told_and_the_source_is_used(leave: int, small_disk: Path, tmp_path: Path) -> None:
    path = perceptron(tmp_path / "net.onnx", width=512)  # 2 MiB, and twice that for the product.
    with Cache(small_disk / "cache") as cache:
        cache.put(path, name="net")
        facts = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(b"x" * (facts.f_bavail * facts.f_frsize - leave))

        with pytest.raises(errors.NoSpaceError):
            modelcache.onnx.optimize("net", cache=cache)
        with pytest.warns(modelcache.onnx.SourceModelWarning, match="no space left"):
            made = load("net", cache)
        assert close(answers(made), answers(plain(path)))
        assert derived(cache) == []

        (small_disk / "ballast").unlink()
        assert Path(modelcache.onnx.optimize("net", cache=cache)).is_file()
        assert check_cache(cache.root) == []


# -- others that ask ---------------------------------------------------------------------------------------------------


def test_the_recipe_takes_what_json_can_say(cache: Cache, model: Path) -> None:
    path = modelcache.onnx.recipe(
        cache, model, level="basic", providers=[["CPUExecutionProvider", {}]], config={"session.disable_quant_qdq": "1"}
    )

    assert path == modelcache.onnx.optimize(
        model, cache=cache, level="basic", config={"session.disable_quant_qdq": "1"}
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"speed": 11}, "no option 'speed'"),
        ({"custom_ops": ["/tmp/evil.so"]}, "no option 'custom_ops'"),
        ({"config": {"session.collect_node_memory_stats_to_file": "/etc/passwd"}}, "no configuration entry"),
        ({"config": {"session.node_partition_config_file": "x"}}, "no configuration entry"),
        ({"providers": [["CPUExecutionProvider", {"trt_extra_plugin_lib_paths": "evil.so"}]]}, "could name a file"),
    ],
)
def test_a_strangers_manifest_names_no_file_and_no_library(
    given: dict[str, Any], said: str, cache: Cache, model: Path
) -> None:
    with pytest.raises(errors.UsageError, match=said):
        modelcache.onnx.recipe(cache, model, **given)

    assert derived(cache) == []


def test_the_command_line_derives_it_and_tells_its_key(cache: Cache, model: Path) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modelcache", *arguments],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MODELCACHE_DIR": cache.root},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = command("derive", "onnx", str(model), "--set", "level=basic")
    told = command("derive", "onnx", str(model), "--set", "level=basic", "--json")
    refused = command("derive", "onnx", str(model), "--set", 'custom_ops=["evil.so"]')

    assert done.stdout.strip() == modelcache.onnx.optimize(model, cache=cache, level="basic")
    assert json.loads(told.stdout)["params"]["level"] == "basic"
    assert refused.returncode == 2
    assert "no option 'custom_ops'" in refused.stderr
    assert len(derived(cache)) == 1


def test_a_manifest_builds_it_before_anybody_asks(cache: Cache, model: Path, server: FaultServer) -> None:
    url = server.add("/net.onnx", model.read_bytes())
    manifest = model.with_name("models.toml")
    manifest.write_text(f'[[model]]\nref = "{url}"\nderive = ["onnx"]\n')

    cache.prewarm(manifest)
    assert len(derived(cache)) == 1
    load(url, cache)

    assert len(derived(cache)) == 1


def test_what_was_derived_goes_and_comes_back(cache: Cache, model: Path) -> None:
    path = modelcache.onnx.optimize(model, cache=cache)
    cache.remove(cache.explain(path).ref)
    assert not Path(path).exists()

    assert close(answers(load(model, cache)), answers(plain(model)))


def test_a_second_build_of_the_same_comes_to_the_same(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modelcache.onnx.optimize(model, cache=cache)
    monkeypatch.setenv("MODELCACHE_VERIFY_DERIVED", "1")

    with Cache(cache.root) as strict:
        assert Path(modelcache.onnx.optimize(model, cache=strict)).is_file()
        monkeypatch.setattr(building, "build", build_other)
        with pytest.raises(errors.NotReproducibleError):
            modelcache.onnx.optimize(model, cache=strict)


def _table(path: Path, rows: int, width: int) -> Path:
    """Write a model that looks rows up in a table, which is a sparse file but for its last number."""
    from onnx import TensorProto, helper

    table = TensorProto(name="table", data_type=TensorProto.FLOAT, dims=[rows, width])
    table.data_location = TensorProto.EXTERNAL
    table.external_data.add(key="location", value="large.data")
    with path.with_name("large.data").open("wb") as file:
        file.truncate(rows * width * 4)
        file.seek(-4, os.SEEK_END)
        file.write(np.float32(7).tobytes())
    made = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])], "table",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])], [table],
    )  # fmt: skip
    path.write_bytes(
        helper.make_model(made, ir_version=8, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()
    )
    return path


def _located(path: Path, location: str) -> Path:
    """Write a model that says that its data is at *location*."""
    perceptron(path, external="net.data")
    shutil.move(str(path), str(path) + ".old")
    old, new = Path(str(path) + ".old"), path
    import onnx

    loaded = onnx.load(str(old), load_external_data=False)
    for tensor in loaded.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    new.write_bytes(loaded.SerializeToString())
    return new


def test_the_level_of_options_is_what_they_are_called_here() -> None:
    for name in options.LEVELS:
        settings = runtime.library().SessionOptions()
        settings.graph_optimization_level = runtime.level(name)
        assert runtime.level_of(settings) == name
