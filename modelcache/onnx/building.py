"""What is done in a process of its own: writing the optimised model, and its first load.

Each function here is called by name in a new process, with what can be pickled, and may crash there. What it raises
names model and providers; who asked sees it typed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import commit
from ..errors import ModelCacheError, ModelRefusedError, NoSpaceError
from ..files import check_space
from . import graph, runtime
from .options import EXTERNAL_BYTES_MIN, MODEL, Options

DATA = f"{MODEL}.data"
_ERRORS = 3  # onnxruntime's severity. It warns of each optimised model that it writes: that belongs to one machine.
FOLDER = "session.model_external_initializers_file_folder_path"
_DETAIL_MAX = 500


@dataclass(frozen=True, slots=True)
class Task:
    """What both, build and check, are told.

    Attributes:
        source: The path of the model, in the cache.
        bytes: Its size and that of its external data, together.
        name: What the product's directory is called.
        options: What it is made with.
        ref: What the product is called in the cache, for errors.
        model: What the model is called, for errors.
    """

    source: str
    bytes: int
    name: str
    options: Options
    ref: str
    model: str

    def refused(self, error: Exception) -> ModelRefusedError:
        """Return the error that says that onnxruntime would not do what it was asked to."""
        reason = " ".join(str(error).split())[:_DETAIL_MAX]
        names = tuple(name for name, _ in self.options.providers)
        return ModelRefusedError(ref=self.ref, model=self.model, providers=names, reason=reason)


def build(task: Task, workspace: str) -> None:
    """Write the optimised model into a directory in *workspace*.

    Raises:
        ModelRefusedError: onnxruntime refuses the model.
        NoSpaceError: The disk has no room for it.
    """
    check_space(workspace, task.bytes, what=task.ref)
    directory = f"{workspace}/{task.name}"
    commit.make_staged(directory)
    session_options = task.options.session_options()
    session_options.log_severity_level = _ERRORS
    session_options.graph_optimization_level = runtime.level(task.options.level)
    session_options.optimized_model_filepath = f"{directory}/{MODEL}"
    add = session_options.add_session_config_entry
    add("session.optimized_model_external_initializers_file_name", DATA)
    add("session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_BYTES_MIN))
    if task.options.prepack:
        add("session.save_external_prepacked_constant_initializers", "1")
    try:
        _session(task, session_options)
    except ModelCacheError:
        raise
    except Exception as error:
        check_space(workspace, 0, what=task.ref)
        if "No space left" in str(error):
            raise NoSpaceError(what=task.ref, needed=None, free=None) from error
        raise task.refused(error) from error


def check(task: Task, feeds: Mapping[str, Any] | None, product: str) -> None:
    """Load the finished *product* for the first time, and compare it with its source.

    Raises:
        ValueError: It is not the same model: other inputs or outputs, or other numbers for *feeds*.
        Exception: onnxruntime does not load it.
    """
    session_options = task.options.session_options()
    made = runtime.create_optimised(f"{product}/{MODEL}", session_options, task.options.providers, own=True)
    source = source_session(task)
    same_interface(made, source)
    if feeds is not None:
        assert task.options.compared is not None
        names = [one.name for one in source.get_outputs()]
        compare(
            names, made.run(names, dict(feeds)), source.run(names, dict(feeds)), **_tolerance(task.options.compared)
        )


def same_interface(made: Any, source: Any) -> None:
    """Check that two sessions have the same inputs and outputs; raise ValueError."""
    ours, theirs = runtime.interface(made), runtime.interface(source)
    for kind, expected in theirs.items():
        if ours[kind] != expected:
            raise ValueError(f"its {kind} are not those of the source: {_difference(ours[kind], expected)}")


def source_session(task: Task) -> Any:
    """Return a session of the source, as it would be without a product."""
    session_options = task.options.session_options()
    session_options.graph_optimization_level = runtime.level(task.options.level)
    try:
        return _session(task, session_options)
    except Exception as error:
        raise task.refused(error) from error


def probe(task: Task) -> None:
    """Load the source, for who wants to know whether that is safe."""
    source_session(task)


def compare(names: list[str], found: list[Any], expected: list[Any], *, rtol: float, atol: float) -> None:
    """Check that outputs are close: ``|found - expected| <= atol + rtol * |expected|``; all but floats must be equal.

    So it is with the floats in sequences and maps, which onnxruntime makes lists and dicts of.

    Raises:
        ValueError: They are not, or differ in shape or type.
    """
    import numpy as np

    for name, one, other in zip(names, found, expected, strict=True):
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            if (one.shape, one.dtype) != (other.shape, other.dtype):
                problem = f"is {one.dtype}{one.shape}, and {other.dtype}{other.shape} of the source"
                raise ValueError(f"output {name!r} {problem}")
            if one.dtype.kind in "fc" and not _close(one, other, rtol, atol):
                worst = float(np.nanmax(np.abs(one.astype(np.complex128) - other.astype(np.complex128))))
                raise ValueError(f"output {name!r} differs by up to {worst:.3g} (rtol={rtol:g}, atol={atol:g})")
        if not _close(one, other, rtol, atol):
            raise ValueError(f"output {name!r} is not that of the source")


def _close(one: Any, other: Any, rtol: float, atol: float) -> bool:
    import numpy as np

    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_close(a, b, rtol, atol) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key], rtol, atol) for key in one)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        if one.dtype.kind not in "fc":
            return bool(np.array_equal(one, other))
    elif not isinstance(one, float) or not isinstance(other, float):
        return type(one) is type(other) and bool(one == other)
    return bool(np.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True))


def _session(task: Task, session_options: Any) -> Any:
    """Return a session of the source, whose initializers are constants."""
    edited = graph.normalised(task.source)
    if edited is None:
        return runtime.create(task.source, session_options, task.options.providers)
    session_options.add_session_config_entry(FOLDER, os.path.dirname(task.source))
    return runtime.create(edited, session_options, task.options.providers)


def _tolerance(compared: Mapping[str, Any]) -> dict[str, float]:
    return {"rtol": float(compared["rtol"]), "atol": float(compared["atol"])}


def _difference(ours: list[Any], theirs: list[Any]) -> str:
    if len(ours) != len(theirs):
        return f"{len(ours)} and not {len(theirs)}"
    return next(f"{one!r:.150} and not {other!r:.150}" for one, other in zip(ours, theirs, strict=True) if one != other)
