"""Archives, read member by member, with nothing believed: tar (plain, gzip, bzip2, xz, zstd) and zip. No writing.

Formats: POSIX ustar and pax (IEEE 1003.1, pax), what GNU tar adds for long names and large sizes, and PKWARE's
APPNOTE 6.3.10 for zip. Headers are parsed here, within bounds, so that memory stays small whatever they claim: no name
list, header or dictionary of an archive is read whole before its size was looked at.

Refused, with the member named: what is neither file, directory nor link; sparse members; encrypted ones; methods that
are not known; zip entries that overlap, that have two names, or whose sizes lie; an archive that ends too early, or
goes on behind its end. What names mean, and where links lead, is judged by `unpacking`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, BinaryIO, Protocol

from . import files
from .errors import ArchiveError, UnsupportedArchiveError
from .layout import archive_form

FILE, DIRECTORY, LINK, HARD_LINK = "file", "directory", "link", "hard link"
_CHUNK_BYTES = 1 << 18
_BLOCK_BYTES = 512
_EXTRA_BYTES_MAX = 1 << 20  # A pax header, or a long name of GNU's.
_XZ_MEMORY_MAX = 1 << 28
_LINK_BYTES_MAX = 4096
_ENTRY_BYTES = 256  # Of a zip's directory, for each file that is allowed.
_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_EXTRA = {
    tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
}  # fmt: skip
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zst", b"PK": "zip"}
_DAMAGED = (zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)


class _Reader(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive.

    Attributes:
        path: As it stands there.
        kind: ``file``, ``directory``, ``link`` (symbolic) or ``hard link``.
        size: Of a file, in bytes, as it is stated: more never comes.
        executable: Whether its owner may execute it.
        target: Where a link leads: relative to its own directory, a hard link to the top.
        chunks: Yields the content of a file, once, before the next member is asked for.
    """

    path: str
    kind: str
    size: int = 0
    executable: bool = False
    target: str = ""
    chunks: Callable[[], Iterator[bytes]] = lambda: iter(())


def check_form(name: str, *, ref: str) -> None:
    """Raise UnsupportedArchiveError if a file called *name* is no archive that can be unpacked here."""
    form = archive_form(name)
    if form is None:
        problem = "it is one compressed file, and no tree of files"
        raise UnsupportedArchiveError(ref=ref, problem=problem)
    if form in {"tar.zst", "tzst"}:
        _zstd(ref)


def members(descriptor: int, *, ref: str, files_max: int) -> Iterator[Member]:
    """Yield the members of the archive behind *descriptor*, in its order.

    Args:
        descriptor: Of a regular file that nobody writes to.
        ref: How errors name it.
        files_max: How many files it may have: what lists more is not read at all.

    Raises:
        ArchiveError: It is damaged, or made to do damage.
        UnsupportedArchiveError: It needs what is not here.
    """
    size = os.fstat(descriptor).st_size
    start = os.pread(descriptor, _BLOCK_BYTES, 0)
    form = next((form for magic, form in _MAGIC.items() if start.startswith(magic)), "tar")
    with io.BufferedReader(_Window(descriptor, size), _CHUNK_BYTES) as packed:
        if form == "zip":
            yield from _Zip(packed, descriptor, size, ref, files_max).members()
        else:
            yield from _Tar(_unpacked(packed, form, ref), ref).members()


class _Window(io.RawIOBase):
    """Reads a file by position: its descriptor is the caller's, and may be read by others."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor, self._size, self._at = descriptor, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = os.preadv(self._descriptor, [buffer], self._at)
        self._at += count
        return count


# -- compression -------------------------------------------------------------------------------------------------------


def _unpacked(packed: BinaryIO | io.BufferedReader, form: str, ref: str) -> _Reader:
    if form == "gz":
        return gzip.GzipFile(fileobj=packed)
    if form == "bz2":
        return bz2.BZ2File(packed)
    if form == "xz":
        return _Xz(packed)
    if form == "zst":
        return _zstd(ref)(packed)
    return packed


class _Xz:
    """Reads xz (and its streams one behind another) within a bound for its dictionary, which `lzma.LZMAFile` lacks."""

    def __init__(self, packed: Any) -> None:
        self._packed = packed
        self._stream = self._new()
        self._rest = b""

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_MAX)

    def read(self, size: int) -> bytes:
        while True:
            if self._stream.eof:
                self._rest = self._stream.unused_data or self._packed.read(_CHUNK_BYTES)
                if not self._rest.strip(b"\0"):  # The padding of a stream, or the end.
                    return b""
                self._stream = self._new()
            elif self._stream.needs_input:
                self._rest = self._rest or self._packed.read(_CHUNK_BYTES)
                if not self._rest:
                    raise EOFError("it ends within the compressed stream")
            data = self._stream.decompress(self._rest, size)
            self._rest = b""
            if data:
                return data


def _zstd(ref: str) -> Callable[[Any], _Reader]:
    """Return what opens a zstd stream: Python's own from 3.14 on, else one that is installed."""
    for name in ("compression.zstd", "backports.zstd"):
        try:
            opened: Callable[[Any], _Reader] = import_module(name).ZstdFile
        except ImportError:
            continue
        return opened
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        hint = "Install backports.zstd or zstandard: pip install backports.zstd"
        raise UnsupportedArchiveError(ref=ref, problem="this Python cannot read zstd", hint=hint) from None
    limit = 1 << 27

    def stream(packed: Any) -> _Reader:
        reader: _Reader = zstandard.ZstdDecompressor(max_window_size=limit).stream_reader(
            packed, read_across_frames=True
        )
        return reader

    return stream


# -- tar ---------------------------------------------------------------------------------------------------------------


class _Tar:
    """Reads a tar from its beginning to its end, once."""

    def __init__(self, source: _Reader, ref: str) -> None:
        self._source, self._ref = source, ref
        self._left = 0  # Of the current member's content, and its padding.
        self._padding = 0
        self._path = ""

    def members(self) -> Iterator[Member]:
        """Yield the members."""
        shared: dict[str, str] = {}
        while True:
            own: dict[str, str] = {}
            info = self._header()
            while info is not None and info.type in _EXTRA:
                found = self._extra(info)
                (shared if info.type == tarfile.XGLTYPE else own).update(found)
                info = self._header()
            if info is None:
                if own:
                    raise self._error("it ends behind a header without its member")
                return self._end()
            yield self._member(info, {**shared, **own})
            while self._left:
                self._read(min(self._left, _CHUNK_BYTES))
            self._skip_padding()

    def _member(self, info: tarfile.TarInfo, more: dict[str, str]) -> Member:
        path, target = more.get("path", info.name), more.get("linkpath", info.linkname)
        size = info.size
        if "size" in more:
            if not (more["size"].isascii() and more["size"].isdigit() and len(more["size"]) < 20):
                raise self._error("its size is no number", path)
            size = int(more["size"])
        if size < 0:
            raise self._error("its size is below zero", path)
        if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in more):
            raise self._error("it is sparse", path)
        kind = {
            tarfile.REGTYPE: FILE, tarfile.AREGTYPE: FILE, tarfile.CONTTYPE: FILE, tarfile.DIRTYPE: DIRECTORY,
            tarfile.SYMTYPE: LINK, tarfile.LNKTYPE: HARD_LINK,
        }.get(info.type)  # fmt: skip
        if kind is None:
            what = "a device or a FIFO" if info.type in {b"3", b"4", b"6"} else f"of the unknown type {info.type!r}"
            raise self._error(f"it is {what}", path)
        if kind == FILE and path.endswith("/"):
            kind = DIRECTORY  # As the format had it before it had directories.
        if kind != FILE and size:
            if kind != HARD_LINK:
                raise self._error("it is no file, and has content", path)
            size = 0  # cpio and pax may state the size of what a hard link leads to; none comes in ustar.
        self._left, self._padding, self._path = size, -size % _BLOCK_BYTES, path
        return Member(path, kind, size, bool(info.mode & stat.S_IXUSR), target, self._content)

    def _content(self) -> Iterator[bytes]:
        while self._left:
            yield self._read(min(self._left, _CHUNK_BYTES))

    def _read(self, size: int) -> bytes:
        chunk = self._some(size)
        if not chunk:
            raise self._error(f"it ends {self._left} bytes before the end of it", self._path)
        self._left -= len(chunk)
        return chunk

    def _skip_padding(self) -> None:
        count, self._padding = self._padding, 0
        if len(self._exactly(count)) != count:
            raise self._error("it ends before the end of it", self._path)

    def _header(self) -> tarfile.TarInfo | None:
        """Return the next header; None at the mark of the end, an empty block."""
        block = self._exactly(_BLOCK_BYTES)
        if len(block) != _BLOCK_BYTES:
            raise self._error("it ends without the mark of its end")
        if not block.strip(b"\0"):
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.TarError, ValueError) as error:
            raise self._error(f"a header is damaged ({error})") from error

    def _extra(self, info: tarfile.TarInfo) -> dict[str, str]:
        """Return what a header in front of a member says of it."""
        if not 0 <= info.size <= _EXTRA_BYTES_MAX:
            raise self._error(f"a header has {info.size} bytes")
        data = self._exactly(info.size + -info.size % _BLOCK_BYTES)[: info.size]
        if len(data) != info.size:
            raise self._error("it ends within a header")
        try:
            if info.type == tarfile.GNUTYPE_LONGNAME:
                return {"path": data.partition(b"\0")[0].decode()}
            if info.type == tarfile.GNUTYPE_LONGLINK:
                return {"linkpath": data.partition(b"\0")[0].decode()}
            return _pax(data)
        except ValueError as error:
            raise self._error("a header is damaged") from error

    def _end(self) -> None:
        """Read on to the end: what is compressed is only known to be whole there."""
        while chunk := self._some(_CHUNK_BYTES):
            if chunk.strip(b"\0"):
                raise self._error("it goes on behind its end")

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size and (chunk := self._some(size - len(found))):
            found += chunk
        return found

    def _some(self, size: int) -> bytes:
        try:
            return self._source.read(size)
        except _DAMAGED as error:
            raise self._error(f"its compressed data is damaged ({error})", self._path) from error
        except Exception as error:  # A library for zstd has errors of its own.
            if type(error).__module__.partition(".")[0] in {"zstandard", "backports", "compression", "_zstd"}:
                raise self._error(f"its compressed data is damaged ({error})", self._path) from error
            raise

    def _error(self, problem: str, member: str = "") -> ArchiveError:
        return ArchiveError(ref=self._ref, member=member, problem=problem)


def _pax(data: bytes) -> dict[str, str]:
    """Return the records of a pax header, ``<length> <key>=<value>`` and a line end each; raise ValueError."""
    found = {}
    while data:
        digits = data.partition(b" ")[0]
        if not digits.isdigit() or len(digits) > 7:
            raise ValueError(digits)
        record, data = data[: int(digits)], data[int(digits) :]
        if len(record) != int(digits) or record[-1:] != b"\n":
            raise ValueError(digits)
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals:
            raise ValueError(digits)
        if key in {b"path", b"linkpath", b"size"} or key.startswith(b"GNU.sparse"):
            found[key.decode()] = value.decode()
    return found


# -- zip ---------------------------------------------------------------------------------------------------------------


class _Zip:
    """Reads a zip by its directory, which is compared with the headers that stand before the contents."""

    def __init__(self, packed: Any, descriptor: int, size: int, ref: str, files_max: int) -> None:
        self._packed, self._descriptor, self._size, self._ref = packed, descriptor, size, ref
        self._listed_max = max(1 << 16, files_max * _ENTRY_BYTES)

    def members(self) -> Iterator[Member]:
        """Yield the members."""
        try:
            with zipfile.ZipFile(_Bounded(self._packed, self._listed_max)) as found:
                infos, end = found.infolist(), found.start_dir
        except _TooMuchError as error:
            raise self._error(f"its list of members has {error.size} bytes") from error
        except (zipfile.BadZipFile, NotImplementedError, struct.error, *_DAMAGED) as error:
            raise self._error(f"its list of members is damaged ({error})") from error
        places = [self._place(info) for info in infos]
        before, last = 0, ""
        for (at, stop), info in sorted(zip(places, infos, strict=True), key=lambda both: both[0]):
            if at < before or stop > end:
                raise self._error(f"it overlaps with {last!r:.100}", info.orig_filename)
            before, last = stop, info.orig_filename
        for (_, stop), info in zip(places, infos, strict=True):
            yield self._member(info, stop - info.compress_size)

    def _place(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """Return where the member begins, and where its content ends, by the header that stands before it."""
        name = info.orig_filename
        if info.flag_bits & 0x41:
            raise self._error("it is encrypted", name)
        if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}:
            raise self._error(f"its compression, number {info.compress_type}, is not supported", name)
        header = os.pread(self._descriptor, _LOCAL_HEADER.size, info.header_offset)
        if len(header) != _LOCAL_HEADER.size or header[:4] != b"PK\3\4":
            raise self._error("no header stands where it should begin", name)
        fields = _LOCAL_HEADER.unpack(header)
        named, more = fields[9], fields[10]
        start = info.header_offset + _LOCAL_HEADER.size
        raw = os.pread(self._descriptor, named, start)
        try:
            told = raw.decode("utf-8" if info.flag_bits & 0x800 else "cp437")
        except ValueError:
            told = ""
        if told != name or fields[3] != info.compress_type:
            raise self._error(f"its own header says something else: {told!r:.100}", name)
        return info.header_offset, start + named + more + info.compress_size

    def _member(self, info: zipfile.ZipInfo, start: int) -> Member:
        mode = info.external_attr >> 16 if info.create_system == 3 else 0
        kind = {0: FILE, stat.S_IFREG: FILE, stat.S_IFDIR: DIRECTORY, stat.S_IFLNK: LINK}.get(stat.S_IFMT(mode))
        name = info.orig_filename
        if kind is None:
            raise self._error("it is a device or a FIFO", name)
        if name.endswith("/"):
            kind = DIRECTORY
        if kind == DIRECTORY and info.file_size:
            raise self._error("it is a directory, and has content", name)

        def content() -> Iterator[bytes]:
            return self._content(info, start)

        if kind == LINK:
            if info.file_size > _LINK_BYTES_MAX:
                raise self._error("it is a link, and longer than a path", name)
            try:
                return Member(name, kind, target=b"".join(content()).decode())
            except UnicodeDecodeError as error:
                raise self._error("where it leads is no text", name) from error
        return Member(name, kind, info.file_size, bool(mode & stat.S_IXUSR), chunks=content)

    def _content(self, info: zipfile.ZipInfo, start: int) -> Iterator[bytes]:
        """Yield the content; raise ArchiveError if it is longer, shorter or other than it is stated to be."""
        name, left, checksum = info.orig_filename, info.file_size, 0
        packed = files.chunks(self._descriptor, start=start, length=info.compress_size)
        try:
            for chunk in _inflated(packed, info.compress_type):
                if len(chunk) > left:
                    raise self._error(f"it has more than the {info.file_size} bytes that are stated", name)
                left -= len(chunk)
                checksum = zlib.crc32(chunk, checksum)
                yield chunk
        except _DAMAGED as error:
            if isinstance(error, ArchiveError):
                raise
            raise self._error(f"its compressed data is damaged ({error})", name) from error
        if left or checksum != info.CRC:
            raise self._error(f"{left} bytes are missing" if left else "its checksum is another one", name)

    def _error(self, problem: str, member: str = "") -> ArchiveError:
        return ArchiveError(ref=self._ref, member=member, problem=problem)


class _TooMuchError(Exception):
    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Bounded:
    """Passes on what `zipfile` asks of a file, but no read that is larger than the list of members may be."""

    def __init__(self, packed: Any, limit: int) -> None:
        self._packed, self._limit = packed, limit
        self.seek, self.tell, self.seekable = packed.seek, packed.tell, packed.seekable

    def read(self, size: int = -1) -> bytes:
        at = self._packed.tell()
        left = self._packed.seek(0, os.SEEK_END) - at
        self._packed.seek(at)
        if (left if size < 0 else min(size, left)) > self._limit:
            raise _TooMuchError(left if size < 0 else size)
        found: bytes = self._packed.read(size)
        return found


def _inflated(packed: Iterator[bytes], method: int) -> Iterator[bytes]:
    """Yield what *packed* holds, a little at a time; raise an error of ``_DAMAGED`` unless it ends where it should."""
    if method == zipfile.ZIP_STORED:
        yield from packed
        return
    if method == zipfile.ZIP_BZIP2:
        stream = bz2.BZ2Decompressor()
        for data in packed:
            if stream.eof:
                raise ValueError("it goes on behind its end")
            yield stream.decompress(data, _CHUNK_BYTES)
            while not (stream.eof or stream.needs_input):
                yield stream.decompress(b"", _CHUNK_BYTES)
        over = stream.unused_data
    else:
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        for data in packed:
            if inflating.eof:
                raise ValueError("it goes on behind its end")
            yield inflating.decompress(data, _CHUNK_BYTES)
            while inflating.unconsumed_tail:
                yield inflating.decompress(inflating.unconsumed_tail, _CHUNK_BYTES)
        while not inflating.eof and (chunk := inflating.decompress(b"", _CHUNK_BYTES)):
            yield chunk
        stream, over = inflating, inflating.unused_data  # type: ignore[assignment]
    if over or not stream.eof:
        raise ValueError("it does not end where it should")
