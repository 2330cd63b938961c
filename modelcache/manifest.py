"""Manifests and lock files: which models a node needs, and exactly which bytes these are. Parsing and writing, no I/O.

``models.toml`` is written by people::

    [[model]]
    ref = "https://example.org/resnet50.onnx"     # a URL, or a path (relative to the manifest)
    digest = "sha256:…"                           # optional: what the bytes must be
    mirrors = ["https://mirror.example.org/…"]    # optional: asked in order after ref
    pin = true                                    # optional: kept by gc until unpinned
    ttl = "30d"                                   # optional: how long it is wanted after it came, or was confirmed
    derive = ["onnx"]                             # optional: recipes that prewarm runs on it; {recipe = "onnx", …}

    [[model]]
    ref = "hf://org/name@revision"                # a whole repository, as one directory
    allow_patterns = ["*.json", "onnx/"]          # optional: only these files of it
    ignore_patterns = ["*.bin"]                   # optional: but not these

``models.lock`` is written by ``modelcache lock``, one table a model in the manifest's order, with ``ref``, ``digest``,
``size`` in bytes and, where the source names one, ``revision``. It belongs under version control.

``[policy]`` in a manifest holds for its models: docs/policy.md.

An unknown key, a wrong type and a model listed twice are errors with file, line and key: a misspelt ``digets`` that was
ignored would be a model that nobody verifies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

from . import layout, reference, tomltext
from .config import lifetime, parse_seconds
from .digest import Digest
from .errors import InvalidReferenceError, LockDriftError, ManifestError, ModelCacheError
from .patterns import Patterns
from .policy import Policy, from_table
from .settings import FileTable
from .tomltext import TomlError

LOCK_VERSION = 1
_MODEL_KEYS = {
    "ref": str, "digest": str, "mirrors": list, "pin": bool, "allow_patterns": list, "ignore_patterns": list,
    "ttl": str, "derive": list,
}  # fmt: skip
_LOCK_KEYS = {"ref": str, "digest": str, "size": int, "revision": str}


@dataclass(frozen=True, slots=True)
class Step:
    """A recipe that is run on a model (`recipes`), and its options."""

    recipe: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Model:
    """One model of a manifest. ``mirrors`` are refs, asked in order after ``ref``; patterns are a part of it.

    ``ttl`` is in seconds.
    """

    ref: str
    digest: Digest | None = None
    mirrors: tuple[str, ...] = ()
    pin: bool = False
    ttl: float | None = None
    derive: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class LockedModel:
    """One model of a lock file: exactly these bytes. ``size`` is in bytes."""

    ref: str
    digest: Digest
    size: int
    revision: str | None = None


def parse_manifest(text: str, *, file: str) -> tuple[Model, ...]:
    """Return the models of the manifest in *text*. Relative paths in it start at the directory of *file*.

    Raises:
        ManifestError: With the file, the line and the key of the mistake.
    """
    base = os.path.dirname(os.path.abspath(file))
    models = []
    for table in _tables(text, file, _MODEL_KEYS, optional=_MODEL_KEYS.keys() - {"ref"}, top={"policy"}):
        mirrors = table.get("mirrors", [])
        for mirror in mirrors:
            if not isinstance(mirror, str):
                raise table.error("mirrors", "is a list of URLs or paths")
        models.append(
            Model(
                ref=table.chosen(base),
                digest=table.digest("digest") if "digest" in table else None,
                mirrors=tuple(table.ref("mirrors", mirror, base) for mirror in mirrors),
                pin=table.get("pin", False),
                ttl=table.span("ttl") if "ttl" in table else None,
                derive=tuple(table.step(step) for step in table.get("derive", ())),
            )
        )
    return tuple(models)


def parse_policy(text: str, *, file: str) -> Policy | None:
    """Return what the manifest in *text* lets in, ``[policy]``; None if it says nothing.

    Raises:
        ManifestError, ConfigFileError: With the file, the line and the key of the mistake.
    """
    try:
        document = tomltext.parse(text)
    except TomlError as error:
        raise ManifestError(file=file, line=error.line, problem=error.problem) from None
    if "policy" not in document:
        return None
    whole = FileTable(document, os.path.abspath(file), "", lambda table, key: tomltext.line_of(text, table, key))
    return from_table(whole.inside("policy"))


def parse_lock(text: str, *, file: str) -> tuple[LockedModel, ...]:
    """Return the models of the lock file in *text*.

    Raises:
        ManifestError: With the file, the line and the key of the mistake.
    """
    base = os.path.dirname(os.path.abspath(file))
    locked = []
    for table in _tables(text, file, _LOCK_KEYS, optional={"revision"}, top={"version"}):
        if table["size"] < 0:
            raise table.error("size", "is a number of bytes, from 0")
        locked.append(
            LockedModel(
                table.ref("ref", table["ref"], base),
                table.digest("digest"),
                table["size"],
                table.get("revision"),
            )
        )
    return tuple(locked)


def render_lock(models: Iterable[LockedModel], *, file: str) -> str:
    """Return the text of a lock file for *models*; paths below the directory of *file* are written relative to it."""
    below = os.path.dirname(os.path.abspath(file)).rstrip("/") + "/"
    lines = ["# Written by `modelcache lock`. Commit it; do not edit it.", f"version = {LOCK_VERSION}"]
    for model in models:
        parsed = reference.parse(model.ref)
        ref = model.ref
        if parsed.scheme == "file" and parsed.path.startswith(below):
            ref = f"./{parsed.path.removeprefix(below)}"
        lines += [
            "",
            "[[model]]",
            f"ref = {_quoted(ref)}",
            f"digest = {_quoted(model.digest)}",
            f"size = {model.size}",
        ]
        if model.revision is not None:
            lines.append(f"revision = {_quoted(model.revision)}")
    return "\n".join(lines) + "\n"


OF_USAGE = "# Written by `modelcache lock --from-usage`: the models that are used most, first the most used."


def render(models: Iterable[Model]) -> str:
    """Return the text of a manifest for *models*, whose refs are URLs; the patterns of a tree are in its ref."""
    lines = [OF_USAGE]
    for model in models:
        lines += ["", "[[model]]", f"ref = {_quoted(model.ref)}"]
        if model.digest is not None:
            lines.append(f"digest = {_quoted(model.digest)}")
        if model.mirrors:
            lines.append(f"mirrors = [{', '.join(map(_quoted, model.mirrors))}]")
    return "\n".join(lines) + "\n"


def check_drift(manifest: Iterable[Model], lock: Iterable[LockedModel], *, file: str) -> None:
    """Check that the lock file *file* describes the manifest: the same models, and no digest that contradicts.

    Raises:
        LockDriftError: With every difference.
    """
    wanted = {_key(model.ref): model for model in manifest}
    locked = {_key(model.ref): model for model in lock}
    differences = [f"{key} is in the manifest and not locked" for key in wanted if key not in locked]
    differences += [f"{key} is locked and not in the manifest" for key in locked if key not in wanted]
    for key, model in wanted.items():
        if key not in locked or model.digest is None or model.digest.is_tree != locked[key].digest.is_tree:
            continue  # Of an archive the manifest may state its own digest; locked is that of the tree in it.
        if model.digest != locked[key].digest:
            differences.append(f"{key} is {model.digest} in the manifest and {locked[key].digest} in the lock file")
    if differences:
        raise LockDriftError(file=file, differences=tuple(differences))


class _Table(dict[str, Any]):
    """A ``[[model]]`` table that knows where it stands, so that an error names the line."""

    def __init__(self, values: dict[str, Any], text: str, file: str, index: int) -> None:
        super().__init__(values)
        self._text, self._file, self._index = text, file, index

    def error(self, key: str, problem: str) -> ManifestError:
        line = _line_of(self._text, self._index, key)
        return ManifestError(file=self._file, line=line, key=key, problem=problem)

    def ref(self, key: str, text: str, base: str) -> str:
        """Return *text* as a ref that means the same from every directory."""
        try:
            if text.startswith(("./", "../")):
                text = os.path.join(base, text)
            parsed = reference.parse(text)
            if not parsed.scheme:
                raise InvalidReferenceError(
                    ref=text, problem="a manifest names a URL or a path, which starts with ./ or /"
                )
            return parsed.key if parsed.scheme == "file" else text
        except ModelCacheError as error:
            raise self.error(key, error.summary) from None

    def chosen(self, base: str) -> str:
        """Return the ref, with the patterns that choose from what is there."""
        ref = self.ref("ref", self["ref"], base)
        if "allow_patterns" not in self and "ignore_patterns" not in self:
            return ref
        try:
            patterns = Patterns.of(self.get("allow_patterns"), self.get("ignore_patterns"))
        except ModelCacheError as error:
            key = "allow_patterns" if "allow_patterns" in error.summary else "ignore_patterns"
            raise self.error(key, error.summary) from None
        parsed = reference.parse(ref)
        if parsed.selection or not (parsed.is_tree or layout.archive_form(parsed.name)):
            raise self.error("ref", "is no repository (hf://org/name) or archive that patterns could choose from")
        return parsed.tree(patterns.text).key

    def step(self, value: Any) -> Step:
        """Return *value*, the name of a recipe or a table with its options, as a step."""
        options = dict(value) if isinstance(value, dict) else {"recipe": value}
        recipe = options.pop("recipe", None)
        if not isinstance(recipe, str) or not reference.is_recipe(recipe):
            raise self.error("derive", 'is a list of names of recipes, as "onnx", or of { recipe = "onnx", … }')
        return Step(recipe, options)

    def span(self, key: str) -> float:
        try:
            return lifetime(parse_seconds(self[key], setting=key))
        except ModelCacheError as error:
            raise self.error(key, error.summary) from None

    def digest(self, key: str) -> Digest:
        try:
            return Digest.parse(self[key])
        except ModelCacheError as error:
            raise self.error(key, error.summary) from None


def _tables(text: str, file: str, keys: dict[str, type], *, optional: AbstractSet[str], top: set[str]) -> list[_Table]:
    """Return the ``[[model]]`` tables of *text*, each with exactly the *keys* it may and must have."""
    tables = [_Table(entry, text, file, index) for index, entry in enumerate(_models(text, file, top))]
    seen: set[str] = set()
    for table in tables:
        for key in table:
            if key not in keys:
                raise table.error(key, f"unknown key; known: {', '.join(keys)}")
        for key, kind in keys.items():
            if key not in table:
                if key in optional:
                    continue
                raise table.error(key, "is missing")
            if type(table[key]) is not kind:  # A bool is an int to isinstance.
                raise table.error(key, f"is a {_TOML_NAMES[kind]}, not {table[key]!r}")
        key = _key(table.chosen(os.path.dirname(os.path.abspath(file))))
        if key in seen:
            raise table.error("ref", f"{key} is listed twice")
        seen.add(key)
    return tables


def _models(text: str, file: str, top: set[str]) -> list[dict[str, Any]]:
    """Return the ``model`` tables of the document *text*, which may hold the keys *top* besides."""
    try:
        document = tomltext.parse(text)
    except TomlError as error:
        raise ManifestError(file=file, line=error.line, problem=error.problem) from None
    for key in document:
        if key not in {"model", *top}:
            raise ManifestError(file=file, line=_line_of(text, None, key), key=key, problem="unknown key")
    found = document.get("model", [])
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ManifestError(file=file, line=_line_of(text, None, "model"), key="model", problem="is written [[model]]")
    version = document.get("version")
    if "version" in top and (version != LOCK_VERSION or type(version) is not int):
        problem = f"is {version!r}; this modelcache knows version {LOCK_VERSION}"
        raise ManifestError(file=file, line=_line_of(text, None, "version"), key="version", problem=problem)
    return found


_HEADER = re.compile(r"""\s*(\[\[?)\s*["']?([^\]"'.]*?)["']?\s*([\].])""")
_TOML_NAMES = {str: "string", int: "whole number", bool: "boolean (true or false)", list: "list"}


def _key(ref: str) -> str:
    return reference.parse(ref).key


def _line_of(text: str, index: int | None, key: str) -> int | None:
    """Return the line of *key* in the table number *index* (at the top: None), or of the table's header."""
    header, table, models = None, None, -1
    for number, line in enumerate(text.split("\n"), 1):
        found = _HEADER.match(line)
        if found:
            opens_model = found.groups() == ("[[", "model", "]")
            models += opens_model
            table = models if opens_model else -1  # -1: a table that does not belong here.
            if table == index or (index is None and header is None and found[2] == key):
                header = number
        elif table == index and line.partition("=")[0].strip().strip("\"'") == key:
            return number
    # Written in one line, the tables have no lines of their own.
    return header if header is not None or index is None else _line_of(text, None, "model")


def _quoted(text: str) -> str:
    """Return *text* as a TOML basic string (TOML 1.0.0, String)."""
    escaped = text.encode("utf-8", "replace").decode().replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in escaped) + '"'
