"""Small facts that save work and die with the boot: one sealed file each, written atomically and without a sync.

A hint that is lost, broken, of another boot or of another machine on a shared disk says nothing. So the moments in it
can be of the monotonic clock, which all processes of one boot share: a wall clock that jumps changes nothing.
"""

from __future__ import annotations

from typing import Any

from . import commit, files, layout, process
from .sealed import seal, unseal


class Hints:
    """The hints in one directory, *bucket*, of the cache at *root*. None of the methods raises."""

    def __init__(self, root: str, bucket: str) -> None:
        self._root, self._directory = root, f"{root}/{bucket}"

    def path(self, name: str) -> str:
        """Return the path of the hint *name*, whether it is there or not."""
        return f"{self._directory}/{name}"

    def names(self) -> list[str]:
        """Return the names of all hints."""
        return files.listing(self._directory)

    def written(self, name: str) -> dict[str, Any]:
        """Return what was written, wherever and whenever that was; nothing if it is lost or broken."""
        return unseal(files.content(self.path(name)) or b"") or {}

    def read(self, name: str) -> dict[str, Any]:
        """Return what was written on this machine since it was started; nothing if there is none."""
        facts = self.written(name)
        return facts if facts.get("boot") == process.boot_id() and facts.get("machine") == process.machine_id() else {}

    def write(self, name: str, facts: dict[str, Any]) -> bool:
        """Write *facts*, in place of what was there; tell whether that went well."""
        note = {**facts, "boot": process.boot_id(), "machine": process.machine_id()}
        try:
            commit.ensure_bucket(self._directory, durable=False)
            commit.replace_hint(f"{self._root}/{layout.STAGING}", self.path(name), seal(note))
        except OSError:
            return False
        return True

    def remove(self, name: str) -> None:
        """Remove the hint, if it is there."""
        commit.remove_quietly(self.path(name))
