"""``file://`` (RFC 8089): originals on a disk of this machine, or one that it mounts."""

from __future__ import annotations

import errno
import os
import posixpath
import stat
from collections.abc import Callable, Iterable, Iterator

from .. import files, reference
from ..errors import (
    AccessDeniedError,
    InterruptedTransferError,
    InvalidReferenceError,
    ListingError,
    ModelCacheError,
    NotListableError,
    RemoteNotFoundError,
)
from ..stamps import stamp
from .base import FILES_MAX, RemoteFile, RemoteListing, Request, Source, Stream, Validators


class FileSource(Source):
    """Reads files. Inode, size and mtime serve as the entity tag."""

    schemes = ("file",)

    def open(self, request: Request) -> Stream:
        """See `Source.open`."""
        path = reference.parse(request.url).path
        try:
            return _FileStream(request, files.open_regular(path))
        except OSError as error:
            raise _refusal(error, request.ref) from error

    def listing(self, request: Request) -> RemoteListing:
        """See `Source.listing`: the files below a directory, as they are now; until it is read, each may change.

        A link to a file is that file; one to a directory is refused, as is all that is neither file nor directory.
        Where it is known which files are wanted, nothing else there is looked at, or stands in their way.
        """
        ref = reference.parse(request.url)
        if os.path.isfile(ref.path):
            raise NotListableError(ref=request.ref, problem="it is one file, and directories are listed")
        found = []
        inside = (
            _below(ref.path, request.deadline.check, request.ref)
            if request.only is None
            else _those(ref.path, request.only, request.ref)
        )
        try:
            for path, facts in inside:
                place = reference.parse(f"{ref.path}/{path}")
                found.append(RemoteFile(path, facts.st_size, None, None, place, stamp=stamp(facts)))
                if len(found) > FILES_MAX:
                    raise ListingError(ref=request.ref, problem=f"there are more than {FILES_MAX} of them")
        except InvalidReferenceError as error:
            raise ListingError(
                ref=request.ref, problem=f"one of them has no name to ask for it ({error.summary})"
            ) from error
        except OSError as error:
            if isinstance(error, ModelCacheError):
                raise
            raise _refusal(error, request.ref) from error
        return RemoteListing(ref, None, tuple(sorted(found, key=lambda file: file.path)))


class _FileStream(Stream):
    ranges = True

    def __init__(self, request: Request, descriptor: int) -> None:
        self._ref, self._descriptor = request.ref, descriptor
        self._found = found = os.fstat(descriptor)
        self.total = found.st_size
        self.validators = Validators(etag=stamp(found))
        self.unchanged = request.unless is not None and request.unless.etag == self.validators.etag
        same = request.same_as is None or not request.same_as.contradicts(self.validators)
        self.start = self._at = request.start if same and request.start <= self.total else 0
        self._stop = min(request.stop or self.total, self.total)

    def read(self, limit: int) -> bytes:
        """See `Stream.read`."""
        try:
            chunk = os.pread(self._descriptor, min(limit, self._stop - self._at), self._at)
        except OSError as error:
            raise InterruptedTransferError(ref=self._ref, detail=error.strerror or str(error)) from error
        self._at += len(chunk)
        if not chunk and self._at < self._stop:
            raise InterruptedTransferError(ref=self._ref, detail="the file became shorter while it was read")
        if not chunk and files.has_changed(self._found, self._descriptor):
            raise InterruptedTransferError(ref=self._ref, detail="the file was written to while it was read")
        return chunk

    def close(self) -> None:
        """See `Stream.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _below(top: str, check: Callable[[], object], ref: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and ``stat`` of each file in the directory *top*, and in those in it."""
    pending = [""]
    while pending:
        check()
        inside = pending.pop()
        with os.scandir(f"{top}/{inside}") as entries:
            for entry in entries:
                path = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{path}/")
                    continue
                yield path, _regular(path, entry.stat(), ref)


def _those(top: str, wanted: Iterable[str], ref: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yield path and ``stat`` of those of the files *wanted* that are there."""
    for path in wanted:
        if path != posixpath.normpath(path) or path.split("/")[0] in {"", ".", ".."}:
            continue  # No listing has such a path.
        try:
            facts = os.stat(f"{top}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            continue  # Who has asked for it says so.
        if not stat.S_ISDIR(facts.st_mode):
            yield path, _regular(path, facts, ref)


def _regular(path: str, facts: os.stat_result, ref: str) -> os.stat_result:
    if not stat.S_ISREG(facts.st_mode):
        raise ListingError(ref=ref, problem=f"{path!r:.200} is neither a file nor a directory of its own")
    return facts


def _refusal(error: OSError, ref: str) -> ModelCacheError:
    """Return the typed error of a failed call."""
    detail = error.strerror or str(error)
    if error.errno in {errno.EACCES, errno.EPERM}:
        return AccessDeniedError(ref=ref, detail=detail)
    if error.errno in {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}:
        return InterruptedTransferError(ref=ref, detail=detail)
    return RemoteNotFoundError(ref=ref, detail=detail)
