"""``file://`` (RFC 8089): originals on a disk of this machine, or one that it mounts."""

from __future__ import annotations

import errno
import os

from .. import files, reference
from ..errors import AccessDeniedError, InterruptedTransferError, RemoteNotFoundError
from .base import Request, Source, Stream, Validators


class FileSource(Source):
    """Reads files. Inode, size and mtime serve as the entity tag."""

    schemes = ("file",)

    def open(self, request: Request) -> Stream:
        """See `Source.open`."""
        path = reference.parse(request.url).path
        try:
            return _FileStream(request, files.open_regular(path))
        except OSError as error:
            detail = error.strerror or str(error)
            if error.errno in {errno.EACCES, errno.EPERM}:
                raise AccessDeniedError(ref=request.ref, detail=detail) from error
            if error.errno in {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE}:
                raise InterruptedTransferError(ref=request.ref, detail=detail) from error
            raise RemoteNotFoundError(ref=request.ref, detail=detail) from error


class _FileStream(Stream):
    ranges = True

    def __init__(self, request: Request, descriptor: int) -> None:
        self._ref, self._descriptor = request.ref, descriptor
        self._found = found = os.fstat(descriptor)
        self.total = found.st_size
        self.validators = Validators(etag=f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"')
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
