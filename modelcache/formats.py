"""Whether a file is a pickle, or holds one: by its content, whatever it is called. Reads, and never unpickles.

Found are (pickletools names the opcodes):
  * pickles of every protocol, several in a row too (the form of torch.save before 1.6);
  * zip archives with such a member, as torch.save writes (``data.pkl``), and numpy's ``.npz``; tar archives;
  * numpy arrays of objects, whose data are a pickle;
  * any of these behind gzip, zlib, bzip2 or xz (joblib), as far as the first 8 MiB tell.

A pickle runs code only by an import followed by a call. The opcodes are followed from the start as an unpickler reads
them, more leniently than any does, so that what would be executed before an error is seen too. Text can look like
opcodes: without a protocol mark, only an import that is called or returned, or a file that is one pickle to its last
byte, counts. A file that is called a pickle (``.pkl``, ``.joblib``) is taken at its word.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tarfile
import zipfile
import zlib
from bz2 import BZ2Decompressor
from lzma import LZMADecompressor, LZMAError
from pickletools import opcodes
from typing import IO, Any

_NAMES = (".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle")
_DEPTH_MAX = 3  # Of archives in archives.
_OPCODES_MAX = 100_000
_PROTOCOL_MAX = 5
_PICKLES_MAX = 256  # In a row.
_MEMBERS_MAX = 100_000
_LINE_BYTES_MAX = 1 << 16
_UNPACKED_BYTES = 8 << 20
_UNSEEN_BYTES = 64 << 20  # What is unpacked no further may be so large; a text that goes beyond that is none.
_STREAMS_MAX = 10_000  # One behind another; bgzip makes one of 64 KiB.
_PIECE_BYTES, _HEAD_BYTES = 1 << 16, 8
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
_NUMPY, _ZIP = b"\x93NUMPY", (b"PK\x03\x04", b"PK\x05\x06")
_IMPORTABLE = re.compile(rb"[\w.]+\r?")
_OBJECT = re.compile(rb"""["'][|<>=]?O\d*["']""")
_CODES = {ord(one.code): one for one in opcodes}
_CALLS = {"REDUCE", "OBJ", "INST", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
_IMPORTS = {"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}
_COUNTED = {-2: ("<B", 1), -3: ("<i", 4), -4: ("<I", 4), -5: ("<Q", 8)}  # How pickletools marks lengths.


def pickled(path: str, name: str) -> str | None:
    """Return what makes the file at *path*, called *name*, a pickle, as the end of a sentence; None if nothing does.

    Raises:
        OSError: It could not be read.
    """
    if name.lower().endswith(_NAMES):
        return f"is called a pickle ({name.rpartition('/')[2]})"
    with open(path, "rb") as file:
        return _found(file, os.fstat(file.fileno()).st_size, 0)


def _found(file: IO[bytes], size: int, depth: int) -> str | None:
    """Look at *file*, of *size* bytes, inside so many archives."""
    head = file.read(512)
    if head.startswith(_NUMPY):
        return _numpy(file)
    if _is_pickle(file, size):
        return "is a pickle"
    if depth >= _DEPTH_MAX:
        deeper = head.startswith((*_ZIP, *_PACKED)) or head[257:262] == b"ustar"
        return "holds archives in archives that nobody looks into" if deeper else None
    unpacked = _unpacked(file, head)
    if isinstance(unpacked, str):
        return unpacked
    if unpacked is not None:
        inside = _found(*unpacked, depth + 1)
        return f"{inside}, compressed" if inside else None
    # Within another archive, its end is far to go; only the outermost may hide one behind something else.
    if head.startswith(_ZIP) or (depth == 0 and zipfile.is_zipfile(file)):
        return _in_zip(file, depth)
    file.seek(0)
    if head[257:262] == b"ustar" or (len(head) == 512 and _is_old_tar(head)):
        return _in_tar(file, depth)
    return None


def _in_zip(file: IO[bytes], depth: int) -> str | None:
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            for member in members[:_MEMBERS_MAX]:
                if member.filename.lower().endswith(_NAMES):
                    return f"holds the pickle {member.filename!r:.100}"
                if member.is_dir():
                    continue
                with archive.open(member) as stream:
                    inside = _found(stream, member.file_size, depth + 1)
                if inside:
                    return f"holds {member.filename!r:.100}, which {inside}"
            return "holds more members than are looked at" if len(members) > _MEMBERS_MAX else None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, ValueError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        return f"is a zip archive that cannot be looked into ({type(error).__name__})"


def _in_tar(file: IO[bytes], depth: int) -> str | None:
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MEMBERS_MAX:
                    return "holds more members than are looked at"
                if member.name.lower().endswith(_NAMES):
                    return f"holds the pickle {member.name!r:.100}"
                stream = archive.extractfile(member) if member.isreg() else None
                inside = _found(stream, member.size, depth + 1) if stream is not None else None
                if inside:
                    return f"holds {member.name!r:.100}, which {inside}"
    except (tarfile.TarError, ValueError, EOFError) as error:
        return f"is a tar archive that cannot be looked into ({type(error).__name__})"
    return None


def _is_old_tar(head: bytes) -> bool:
    """Tell whether *head* is that of a tar archive without a magic number: by its checksum (POSIX.1-1988, pax)."""
    field = head[148:156].strip(b"\0 ")
    if not field or not all(byte in b"01234567" for byte in field):
        return False
    return int(field, 8) == sum(head) - sum(head[148:156]) + 8 * 32


def _machine(head: bytes) -> Any:
    """Return what decompresses a stream that begins with *head*, None if nothing does."""
    if head.startswith(b"\x1f\x8b") or (head[:1] == b"x" and len(head) > 1 and int.from_bytes(head[:2]) % 31 == 0):
        return zlib.decompressobj(wbits=47)  # gzip or zlib, whichever it is.
    if head.startswith(b"BZh"):
        return BZ2Decompressor()
    if head.startswith((b"\xfd7zXZ\0", b"]\0\0")):
        return LZMADecompressor()
    return None


def _unpacked(file: IO[bytes], head: bytes) -> tuple[IO[bytes], int] | str | None:
    """Return the beginning of what is compressed in *file*, and a size that it may have; None if nothing is.

    Streams one behind another are one, as for all who read them; a text says why they are not looked into.
    """
    machine = _machine(head)
    if machine is None:
        return None
    file.seek(0)
    found, streams = b"", 1
    chunk = file.read(_PIECE_BYTES)
    try:
        while chunk and len(found) < _UNPACKED_BYTES:
            found += machine.decompress(chunk, _UNPACKED_BYTES - len(found))
            if not machine.eof:
                chunk = file.read(_PIECE_BYTES)
                continue
            chunk = _next_stream(machine.unused_data, file)
            machine, streams = _machine(chunk), streams + 1
            if machine is None:
                break
            if streams > _STREAMS_MAX:
                return "is compressed in more streams than are looked at"
    except (zlib.error, LZMAError, OSError, ValueError, EOFError):
        pass  # What came before counts: an unpickler would have read it too.
    return (io.BytesIO(found), len(found) if len(found) < _UNPACKED_BYTES else _UNSEEN_BYTES) if found else None


def _next_stream(rest: bytes, file: IO[bytes]) -> bytes:
    """Return what follows a stream, from *rest* of what was read and from *file*, without the padding between."""
    while len(rest := rest.lstrip(b"\0")) < _HEAD_BYTES and (piece := file.read(_PIECE_BYTES)):
        rest += piece
    return rest


def _numpy(file: IO[bytes]) -> str | None:
    """Look at the type that the header of an array states (numpy.lib.format)."""
    file.seek(6)
    version = file.read(2)
    width, form = (2, "<H") if version[:1] == b"\1" else (4, "<I")
    size = file.read(width)
    if len(size) < width:
        return None  # No array: it ends in its header.
    header = file.read(min(struct.unpack(form, size)[0], 1 << 20))
    return "is a numpy array of objects" if _OBJECT.search(header) else None


def _is_pickle(file: IO[bytes], size: int) -> bool:
    reader = _Reader(file, size)
    file.seek(0)
    for _ in range(_PICKLES_MAX):
        verdict = _one_pickle(reader)
        if verdict is not None:
            return verdict
    return True


def _one_pickle(reader: _Reader) -> bool | None:
    """Follow the opcodes of one pickle: whether it counts as one, or None if another one may follow it."""
    marked, imported, depth, marks = False, False, 0, [0]
    for number in range(_OPCODES_MAX):
        code = reader.take(1)
        one = _CODES.get(code[0]) if code else None
        if one is None:
            return reader.cut
        if number == 0 and one.name == "PROTO":
            version = reader.take(1)
            if not version or version[0] > _PROTOCOL_MAX:
                return False
            marked = True
            continue
        if marked and number == 1:
            return True  # The mark and another opcode: chance makes that of one file in 250 000.
        if one.name == "FRAME" and reader.fits():
            # Unpicklers differ in what they skip behind one, and only where a mark went before does anybody write it.
            return True
        argument = reader.argument(one.arg.n if one.arg is not None else 0, pair=_is_pair(one))
        if argument is None:
            return reader.cut
        lines = argument.split(b"\n") if one.name in {"GLOBAL", "INST"} else []
        if not all(_IMPORTABLE.fullmatch(line) for line in lines):
            return False
        imported = imported or one.name in _IMPORTS
        depth, sound = _stacked(one, depth, marks)
        if not sound:
            return False
        if one.name in _CALLS and imported:
            return True
        if one.name == "STOP":
            if imported or (number > 0 and reader.at_end):
                return True
            return None if number > 0 else False
    return True  # So many opcodes that make sense are no accident.


def _stacked(one: Any, depth: int, marks: list[int]) -> tuple[int, bool]:
    """Return how much is on the stack after *one*, and whether there was enough before it."""
    before, after = [kind.name for kind in one.stack_before], [kind.name for kind in one.stack_after]
    if one.name == "MARK":
        marks.append(depth)
        return depth, True
    if one.name == "POP" and depth == marks[-1] and len(marks) > 1:
        marks.pop()  # Unpicklers let it take a mark away.
        return depth, True
    if "mark" in before:
        if len(marks) == 1:
            return depth, False
        depth = marks.pop() - before.index("mark")
        return depth + len(after), depth >= 0
    depth -= len(before)
    return depth + len(after), depth >= marks[-1]


def _is_pair(one: Any) -> bool:
    return one.arg is not None and one.arg.name == "stringnl_noescape_pair"


class _Reader:
    """The bytes of a file, from its start; what is long is passed over, not read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left = file, size
        self.cut = False  # It ended before its size: what would have come is not known.

    @property
    def at_end(self) -> bool:
        return self._left == 0

    def fits(self) -> bool:
        """Tell whether as much as the next eight bytes say is still to come behind them; they are read once more."""
        length = self.take(8)
        fits = self.cut or (len(length) == 8 and int.from_bytes(length, "little") <= self._left)
        self._file.seek(-len(length), io.SEEK_CUR)
        self._left += len(length)
        return fits

    def take(self, count: int) -> bytes:
        wanted = min(count, self._left)
        found = self._file.read(wanted)
        self._left -= len(found)
        self.cut = self.cut or len(found) < wanted
        return found

    def argument(self, kind: int, *, pair: bool) -> bytes | None:
        """Return the argument of an opcode, as far as it is of interest; None if it is not all there."""
        if kind >= 0:
            return self._passed(kind)
        if kind == -1:
            lines = [self._line() for _ in range(1 + pair)]
            return b"\n".join(line for line in lines if line is not None) if None not in lines else None
        form, width = _COUNTED[kind]
        size = self.take(width)
        if len(size) < width:
            return None
        count: int = struct.unpack(form, size)[0]
        return self._passed(count) if count >= 0 else None

    def _passed(self, count: int) -> bytes | None:
        if count > self._left:
            return None
        self._file.seek(count, io.SEEK_CUR)
        self._left -= count
        return b""

    def _line(self) -> bytes | None:
        """Return the beginning of a line, however long it is; None if it has no end."""
        kept = b""
        while part := self._file.readline(min(_LINE_BYTES_MAX, self._left)):
            self._left -= len(part)
            kept = kept or part
            if part.endswith(b"\n"):
                return kept.removesuffix(b"\n")
        self.cut = self.cut or self._left > 0
        return None
