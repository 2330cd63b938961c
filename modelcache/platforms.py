"""What of this machine an artefact may depend on: system, machine, build of the system, features of the processor.

An artefact that uses what this processor can do (vector instructions, a layout of weights) belongs to it alone: these
facts are then part of its key, so that another machine that shares the cache builds its own.
"""

from __future__ import annotations

import os
import sys
from functools import cache

_CPUINFO = "/proc/cpuinfo"
_NVIDIA = "/proc/driver/nvidia"
_CPUINFO_BYTES = 1 << 14  # The first processor; each further one costs the kernel time.
# Instruction sets, and on ARM the design, by which runtimes choose kernels.
_LINES = ("vendor_id", "flags", "features", "cpu implementer", "cpu part", "cpu architecture", "isa")
_MAC_NAMES = ("machdep.cpu.brand_string", "machdep.cpu.features", "machdep.cpu.leaf7_features", "hw.cpusubfamily")


def system() -> dict[str, str]:
    """Return ``system`` and ``machine``, as ``Linux`` and ``x86_64``."""
    found = os.uname()
    return {"system": found.sysname, "machine": found.machine}


@cache
def os_build() -> str:
    """Return the build of macOS, as ``24A335``; elsewhere the empty text: nothing here depends on it there."""
    return _sysctl("kern.osversion") if sys.platform == "darwin" else ""


@cache
def cpu() -> dict[str, str]:
    """Return what the processor says of itself, as far as generated code and layouts of weights depend on it.

    Features are sorted, so that two kernels that list them in another order agree. ``{}`` if the machine does not tell.
    """
    if sys.platform == "darwin":
        return {name: value for name in _MAC_NAMES if (value := _sysctl(name))}
    try:
        with open(_CPUINFO, "rb") as file:
            return parse_cpuinfo(file.read(_CPUINFO_BYTES).decode(errors="replace"))
    except OSError:
        return {}


@cache
def gpu() -> dict[str, str]:
    """Return what NVIDIA's driver says of itself and of its devices; ``{}`` where there is none."""
    found = {}
    for name, path in (
        ("driver", f"{_NVIDIA}/version"),
        *((one, f"{_NVIDIA}/gpus/{one}/information") for one in _gpus()),
    ):
        try:
            with open(path, "rb") as file:
                found[name] = " ".join(file.read(_CPUINFO_BYTES).decode(errors="replace").split())
        except OSError:
            continue
    return found


def _gpus() -> list[str]:
    try:
        return sorted(os.listdir(f"{_NVIDIA}/gpus"))
    except OSError:
        return []


def parse_cpuinfo(text: str) -> dict[str, str]:
    """Return what `cpu` says, from the text of ``/proc/cpuinfo``: of its first processor."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if colon and name in _LINES and name not in found:
            found[name] = " ".join(sorted(set(value.split()))) if name in {"flags", "features"} else value.strip()
    return found


def _sysctl(name: str) -> str:
    """Return a value of sysctl(3) as text; ``""`` where there is none of that name."""
    import ctypes

    library = ctypes.CDLL(None)
    size = ctypes.c_size_t(0)
    if library.sysctlbyname(name.encode(), None, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    buffer = ctypes.create_string_buffer(max(size.value, 1))
    if library.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return ""
    raw = buffer.raw[: size.value]
    return str(int.from_bytes(raw, sys.byteorder)) if size.value == 4 else raw.rstrip(b"\0").decode(errors="replace")
