"""What a derived artefact depends on, and the key made of it: its *action*. No I/O.

The model is Go's build cache: the action is the SHA-256 of everything that the result depends on (inputs by digest,
recipe and version, parameters, platform), in one canonical form, so that any difference is another key, and a mismatch
a miss. All of it stays on record beside the product: `explain` shows it, and a build says what was different.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from . import layout, reference
from .digest import Digest
from .errors import ModelCacheError, UsageError

_DEPTH_MAX = 32
_SHOWN_MAX = 60
_INTEGER_MAX = 1 << 1024  # Python refuses to write those of some thousand digits.
Json = Any  # None, bool, int, float, str, and lists and dicts of them.


class InputGoneError(Exception):
    """An input is not where it was found: it is to be got once more. ``error`` says why, for who cannot get it."""

    def __init__(self, path: str, error: ModelCacheError | None = None) -> None:
        super().__init__(path)
        self.path, self.error = path, error


@dataclass(frozen=True, slots=True)
class Part:
    """One input, as it counts in the key.

    Attributes:
        name: What the build knows it by.
        digest: Of the content, or what the caller says is its identity.
        object: The digest of the object that it is in, or was when this was built.
        path: Within that object's directory, where only a part of a tree is meant; else ``""``.
        ref: Its key, for a person; ``""`` where it has none. It does not count.
        below: Whether it was in a tier, and not in this cache: then it has not gone when it is not here. Nor does this.
    """

    name: str
    digest: str
    object: str
    path: str = ""
    ref: str = ""
    below: bool = False

    @property
    def identity(self) -> dict[str, str]:
        """What of it counts."""
        return {"name": self.name, "digest": self.digest, **({"path": self.path} if self.path else {})}


@dataclass(frozen=True, slots=True)
class Derivation:
    """What was, or is to be, derived: all that counts, and for one that is on record how it was made.

    Attributes:
        recipe: The name of the derivation, as ``onnx-optimize``.
        version: Of the recipe.
        inputs: What it is made from.
        params: What it was told; JSON values.
        platform: Of what machine and software the product depends on; JSON values.
        path: Where the product is; ``""`` if it is not here.
        seconds: How long the build took.
        created: When it was built, in Unix seconds.
    """

    recipe: str
    version: str
    inputs: tuple[Part, ...]
    params: Mapping[str, Json] = field(default_factory=dict)
    platform: Mapping[str, Json] = field(default_factory=dict)
    path: str = ""
    seconds: float = 0.0
    created: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, str) or not reference.is_recipe(self.recipe):
            problem = f"recipe={self.recipe!r} cannot be the name of one: up to 64 of a-z, 0-9, '.', '_', '-'"
            raise UsageError(problem=problem)
        if not isinstance(self.version, str) or not self.version:
            raise UsageError(
                problem=f"version={self.version!r} makes no sense: a text, as '1'; a new recipe has a new one"
            )
        for name in ("params", "platform"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise UsageError(problem=f"{name}={value!r} makes no sense: a dict is expected")
            object.__setattr__(self, name, _plain(value, name))

    @property
    def action(self) -> str:
        """The hash of all that counts: 64 hexadecimal digits."""
        return layout.sha256_hex(self.canonical.encode())

    @property
    def canonical(self) -> str:
        """All that counts, as one text: JSON with sorted keys and without white space, ASCII alone."""
        return json.dumps(self._counting, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def _counting(self) -> dict[str, Json]:
        return {
            "recipe": self.recipe,
            "version": self.version,
            "inputs": [part.identity for part in self.inputs],
            "params": self.params,
            "platform": self.platform,
        }

    @property
    def ref(self) -> str:
        """What it is called in the cache: ``derived:<recipe>/<action>``."""
        return f"{layout.DERIVED_REF}{self.recipe}/{self.action}"

    @property
    def model(self) -> str:
        """What it is made from, for a person."""
        return ", ".join(part.ref or part.name for part in self.inputs) or "nothing"

    def as_dict(self) -> dict[str, Json]:
        """Return it as a JSON-ready dict, as `from_record` takes it."""
        return {
            **self._counting,
            "inputs": [asdict(part) for part in self.inputs],
            "seconds": self.seconds,
        }

    @classmethod
    def from_record(cls, facts: Mapping[str, Json], *, path: str = "", created: int = 0) -> Derivation:
        """Return what `as_dict` was of; raise KeyError, TypeError or UsageError if *facts* are no such thing."""
        return cls(
            recipe=facts["recipe"],
            version=facts["version"],
            inputs=tuple(Part(**part) for part in facts["inputs"]),
            params=facts["params"],
            platform=facts["platform"],
            path=path,
            seconds=facts.get("seconds", 0.0),
            created=created,
        )

    def differences(self, other: Derivation) -> list[str]:
        """Return what counts and is not the same in *other*, one text each: ``platform.runtime: '1.30' → '1.31'``."""
        ours, theirs = dict(_leaves(self._counting)), dict(_leaves(other._counting))
        names = sorted(ours.keys() | theirs.keys())
        return [
            f"{name}: {_shown(theirs, name)} → {_shown(ours, name)}"
            for name in names
            if ours.get(name) != theirs.get(name)
        ]


def check_digest(name: str, text: str) -> str:
    """Return *text*, the identity of the input *name*, if it is a digest; raise InvalidDigestError."""
    if not isinstance(text, str):
        raise UsageError(problem=f"the digest of the input {name!r} is a text, not {type(text).__name__}")
    return Digest.parse(text)


def _plain(value: Json, where: str, depth: int = 0) -> Json:
    """Return *value* made of dicts, lists and JSON's own values; raise UsageError, which says where it is not."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        if abs(value) >= _INTEGER_MAX:
            raise UsageError(problem=f"{where} is a number of {value.bit_length()} bits: too large for a key")
        return value
    if isinstance(value, float) and value == value and value not in {float("inf"), float("-inf")}:  # noqa: PLR0124
        return value
    if depth < _DEPTH_MAX and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(one, f"{where}.{key}", depth + 1) for key, one in value.items()}
    if depth < _DEPTH_MAX and isinstance(value, list | tuple):
        return [_plain(one, f"{where}[{index}]", depth + 1) for index, one in enumerate(value)]
    raise UsageError(problem=f"{where}={value!r:.100} is no JSON value, and cannot be part of a key")


def _leaves(value: Json, where: str = "") -> list[tuple[str, Json]]:
    if isinstance(value, dict) and value:
        return [leaf for key, one in value.items() for leaf in _leaves(one, f"{where}.{key}" if where else key)]
    if isinstance(value, list) and value:
        return [leaf for index, one in enumerate(value) for leaf in _leaves(one, f"{where}[{index}]")]
    return [(where, value)]


def _shown(values: Mapping[str, Json], name: str) -> str:
    return f"{values[name]!r:.{_SHOWN_MAX}}" if name in values else "(none)"
