"""onnxruntime: the only import of it, what of it counts in a key, and sessions made with it.

It is imported when it is needed, never with this package: it takes a tenth of a second.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .. import forks
from ..errors import MissingLibraryError, ProviderNotInstalledError

Providers = Sequence[tuple[str, Mapping[str, str]]]


def library() -> Any:
    """Return the module onnxruntime.

    Raises:
        MissingLibraryError: It is not installed, or cannot be imported.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingLibraryError(
            library="onnxruntime", extra="onnx", purpose="load an ONNX model", reason=str(error)
        ) from error
    return onnxruntime


def facts() -> dict[str, str]:
    """Return what tells one onnxruntime from another: its version, and how it was built."""
    found = library()
    return {"version": found.__version__, "build": str(found.get_build_info())}


def check_installed(names: Sequence[str], installed: Sequence[str] | None = None) -> None:
    """Check that onnxruntime has the providers *names*. *installed* takes the place of what it has, for tests.

    Raises:
        ProviderNotInstalledError: It lacks one.
    """
    installed = library().get_available_providers() if installed is None else installed
    for name in names:
        if name not in installed:
            raise ProviderNotInstalledError(provider=name, installed=tuple(installed))


def level(name: str) -> Any:
    """Return the GraphOptimizationLevel that is called *name* here: ``disable``, ``basic`` … ``all``."""
    prefix = "ORT_DISABLE_ALL" if name == "disable" else f"ORT_ENABLE_{name.upper()}"
    return getattr(library().GraphOptimizationLevel, prefix)


def level_of(session_options: Any) -> str:
    """Return what `level` makes the level of *session_options* of: the caller's, not one that `at_level` has lent."""
    found = str(_lending.own_level(session_options)).rpartition(".")[2]
    return "disable" if found == "ORT_DISABLE_ALL" else found.removeprefix("ORT_ENABLE_").lower()


def entry_of(session_options: Any, key: str) -> str | None:
    """Return the configuration entry *key* of *session_options*, None if it has none."""
    try:
        return str(session_options.get_session_config_entry(key))
    except RuntimeError:  # That is how it says so.
        return None


def options(
    *,
    config: Mapping[str, str],
    free_dimensions: Mapping[str, int],
    custom_ops: Sequence[str],
    deterministic: bool = False,
) -> Any:
    """Return new options for a session, with all that changes the graph; what it logs is as the program has set it."""
    found = library().SessionOptions()
    found.use_deterministic_compute = deterministic
    for key, value in config.items():
        found.add_session_config_entry(key, value)
    for name, size in free_dimensions.items():
        found.add_free_dimension_override_by_name(name, size)
    for path in custom_ops:
        found.register_custom_ops_library(path)
    return found


def create(model: str | bytes, session_options: Any, providers: Providers) -> Any:
    """Return an InferenceSession of *model*: a path, or its bytes."""
    return library().InferenceSession(
        model, session_options, providers=[(name, dict(values)) for name, values in providers]
    )


def create_optimised(path: str, session_options: Any, providers: Providers, *, own: bool) -> Any:
    """Return a session of the optimised model at *path*, not optimised again; the options stay as they were.

    With *own*, nobody else has them, and no other thread is kept waiting.
    """
    if own:
        session_options.graph_optimization_level = level("disable")
        return create(path, session_options, providers)
    with at_level(session_options, "disable"):
        return create(path, session_options, providers)


@contextmanager
def at_level(session_options: Any, name: str) -> Iterator[None]:
    """Give *session_options* the level *name* for a while. They may be a caller's own, and shared by his threads."""
    loan = _lending.begin(session_options, level(name))
    try:
        yield
    finally:
        _lending.end(loan)


@dataclass(slots=True, eq=False)
class _Loan:
    """Options that have another level than their own, for as long as anybody needs that."""

    session_options: Any
    own: Any
    level: Any
    users: int = 0


class _Lending:
    """Which options have which level for a while: a level that is lent is nobody's wish, and in no key."""

    def __init__(self) -> None:
        self._loans: dict[int, _Loan] = {}
        self._changed = threading.Condition()
        forks.renew_after_fork(self)

    def renew_guard(self) -> None:
        """Take back what threads have lent that are not in this process, which was forked."""
        self._changed = threading.Condition()
        for loan in self._loans.values():
            loan.session_options.graph_optimization_level = loan.own
        self._loans.clear()

    def own_level(self, session_options: Any) -> Any:
        """Return the level that the owner of *session_options* has set."""
        with self._changed:
            loan = self._loans.get(id(session_options))
            return session_options.graph_optimization_level if loan is None else loan.own

    def begin(self, session_options: Any, wanted: Any) -> _Loan:
        """Set the level *wanted*; who wants another one of the same options waits until `end`."""
        with self._changed:
            while True:
                loan = self._loans.get(id(session_options))
                if loan is None:
                    loan = _Loan(session_options, session_options.graph_optimization_level, wanted)
                    self._loans[id(session_options)] = loan
                    session_options.graph_optimization_level = wanted
                if loan.level == wanted:
                    loan.users += 1
                    return loan
                self._changed.wait()

    def end(self, loan: _Loan) -> None:
        """Set their own level again, once nobody needs the other one any more."""
        with self._changed:
            loan.users -= 1
            if not loan.users and self._loans.get(id(loan.session_options)) is loan:
                loan.session_options.graph_optimization_level = loan.own
                del self._loans[id(loan.session_options)]
                self._changed.notify_all()


_lending = _Lending()


def interface(session: Any) -> dict[str, list[tuple[str, str, list[Any]]]]:
    """Return what a caller sees of a *session*: inputs, outputs and what may be overridden, by name, type and shape."""
    return {
        "inputs": _described(session.get_inputs()),
        "outputs": _described(session.get_outputs()),
        "overridable": _described(session.get_overridable_initializers()),
    }


def _described(arguments: Any) -> list[tuple[str, str, list[Any]]]:
    return [(one.name, one.type, list(one.shape)) for one in arguments]


def custom_op_files(paths: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    """Return the absolute paths of libraries with operators."""
    return tuple(os.path.realpath(os.path.expanduser(os.fspath(path))) for path in paths)
