"""Files with settings: where they are, whether there are any, and what all places say together.

Read are, nearest first: ``modelcache.toml`` in the working directory, ``[tool.modelcache]`` of ``pyproject.toml``
there, and ``$XDG_CONFIG_HOME/modelcache/config.toml``. With ``MODELCACHE_CONFIG`` that file is read and no other one;
empty, or a device such as ``/dev/null``, none.

A warm hit in a new process asks `place_for_a_look` and nothing else here: without a file, that is three failed looks.
No parser is imported unless there is a file to parse.
"""

import os
import stat

TYPE_CHECKING = False  # typing takes 10 ms to import; type checkers take this name for its constant.
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from .policy import Policy
    from .settings import Layer, Settings

PROJECT, PYPROJECT, USER = "modelcache.toml", "pyproject.toml", "config.toml"
_MARK = b"[tool.modelcache"  # Only a pyproject.toml with these bytes is worth parsing.
_BYTES_MAX = 4 << 20
# What a file in the working directory, perhaps a stranger's, may say of no cache but the one that it names.
_OF_ONE_CACHE = {
    "capacity": "limits",
    "grace": "limits",
    "usage_archive": "sends elsewhere what is used of",
}
# Forms of a flag that need no parser.
_FLAG = {
    "": False,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
}
_PLAIN_MODES = {"", "cache-first", "offline"}


def plain(environ: "Mapping[str, str]") -> bool:
    """Tell whether no file with settings is in force, nor a mode that asks the source."""
    return environ.get("MODELCACHE_MODE", "") in _PLAIN_MODES and next(found(environ), None) is None


def place_for_a_look(environ: "Mapping[str, str]") -> "tuple[str, bool] | None":
    """Return the root from which a look alone may serve what is cached, and whether it is counted (`looks`).

    None where a `Cache` has to decide: where the source is asked each time, where a policy is in force, where an
    archive gets the counts, and where there is a mistake to tell.

    Raises:
        RootError: Nothing says where the root is.
    """
    from .layout import default_root

    if plain(environ):
        counts = _FLAG.get(environ.get("MODELCACHE_USAGE", ""))
        if counts is None or environ.get("MODELCACHE_USAGE_ARCHIVE"):
            return None
        return default_root(environ), counts
    from .errors import UsageError

    try:
        settings, _, policies = load(environ)
    except UsageError:
        return None
    if policies or settings.mode == "refresh" or settings.usage_archive:
        return None
    return root_of(settings, environ), settings.usage


def root_for_a_look(environ: "Mapping[str, str]") -> "str | None":
    """Return the root from which a look alone may serve what is cached, where nobody counts it; else None.

    Raises:
        RootError: Nothing says where the root is.
    """
    place = place_for_a_look(environ)
    return place[0] if place is not None and not place[1] else None


def found(environ: "Mapping[str, str]") -> "Iterator[str]":
    """Yield the absolute paths of the files that are in force, nearest first; one that was named, there or not."""
    named = environ.get("MODELCACHE_CONFIG")
    if named is not None:
        if named.strip() and not _is_device(named):
            yield os.path.abspath(os.path.expanduser(named))
        return
    try:
        if os.path.isfile(PROJECT):
            yield os.path.abspath(PROJECT)
        if _has_table(PYPROJECT):
            yield os.path.abspath(PYPROJECT)
    except FileNotFoundError:
        pass  # The working directory itself is gone.
    user = _user_file(environ)
    if user and os.path.isfile(user):
        yield user


def load(environ: "Mapping[str, str]", **given: "Any") -> "tuple[Settings, dict[str, str], tuple[Policy, ...]]":
    """Return the settings in force, where each comes from, and the policies of all files.

    Args:
        environ: Variables, and where to look.
        given: What the arguments of a call say; None says nothing.

    Raises:
        UsageError: Two arguments contradict each other.
        ConfigurationError: A variable or a file has a mistake; the error names variable, or file, line and key.
    """
    from .settings import arguments, environment, resolve

    layers, policies = [arguments(**given), environment(environ)], []
    for path in found(environ):
        layer, policy = _read(path, project="MODELCACHE_CONFIG" not in environ and os.path.basename(path) != USER)
        layers.append(layer)
        if policy is not None:
            policies.append(policy)
    settings, origins = resolve(layers)
    # A file of the working directory may be a stranger's: it limits the cache that it names, and no other one.
    ours = [layer for layer in layers if not _is_foreign(layer, origins["dir"])]
    if len(ours) < len(layers):
        settings, origins = resolve(layer if layer in ours else layer.without(*_OF_ONE_CACHE) for layer in layers)
    return settings, origins, tuple(policies)


def _is_foreign(layer: "Layer", chosen: str) -> bool:
    """Tell whether *layer* is of a file in the working directory, and the cache is not the one that it names."""
    return layer.project and chosen != layer.origins.get("dir")


def root_of(settings: "Settings", environ: "Mapping[str, str]") -> str:
    """Return the root that *settings*, made from *environ*, name; raise RootError if nothing says where it is."""
    from .layout import default_root

    return settings.dir or default_root(environ)


def _read(path: str, *, project: bool) -> "tuple[Layer, Policy | None]":
    """Return what the file at *path* says; *project*: it is one of the working directory."""
    from . import tomltext
    from .errors import ConfigFileError
    from .policy import from_table
    from .settings import FileTable, in_file

    try:
        with open(path, "rb") as file:
            data = file.read(_BYTES_MAX + 1)
        if len(data) > _BYTES_MAX:
            raise ConfigFileError(file=path, problem=f"it has more than {_BYTES_MAX} bytes")
        text = data.decode()
        document = tomltext.parse(text)
    except OSError as error:
        raise ConfigFileError(file=path, problem=f"it cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ConfigFileError(file=path, line=line, problem=f"not UTF-8: {error.reason}") from error
    except tomltext.TomlError as error:
        raise ConfigFileError(file=path, line=error.line, problem=error.problem) from None
    name = ""
    if os.path.basename(path) == PYPROJECT:
        name, tool = "tool.modelcache", document.get("tool")
        document = tool.get("modelcache", {}) if isinstance(tool, dict) else {}
    table = FileTable(document, path, name, lambda inside, key: tomltext.line_of(text, inside, key))
    policy = from_table(table.inside("policy")) if "policy" in table.values else None
    layer = in_file(table, project=project)
    for name, does in _OF_ONE_CACHE.items():
        key = name.replace("_", "-")
        if project and name in layer.values and "dir" not in layer.values:
            problem = f"{does} the cache that this file names: give dir as well, or set it elsewhere"
            raise table.error(key, problem)
    return layer, policy


def _user_file(environ: "Mapping[str, str]") -> str:
    """Return where the user's own file would be; ``""`` for a user without a home."""
    # The XDG Base Directory Specification: a relative path is invalid and is ignored.
    base = environ.get("XDG_CONFIG_HOME", "")
    if not base.startswith("/"):
        base = os.path.expanduser("~/.config")
    return f"{base.rstrip('/')}/modelcache/{USER}" if base.startswith("/") else ""


def _has_table(path: str) -> bool:
    """Tell whether the file *path* may hold a table of ours; one that cannot be read is another program's affair."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        kept = b""
        while chunk := os.read(descriptor, 1 << 16):
            kept = kept[-len(_MARK) :] + chunk
            if _MARK in kept:
                return True
        return False
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(os.path.expanduser(path)).st_mode)
    except OSError:
        return False
