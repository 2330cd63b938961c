"""Recipes by name: what manifests and the command line can derive.

A recipe is a callable ``recipe(cache, ref, **options) -> str`` that returns the path of a product, as a rule by
`Cache.derive`; its options are what JSON can say. A package adds one by the entry-point group ``modelcache.recipes``,
the entry point's name being the recipe's. Nothing else is called by a manifest, which may be a stranger's.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from .errors import UsageError

GROUP = "modelcache.recipes"
_BUILT_IN = {"coreml": "modelcache.coreml", "onnx": "modelcache.onnx"}
Recipe = Callable[..., str]


def find(name: str) -> Recipe:
    """Return the recipe called *name*.

    Raises:
        UsageError: There is none, or what there is cannot be loaded.
    """
    try:
        if name in _BUILT_IN:
            found: Any = import_module(_BUILT_IN[name]).recipe
        else:
            point = next((one for one in entry_points(group=GROUP) if one.name == name), None)
            if point is None:
                hint = f"Known recipes: {', '.join(known())}. A package adds one by the entry point {GROUP}"
                raise UsageError(problem=f"there is no recipe {name!r:.100}", hint=hint)
            found = point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(problem=f"the recipe {name!r:.100} cannot be loaded: {error}") from error
    if not callable(found):
        raise UsageError(problem=f"the recipe {name!r:.100} is no callable")
    return found  # type: ignore[no-any-return]


def known() -> list[str]:
    """Return the names of all recipes."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})
