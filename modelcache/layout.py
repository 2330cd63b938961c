"""The names on disk, and the first line of a record. No I/O.

Everything that turns a key, a digest or an owner into a path is here, and nothing else: DESIGN.md section 2 draws
the tree. The first line of a record (its *head*) alone answers a hit, so that its form belongs to the layout::

    mc1 <sum> <object> <size> <mtime> <checked> <name>

*sum* is the first 16 hexadecimal digits of the SHA-256 of the record's own file name and the rest of the line: a
record that was torn, edited or moved to another key reads as a miss (I6). *object* is a directory of ``objects-v1``,
*size* (bytes) and *mtime* (nanoseconds) are what ``stat`` must find there, *checked* (Unix seconds) is when the source
last confirmed the content, with ``,`` and when its time is over behind it if that comes, *name* is the file's own name
and may hold spaces. Of a tree, *size* is that of all files.

This module is on the path of a warm hit in a new process: it imports nothing that the interpreter has not loaded.
"""

import os

TYPE_CHECKING = False  # typing takes 10 ms to import; type checkers take this name for its constant.
if TYPE_CHECKING:
    from collections.abc import Mapping

try:
    # hashlib costs 2 ms to import, the C module behind it a tenth of that.
    from _sha256 import sha256  # type: ignore[import-not-found,unused-ignore]
except ImportError:  # It is called _sha2 from Python 3.12 on.
    try:
        from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        from hashlib import sha256

FORMAT = 1
OBJECTS = "objects-v1"
ENTRIES = "entries-v1"
DERIVED = "derived-v1"
FAILURES = "failures-v1"
PINS = "pins-v1"
PARTIALS = "partial-v1"
OUTBOX = "outbox-v1"
USAGE = "usage-v1"
STAGING = "staging"
TRASH = "trash"
LISTING = ".listing"  # In the directory of a tree object, beside the tree.
QUARANTINE = "quarantine"
LOCKS = "locks"
BACKOFF = "backoff-v1"
LEASES = "leases"
GC_LOCK = "gc.lock"

CACHEDIR_TAG = b"""Signature: 8a477f597d28d172789f06886806bc55
# This file marks a cache directory; see https://bford.info/cachedir/
# It belongs to modelcache. Backup programs may leave the directory out.
"""

DERIVED_REF = "derived:"  # Before the recipe and the action, in the ref of what was derived; no name holds a colon.
NAME_BYTES_MAX = 255
_MAGIC = "mc1"


def default_root(environ: "Mapping[str, str]") -> str:
    """Return the root that *environ* asks for: MODELCACHE_DIR, MODELCACHE_HOME, the XDG cache, ~/.cache.

    Raises:
        RootError: There is no home directory, and nothing else says where.
    """
    named = environ.get("MODELCACHE_DIR", "")
    if not named.strip():  # A variable without a value says nothing.
        named = environ.get("MODELCACHE_HOME", "")
    if named.strip():
        return os.path.abspath(os.path.expanduser(named))
    # The XDG Base Directory Specification: a relative path is invalid and is ignored.
    base = environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):
        base = os.path.expanduser("~/.cache")
        if not base.startswith("/"):  # A user without a home, as containers have.
            from .errors import RootError

            raise RootError(path=base, reason="there is no home directory", hint="Set MODELCACHE_DIR to a directory")
    return f"{base.rstrip('/')}/modelcache"


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of *data* in hexadecimal digits, without the 3 ms that OpenSSL takes to load."""
    return str(sha256(data).hexdigest())


def key_id(key: str) -> str:
    """Return the file name under which *key* is recorded: 64 hexadecimal digits; of what was derived, its action."""
    if key.startswith(DERIVED_REF):
        return key[-64:]
    return sha256_hex(key.encode("utf-8", "surrogatepass"))


def record_path(root: str, key: str) -> str:
    """Return the path of the record of *key* in the cache at *root*, whether it is there or not."""
    return f"{root}/{DERIVED if key.startswith(DERIVED_REF) else ENTRIES}/{key_id(key)}"


_ARCHIVES = (
    "tar.gz", "tgz", "tar.bz2", "tbz2", "tar.xz", "txz", "tar.zst", "tzst", "tar", "zip",
)  # fmt: skip


def archive_form(name: str) -> str | None:
    """Return the ending, such as ``tar.gz``, of a file name that is an archive's; None if *name* is none."""
    return next((form for form in _ARCHIVES if name.lower().endswith(f".{form}")), None)


def is_packed(name: str) -> bool:
    """Tell whether the file name *name* is that of an archive, or of one compressed file."""
    return archive_form(name) is not None or name.lower().endswith((".gz", ".bz2", ".xz", ".zst"))


def unpacked_name(name: str) -> str:
    """Return the name of the directory that an archive called *name* is unpacked to: without its ending."""
    return name[: -len(archive_form(name) or "") - 1] or "model"


def object_name(digest: str) -> str:
    """Return the directory name of the object with *digest*: ``sha256:ab…`` → ``sha256-ab…``."""
    return digest.replace(":", "-", 1)


def encode_head(identity: str, obj: str, size: int, mtime_ns: int, checked: int, name: str, expires: int = 0) -> bytes:
    """Return the head of the record whose file is called *identity*, with its line end; 0 never *expires*."""
    rest = f"{obj} {size} {mtime_ns} {checked}{f',{expires}' if expires else ''} {name}"
    return f"{_MAGIC} {_sum(identity, rest)} {rest}\n".encode()


def decode_head(identity: str, data: bytes) -> tuple[str, int, int, int, str, int] | None:
    """Return (object, size, mtime_ns, checked, name, expires) from the head of *data*, or None if it is not whole."""
    line, end, _ = data.partition(b"\n")
    try:
        magic, found, rest = line.decode().split(" ", 2)
        if not end or magic != _MAGIC or found != _sum(identity, rest):
            return None
        obj, size, mtime_ns, checked, name = rest.split(" ", 4)
        if "/" in name or "/" in obj:
            return None  # It would lead out of the object's directory (I5).
        checked, _, expires = checked.partition(",")
        return obj, int(size), int(mtime_ns), int(checked), name, int(expires or 0)
    except ValueError:  # Too few fields, not UTF-8, not a number.
        return None


def _sum(identity: str, rest: str) -> str:
    return sha256_hex(f"{identity} {rest}".encode())[:16]
