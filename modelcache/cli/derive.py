"""``modelcache derive RECIPE REF``: the path of the product alone on stdout."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import recipes
from ..cache import Cache
from ..errors import UsageError
from . import asking
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("recipe", help="what is made of it: onnx, coreml, or what a package has added")
    parser.add_argument("ref", help="a URL, a path, hf://org/name[@revision][/file], or a name that was put")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="options",
        help="an option of the recipe; VALUE is JSON, or else a text; repeatable",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="build it also if it is here, or has failed too often")
    asking.add(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Derive one product."""
    options = dict(_option(text) for text in arguments.options)
    if arguments.force:
        options["force"] = True
    recipe = recipes.find(arguments.recipe)
    with Cache(arguments.root, on_event=console.event, **asking.options(arguments)) as cache:
        try:
            path = recipe(cache, arguments.ref, **options)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            raise UsageError(problem=f"the recipe {arguments.recipe} takes no such option: {error}") from error
        console.close()
        if console.json:
            made = cache.explain(path)
            console.data_json({"ref": made.ref, "path": path, "created": made.created, **made.as_dict()})
        else:
            console.data(path)
    return 0


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(problem=f"--set {text!r:.100} makes no sense: KEY=VALUE is expected")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
