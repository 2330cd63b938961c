"""Small ONNX models for tests, and what they must answer. Who imports this needs numpy, onnx and onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 96  # 36 KiB a weight: above what stays in the graph's own file.


def perceptron(
    path: Path, *, seed: int = 1, width: int = WIDTH, external: str = "", ir_version: int = 8, out: str = "y"
) -> Path:
    """Write two matrix products to *path*, with the weights in the file *external* beside it, if that is given."""
    random = np.random.default_rng(seed)
    weights = [
        numpy_helper.from_array(random.standard_normal((width, width), dtype=np.float32), name) for name in ("a", "b")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["xa"]),
        helper.make_node("Relu", ["xa"], ["relu"]),
        helper.make_node("MatMul", ["relu", "b"], [out]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])]
    if ir_version < 4:
        # Constants that are equal become one: onnxruntime leaves the other's input behind, which nobody knows to give.
        weights += [numpy_helper.from_array(np.array([width, width]), name) for name in ("c", "d")]
        value = numpy_helper.from_array(np.array([0.5], dtype=np.float32))
        nodes[2:] = [
            helper.make_node("ConstantOfShape", ["c"], ["cc"], value=value),
            helper.make_node("ConstantOfShape", ["d"], ["dd"], value=value),
            helper.make_node("Add", ["b", "cc"], ["sum"]),
            helper.make_node("Add", ["sum", "dd"], ["sums"]),
            helper.make_node("MatMul", ["relu", "sums"], [out]),
        ]
        inputs += [helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)) for one in weights]
    outputs = [helper.make_tensor_value_info(out, TensorProto.FLOAT, ["batch", width])]
    graph = helper.make_graph(nodes, "perceptron", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=ir_version)
    path.parent.mkdir(parents=True, exist_ok=True)
    if external:
        (path.parent / external).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / external).unlink(missing_ok=True)
        onnx.save_model(model, str(path), save_as_external_data=True, location=external, size_threshold=1024)
    else:
        onnx.save_model(model, str(path))
    return path


def feeds(session: Any, seed: int = 5) -> dict[str, Any]:
    """Return inputs for a *session*, with 3 for each dimension that is open."""
    random = np.random.default_rng(seed)
    found = {}
    for one in session.get_inputs():
        shape = [size if isinstance(size, int) and size > 0 else 3 for size in one.shape]
        found[one.name] = random.standard_normal(shape, dtype=np.float32)
    return found


def answers(session: Any) -> list[Any]:
    """Return what *session* answers to its `feeds`."""
    return list(session.run(None, feeds(session)))


def plain(path: Path, **options: Any) -> Any:
    """Return the session that onnxruntime makes of *path* by itself."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"], **options)
