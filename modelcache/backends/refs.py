"""Ref records in a backend: which object each key stands for, as the cache that brought it there had it on record.

::

    refs/<key id>     sealed, replaced whole: the key, its digest, and what the source has said of that content

A record is written only when the manifest of its object is there, and holds no credentials: keys have none. A reader
believes no record that does not match its checksum and the key that it asked for.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .. import layout, reference
from ..digest import Digest
from ..errors import DamagedReplicaError, InvalidDigestError, InvalidReferenceError, NotInArchiveError
from ..sealed import seal, unseal
from .base import Backend, is_size, read_whole

_FORM = 1
PUT = "put"  # The source of what no source can be asked for again.
_BYTES_MAX = 1 << 20
_TEXTS = ("etag", "last_modified", "revision")


@dataclass(frozen=True, slots=True)
class RefRecord:
    """What is on record for one key.

    Attributes:
        key: The canonical ref.
        digest: Of the object.
        name: Of the file, or of the tree.
        size: In bytes; of a tree, of all its files.
        source: What it was fetched from, or ``put``.
        checked: When that last confirmed it, in Unix seconds.
        etag: Entity tag at the source.
        last_modified: HTTP date at the source.
        revision: The source's own name of this version.
        mirrors: Refs that may serve the same content.
    """

    key: str
    digest: Digest
    name: str
    size: int
    source: str
    checked: int
    etag: str | None = None
    last_modified: str | None = None
    revision: str | None = None
    mirrors: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return it as JSON takes it, and `of_facts` reads it."""
        return {**asdict(self), "mirrors": list(self.mirrors)}

    @classmethod
    def of_facts(cls, facts: Mapping[str, Any]) -> RefRecord | None:
        """Return the record in *facts*, None if they are not of this form."""
        texts = {name: facts.get(name) for name in ("key", "name", "source")}
        numbers = {name: facts.get(name) for name in ("size", "checked")}
        optional = {name: facts.get(name) for name in _TEXTS}
        mirrors = facts.get("mirrors")
        if not all(isinstance(value, str) and value.isprintable() for value in texts.values()):
            return None
        if not all(is_size(value) for value in numbers.values()):
            return None
        if not all(value is None or _is_header(value) for value in optional.values()):
            return None
        if not isinstance(mirrors, list) or not all(_is_place(mirror) for mirror in mirrors):
            return None
        if not _is_key(texts["key"]):  # type: ignore[arg-type]
            return None
        if texts["source"] != PUT and not _is_place(texts["source"]):
            return None
        try:
            digest = Digest.parse(facts.get("digest") or "")
        except (InvalidDigestError, TypeError, AttributeError):
            return None
        return cls(digest=digest, mirrors=tuple(mirrors), **texts, **numbers, **optional)  # type: ignore[arg-type]


def is_shared(ref: reference.Ref) -> bool:
    """Tell whether *ref* means the same on every machine: a path does not, nor what was derived for this one."""
    return ref.scheme != "file" and not ref.is_derived


def _is_key(value: str) -> bool:
    """Tell whether *value* is a key as it is written here: under another one, what comes would stand for a file."""
    try:
        ref = reference.parse(value)
    except InvalidReferenceError:
        return False
    return ref.key == value and is_shared(ref)


def _is_header(value: object) -> bool:
    """Tell whether *value* can be sent to a source, as its own word: one that cannot would keep it from being asked."""
    return isinstance(value, str) and value.isprintable() and all(ord(character) < 256 for character in value)


def _is_place(value: object) -> bool:
    """Tell whether *value* names a place that every machine can ask: a path of the writer's own is none."""
    try:
        return isinstance(value, str) and reference.parse(value).scheme not in {"", "file"}
    except InvalidReferenceError:
        return False


def record_name(key: str) -> str:
    """Return the name of the record of *key* in a backend."""
    return f"refs/{layout.key_id(key)}"


def write(backend: Backend, record: RefRecord) -> None:
    """Put *record* in the place of what was on record for its key; its manifest must be there.

    Raises:
        BackendError: What was on record still is.
    """
    backend.put(record_name(record.key), seal({"form": _FORM, **record.facts()}))


def bring(backend: Backend, record: RefRecord) -> None:
    """Do what `write` does, unless another content is on record that its source has confirmed later.

    What waited for long, on a machine without a connection, must not take back what the others have had since. A
    moment that has not come yet is that of a clock that is wrong, and keeps nobody out.

    Raises:
        BackendError: What was on record still is.
    """
    try:
        there = read(backend, record.key)
    except DamagedReplicaError:
        there = None
    if there is None or there.digest == record.digest or not record.checked < there.checked <= time.time():
        write(backend, record)


def read(backend: Backend, key: str) -> RefRecord | None:
    """Return what *backend* has on record for *key*, None if that is nothing.

    Raises:
        DamagedReplicaError: It cannot be believed.
        BackendError
    """
    return read_file(backend, record_name(key))


def read_file(backend: Backend, name: str) -> RefRecord | None:
    """Do what `read` does, for the record in the file *name*."""
    try:
        data = read_whole(backend, name, _BYTES_MAX)
    except NotInArchiveError:
        return None
    facts = unseal(data)
    problem = "its checksum is wrong"
    if facts is not None:
        record = RefRecord.of_facts(facts)
        if record is not None and record_name(record.key) == name:
            return record
        problem = "it is not the record of this key"
    raise DamagedReplicaError(backend=backend.location, name=name, detail=problem)
