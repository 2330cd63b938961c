"""The only import of coremltools (the extra ``coreml``), and what is known of it and of this Mac without importing it.

Its import takes most of a second, and says eight times on other systems than macOS that Core ML is not there: these
lines are left out, all others are shown.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from ..errors import MissingLibraryError, UnsupportedPlatformError, UsageError

COMPUTE_UNITS = ("ALL", "CPU_AND_GPU", "CPU_AND_NE", "CPU_ONLY")
_HINTS = {  # The name of a hint, and the enumeration of coremltools that its value is of.
    "allowLowPrecisionAccumulationOnGPU": "",
    "reshapeFrequency": "ReshapeFrequency",
    "specializationStrategy": "SpecializationStrategy",
}
_NOT_HERE = "Failed to load _ML"
_SW_VERS = "/usr/bin/sw_vers"
_SW_VERS_S = 30


def version() -> str:
    """Return the version of coremltools that is installed, without importing it.

    Raises:
        MissingLibraryError: None is.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("coremltools")
    except PackageNotFoundError as error:
        raise _missing(error) from error


def tools() -> Any:
    """Return the module ``coremltools``.

    Raises:
        MissingLibraryError: It is not installed, or cannot be imported.
    """
    log = logging.getLogger("coremltools")
    quiet = sys.platform != "darwin" and "coremltools" not in sys.modules
    if quiet:
        log.addFilter(_is_news)
    try:
        import coremltools
    except ImportError as error:
        raise _missing(error) from error
    finally:
        if quiet:
            log.removeFilter(_is_news)
    return coremltools


def is_model(value: object) -> bool:
    """Tell whether *value* is an ``MLModel``; coremltools is not imported for it."""
    loaded = sys.modules.get("coremltools")
    return loaded is not None and isinstance(value, loaded.models.MLModel)


def this_mac(what: str) -> dict[str, str]:
    """Return of what of this Mac a compiled model depends: version and build of macOS, and architecture.

    Raises:
        UnsupportedPlatformError: It is none; *what* needs one.
    """
    if sys.platform != "darwin":
        raise UnsupportedPlatformError(what=what, needs="macOS", here=f"{sys.platform} ({os.uname().machine})")
    return {**_system(), "machine": os.uname().machine}  # That of this process: under Rosetta, x86_64.


@cache
def _system() -> dict[str, str]:
    # platform.mac_ver() says 10.16 to a Python that was built for an old macOS, and never says the build.
    environment = {**os.environ, "SYSTEM_VERSION_COMPAT": "0"}
    try:
        said = subprocess.run(  # noqa: S603  # One fixed path, no argument.
            [_SW_VERS], capture_output=True, text=True, check=True, timeout=_SW_VERS_S, env=environment
        )
        return system_of(said.stdout)
    except (OSError, subprocess.SubprocessError, KeyError) as error:
        # Without the build an update of macOS would serve what an earlier one has compiled.
        here = f"a system where it does not ({error!r:.200})"
        raise UnsupportedPlatformError(
            what="a compiled Core ML model", needs=f"macOS, where {_SW_VERS} says version and build", here=here
        ) from error


def system_of(said: str) -> dict[str, str]:
    """Return version and build of macOS from what ``sw_vers`` has *said*."""
    facts = dict(line.split(":", 1) for line in said.splitlines() if ":" in line)
    extra = facts.get("ProductVersionExtra", "").strip()  # A rapid security response, as "(a)".
    return {
        "macos": f"{facts['ProductVersion'].strip()} {extra}".rstrip(),
        "build": facts["BuildVersion"].strip(),
    }


def units_name(units: object) -> str:
    """Return the name of *units*: a text such as ``CPU_AND_NE``, or one of ``coremltools.ComputeUnit``.

    Raises:
        UsageError: There are none of that name.
    """
    name = units if isinstance(units, str) else getattr(units, "name", None)
    if name not in COMPUTE_UNITS:
        raise UsageError(problem=f"compute_units={units!r} makes no sense: one of {', '.join(COMPUTE_UNITS)}")
    return str(name)


def hint_names(hints: Mapping[str, object] | None) -> dict[str, str | bool]:
    """Return *hints* with names in place of the values of coremltools' enumerations, as ``Infrequent``.

    Raises:
        UsageError: There is no hint of that name, or it takes no such value. What names there are coremltools knows.
    """
    found: dict[str, str | bool] = {}
    for name, value in (hints or {}).items():
        if name not in _HINTS:
            raise UsageError(problem=f"optimization_hints: {name!r} is none of {', '.join(_HINTS)}")
        plain = value if isinstance(value, str | bool) else getattr(value, "name", None)
        if not isinstance(plain, str if _HINTS[name] else bool):
            kind = f"one of coremltools.{_HINTS[name]}, or its name" if _HINTS[name] else "True or False"
            raise UsageError(problem=f"optimization_hints: {name}={value!r} makes no sense: {kind}")
        found[name] = plain
    return found


def function_text(name: object) -> str | None:
    """Return *name* if it can be that of a function of a model, or None; raise UsageError."""
    if name is not None and not (isinstance(name, str) and name):
        raise UsageError(problem=f"function_name={name!r} makes no sense: the name of a function of the model, or None")
    return name


def compile_model(package: str, destination: str) -> None:
    """Compile the ``.mlpackage`` or ``.mlmodel`` at *package* into the directory *destination*, which must not exist.

    macOS only. Core ML compiles into the temporary directory of the system, and coremltools moves that to
    *destination*: into it, were it there already. A process that is killed leaves something there, never here.
    """
    tools().models.utils.compile_model(package, destination)


def load_compiled(path: str, units: str, function_name: str | None, hints: Mapping[str, str | bool]) -> Any:
    """Return the ``CompiledMLModel`` of the ``.mlmodelc`` directory *path*; raise what coremltools does. macOS only."""
    coremltools = tools()
    values = {
        name: getattr(getattr(coremltools, _HINTS[name]), str(value)) if _HINTS[name] else value
        for name, value in hints.items()
    }
    return coremltools.models.CompiledMLModel(
        path,
        compute_units=getattr(coremltools.ComputeUnit, units),
        function_name=function_name,
        optimization_hints=values or None,
    )


def _missing(error: Exception) -> MissingLibraryError:
    return MissingLibraryError(
        library="coremltools", extra="coreml", purpose="make, compile and load Core ML models", reason=str(error)
    )


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_NOT_HERE)
