"""Every setting, in one table: what it is called, how it is read, what it is by default, what it means. No I/O.

A setting is one line of `Settings`. From it come the argument's name, the key in files (``lock_timeout`` is
``lock-timeout`` there), the variable, the table of docs/configuration.md and ``modelcache config``.

What is nearest wins, setting by setting: an argument, a variable, the project's file, the user's file, the default.
What says that the cache is offline, and in which mode it is, is one question: the nearest that says anything of either
answers it, and who says two things at once is told so.

A policy is no setting, because it is not replaced: whatever is in force anywhere counts (`policy`).
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import (
    GRACE_S,
    SECONDS_MAX,
    Capacity,
    RetryPolicy,
    Timeout,
    is_seconds,
    parse_bytes,
    parse_seconds,
)
from .errors import ConfigFileError, ConfigurationError, UsageError

MODES = ("cache-first", "offline", "refresh")
PROGRESS = ("auto", "bar", "plain", "json", "none")
DEFAULT, ARGUMENT = "default", "argument"
_WRITTEN = re.compile(r",(write|write-direct|single-flight|private|required)(,|$)")
_SECRETS = {"token", "password", "secret", "auth", "authorization", "headers", "credentials", "api-key", "netrc"}
_KINDS: dict[type, str] = {
    str: "a string", int: "a whole number", float: "a number", bool: "true or false", list: "a list of strings",
}  # fmt: skip

Parser = Callable[[object, str, str], Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of the table.

    Attributes:
        name: Of the attribute of `Settings`.
        variables: The first that holds anything counts.
        argument: Where a call sets it.
        kinds: Which types it may have in a file.
        parse: From a value, what an error calls it, and the directory where relative paths start.
        default: As it is used.
        shown: The default, for people.
        means: In one line.
    """

    name: str
    variables: tuple[str, ...]
    argument: str
    kinds: tuple[type, ...]
    parse: Parser
    default: Any
    shown: str
    means: str

    @property
    def key(self) -> str:
        """What it is called in a file."""
        return self.name.replace("_", "-")


def _path(value: object, setting: str, base: str) -> str:
    text = str(value)
    if "\0" in text or not text.strip():
        raise ConfigurationError(setting=setting, value=text, expected="the path of a directory")
    return os.path.abspath(os.path.join(base, os.path.expanduser(text)))


def _tiers(value: object, setting: str, base: str) -> tuple[str, ...]:
    """Return each tier as `tier.Tier.parse` takes it: a word that it knows, a bucket, or an absolute path; options."""
    if isinstance(value, str) and re.search(r"://[^/,:@]*:[^/,:]*@", value):
        raise ConfigurationError(setting=setting, value="…", expected="tiers without credentials")
    # The colon of a bucket, s3://…, separates nothing.
    parts = [part for part in re.split(r":(?!//)", value) if part.strip()] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise ConfigurationError(setting=setting, value=str(value), expected="a list of directories")
    stripped = [part.strip() for part in parts]
    if not all(stripped):
        raise ConfigurationError(
            setting=setting, value=str(value), expected="a list of directories, none of them empty"
        )
    return tuple(
        part if "://" in part or part.partition(",")[0] == "huggingface" else _path(part, setting, base)
        for part in stripped
    )


def _locations(value: object, setting: str, base: str) -> tuple[str, ...]:
    """Return locations of backends; `backends.locations` says what they are, when one is opened."""
    del base
    parts = value.split() if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) and "://" in part for part in parts):
        raise ConfigurationError(setting=setting, value="…", expected="locations, such as sqlite:///srv/usage.db")
    if any("@" in part.partition("://")[2].partition("/")[0] for part in parts):
        raise ConfigurationError(setting=setting, value="…", expected="locations without credentials")
    return tuple(parts)


def _flag(value: object, setting: str, base: str) -> bool:
    del base
    known = {"0": False, "false": False, "no": False, "off": False, "1": True, "true": True, "yes": True, "on": True}
    try:
        return known[str(value).strip().lower()]
    except KeyError:
        raise ConfigurationError(setting=setting, value=str(value), expected="1 or 0") from None


def _one_of(*known: str) -> Parser:
    def parse(value: object, setting: str, base: str) -> str:
        del base
        if str(value).strip() not in known:
            raise ConfigurationError(setting=setting, value=str(value), expected=f"one of {', '.join(known)}")
        return str(value).strip()

    return parse


def _whole(least: int) -> Parser:
    def parse(value: object, setting: str, base: str) -> int:
        del base
        text = str(value).strip()
        # More digits mean nothing, and from some thousand on int() refuses them.
        if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) < least:
            raise ConfigurationError(setting=setting, value=text, expected=f"a whole number from {least}")
        return int(text)

    return parse


def _seconds(value: object, setting: str, base: str) -> float:
    del base
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not (is_seconds(number) and number > 0):
        expected = f"seconds above 0, {SECONDS_MAX} at most"
        raise ConfigurationError(setting=setting, value=str(value).strip(), expected=expected)
    return number


def _capacity(value: object, setting: str, base: str) -> Capacity:
    del base
    return Capacity.parse(value, setting=setting)


def _bytes(value: object, setting: str, base: str) -> int:
    del base
    return parse_bytes(str(value), setting=setting)


def _span(value: object, setting: str, base: str) -> float:
    del base
    return parse_seconds(str(value), setting=setting)


_NUMBER, _AMOUNT = (int, float), (int, float, str)


def _setting(
    default: Any, parse: Parser, kinds: tuple[type, ...], variables: str, argument: str, shown: str, means: str
) -> Any:
    about = Setting("", tuple(variables.split()), argument, kinds, parse, default, shown, means)
    return dataclasses.field(default=default, metadata={"setting": about})


# fmt: off
# ruff: noqa: E501, RUF009  # A setting is one line; `_setting` is `field`, and what it returns is no default.
@dataclass(frozen=True, slots=True)
class Settings:
    """What variables and files say, or else the defaults. Spans are in seconds, sizes in bytes."""

    dir: str | None = _setting(None, _path, (str,), "MODELCACHE_DIR MODELCACHE_HOME", "root", "`$XDG_CACHE_HOME/modelcache`, `~/.cache/modelcache`", "the cache directory")
    mode: str = _setting("cache-first", _one_of(*MODES), (str,), "MODELCACHE_MODE", "mode", "cache-first", "whom a get asks: `cache-first`, `offline` or `refresh`")
    offline: bool = _setting(False, _flag, (bool,), "MODELCACHE_OFFLINE HF_HUB_OFFLINE TRANSFORMERS_OFFLINE", "offline", "0", "the same as the mode `offline`: no connection is opened")
    retries: int = _setting(RetryPolicy().attempts - 1, _whole(0), (int,), "MODELCACHE_HTTP_RETRIES", "`RetryPolicy.attempts`, less 1", "5", "tries after the first, without one new byte between")
    http_timeout: float | None = _setting(None, _seconds, _NUMBER, "MODELCACHE_HTTP_TIMEOUT", "`Timeout.read`, `.stall` (and `.connect`, if it is less)", "30, 60", "seconds between two arrivals of bytes; seconds within which a stream must average 16 KiB/s")
    deadline: float | None = _setting(None, _seconds, _NUMBER, "MODELCACHE_DEADLINE", "`Timeout.total`", "none", "seconds for one get, retries and waits included")
    lock_timeout: float = _setting(600.0, _seconds, _NUMBER, "MODELCACHE_LOCK_TIMEOUT", "lock_timeout", "600", "longest wait in seconds for another process that fetches the same model; after it the work is done twice")
    concurrency: int = _setting(8, _whole(1), (int,), "MODELCACHE_CONCURRENCY", "jobs", "8", "models at a time in `get_many` and `prewarm`")
    max_bandwidth: int | None = _setting(None, _bytes, (int, str), "MODELCACHE_MAX_BANDWIDTH", "max_bandwidth", "no limit", "bytes per second that all fetches of one `Cache` receive together (`20MB`)")
    capacity: Capacity | None = _setting(None, _capacity, (int, str), "MODELCACHE_CAPACITY", "capacity", "no limit", "what the cache may use: bytes (`50GB`, `20GiB`), a share of the disk (`20%`), or what stays free of it (`free:10GB`); [gc.md](gc.md)")
    grace: float = _setting(GRACE_S, _span, _AMOUNT, "MODELCACHE_GRACE", "grace", "3600", "for how long (seconds, or `30min`, `12h`) a path that `get` returned is not evicted")
    tiers: tuple[str, ...] = _setting((), _tiers, (list,), "MODELCACHE_TIERS", "tiers", "none", "directories and buckets (`s3://bucket/prefix,write`) that are asked before any source, nearest first; in the variable with `:` between them; [tiers.md](tiers.md)")
    verify_derived: bool = _setting(False, _flag, (bool,), "MODELCACHE_VERIFY_DERIVED", "`derive(verify=\"rebuild\")`", "0", "build again what is derived, each time, and compare: finds builds that depend on more than their key; [derive.md](derive.md)")
    usage: bool = _setting(False, _flag, (bool,), "MODELCACHE_USAGE", "usage", "0", "count how models are used, on record in the cache; [usage.md](usage.md)")
    usage_archive: tuple[str, ...] = _setting((), _locations, (list,), "MODELCACHE_USAGE_ARCHIVE", "usage_archive", "none", "backends that get these counts too (`s3://bucket/prefix`, `sqlite:///path`, `directory:///path`); in the variable with spaces between them")
    progress: str = _setting("auto", _one_of(*PROGRESS), (str,), "MODELCACHE_PROGRESS", "`--progress`", "auto", "how the command line shows progress: `auto`, `bar`, `plain`, `json`, `none`")
# fmt: on

    @property
    def retry(self) -> RetryPolicy:
        """How often a source is asked again."""
        return RetryPolicy(attempts=self.retries + 1)

    @property
    def timeout(self) -> Timeout:
        """Limits on waiting."""
        usual, given = Timeout(), self.http_timeout
        return Timeout(
            connect=min(given or math.inf, usual.connect),
            read=given or usual.read,
            stall=given or usual.stall,
            total=self.deadline,
        )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Return the settings that *environ* alone asks for.

        Raises:
            ConfigurationError: A variable holds a senseless value; the error names it.
        """
        return resolve([environment(environ)])[0]


TABLE: tuple[Setting, ...] = tuple(
    dataclasses.replace(field.metadata["setting"], name=field.name) for field in dataclasses.fields(Settings)
)


@dataclass(frozen=True, slots=True)
class Layer:
    """What one place says. ``values`` and ``origins`` (for people: a variable, or file and line) are by name.

    ``project`` says that it is a file of the working directory.
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    project: bool = False

    def without(self, *names: str) -> Layer:
        """Return it without what it says of *names*."""
        kept = {name: value for name, value in self.values.items() if name not in names}
        return Layer(kept, self.origins, self.project)


def environment(environ: Mapping[str, str]) -> Layer:
    """Return what *environ* says. A variable without a value says nothing.

    Raises:
        ConfigurationError: A senseless value, or two variables that contradict each other.
    """
    values, origins = {}, {}
    for setting in TABLE:
        for variable in setting.variables:
            text = environ.get(variable, "")
            if not text.strip():
                continue
            value = setting.parse(text, variable, "")
            if setting.name == "offline" and not value and variable != setting.variables[0]:
                continue  # Another library's "not offline" says nothing of this one.
            if setting.name not in values or (setting.name == "offline" and value):
                values[setting.name], origins[setting.name] = value, variable
    if values.get("offline") and values.get("mode", "offline") != "offline":
        expected = f"offline, because {origins['offline']} is set"
        raise ConfigurationError(setting=origins["mode"], value=values["mode"], expected=expected)
    return Layer(values, origins)


class FileTable:
    """One table of a file with settings, that knows where it stands.

    Args:
        values: What is in it.
        file: Absolute path.
        name: Of the table (``tool.modelcache``); ``""`` for the top.
        line_of: From a table's name and a key to the line, or None.
    """

    def __init__(
        self, values: object, file: str, name: str, line_of: Callable[[str, str], int | None]
    ) -> None:  # fmt: skip
        self.file, self.name, self._line_of = file, name, line_of
        if not isinstance(values, dict):
            raise self.error("", f"[{name}] is a table, not {_kind(values)}")
        self.values: dict[str, Any] = values

    def line(self, key: str) -> int | None:
        """Return the line of *key*."""
        return self._line_of(self.name, key)

    def where(self, key: str) -> str:
        """Return file and line of *key*, for people."""
        line = self.line(key)
        return f"{self.file}:{line}" if line else self.file

    def error(self, key: str, problem: str) -> ConfigFileError:
        """Return the error that says *problem* of *key*."""
        return ConfigFileError(file=self.file, line=self.line(key), key=key or None, problem=problem)

    def check(self, known: Iterable[str]) -> None:
        """Raise ConfigFileError for a key that is not *known*. Its value is not shown: it may be a secret."""
        names = list(known)
        for key in self.values:
            if key in names:
                continue
            if key.lower().replace("_", "-").rpartition("-")[2] in _SECRETS or key.lower() in _SECRETS:
                problem = "is no setting: credentials never are; see docs/sources.md for where they go"
                raise self.error(key, problem)
            from difflib import get_close_matches  # Only a mistake needs it.

            close = get_close_matches(key.lower().replace("_", "-"), names, n=1, cutoff=0.6)
            meant = f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
            raise self.error(key, f"unknown key; {meant}")

    def value(self, key: str, kinds: tuple[type, ...], parse: Parser) -> Any:
        """Return the value of *key*, of one of *kinds* and parsed; raise ConfigFileError."""
        value = self.values[key]
        if type(value) not in kinds:  # A bool is an int to isinstance.
            expected = " or ".join(dict.fromkeys(_KINDS[kind] for kind in kinds))
            raise self.error(key, f"is {expected}, not {_kind(value)}")
        try:
            return parse(value, key, os.path.dirname(self.file))
        except ConfigurationError as error:
            raise self.error(key, f"{value!r:.200} makes no sense: expected {error.facts['expected']}") from None

    def inside(self, key: str) -> FileTable:
        """Return the table *key* in this one."""
        name = f"{self.name}.{key}".lstrip(".")
        if not isinstance(self.values[key], dict):
            raise self.error(key, f"is a table, [{name}], not {_kind(self.values[key])}")
        return FileTable(self.values[key], self.file, name, self._line_of)


def in_file(table: FileTable, *, project: bool = False) -> Layer:
    """Return what *table* says; relative paths in it start at its file.

    Raises:
        ConfigFileError: An unknown key, a wrong type, a senseless value, or two that contradict each other.
    """
    table.check([*(setting.key for setting in TABLE), "policy"])
    values, origins = {}, {}
    for setting in TABLE:
        if setting.key in table.values:
            values[setting.name] = table.value(setting.key, setting.kinds, setting.parse)
            origins[setting.name] = table.where(setting.key)
    if project and any(_WRITTEN.search(tier) for tier in values.get("tiers", ())):
        problem = "would bring what is fetched to a tier, which a file of the working directory cannot: it may be a stranger's"
        raise table.error("tiers", problem)
    if "offline" in values and "mode" in values and values["offline"] != (values["mode"] == "offline"):
        raise table.error("offline", f"contradicts mode = {values['mode']!r}")
    return Layer(values, origins, project)


def arguments(**given: Any) -> Layer:
    """Return what the arguments of a call say; None says nothing.

    Raises:
        UsageError: ``mode`` is unknown, or contradicts ``offline``.
    """
    values = {name: value for name, value in given.items() if value is not None}
    mode = values.get("mode", MODES[0])
    if mode not in MODES:
        raise UsageError(problem=f"mode={mode!r} makes no sense: one of {', '.join(MODES)}")
    if {"offline", "mode"} <= values.keys() and values["offline"] != (mode == "offline"):
        raise UsageError(problem=f"offline={values['offline']!r} and mode={mode!r} contradict each other")
    return Layer(values, dict.fromkeys(values, ARGUMENT))


def resolve(layers: Iterable[Layer]) -> tuple[Settings, dict[str, str]]:
    """Return the settings that *layers*, nearest first, make together, and where each comes from."""
    layers = tuple(layers)
    values: dict[str, Any] = {}
    origins = dict.fromkeys((setting.name for setting in TABLE), DEFAULT)
    for layer in layers:
        for name in layer.values.keys() - values.keys():
            values[name], origins[name] = layer.values[name], layer.origins[name]
    values["mode"], origins["mode"] = _mode(layers)
    values["offline"], origins["offline"] = values["mode"] == "offline", origins["mode"]
    return Settings(**values), origins


def _mode(layers: Iterable[Layer]) -> tuple[str, str]:
    """Return the mode, and who decides it: the nearest that names one, or says that the cache is offline.

    Who says no more than that it is not offline leaves the choice of another mode to those further away.
    """
    online = ""
    for layer in layers:
        mode = "offline" if layer.values.get("offline") else layer.values.get("mode")
        if mode is not None and not (mode == "offline" and online):
            return mode, layer.origins["offline" if layer.values.get("offline") else "mode"]
        if "offline" in layer.values:
            online = online or layer.origins["offline"]
    return MODES[0], online or DEFAULT


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a table"
    return _KINDS.get(type(value), type(value).__name__)
