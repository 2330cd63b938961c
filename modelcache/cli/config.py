"""``modelcache config``: every setting as it is in force, and where it comes from."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from typing import Any

from .. import configfiles
from ..config import Capacity
from ..errors import UsageError
from ..policy import Policy, Signatures
from ..settings import ARGUMENT, TABLE
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""
    del parser


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print one setting a line: name, value, origin; then each policy. Credentials are no settings, and never shown."""
    if arguments.root == "":
        raise UsageError(problem="--root is empty: give a directory, or leave it out for the default one")
    root = os.path.abspath(os.path.expanduser(arguments.root)) if arguments.root else None
    settings, origins, policies = configfiles.load(os.environ, dir=root)
    values: dict[str, Any] = {setting.name: _plain(getattr(settings, setting.name)) for setting in TABLE}
    values["dir"] = configfiles.root_of(settings, os.environ)
    origins = {name: "--root" if origin == ARGUMENT else origin for name, origin in origins.items()}
    read = list(configfiles.found(os.environ))
    if console.json:
        console.data_json(
            {
                "settings": {
                    setting.key: {"value": values[setting.name], "origin": origins[setting.name]} for setting in TABLE
                },
                "policies": [{"origin": policy.origin, **_rules(policy)} for policy in policies],
                "files": read,
            }
        )
        return 0
    rows = [("SETTING", "VALUE", "FROM")]
    rows += [(setting.key, _shown(values[setting.name], setting.shown), origins[setting.name]) for setting in TABLE]
    for policy in policies:
        rows += [(f"policy.{rule}", _shown(value), policy.origin) for rule, value in _rules(policy).items()]
    console.table(rows)
    for path in read:
        console.note(f"read: {path}")
    return 0


def _rules(policy: Policy) -> dict[str, Any]:
    found = {}
    for one in fields(policy):
        value = getattr(policy, one.name)
        if one.name != "origin" and value is not None:
            found[one.name.replace("_", "-")] = _plain(value)
    return found


def _plain(value: object) -> Any:
    """Return *value* as JSON can hold it."""
    if isinstance(value, Capacity):
        return str(value)
    if isinstance(value, Signatures):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value) if getattr(value, one.name)}
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any, nothing: str = "-") -> str:
    if value is None or value == []:
        return nothing
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
