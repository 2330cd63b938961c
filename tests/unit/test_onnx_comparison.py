"""What counts as the same answer, of arrays and of what onnxruntime makes of sequences and maps."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("numpy", reason="numpy is not installed: it comes with modelcache[onnx]")

import numpy as np

from modelcache.onnx.building import compare

NAN = float("nan")


def floats(*values: float, kind: str = "float32") -> Any:
    return np.array(values, dtype=kind)


def check(found: Any, expected: Any) -> None:
    compare(["y"], [found], [expected], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (floats(1.0, NAN, 0.0), floats(1.0009, NAN, 0.00009)),
        (floats(np.inf, -np.inf), floats(np.inf, -np.inf)),
        (floats(1.0, kind="float16"), floats(1.001, kind="float16")),
        (np.array([1, 2]), np.array([1, 2])),
        (np.array(["a", "é"], dtype=object), np.array(["a", "é"], dtype=object)),
        (np.zeros((0, 3), dtype=np.float32), np.zeros((0, 3), dtype=np.float32)),
        ([floats(1.0), floats(NAN)], [floats(1.0009), floats(NAN)]),
        ([{"a": 0.5, "b": NAN}], [{"a": 0.50001, "b": NAN}]),
        ({1: "a", 2: 3}, {1: "a", 2: 3}),
        ([], []),
        (None, None),
    ],
)
def test_close_answers_are_the_same(found: Any, expected: Any) -> None:
    check(found, expected)


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (floats(1.0), floats(1.01), r"differs by up to 0\.01 "),
        (floats(NAN), floats(1.0), "differs by up to nan"),
        (floats(1.0), floats(NAN), "differs by up to nan"),
        (floats(np.inf), floats(1.0), "differs by up to inf"),
        (floats(1.0), floats(1.0, 1.0), r"is float32\(1,\), and float32\(2,\) of the source"),
        (floats(1.0), floats(1.0, kind="float64"), "of the source"),
        (np.array([1, 2]), np.array([1, 3]), "is not that of the source"),
        (np.array(["a"], dtype=object), np.array(["b"], dtype=object), "is not that of the source"),
        ([floats(1.0)], [floats(1.0), floats(1.0)], "is not that of the source"),
        ([floats(1.0)], [floats(1.01)], "is not that of the source"),
        ([floats(1.0)], [floats(1.0, 1.0)], "is not that of the source"),
        ([floats(1.0)], [floats(1.0, kind="float16")], "is not that of the source"),
        ([{"a": 0.5}], [{"a": 0.51}], "is not that of the source"),
        ([{"a": 0.5}], [{"b": 0.5}], "is not that of the source"),
        ([{"a": NAN}], [{"a": 0.5}], "is not that of the source"),
        ({1: 3}, {1: 4}, "is not that of the source"),
        (floats(1.0), [1.0], "is not that of the source"),
        (None, floats(1.0), "is not that of the source"),
    ],
)
@pytest.mark.filterwarnings("ignore:All-NaN")
def test_other_answers_are_told(found: Any, expected: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"output 'y' .*{said}"):
        check(found, expected)
