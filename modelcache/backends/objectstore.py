"""A backend in an object store, over obstore: S3 and what speaks it, GCS, Azure, a directory, memory.

The only module that imports obstore, an extra. Files are objects below the prefix; a large one is uploaded in parts, a
small one in one request, made only if it is not there where that is asked (If-None-Match). A write of events is one
object, and a repetition of it the same one. obstore does not try again by itself
here: the archive does, and tells.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..config import is_whole
from ..errors import (
    BackendAccessError,
    BackendError,
    BackendSetupError,
    ConfigurationError,
    MissingLibraryError,
    NotInArchiveError,
)
from .base import Archived, Backend, Batch, check_name, decode

_EVENTS, _FILES = "events", "files"
_RECENT = 1000  # Writes that may come again. What comes later than that lands twice, and is told by its ids.
_CHUNK_BYTES = 512 << 10
_NO_BUCKET = "there is no such bucket"
_DENIED = re.compile(r"status code: 40[13]\b")
_MISSING = re.compile(r"status code: 404\b|NoSuchBucket")
_BUCKET_MISSING = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist")
_FORKED = "obstore was used before the fork, and cannot be in a forked child: fork before, or start processes by spawn"
_used_in: list[int] = []  # The process that used obstore first.
_TIMEOUT = {"connect_timeout": "10s", "timeout": "60s"}


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise MissingLibraryError(
            library="obstore", extra="s3", purpose="use an object store", reason=str(error)
        ) from error
    return obstore


class ObjectStoreBackend(Backend):
    """A backend in the object store *store*.

    Args:
        store: ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///…``, ``memory://``, or a store of obstore.
        config: What obstore takes for such a store: ``{"endpoint": …, "region": …}``. Credentials are best left to the
            environment.
        client_options: What obstore takes for its HTTP client: ``{"allow_http": True}``, proxies, certificates.
        prefix: In front of all names.
        multipart_bytes: A file with more is uploaded in parts, side by side.
        check: Look once whether the bucket is there and lets us in; it costs one request.

    Raises:
        MissingLibraryError: obstore is not installed.
        BackendSetupError: There is no such bucket, or the address makes no sense.
        BackendAccessError: The credentials are wrong, or there are none.
    """

    def __init__(
        self,
        store: object,
        *,
        config: Mapping[str, Any] | None = None,
        client_options: Mapping[str, Any] | None = None,
        prefix: str = "",
        multipart_bytes: int = 64 << 20,
        check: bool = True,
    ) -> None:
        if not is_whole(multipart_bytes) or multipart_bytes < 1:
            value = str(multipart_bytes)
            raise ConfigurationError(setting="multipart_bytes", value=value, expected="a whole number from 1")
        self._library = _obstore()
        self._check_process(store)
        self._multipart = multipart_bytes
        self._prefix = f"{check_name(prefix.strip('/'))}/" if prefix.strip("/") else ""
        self._pid = os.getpid()
        self._guard = threading.Lock()  # Not for a forked child: that cannot use obstore at all.
        self._recent: OrderedDict[bytes, str] = OrderedDict()
        self._last = 0
        self.location = _without_credentials(store) if isinstance(store, str) else type(store).__name__
        self.is_remote = not self.location.startswith(("file:", "memory:", "LocalStore", "MemoryStore"))
        self._store = self._opened(store, config or {}, client_options or {}) if isinstance(store, str) else store
        if check:
            self._check()

    def _opened(self, url: str, config: Mapping[str, Any], client_options: Mapping[str, Any]) -> Any:
        options: dict[str, Any] = {}
        if not url.startswith(("file:", "memory:")):
            # The variable, as obstore reads it where it is given no options.
            said = os.environ.get("AWS_ALLOW_HTTP", "").strip().lower()
            plain = {"allow_http": True} if said in {"1", "true", "yes", "on", "y"} else {}
            options = {
                "config": dict(config), "client_options": {**_TIMEOUT, **plain, **client_options},
                "retry_config": {"max_retries": 0},
            }  # fmt: skip
        try:
            return self._library.store.from_url(url, **options)
        except (self._library.exceptions.BaseError, ValueError, TypeError) as error:
            raise BackendSetupError(backend=self.location, detail=_brief(error)) from error

    def _check_process(self, store: object) -> None:
        """Raise BackendSetupError where the threads of obstore are those of a parent: a call would never return."""
        if not _used_in:
            _used_in.append(os.getpid())
        if _used_in[0] != os.getpid():
            where = _without_credentials(store) if isinstance(store, str) else type(store).__name__
            raise BackendSetupError(backend=where, detail=_FORKED)

    def _check(self) -> None:
        try:
            with self._failing():
                for _ in self._library.list(self._store, self._prefix or None, chunk_size=1):
                    break
        except BackendAccessError:
            raise
        except BackendError as error:
            missing = _MISSING.search(error.detail) is not None
            detail = _NO_BUCKET if missing else error.detail
            raise BackendSetupError(backend=self.location, detail=detail) from error

    def append_events(self, key: str, events: Sequence[Any]) -> None:
        """See `Backend`."""
        self.append_batches([Batch.of(key, events)])

    def append_batches(self, batches: Sequence[Batch]) -> None:
        """See `LandsBatches`."""
        if not any(batches):
            return
        data = "".join(f"{line}\n" for batch in batches for line in batch.records()).encode()
        self._create(self._name_of(data), data)

    def _name_of(self, data: bytes) -> str:
        """Return the name of a write of events: in the order of our writes; the same if it comes again."""
        mark = hashlib.sha256(data).digest()
        with self._guard:
            name = self._recent.get(mark)
            if name is None:
                self._last = max(self._last + 1, time.time_ns())
                name = self._recent[mark] = f"{_EVENTS}/{self._last:020d}-{os.urandom(6).hex()}.jsonl"
                while len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)
            return name

    def read_events(self, key: str | None = None, *, since: float = 0.0) -> Iterator[Archived]:
        """See `Backend`."""
        seen: set[str] = set()
        for name in sorted(self._names(f"{_EVENTS}/")):
            try:
                data = self._read(name, 0, None)
            except NotInArchiveError:
                continue  # Deleted this moment.
            for line in data.splitlines():
                found = decode(line)
                if found is not None and found.id not in seen:
                    seen.add(found.id)
                    if key in {None, found.key} and found.time >= since:
                        yield found

    def create(self, name: str, data: bytes) -> bool:
        """See `Backend`. A store without conditional writes overwrites: `check_conditional` tells."""
        return self._create(f"{_FILES}/{check_name(name)}", data)

    def put(self, name: str, data: bytes) -> None:
        """See `Backend`."""
        with self._failing():
            self._library.put(self._store, self._at(f"{_FILES}/{check_name(name)}"), data, use_multipart=False)

    def upload(self, name: str, path: str, size: int) -> None:
        """See `Backend`."""
        with self._failing():
            self._library.put(
                self._store, self._at(f"{_FILES}/{check_name(name)}"), Path(path), use_multipart=size > self._multipart
            )

    def size(self, name: str) -> int | None:
        """See `Backend`."""
        try:
            return self._size(f"{_FILES}/{check_name(name)}")
        except NotInArchiveError:
            return None

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """See `Backend`."""
        return self._read(f"{_FILES}/{check_name(name)}", start, length)

    def stream(self, name: str, start: int = 0) -> Iterator[bytes]:
        """See `Backend`."""
        options = {"range": {"offset": start}} if start else None
        with self._failing(name):
            found = self._library.get(self._store, self._at(f"{_FILES}/{check_name(name)}"), options=options)
            for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                yield bytes(chunk)

    def names(self, prefix: str = "") -> Iterator[str]:
        """See `Backend`."""
        inside, _, _ = prefix.rpartition("/")  # A store lists by whole segments of a name.
        top = f"{_FILES}/{inside}/" if inside else f"{_FILES}/"
        found = (name[len(_FILES) + 1 :] for name in self._names(top))
        return iter(sorted(name for name in found if name.startswith(prefix)))

    def delete(self, name: str) -> None:
        """See `Backend`."""
        self._delete(f"{_FILES}/{check_name(name)}")

    def _create(self, name: str, data: bytes) -> bool:
        try:
            with self._failing():
                self._library.put(self._store, self._at(name), data, mode="create")
        except _ThereError:
            return False
        return True

    def _read(self, name: str, start: int, length: int | None) -> bytes:
        if length is None and start == 0:
            with self._failing(name):
                return bytes(self._library.get(self._store, self._at(name)).bytes())
        end = self._size(name) if length is None else start + length
        if start >= end:
            return b""
        try:
            with self._failing(name):
                return bytes(self._library.get_range(self._store, self._at(name), start=start, end=end))
        except BackendError:
            if start < self._size(name):
                raise
            return b""  # No range of HTTP says that.

    def _size(self, name: str) -> int:
        with self._failing(name):
            return int(self._library.head(self._store, self._at(name))["size"])

    def _names(self, prefix: str) -> Iterator[str]:
        with self._failing():
            for page in self._library.list(self._store, self._at(prefix)):
                for found in page:
                    yield str(found["path"])[len(self._prefix) :]

    def _delete(self, name: str) -> None:
        try:
            with self._failing(name):
                self._library.delete(self._store, self._at(name))
        except NotInArchiveError:
            return

    def _at(self, name: str) -> str:
        return f"{self._prefix}{name}"

    @contextmanager
    def _failing(self, name: str = "") -> Iterator[None]:
        """Raise a typed error for what obstore raises in the block."""
        if self._pid != os.getpid():
            raise BackendSetupError(backend=self.location, detail=_FORKED)
        known = self._library.exceptions
        try:
            yield
        except known.AlreadyExistsError as error:
            raise _ThereError(backend=self.location, detail="it is there already") from error
        except (known.NotFoundError, FileNotFoundError) as error:
            if not name:  # No file was asked for.
                raise BackendError(backend=self.location, detail=_NO_BUCKET) from error
            if _BUCKET_MISSING.search(str(error)):
                raise BackendSetupError(backend=self.location, detail=_NO_BUCKET) from error
            raise NotInArchiveError(what=name, asked=(self.location,)) from error
        except (known.PermissionDeniedError, known.UnauthenticatedError, PermissionError) as error:
            raise BackendAccessError(backend=self.location, detail=_brief(error)) from error
        except (known.BaseError, OSError, ValueError) as error:
            if isinstance(error, BackendError | NotInArchiveError):
                raise
            kind = BackendAccessError if _DENIED.search(str(error)) else BackendError
            raise kind(backend=self.location, detail=_brief(error)) from error


class _ThereError(BackendError):
    """What was to be made is there."""


def _brief(error: BaseException) -> str:
    """Return the first line of what obstore says: what follows is of its own inside."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__


def _without_credentials(url: str) -> str:
    """Return *url* without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
