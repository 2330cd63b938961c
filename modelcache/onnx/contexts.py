"""Models that a provider has compiled, as EPContext: one ONNX model whose nodes are the provider's own binaries.

onnxruntime's ModelCompiler writes them. No provider here compiles: argument building and keys are tested, and that the
processor's provider, which compiles nothing, is refused; the rest was not run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from .. import commit
from ..derivation import Derivation, Part
from ..files import check_space
from . import building, engines, runtime
from .options import EXTERNAL_BYTES_MIN, MODEL

if TYPE_CHECKING:
    from ..cache import Cache
    from .sources import Source

RECIPE, VERSION = "onnx-context", "1"


def arguments(task: building.Task) -> dict[str, Any]:
    """Return what a ModelCompiler is made with, apart from the options of a session."""
    flags = runtime.library().OrtCompileApiFlags
    return {
        "input_model_path_or_bytes": task.source,
        "embed_compiled_data_into_model": False,
        "external_initializers_file_path": building.DATA,  # Relative to the model that is written.
        "external_initializers_size_threshold": EXTERNAL_BYTES_MIN,
        "flags": int(flags.ERROR_IF_NO_NODES_COMPILED) | int(flags.ERROR_IF_OUTPUT_FILE_EXISTS),
        "graph_optimization_level": runtime.level(task.options.level),
    }


def session_options(task: building.Task) -> Any:
    """Return options of a session that hold the providers themselves, as a ModelCompiler wants them."""
    found = task.options.session_options()
    for name, own in task.options.providers:
        found.add_provider(name, dict(own))
    return found


def build(task: building.Task, workspace: str) -> None:
    """Write the compiled model into a directory in *workspace*.

    Raises:
        ModelRefusedError: onnxruntime refuses the model, or no provider compiles any of it.
        NoSpaceError: The disk has no room for it.
    """
    check_space(workspace, task.bytes, what=task.ref)
    directory = f"{workspace}/{task.name}"
    commit.make_staged(directory)
    try:
        compiler = runtime.library().ModelCompiler(session_options(task), **arguments(task))
        compiler.compile_to_file(f"{directory}/{MODEL}")
    except Exception as error:
        raise task.refused(error) from error


def check(task: building.Task, product: str) -> None:
    """Load the finished *product* for the first time, and compare its inputs and outputs with those of the source."""
    made = runtime.create(f"{product}/{MODEL}", task.options.session_options(), task.options.providers)
    building.same_interface(made, building.source_session(task))


def product(cache: Cache, source: Source, task: building.Task, **given: Any) -> str:
    """Return the path of the compiled model; built if it is not here.

    Raises:
        DerivationError: It could not be made.
        ModelCacheError
    """
    params = {**task.options.params, **({"file": source.file} if source.file else {})}
    where = engines.platform(task.options)
    what = Derivation(RECIPE, VERSION, (Part("model", source.digest, source.digest),), params, where)
    task = replace(task, name=f"{source.stem}.compiled", ref=what.ref)
    path = cache.derive(
        partial(build, task),
        isolate=True,
        recipe=RECIPE,
        version=VERSION,
        inputs={"model": source.input},
        params=params,
        platform=where,
        check=partial(check, task),
        **given,
    )
    return f"{path}/{MODEL}"
