"""SIGKILL while onnxruntime writes: to the process that builds, or to the one that asked. No bad product is loaded.

The instants are drawn, counted from the moment at which the first file of the product is there; nothing depends on them
but which states are met.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache
from modelcache.testing import Victim, check_cache, spawn

pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'modelcache[onnx]'")
pytest.importorskip("onnx", reason="onnx is not installed, and the models of these tests are made with it")

import modelcache.onnx
from modelcache.onnx import sessions
from tests.support.models import answers, perceptron, plain

KILLS = {"small": 6, "large": 300}
SPAN_S = 0.5  # From the first byte of a product until it is visible, and some more.
WAIT_S = 30.0

BUILDER = """
import modelcache.onnx
from modelcache import Cache
from modelcache.testing import acknowledge
cache = Cache(sys.argv[1])
try:
    path = modelcache.onnx.optimize("net", cache=cache)
except errors.BuildDiedError:
    acknowledge("died")
else:
    acknowledge("done")
"""


def children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            found += [int(one) for one in task.read_text().split()]
        except OSError:
            continue
    return found


def writing(root: Path, victim: Victim) -> bool:
    """Wait until the product of *victim* has its first byte; False if it ended before that was seen."""
    pause = threading.Event()
    for _ in range(int(WAIT_S / 0.002)):
        for path in root.glob("staging/*/work/*/model.onnx*"):
            if path.exists():
                return True
        if not victim.alive:
            return False
        pause.wait(0.002)
    raise AssertionError("nothing was written")


@pytest.mark.skipif(sys.platform != "linux", reason="the process that builds is found in /proc")
def test_a_kill_while_onnxruntime_writes_leaves_no_product_that_is_bad(
    root: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    budget, seed = request.config.getoption("crash_budget"), request.config.getoption("crash_seed")
    chance = random.Random(seed)
    model = perceptron(tmp_path / "net.onnx", width=1800)  # 26 MB, and twice that in the product.
    expected = answers(plain(model))[0]
    with Cache(root) as cache:
        cache.put(model, name="net")
    bad, seen = [], {"absent": 0, "whole": 0}
    for number in range(KILLS[budget]):
        with spawn(BUILDER, root) as victim:
            if writing(root, victim):
                threading.Event().wait(chance.uniform(0, SPAN_S))
                target = next(iter(children(victim.pid)), victim.pid) if chance.random() < 0.5 else victim.pid
                try:
                    os.kill(target, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            victim.wait()
        _forget_failures(root)

        with Cache(root) as cache:
            # What a killed process leaves in staging is removed by the next one that builds.
            violations = [one for one in check_cache(root) if one.kind != "garbage"]
            if violations:
                bad.append(f"kill {number}: {violations}")
            for entry in [one for one in cache.entries() if one.derivation]:
                seen["whole"] += 1
                made = modelcache.onnx.session("net", cache=cache, fallback=False)
                if not _close(answers(made)[0], expected):
                    bad.append(f"kill {number}: another answer")
                cache.remove(entry.key, force=True)
            seen["absent"] += not any(one.derivation for one in cache.entries())
        sessions._seen.forget()

    assert bad == []
    with Cache(root) as cache:
        assert _close(answers(modelcache.onnx.session("net", cache=cache, fallback=False))[0], expected)
        assert check_cache(root) == []
    print(f"{KILLS[budget]} kills, seed {seed}: {seen['whole']} products were whole, 0 bad")


def _close(one: Any, other: Any) -> bool:
    import numpy as np

    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-4))


def _forget_failures(root: Path) -> None:
    """Forget that builds have died: it was us."""
    for path in (root / "failures-v1").glob("*"):
        path.unlink()
