"""Who owns a staged file: tokens that name a process for all time, and whether that process is certainly gone.

A process id comes back after a while, and after a boot at once. A token therefore names the machine, the boot, the
process-id name space (a container has its own) and the process with its start time. So ``is_dead`` needs no lock and no
clock (I9, I10). Where it cannot know (another machine, another container), it says so, and its callers then leave
things alone or copy them.
"""

from __future__ import annotations

import os
import sys
from functools import cache

from .layout import sha256_hex

_SMALL_BYTES = 4096
_PID_DIGITS_MAX = 9  # More than kill(2) takes.


def token() -> str:
    """Return a fresh name owned by this process: ``<machine>-<boot>-<namespace>-<pid>-<start>-<random>``."""
    pid = os.getpid()
    return f"{machine_id()}-{boot_id()}-{_namespace()}-{pid}-{_own_start(pid)}-{os.urandom(4).hex()}"


def is_dead(owner: str) -> bool | None:
    """Tell whether the process that made the token *owner* is gone; None if that cannot be known from here.

    What a name says behind its token begins with a dot.
    """
    parts = owner.partition(".")[0].split("-")
    if len(parts) != 6 or not _is_pid(parts[3]):
        return None
    machine, boot, namespace, pid, start, _ = parts
    if machine != machine_id():
        return None
    if boot != boot_id():
        return True  # This machine has booted since: none of its processes is left.
    if namespace != _namespace():
        return None
    try:
        found = start_time(int(pid))
    except OSError:
        return None  # No descriptor is free, say, or other users' processes are hidden (proc(5), hidepid).
    return found != start if start else None


def _is_pid(text: str) -> bool:
    """Tell whether *text* can be that of a process id: any name may have been planted by another user."""
    return text.isascii() and text.isdigit() and len(text) <= _PID_DIGITS_MAX


@cache
def machine_id() -> str:
    """Return 8 hexadecimal digits that differ on other machines, and stay the same here.

    Without a machine-id(5) they are new at each boot: a name alone does not tell two machines on a shared disk apart.
    """
    return _short((_read("/etc/machine-id") or boot_id()) + os.uname().nodename)


@cache
def boot_id() -> str:
    """Return 8 hexadecimal digits that are new at each boot; empty pages of a power cut belong to an older one."""
    # proc(5), sysctl: random/boot_id. macOS has the same under another name.
    return _short(_read("/proc/sys/kernel/random/boot_id") or _sysctl("kern.bootsessionuuid"))


def start_time(pid: int) -> str:
    """Return when process *pid* started, in ticks since boot (proc(5), stat field 22); "" if there is none.

    Raises:
        OSError: It cannot be known.
    """
    if sys.platform == "linux":
        try:
            text = _content(f"/proc/{pid}/stat")
        except (FileNotFoundError, ProcessLookupError):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return ""
            raise  # It is there, and not for us to see.
        fields = text.rpartition(")")[2].split()  # The name in parentheses may hold spaces.
        # A zombie's memory, descriptors and locks are gone: it writes nothing any more.
        return "" if len(fields) < 20 or fields[0] in {"Z", "X"} else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "0"  # Without start times a reused pid looks alive, which only costs a copy.


_own_starts: dict[int, str] = {}
_own_namespaces: dict[int, str] = {}


def _forget() -> None:
    """In a forked child: one that is the first of a name space of its own may have its parent's pid."""
    _own_starts.clear()
    _own_namespaces.clear()


os.register_at_fork(after_in_child=_forget)


def _own_start(pid: int) -> str:
    """Return when this process, *pid*, started; "" while it cannot be known: then nobody takes it for dead."""
    if pid not in _own_starts:
        try:
            _own_starts[pid] = start_time(pid)
        except OSError:
            return ""
    return _own_starts[pid]


def _namespace() -> str:
    """Return which process-id name space this process is in, which no call changes for the process that makes it."""
    pid = os.getpid()
    if pid not in _own_namespaces:
        try:
            _own_namespaces[pid] = str(os.stat("/proc/self/ns/pid").st_ino)
        except OSError:
            _own_namespaces[pid] = "0"
    return _own_namespaces[pid]


def _read(path: str) -> str:
    try:
        return _content(path)
    except OSError:
        return ""


def _content(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # A file object costs three times as much.
    try:
        return os.read(descriptor, _SMALL_BYTES).decode(errors="replace").strip()
    finally:
        os.close(descriptor)


def _sysctl(name: str) -> str:
    import subprocess  # 3 ms, and macOS alone needs it.

    try:
        found = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603  # A fixed program.
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()


def _short(text: str) -> str:
    return sha256_hex(text.encode())[:8]
