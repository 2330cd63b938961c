"""The entry store: which object each key stands for.

One small file a key, ``entries-v1/<id>``, of what was derived ``derived-v1/<action>``, replaced whole and durably. Its
first line answers a hit (`layout`), its second holds everything else, sealed. A record that is broken in either line is
a miss, logged once (I6). The file's own mtime is when the entry was last used, written at most once an hour; atime is
never looked at.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from . import commit, files, hit, layout, process
from .derivation import Derivation
from .digest import Digest
from .errors import InvalidDigestError, ModelCacheError, storage_error
from .sealed import seal, unseal

_log = logging.getLogger("modelcache")
_complained: set[str] = set()


@dataclass(frozen=True, slots=True)
class Entry:
    """What the cache knows of one model.

    Attributes:
        key: The canonical ref; free of credentials.
        digest: Of the content.
        path: Of the file, absolute; its last part is `name`.
        size: In bytes.
        name: The file's own name.
        source: What it was fetched from (the ref or a mirror), ``put`` or ``derived``.
        created: When this content came here, in Unix seconds.
        checked: When its source last confirmed it, in Unix seconds; 0 if none has yet: it was here by its digest.
        etag: Entity tag of the content at its source.
        last_modified: HTTP date of the content at its source.
        revision: The source's own name of this version.
        mirrors: Refs that may serve the same content.
        ttl: For how long it is wanted after it came, or was last confirmed, in seconds; None for as long as it may.
        sample: What a quick look at the content found (`sampling`), once one was made.
        serial: New at each write of the record; what tells whether somebody has written it meanwhile.
        mtime_ns: What ``stat`` must find; anything else means that a tool touched the file.
        admitted: The mark of the policies that let it in (`gate`); ``""`` if none did.
        personal: Whether it may hold what only somebody's credentials gave: it came with some, and nobody has shown
            that all get it.
        derivation: Of what was derived: all that its content depends on, and how it was made (`derivation`); else None.
    """

    key: str
    digest: Digest
    path: str
    size: int
    name: str
    source: str
    created: int
    checked: int
    mtime_ns: int
    etag: str | None = None
    last_modified: str | None = None
    revision: str | None = None
    mirrors: tuple[str, ...] = ()
    ttl: float | None = None
    sample: str | None = None
    serial: str = field(default="", compare=False)
    admitted: str = field(default="", compare=False)
    personal: bool = field(default=False, compare=False)
    derivation: dict[str, Any] | None = field(default=None, compare=False)

    @property
    def ref(self) -> str:
        """The ref under which `get` serves this entry."""
        return self.key

    @property
    def expires(self) -> int:
        """When its time is over, in Unix seconds; 0 if that never comes."""
        return 0 if self.ttl is None else max(self.created, self.checked) + math.ceil(self.ttl)

    @property
    def derived(self) -> Derivation | None:
        """What it was derived from, and how; None if it was not, or its record does not say so sensibly."""
        if self.derivation is None:
            return None
        try:
            found = Derivation.from_record(self.derivation, path=self.path, created=self.created)
            return found if found.ref == self.key else None
        except (KeyError, TypeError, AttributeError, ModelCacheError):
            return None

    @property
    def announced(self) -> Digest | None:
        """Its digest if that is its entity tag too, as a hub's: then its source has said so. Else None."""
        return self.digest if self.etag is not None and self.etag.strip('"') == self.digest.hex else None

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as a JSON-ready dict."""
        facts = {"ref": self.key, **asdict(self), "mirrors": list(self.mirrors)}
        if self.derivation is None:
            del facts["derivation"]
        return facts


class Head(NamedTuple):
    """What the first line of a record says: the object that it names, and under which name it has the file.

    ``used`` is its last use, and ``expires`` when its time is over (0: never), in Unix seconds.
    """

    identity: str
    object: str
    name: str
    used: float
    expires: int


class Entries:
    """The entries of the cache at *root*."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._directories = (f"{root}/{layout.ENTRIES}", f"{root}/{layout.DERIVED}")

    def path(self, key: str) -> str:
        """Return the path of the record for *key*, whether it is there or not."""
        return layout.record_path(self._root, key)

    def read(self, key: str) -> Entry | None:
        """Return the entry for *key*, or None; the object is not looked at."""
        entry = self._load(self.path(key))
        return entry if entry is not None and entry.key == key else None

    def write(self, entry: Entry) -> None:
        """Record *entry*, durably; its object must be durable already (I2).

        Raises:
            StorageError, NoSpaceError: What was recorded before still is; or, if the last sync failed, perhaps this.
        """
        identity = layout.key_id(entry.key)
        head = layout.encode_head(
            identity, layout.object_name(entry.digest), entry.size, entry.mtime_ns, entry.checked, entry.name,
            entry.expires,
        )  # fmt: skip
        body = {
            "key": entry.key,
            "source": entry.source,
            "created": entry.created,
            "etag": entry.etag,
            "last_modified": entry.last_modified,
            "revision": entry.revision,
            "mirrors": list(entry.mirrors),
            "ttl": entry.ttl,
            "sample": entry.sample,
            "serial": os.urandom(8).hex(),
            **({"admitted": entry.admitted} if entry.admitted else {}),
            **({"personal": True} if entry.personal else {}),
            **({"derivation": entry.derivation} if entry.derivation is not None else {}),
        }
        try:
            if entry.derivation is not None:
                commit.ensure_bucket(f"{self._root}/{layout.DERIVED}")
            commit.commit_record(f"{self._root}/{layout.STAGING}", self.path(entry.key), head + seal(body))
        except OSError as error:
            raise storage_error(error, action="record", path=entry.key) from error

    def remove(self, key: str) -> bool:
        """Forget *key*, durably; False if nothing was recorded for it."""
        try:
            return commit.remove_record(self.path(key))
        except OSError as error:
            raise storage_error(error, action="remove", path=self.path(key)) from error

    def set_aside(self, identity: str) -> bool:
        """Move the broken record *identity* to quarantine, durably; False if it is whole, or gone, by now."""
        target = f"{self._root}/{layout.QUARANTINE}/{identity}.{time.time_ns()}"
        if self.load(identity) is not None:
            return False
        path = next((path for path in self.places(identity) if os.path.lexists(path)), self.places(identity)[0])
        try:
            commit.move_durably(path, target)
            moved = files.content(target)
            if moved is None or self._decoded(identity, moved) is None:
                return True
            commit.put_back(target, path)  # Written anew between the look and the move.
        except FileNotFoundError:
            pass
        except OSError as error:
            raise storage_error(error, action="set aside", path=path) from error
        return False

    def take(self, key: str) -> str | None:
        """Take the record of *key* away, durably; return where it is now, in staging, or None if there is none.

        Raises:
            StorageError: It is where it was.
        """
        aside = f"{self._root}/{layout.STAGING}/{process.token()}"
        try:
            commit.move_durably(self.path(key), aside)
        except FileNotFoundError:
            return None
        except OSError as error:
            if os.path.lexists(aside):
                self.give_back(key, aside)
            raise storage_error(error, action="evict", path=self.path(key)) from error
        return aside

    def taken(self, key: str, aside: str) -> tuple[Entry | None, float]:
        """Return what `take` has moved to *aside*, and when it was last used; None if it cannot be read."""
        try:
            return self._decoded(layout.key_id(key), files.read(aside) or b""), os.lstat(aside).st_mtime
        except OSError:
            return None, 0.0

    def give_back(self, key: str, aside: str) -> None:
        """Undo a `take`, unless *key* has been recorded anew."""
        try:
            commit.put_back(aside, self.path(key))
            commit.remove_quietly(aside)
        except OSError as error:
            raise storage_error(error, action="put back", path=self.path(key)) from error

    def confirm(self, entry: Entry) -> Entry:
        """Record that the source has just confirmed *entry*; return it with that time.

        What others have noted on its record meanwhile stays.
        """
        now = self.read(entry.key)
        noted = entry if now is None or now.digest != entry.digest else now
        confirmed = replace(
            entry, checked=int(time.time()), ttl=noted.ttl, sample=noted.sample, admitted=noted.admitted,
            personal=noted.personal,
        )  # fmt: skip
        self.write(confirmed)
        return confirmed

    def all(self) -> Iterator[Entry]:
        """Yield every entry whose record is whole, in no order that means anything."""
        for path in self.paths():
            entry = self._load(path)
            if entry is not None:
                yield entry

    def derived(self) -> Iterator[Entry]:
        """Yield every entry of what was derived whose record is whole."""
        for identity in files.listing(self._directories[1]):
            entry = self._load(f"{self._directories[1]}/{identity}")
            if entry is not None and entry.derived is not None:
                yield entry

    def derived_from(self, digest: Digest) -> list[Entry]:
        """Return the entries of what was derived from the object with *digest*, and from that again."""
        derived = [(entry, entry.derived) for entry in self.derived()]
        found: dict[str, Entry] = {}
        sources: set[str] = {digest}
        while True:
            more = [
                entry
                for entry, made in derived
                if entry.key not in found and made is not None and any(part.object in sources for part in made.inputs)
            ]
            if not more:
                return list(found.values())
            found.update((entry.key, entry) for entry in more)
            sources.update(entry.digest for entry in more)

    def paths(self) -> Iterator[str]:
        """Yield the path of every record, whole or not."""
        for directory in self._directories:
            for identity in files.listing(directory):
                yield f"{directory}/{identity}"

    def places(self, identity: str) -> tuple[str, ...]:
        """Return where a record that is called *identity* can be."""
        return tuple(f"{directory}/{identity}" for directory in self._directories)

    def heads(self) -> Iterator[Head]:
        """Yield the head of every record that has a whole one: a third of the price of `all`."""
        for path in self.paths():
            identity = os.path.basename(path)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                head = layout.decode_head(identity, os.read(descriptor, hit.HEAD_BYTES_MAX))
                used = os.fstat(descriptor).st_mtime
            except OSError:
                continue
            finally:
                os.close(descriptor)
            if head is not None:
                yield Head(identity, head[0], head[4], used, head[5])

    def named(self) -> Callable[[Digest], bool]:
        """Return what tells whether any entry names an object now. One that cannot be read may: then all are kept."""
        names = set()
        for path in self.paths():
            try:
                data = files.read(path)
            except OSError:
                return lambda _digest: True
            head = None if data is None else layout.decode_head(os.path.basename(path), data)
            if head is not None:
                names.add(head[0])
        return lambda digest: layout.object_name(digest) in names

    def used(self, key: str) -> float:
        """Return when the entry was last used, in Unix seconds; 0 if there is none."""
        try:
            return os.lstat(self.path(key)).st_mtime
        except OSError:
            return 0.0

    def stamp_use(self, key: str) -> bool:
        """Record that the entry is in use, unless that was done within the hour; a read-only root is no error.

        Returns:
            Whether it had not been used within the hour: gc may have chosen it before it saw the stamp.
        """
        # A stamp from the future (a clock that jumped) is no better than an old one.
        if abs(time.time() - self.used(key)) <= hit.USE_STAMP_S:
            return False
        try:
            commit.touch(self.path(key))
        except OSError:
            pass
        return True

    def load(self, identity: str) -> Entry | None:
        """Return the entry whose record is the file *identity*, None if it is broken or gone."""
        return next((entry for entry in map(self._load, self.places(identity)) if entry is not None), None)

    def _load(self, path: str) -> Entry | None:
        data = files.content(path)
        if data is None:
            return None
        entry = self._decoded(os.path.basename(path), data)
        if entry is None and path not in _complained:
            _complained.add(path)
            _log.warning("the record %s is broken; it counts as a miss", path)
        return entry

    def _decoded(self, identity: str, data: bytes) -> Entry | None:
        head = layout.decode_head(identity, data)
        body = unseal(data.partition(b"\n")[2])
        if head is None or body is None:
            return None
        looked = hit.Hit(self._root, head)
        try:
            if layout.key_id(body["key"]) != identity:
                return None
            return Entry(
                key=body["key"],
                digest=Digest.parse(looked.object.replace("-", ":", 1)),
                path=looked.path,
                size=looked.size,
                name=looked.name,
                source=body["source"],
                created=body["created"],
                checked=looked.checked,
                mtime_ns=looked.mtime_ns,
                etag=body["etag"],
                last_modified=body["last_modified"],
                revision=body["revision"],
                mirrors=tuple(body["mirrors"]),
                ttl=body.get("ttl"),
                sample=body.get("sample"),
                serial=body["serial"],
                admitted=body.get("admitted", ""),
                personal=body.get("personal") is True,
                derivation=body.get("derivation"),
            )
        except (KeyError, TypeError, AttributeError, InvalidDigestError):  # Whole, but not of the form written here.
            return None
