"""Models to try `modelcache.onnx` with: a transformer of about 99 MB, and architectures that the onnx package ships.

    python examples/onnx_models.py transformer.onnx
    python examples/onnx_models.py resnet50.onnx densenet121.onnx squeezenet.onnx

The transformer is written out operator by operator (MatMul, Softmax, layer norm), as exporters do it, with random
weights. The others are real architectures out of ``onnx/backend/test/data/light``; their weights there are constants
that expand at load, so that their outputs mean nothing. Needs numpy and onnx.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

LIGHT = ("resnet50", "densenet121", "squeezenet", "inception_v2", "shufflenet", "vgg19")


def transformer(
    path: str,
    *,
    layers: int = 14,
    width: int = 384,
    heads: int = 6,
    tokens: int = 64,
    dynamic: bool = False,
    external: bool = False,
) -> str:
    """Write a decomposed transformer encoder to *path*, and return *path*; 14 layers of width 384 are some 99 MB.

    With *dynamic*, batch and tokens may be any number, and each reshape computes its shape, as exporters write it. With
    *external*, its weights go into a second file beside it, ``<path>.data``.
    """
    import onnx
    from onnx import TensorProto, helper

    writer = _Writer(width, heads, None if dynamic else [1, tokens])
    x = "x"
    for layer in range(layers):
        x = writer.layer(f"layer{layer}", x)
    shape: list[str | int | None] = ["batch", "tokens", width] if dynamic else [1, tokens, width]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", x)]
    graph = helper.make_graph(writer.nodes, "transformer", ends[:1], ends[1:], writer.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    location = f"{Path(path).name}.data"
    onnx.save_model(model, path, save_as_external_data=external, location=location, size_threshold=1024)
    return path


class _Writer:
    """The nodes and weights of a graph, in the small pieces in which exporters write them."""

    def __init__(self, width: int, heads: int, known: list[int] | None) -> None:
        import numpy as np

        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._width, self._heads, self._known = width, heads, known
        self._random = np.random.default_rng(7)

    def node(self, kind: str, *inputs: str, out: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=out, **attributes))
        return out

    def constant(self, out: str, value: float | list[int]) -> str:
        import numpy as np
        from onnx import numpy_helper

        kind = np.int64 if isinstance(value, list) else np.float32
        return self.node("Constant", out=out, value=numpy_helper.from_array(np.array(value, dtype=kind)))

    def weight(self, name: str, *shape: int) -> str:
        import numpy as np
        from onnx import numpy_helper

        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(0.05)
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def linear(self, at: str, x: str, rows: int, columns: int) -> str:
        product = self.node("MatMul", x, self.weight(f"{at}.weight", rows, columns), out=f"{at}.product")
        return self.node("Add", self.weight(f"{at}.bias", columns), product, out=f"{at}.out")

    def reshaped(self, at: str, x: str, *tail: int) -> str:
        """Reshape to batch, tokens and *tail*; by way of the shape, where that is not known before."""
        if self._known is not None:
            fixed = self.constant(f"{at}.sizes", [*self._known, *tail])
            return self.node("Reshape", x, fixed, out=f"{at}.reshaped")
        shape = self.node("Shape", x, out=f"{at}.shape")
        sizes = []
        for axis in (0, 1):
            one = self.node("Gather", shape, self.constant(f"{at}.axis{axis}", [axis]), out=f"{at}.size{axis}", axis=0)
            sizes.append(one)
        rest = self.constant(f"{at}.rest", list(tail))
        return self.node(
            "Reshape", x, self.node("Concat", *sizes, rest, out=f"{at}.sizes", axis=0), out=f"{at}.reshaped"
        )

    def norm(self, at: str, x: str) -> str:
        mean = self.node("ReduceMean", x, out=f"{at}.mean", axes=[-1])
        centred = self.node("Sub", x, mean, out=f"{at}.centred")
        square = self.node("Pow", centred, self.constant(f"{at}.two", 2.0), out=f"{at}.square")
        variance = self.node("ReduceMean", square, out=f"{at}.variance", axes=[-1])
        safe = self.node("Add", variance, self.constant(f"{at}.epsilon", 1e-5), out=f"{at}.safe")
        unit = self.node("Div", centred, self.node("Sqrt", safe, out=f"{at}.deviation"), out=f"{at}.unit")
        scaled = self.node("Mul", unit, self.weight(f"{at}.gain", self._width), out=f"{at}.scaled")
        return self.node("Add", scaled, self.weight(f"{at}.shift", self._width), out=f"{at}.out")

    def gelu(self, at: str, x: str) -> str:
        root = self.node("Div", x, self.constant(f"{at}.root", 2.0**0.5), out=f"{at}.divided")
        one = self.node(
            "Add", self.node("Erf", root, out=f"{at}.erf"), self.constant(f"{at}.one", 1.0), out=f"{at}.plus"
        )
        return self.node(
            "Mul", self.node("Mul", x, one, out=f"{at}.times"), self.constant(f"{at}.half", 0.5), out=f"{at}.out"
        )

    def layer(self, at: str, x: str) -> str:
        width, heads, parts = self._width, self._heads, []
        for part in ("query", "key", "value"):
            split = self.reshaped(f"{at}.{part}", self.linear(f"{at}.{part}", x, width, width), heads, width // heads)
            turn = [0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]
            parts.append(self.node("Transpose", split, out=f"{at}.{part}.heads", perm=turn))
        score = self.node("MatMul", parts[0], parts[1], out=f"{at}.score")
        scaled = self.node("Div", score, self.constant(f"{at}.scale", (width / heads) ** 0.5), out=f"{at}.scaled")
        mixed = self.node(
            "MatMul", self.node("Softmax", scaled, out=f"{at}.softmax", axis=-1), parts[2], out=f"{at}.mixed"
        )
        back = self.node("Transpose", mixed, out=f"{at}.back", perm=[0, 2, 1, 3])
        joined = self.linear(f"{at}.join", self.reshaped(f"{at}.back", back, -1), width, width)
        x = self.norm(f"{at}.norm1", self.node("Add", x, joined, out=f"{at}.residual1"))
        wide = self.gelu(f"{at}.gelu", self.linear(f"{at}.wide", x, width, 4 * width))
        narrow = self.linear(f"{at}.narrow", wide, 4 * width, width)
        return self.norm(f"{at}.norm2", self.node("Add", x, narrow, out=f"{at}.residual2"))


def light(name: str, path: str) -> str:
    """Write the architecture *name* of the onnx package to *path*, and return *path*."""
    import onnx

    source = Path(onnx.__file__).parent / "backend/test/data/light" / f"light_{name}.onnx"
    Path(path).write_bytes(source.read_bytes())
    return path


def build(path: str) -> str:
    """Write the model that the name of *path* says, and return *path*."""
    name = Path(path).stem
    if name == "transformer":
        return transformer(path)
    if name in LIGHT:
        return light(name, path)
    raise SystemExit(f"no model is called {name}: there are transformer, {', '.join(LIGHT)}")


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    for wanted in sys.argv[1:]:
        print(build(wanted))
