"""huggingface_hub's own cache, as it lies on the disk, read and never written.

``<top>/models--org--name/`` holds ``refs/<revision>`` (a commit), ``snapshots/<commit>/<path>`` (links to what follows)
and ``blobs/<id>``: the id is the SHA-256 of a large file, the git id of a small one. That a snapshot holds all files of
its commit is known only where ``trees/<commit>.json`` says which there are (huggingface_hub from 2026 on). Nothing in
it was verified when it came, and nothing was synced: who takes content from here hashes it.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from . import files
from .digest import ALGORITHM, Digest
from .errors import InvalidDigestError
from .reference import HubPlace

_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a snapshot.

    Attributes:
        path: Under its own name: a link.
        inside: Its path in the repository.
        size: In bytes.
        mtime_ns: Of the content.
        digest: What its blob's name says it hashes to; None if that is a git id.
        blob: Its git id; None if the name is a digest.
    """

    path: str
    inside: str
    size: int
    mtime_ns: int
    digest: Digest | None
    blob: str | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A commit of a repository; ``named`` is when its name was written down, in Unix seconds."""

    commit: str
    named: int
    directory: str
    _repository: str

    def file(self, inside: str) -> HubFile | None:
        """Return the file *inside* of it, None if it is not here."""
        path = f"{self.directory}/{inside}"
        try:
            # The link may lead to a store that repositories share, and nowhere else.
            identity = os.path.basename(os.readlink(path)) if os.path.islink(path) else ""
            real, found = os.path.realpath(path), os.stat(path)
        except OSError:
            return None
        top = os.path.dirname(os.path.realpath(self._repository))
        if not stat.S_ISREG(found.st_mode) or not real.startswith(f"{top}/"):
            return None
        digest, blob = _identity(identity)
        return HubFile(path, inside, found.st_size, found.st_mtime_ns, digest, blob)

    def files(self) -> list[HubFile] | None:
        """Return all files of the commit; None if it is not known which those are, or one is not here."""
        data = files.content(f"{self._repository}/trees/{self.commit}.json", follow=True)
        try:
            listed = json.loads(data or b"")
            if listed["format_version"] != 1:
                return None
            found = [self.file(str(inside)) for inside in listed["files"]]
        except (ValueError, KeyError, TypeError):
            return None
        return [file for file in found if file is not None] if None not in found else None


def snapshot(top: str, place: HubPlace) -> Snapshot | None:
    """Return what the cache at *top* has for the revision of *place*, None if it has nothing."""
    repository = _repository(top, place)
    commit, named = place.revision or "main", repository
    if not _COMMIT.fullmatch(commit):
        named = f"{repository}/refs/{commit}"
        commit = (files.content(named, follow=True) or b"").decode("ascii", "replace").strip()
    directory = f"{repository}/snapshots/{commit}"
    if not _COMMIT.fullmatch(commit) or not os.path.isdir(directory):
        return None
    return Snapshot(commit, int(os.stat(named).st_mtime), directory, repository)


def blob(top: str, place: HubPlace, identity: str) -> str | None:
    """Return the path of the blob *identity* of the repository of *place*, None if it is not here."""
    path = f"{_repository(top, place)}/blobs/{identity}"
    return path if os.path.isfile(path) else None


def has(top: str, place: HubPlace) -> bool:
    """Tell whether anything of the repository of *place* is in the cache at *top*."""
    return os.path.isdir(_repository(top, place))


def default_directory(environ: Mapping[str, str]) -> str:
    """Return where huggingface_hub has its cache: ``HF_HUB_CACHE``, ``HF_HOME/hub``, ``~/.cache/huggingface/hub``."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    if not named:
        base = environ.get("XDG_CACHE_HOME") or "~/.cache"
        named = f"{environ.get('HF_HOME') or f'{base}/huggingface'}/hub"
    return os.path.abspath(os.path.expanduser(named))


def _repository(top: str, place: HubPlace) -> str:
    return f"{top}/{place.kind}--{place.repository.replace('/', '--')}"


def _identity(name: str) -> tuple[Digest | None, str | None]:
    if _COMMIT.fullmatch(name):
        return None, name
    try:
        return Digest.parse(f"{ALGORITHM}:{name}"), None
    except InvalidDigestError:
        return None, None
