"""Models that coremltools builds here, small and without PyTorch; builds that a child process can import."""

from __future__ import annotations

import os
import signal
from typing import Any


def tools() -> Any:
    from modelcache.coreml import library

    return library.tools()


def linear(scale: float = 1.0, *, size: int = 64) -> Any:
    """Return an ``MLModel`` with a weight of *size* by *size*."""
    ct = tools()
    import numpy as np
    from coremltools.converters.mil import Builder as mb  # noqa: N813  # Its own documentation calls it so.

    weight = (np.arange(size * size, dtype=np.float32).reshape(size, size) % 17 - 8) * np.float32(scale / 64)

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, size))], opset_version=ct.target.iOS16)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return mb.relu(x=mb.linear(x=x, weight=weight, name="linear"), name="y")

    return ct.convert(program, convert_to="mlprogram", skip_model_load=True)


def weightless() -> Any:
    """Return an ``MLModel`` that has no weights: the directory for them is empty."""
    ct = tools()
    import numpy as np
    from coremltools.converters.mil import Builder as mb  # noqa: N813  # Its own documentation calls it so.

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 4))], opset_version=ct.target.iOS16)  # type: ignore[untyped-decorator]
    def program(x: Any) -> Any:
        return mb.add(x=x, y=np.float32(1.0), name="y")

    return ct.convert(program, convert_to="mlprogram", skip_model_load=True)


def regressor() -> Any:
    """Return the specification of a model in the old format, one ``.mlmodel`` file."""
    spec = tools().proto.Model_pb2.Model()
    spec.specificationVersion = 1
    for name, features in (("x", spec.description.input), ("y", spec.description.output)):
        feature = features.add()
        feature.name = name
        feature.type.doubleType.MergeFromString(b"")
    spec.description.predictedFeatureName = "y"
    spec.glmRegressor.offset.append(0.1)
    spec.glmRegressor.weights.add().value.append(2.0)
    return spec


def build_linear(workspace: Any) -> Any:
    return linear(workspace.params.get("scale", 1.0))


def build_to_a_path(workspace: Any) -> str:
    linear().save(f"{workspace}/Net.mlpackage")
    return "Net.mlpackage"


def build_left_there(workspace: Any) -> None:
    weightless().save(f"{workspace}/Small.mlpackage")


def build_nothing(workspace: Any) -> None:
    return None


def build_rubbish(workspace: Any) -> None:
    os.mkdir(f"{workspace}/Net.mlpackage")
    with open(f"{workspace}/Net.mlpackage/weights.bin", "wb") as file:
        file.write(b"no manifest")


def build_without_weights(workspace: Any) -> None:
    """Lose the weights that the manifest names, as a copy that was cut short does."""
    import shutil

    linear().save(f"{workspace}/Net.mlpackage")
    shutil.rmtree(f"{workspace}/Net.mlpackage/Data/com.apple.CoreML/weights")


def build_elsewhere(workspace: Any) -> str:
    return f"{workspace}/../../elsewhere.mlpackage"


def build_and_die(workspace: Any) -> None:
    """Die in the middle of saving."""
    linear().save(f"{workspace}/Net.mlpackage")
    os.remove(f"{workspace}/Net.mlpackage/Data/com.apple.CoreML/weights/weight.bin")
    os.kill(os.getpid(), signal.SIGKILL)


def quantised(workspace: Any) -> Any:
    """Open the input ``model``, as users do, and quantise its weights."""
    ct = tools()
    opened = ct.models.MLModel(workspace.inputs["model"], skip_model_load=True)
    config = ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    return ct.optimize.coreml.linear_quantize_weights(opened, ct.optimize.coreml.OptimizationConfig(config))


def palettised(workspace: Any) -> Any:
    ct = tools()
    opened = ct.models.MLModel(workspace.inputs["model"], skip_model_load=True)
    config = ct.optimize.coreml.OpPalettizerConfig(mode="uniform", nbits=workspace.params["bits"], weight_threshold=0)
    return ct.optimize.coreml.palettize_weights(opened, ct.optimize.coreml.OptimizationConfig(config))


def multifunction(workspace: Any) -> None:
    """Put two models into one package, each as a function of it."""
    ct = tools()
    description = ct.utils.MultiFunctionDescriptor()
    for name, path in workspace.inputs.items():
        description.add_function(path, src_function_name="main", target_function_name=name)
    description.default_function_name = min(workspace.inputs)
    ct.utils.save_multifunction(description, f"{workspace}/Both.mlpackage")
