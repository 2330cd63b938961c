"""The pin store: what is kept by policy until it is unpinned. One sealed file a key, ``pins-v1/<id>``."""

from __future__ import annotations

import os
import time

from . import commit, files, layout
from .errors import storage_error
from .sealed import seal, unseal


class Pins:
    """The pins of the cache at *root*."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._directory = f"{root}/{layout.PINS}"

    def add(self, key: str) -> None:
        """Pin *key*, durably."""
        try:
            commit.ensure_bucket(self._directory)
            if self.load(layout.key_id(key)) is not None:
                commit.sync_directory(self._directory)  # Who wrote it may not have come to that.
                return
            data = seal({"key": key, "time": int(time.time())})
            commit.commit_record(f"{self._root}/{layout.STAGING}", self._path(key), data)
        except OSError as error:
            raise storage_error(error, action="pin", path=key) from error

    def remove(self, key: str) -> bool:
        """Unpin *key*, durably; False if it was not pinned."""
        try:
            return os.path.isdir(self._directory) and commit.remove_record(self._path(key))
        except OSError as error:
            raise storage_error(error, action="unpin", path=key) from error

    def has(self, key: str) -> bool:
        """Tell whether *key* is pinned. A broken pin counts: the doubt is in favour of keeping."""
        return os.path.exists(self._path(key))

    def all(self) -> list[str]:
        """Return the pinned keys whose record is whole."""
        keys = (self.load(identity) for identity in files.listing(self._directory))
        return sorted(key for key in keys if key is not None)

    def load(self, identity: str) -> str | None:
        """Return the key whose pin is the file *identity*, None if it is broken or gone."""
        facts = unseal(files.content(f"{self._directory}/{identity}") or b"")
        key = facts.get("key") if facts else None
        return key if isinstance(key, str) and layout.key_id(key) == identity else None

    def mend(self, identity: str, key: str | None) -> None:
        """Write the broken pin *identity* anew, for *key* if that is what it was of; else set it aside, durably."""
        path = f"{self._directory}/{identity}"
        if key is not None and layout.key_id(key) == identity:
            self.add(key)
            return
        try:
            commit.move_durably(path, f"{self._root}/{layout.QUARANTINE}/{identity}.{time.time_ns()}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise storage_error(error, action="set aside", path=path) from error

    def _path(self, key: str) -> str:
        return f"{self._directory}/{layout.key_id(key)}"
