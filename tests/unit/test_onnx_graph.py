"""A model's bytes: constants that are inputs too, external data wherever a model may name it, and what is no model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("onnx", reason="onnx is not installed, and the models of these tests are made with it")

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcache import companions, protobuf
from modelcache.onnx import graph
from tests.support.models import perceptron


def elsewhere(location: str) -> onnx.TensorProto:
    """Return a tensor whose data is at *location*."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    tensor.external_data.add(key="offset", value="0")
    return tensor


def nested(location: str, depth: int) -> onnx.GraphProto:
    inner = helper.make_graph([], "inner", [], [], [elsewhere(location)])
    for _ in range(depth):
        inner = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "outer", [], [])
    return inner


def model_of(**parts: object) -> bytes:
    return bytes(helper.make_model(helper.make_graph([], "g", [], []), **parts).SerializeToString())


@pytest.mark.parametrize(
    "made",
    [
        helper.make_graph([], "g", [], [], [elsewhere("w.data")]),
        helper.make_graph([helper.make_node("Constant", [], ["c"], value=elsewhere("w.data"))], "g", [], []),
        helper.make_graph(
            [helper.make_node("X", [], ["c"], some=[elsewhere("w.data"), elsewhere("w.data")])], "g", [], []
        ),
        nested("w.data", 1),
        nested("w.data", 5),
    ],
    ids=["initializer", "constant", "constants", "branch", "deep"],
)
def test_external_data_is_found_wherever_a_model_names_it(made: onnx.GraphProto) -> None:
    assert companions.locations(helper.make_model(made).SerializeToString()) == ["w.data"]


def test_external_data_of_functions_and_sparse_tensors_is_found() -> None:
    node = helper.make_node("Constant", [], ["c"], value=elsewhere("f.data"))
    function = helper.make_function("domain", "F", [], ["c"], [node], [helper.make_opsetid("", 17)])
    sparse = onnx.SparseTensorProto(values=elsewhere("s.data"), indices=elsewhere("i.data"), dims=[3])
    made = helper.make_graph([], "g", [], [], sparse_initializer=[sparse])

    assert companions.locations(model_of(functions=[function])) == ["f.data"]
    assert companions.locations(helper.make_model(made).SerializeToString()) == ["i.data", "s.data"]


@pytest.mark.parametrize(("depth", "found"), [(60, ["w.data"]), (80, [])])
def test_graphs_in_graphs_are_followed_within_bounds(depth: int, found: list[str]) -> None:
    inner = protobuf.field(5, elsewhere("w.data").SerializeToString())
    for _ in range(depth):
        inner = protobuf.field(1, protobuf.field(5, protobuf.field(6, inner)))

    assert companions.locations(protobuf.field(7, inner)) == found


def test_constants_of_an_old_model_are_no_inputs_any_more(tmp_path: Path) -> None:
    path = perceptron(tmp_path / "old.onnx", ir_version=3)

    edited = graph.normalised(str(path))

    assert edited is not None
    found, before = onnx.load_from_string(edited), onnx.load(str(path))
    assert [one.name for one in before.graph.input] == ["x", "a", "b", "c", "d"]
    assert [one.name for one in found.graph.input] == ["x"]
    assert found.ir_version == 4
    assert found.graph.node == before.graph.node
    assert found.graph.initializer == before.graph.initializer
    assert found.graph.output == before.graph.output
    assert found.opset_import == before.opset_import
    onnx.checker.check_model(found)


@pytest.mark.parametrize("ir_version", [4, 8])
def test_a_newer_model_is_left_alone(ir_version: int, tmp_path: Path) -> None:
    assert graph.normalised(str(perceptron(tmp_path / "net.onnx", ir_version=ir_version))) is None


def test_an_input_that_may_be_overridden_stays_one(tmp_path: Path) -> None:
    """From version 4 on, an initializer that is an input too is a default."""
    path = perceptron(tmp_path / "net.onnx", ir_version=3)
    model = onnx.load(str(path))
    model.ir_version = 8
    onnx.save_model(model, str(path))

    assert graph.normalised(str(path)) is None


@given(st.binary(max_size=200))
def test_what_is_no_model_is_left_to_the_runtime(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    path.write_bytes(content)

    graph.normalised(str(path))
    companions.locations(content)


def test_a_cut_model_is_left_to_the_runtime(tmp_path: Path) -> None:
    path = perceptron(tmp_path / "net.onnx", ir_version=3)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])

    assert graph.normalised(str(path)) is None


def test_an_initializer_without_an_input_is_a_constant_already(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.ones((2, 2), dtype=np.float32), "w")]
    made = helper.make_graph([], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])], [], weights)
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(made, ir_version=3).SerializeToString())

    assert graph.normalised(str(path)) is None
