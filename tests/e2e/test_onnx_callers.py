"""Who calls modelcache.onnx: threads that share options, forks, frozen programs, caches that nobody may write to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache
from modelcache.testing import check_cache

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelcache[onnx]'")
pytest.importorskip("onnx", reason="onnx is not installed, and the models of these tests are made with it")

import modelcache.onnx
from modelcache.onnx import options, runtime
from tests.support.models import answers, perceptron, plain

REPOSITORY = Path(__file__).parents[2]


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
