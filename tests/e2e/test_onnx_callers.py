"""Who calls modelcache.onnx: threads that share options, forks, frozen programs, caches that nobody may write to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, errors
from modelcache.testing import check_cache

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelcache[onnx]'")
pytest.importorskip("onnx", reason="onnx is not installed, and the models of these tests are made with it")

import modelcache.onnx
from modelcache.onnx import building, options, runtime, sessions
from tests.support.models import WIDTH, answers, perceptron, plain

REPOSITORY = Path(__file__).parents[2]
EXECUTABLE = sys.executable


@pytest.fixture
def cache(root: Path) -> Iterator[Cache]:
    with Cache(root) as made:
        yield made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return perceptron(tmp_path / "models" / "net.onnx")


def same(ours: Any, path: Path) -> bool:
    import numpy as np

    pairs = zip(answers(ours), answers(plain(path)), strict=True)
    return all(np.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in pairs)


def overridable(path: Path) -> Path:
    """Make both weights of the model at *path* inputs too, which is how a caller may give others."""
    import onnx
    from onnx import helper

    found = onnx.load(str(path))
    for one in found.graph.initializer:
        found.graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
    path.write_bytes(found.SerializeToString())
    return path


def level_in_key(settings: Any) -> str:
    return options.given(
        level=None, prepack=True, providers=None, provider_options=None, config=None, free_dimensions=None,
        custom_ops=(), session_options=settings,
    ).level  # fmt: skip


# -- options that threads share ----------------------------------------------------------------------------------------


def test_a_level_that_is_lent_is_not_what_the_key_says() -> None:
    settings = runtime.library().SessionOptions()
    with runtime.at_level(settings, "disable"):
        assert level_in_key(settings) == "all"
    assert level_in_key(settings) == "all"


def test_two_sessions_are_made_of_shared_options_at_once_and_a_third_level_waits() -> None:
    settings = runtime.library().SessionOptions()
    told: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def lend(name: str) -> None:
        with runtime.at_level(settings, name):
            told.append(str(settings.graph_optimization_level).rpartition(".")[2])
            inside.set()
            go_on.wait()

    first = threading.Thread(target=lend, args=("disable",), daemon=True)
    first.start()
    inside.wait()
    other = threading.Thread(target=lend, args=("basic",), daemon=True)
    with runtime.at_level(settings, "disable"):  # It waits for nobody.
        other.start()
        go_on.set()
        first.join()
        assert level_in_key(settings) == "all"
        assert told == ["ORT_DISABLE_ALL"]
        assert settings.graph_optimization_level == runtime.level("disable")
    other.join()

    assert told == ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"]
    assert settings.graph_optimization_level == runtime.level("all")


def test_a_fork_while_options_are_lent_leaves_the_child_its_own_level() -> None:
    settings = runtime.library().SessionOptions()
    with runtime.at_level(settings, "disable"):
        pid = os.fork()
        if pid == 0:
            found = 1
            try:
                with runtime.at_level(settings, "basic"):  # Whoever has lent it is not here: nobody waits for him.
                    pass
                found = 0 if settings.graph_optimization_level == runtime.level("all") else 2
            finally:
                os._exit(found)
    assert os.waitpid(pid, 0)[1] == 0


def test_options_are_given_back_when_the_session_cannot_be_made() -> None:
    settings = runtime.library().SessionOptions()
    with pytest.raises(ValueError, match="no model"), runtime.at_level(settings, "disable"):
        raise ValueError("no model")
    assert settings.graph_optimization_level == runtime.level("all")


def test_what_is_logged_is_what_the_program_has_set(cache: Cache, model: Path) -> None:
    usual = runtime.library().SessionOptions().log_severity_level

    assert modelcache.onnx.session(model, cache=cache).get_session_options().log_severity_level == usual


def test_a_product_is_not_optimised_again(cache: Cache, model: Path) -> None:
    for settings in (None, runtime.library().SessionOptions()):
        made = modelcache.onnx.session(model, cache=cache, session_options=settings)

        assert made.get_session_options().graph_optimization_level == runtime.level("disable")


def test_what_is_forced_is_built_although_it_is_here(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = modelcache.onnx.optimize(model, cache=cache)
    assert modelcache.onnx.optimize(model, cache=cache, force=True) == path
    monkeypatch.setattr(building, "build", crash)

    assert modelcache.onnx.optimize(model, cache=cache) == path
    with pytest.raises(errors.BuildDiedError):
        modelcache.onnx.optimize(model, cache=cache, force=True)


def test_the_source_is_loaded_with_the_level_that_was_asked_for(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "check", crash)
    settings = runtime.library().SessionOptions()

    for changed in ({}, {"session_options": settings}):
        with pytest.warns(modelcache.onnx.SourceModelWarning):
            made = modelcache.onnx.session(model, cache=cache, level="basic", **changed)
        assert made.get_session_options().graph_optimization_level == runtime.level("basic")
    assert settings.graph_optimization_level == runtime.level("all")


def crash(*_args: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def test_a_fork_while_engines_are_copied_leaves_the_child_able_to_copy() -> None:
    from modelcache.onnx import engines

    with engines.copies._guard:
        pid = os.fork()
        if pid == 0:
            found = 1
            try:
                found = 0 if engines.copies._guard.acquire(blocking=False) else 2
            finally:
                os._exit(found)
    assert os.waitpid(pid, 0)[1] == 0


# -- what else lies beside a model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("location", ["weights/net.data", "current/net.data"])
def test_what_else_lies_beside_a_model_stands_in_nobodys_way(location: str, cache: Cache, tmp_path: Path) -> None:
    path = perceptron(tmp_path / "models" / "net.onnx", external="weights/net.data")
    path.with_name("current").symlink_to("weights")
    os.mkfifo(path.with_name("pipe"))
    path.with_name("dangling").symlink_to("nowhere")
    if location != "weights/net.data":
        path.write_bytes(path.read_bytes().replace(b"weights/net.data", location.encode()))

    for ref in (path, path.parent):
        made = modelcache.onnx.session(ref, cache=cache)

        assert Path(made._model_path).parent.name == "net.optimized"
        assert same(made, path)
    assert check_cache(cache.root) == []


# -- caches that nobody may write to -----------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)]
    made = subprocess.run(command, capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)  # What a session maps keeps it busy.


def read_only(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


@pytest.mark.parametrize("external", ["", "net.data"])
@pytest.mark.parametrize("made", [False, True], ids=["no root", "root"])
def test_a_local_model_is_loaded_where_it_lies_if_the_cache_is_read_only(
    external: str, made: bool, disk: Path, tmp_path: Path
) -> None:
    path = perceptron(tmp_path / "net.onnx", external=external, ir_version=3)
    if made:
        with Cache(disk / "cache") as cache:
            cache.put(path, name="other")
    read_only(disk)

    with Cache(disk / "cache") as cache:
        with pytest.warns(modelcache.onnx.SourceModelWarning, match="read-only|no permission to write"):
            assert same(modelcache.onnx.session(path, cache=cache), path)
        with pytest.raises(errors.RootError):
            modelcache.onnx.session(path, cache=cache, fallback=False)


def test_a_local_model_is_loaded_where_it_lies_if_the_disk_is_full(disk: Path, tmp_path: Path) -> None:
    path = perceptron(tmp_path / "net.onnx", width=512)
    facts = os.statvfs(disk)
    (disk / "ballast").write_bytes(b"x" * (facts.f_bavail * facts.f_frsize - 500_000))

    with Cache(disk / "cache") as cache, pytest.warns(modelcache.onnx.SourceModelWarning, match="no space left"):
        assert same(modelcache.onnx.session(path, cache=cache), path)


def test_a_read_only_cache_serves_what_was_built(disk: Path, model: Path) -> None:
    done = subprocess.run(  # A process that ends, and holds nothing there any more.
        [sys.executable, "-m", "modelcache", "derive", "onnx", str(model)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MODELCACHE_DIR": str(disk / "cache")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    path = done.stdout.strip()
    read_only(disk)
    sessions._seen.forget()

    with Cache(disk / "cache") as cache:
        assert modelcache.onnx.session(model, cache=cache)._model_path == path


def test_what_is_elsewhere_cannot_be_loaded_where_the_cache_takes_nothing(disk: Path, server: Any, model: Path) -> None:
    url = server.add("/net.onnx", model.read_bytes())
    read_only(disk)

    with Cache(disk / "cache") as cache, pytest.raises(errors.RootError, match="read-only"):
        modelcache.onnx.session(url, cache=cache)


def test_who_may_not_wait_for_another_ones_build_uses_the_source(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waited(*_args: object, **_options: object) -> str:
        raise errors.LockTimeoutError(what="the turn", holder="4711", seconds=3)

    monkeypatch.setattr(sessions, "product", waited)

    with pytest.warns(modelcache.onnx.SourceModelWarning):
        assert same(modelcache.onnx.session(model, cache=cache), model)
    with pytest.raises(errors.LockTimeoutError):
        modelcache.onnx.session(model, cache=cache, fallback=False)


# -- programs that are no Python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value"), [("executable", None), ("executable", ""), ("frozen", True)])
def test_a_program_that_can_start_no_python_uses_the_source_or_what_was_built(
    name: str, value: object, cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, name, value, raising=False)

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", _forbidden)  # A frozen program would start itself, again and again.
        with pytest.warns(modelcache.onnx.SourceModelWarning, match="there is no Python to start"):
            assert same(modelcache.onnx.session(model, cache=cache), model)
        with pytest.raises(errors.NoInterpreterError, match="modelcache derive"):
            modelcache.onnx.optimize(model, cache=cache)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "frozen", False, raising=False)
        patched.setattr(sys, "executable", EXECUTABLE)
        path = modelcache.onnx.optimize(model, cache=cache)

    assert modelcache.onnx.session(model, cache=cache)._model_path == path
    assert modelcache.onnx.optimize(model, cache=cache, verify="full") == path


def _forbidden(*_args: object, **_options: object) -> None:
    raise AssertionError("nothing is to be started")


def test_where_each_process_dies_its_death_says_nothing_of_the_model(
    cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")  # As a server that embeds Python says of itself.

    with pytest.warns(modelcache.onnx.SourceModelWarning, match="exit code 1"):
        assert same(modelcache.onnx.session(model, cache=cache), model)


# -- what a caller sees ------------------------------------------------------------------------------------------------


def test_weights_that_a_caller_may_override_can_be_overridden_in_the_product(cache: Cache, model: Path) -> None:
    import numpy as np

    source = plain(overridable(model))
    made = modelcache.onnx.session(model, cache=cache)
    given = {"x": np.ones((2, WIDTH), dtype=np.float32), "b": np.eye(WIDTH, dtype=np.float32)}

    assert Path(made._model_path).parent.name == "net.optimized"
    assert [name for name, _, _ in runtime.interface(source)["overridable"]] == ["a", "b"]
    assert runtime.interface(made) == runtime.interface(source)
    assert runtime.interface(source)["inputs"] == [("x", "tensor(float)", ["batch", WIDTH])]
    assert np.allclose(made.run(None, given)[0], source.run(None, given)[0], rtol=1e-3, atol=1e-4)
    assert same(made, model)


def test_what_a_model_says_of_itself_is_what_its_product_says(cache: Cache, model: Path) -> None:
    import onnx

    told = onnx.load(str(model))
    told.producer_name, told.domain, told.model_version, told.doc_string = "maker", "example.org", 7, "of numbers"
    told.metadata_props.add(key="classes", value="one, zwölf")
    model.write_bytes(told.SerializeToString())

    ours, theirs = (one.get_modelmeta() for one in (modelcache.onnx.session(model, cache=cache), plain(model)))

    assert ours.custom_metadata_map == {"classes": "one, zwölf"}
    for name in ("custom_metadata_map", "description", "domain", "graph_name", "producer_name", "version"):
        assert getattr(ours, name) == getattr(theirs, name), name


def test_a_file_that_is_taken_for_a_name_is_told(cache: Cache, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)

    with pytest.raises(errors.UsageError, match=r"'\./net\.onnx'"):
        modelcache.onnx.session("net.onnx", cache=cache)
    with pytest.raises(errors.EntryNotFoundError):
        modelcache.onnx.session("other.onnx", cache=cache)
    assert same(modelcache.onnx.session("./net.onnx", cache=cache), model)


def test_a_name_that_was_put_again_is_another_model(cache: Cache, model: Path, tmp_path: Path) -> None:
    other = perceptron(tmp_path / "other.onnx", seed=2)

    for path in (model, other, model):
        cache.put(path, name="net")
        assert same(modelcache.onnx.session("net", cache=cache), path)
