"""Many processes ask for one model that nobody has optimised yet: one build, and nobody loads half a product."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.testing import check_cache, spawn

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelcache[onnx]'")
pytest.importorskip("onnx", reason="onnx is not installed, and the models of these tests are made with it")

from tests.support.models import answers, perceptron, plain

PROCESSES = 16

ASKER = """
import warnings
warnings.simplefilter("error")
import numpy as np
import modelcache.onnx
from modelcache import Cache
from modelcache.testing import Barrier, acknowledge
from tests.support.models import answers
events = []
cache = Cache(sys.argv[1], on_event=lambda event: events.append(event.kind))
Barrier(sys.argv[3], int(sys.argv[4])).wait()
session = modelcache.onnx.session(sys.argv[2], cache=cache)
assert np.allclose(answers(session)[0], np.load(sys.argv[5]), rtol=1e-3, atol=1e-4)
acknowledge("built" if "building" in events else "waited")
"""


def test_of_many_processes_one_builds_and_all_load_the_same(root: Path, tmp_path: Path) -> None:
    import numpy as np

    model = perceptron(tmp_path / "net.onnx", width=512)
    np.save(tmp_path / "expected.npy", answers(plain(model))[0])
    (tmp_path / "barrier").mkdir()

    said = []
    with ExitStack() as running:
        asking = [
            running.enter_context(
                spawn(ASKER, root, model, tmp_path / "barrier", str(PROCESSES), tmp_path / "expected.npy",
                      environment={"PYTHONPATH": str(Path(__file__).parents[2])})
            )
            for _ in range(PROCESSES)
        ]  # fmt: skip
        for one in asking:
            assert one.wait() == 0, one.errors()
            said += one.acknowledged()

    assert sorted(said) == ["built"] + ["waited"] * (PROCESSES - 1)
    assert check_cache(root) == []
    with Cache(root) as cache:
        assert [entry.key.partition("/")[0] for entry in cache.entries() if entry.derivation] == [
            "derived:onnx-optimize"
        ]
