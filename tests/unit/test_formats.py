"""Pickles are recognised by what is in them, in every wrapping; what lies beside models is not taken for one."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcache.formats import pickled


class Evil:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def in_zip(name: str, content: bytes, before: bytes = b"") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3\n")
        archive.writestr(name, content)
    return before + file.getvalue()


def in_tar(name: str, content: bytes, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        about = tarfile.TarInfo(name)
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    return file.getvalue()


def numpy_array(descr: str) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (3,), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 24


def gzip_of(times: int, content: bytes) -> bytes:
    return gzip.compress(content if times == 1 else gzip_of(times - 1, content))


def tar_of_tars(times: int, content: bytes) -> bytes:
    return in_tar("x", content if times == 1 else tar_of_tars(times - 1, content))


def old_tar(content: bytes) -> bytes:
    made = bytearray(in_tar("model", content, tarfile.USTAR_FORMAT))
    made[257:265] = b"\0" * 8
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made[:512])
    return bytes(made)


EVIL = {f"protocol {version}": pickle.dumps(Evil(), version) for version in range(6)}
PICKLES = {
    **EVIL,
    "plain data": pickle.dumps({"weights": [1.0, 2.0]}, 4),
    "plain data of protocol 0": pickle.dumps({"weights": [1.0, 2.0]}, 0),
    # The legacy form of torch.save: a magic number, a version, then the rest, one after the other.
    "several in a row": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + EVIL["protocol 2"],
    "several of protocol 0": pickle.dumps(0x1950A86A20F9469CFC6C, 0) + pickle.dumps(1001, 0) + EVIL["protocol 0"],
    "followed by junk": EVIL["protocol 0"][:-1] + b"\xff\xfejunk",
    "an int in a form that only C reads": b"I0x10\n0" + EVIL["protocol 0"],
    "behind a long text": b"T" + struct.pack("<i", 3_000_000) + b"a" * 3_000_000 + b"0" + EVIL["protocol 0"],
    "with a mark that is popped": b"(0" + EVIL["protocol 0"],
    "marked as protocol 1": b"\x80\x01" + EVIL["protocol 1"],
    "marked as protocol 0, behind others": pickle.dumps(1, 0) + b"\x80\x00" + EVIL["protocol 0"],
    "in a zip, behind a long text": in_zip(
        "w", b"T" + struct.pack("<i", 9 << 20) + bytes(9 << 20) + b"0" + EVIL["protocol 0"]
    ),
    "in gzip, behind a long text": gzip.compress(
        b"T" + struct.pack("<i", 9 << 20) + bytes(9 << 20) + b"0" + EVIL["protocol 0"]
    ),
    "a class that is called": b"(S'x'\nios\nsystem\n.",
    "a zip with data.pkl": in_zip("archive/data.pkl", b"whatever"),
    "a zip with a pickle by another name": in_zip("archive/weights", EVIL["protocol 4"]),
    "a zip behind something else": in_zip("archive/data.pkl", EVIL["protocol 2"], before=b"GGUF" + b"\0" * 100),
    "a numpy archive of objects": in_zip("x.npy", numpy_array("'|O'")),
    "a numpy array of objects": numpy_array("'|O'"),
    "a numpy array with an object in it": numpy_array("[('a', '<f4'), ('b', '|O8')]"),
    "gzip": gzip.compress(EVIL["protocol 4"]),
    "zlib": zlib.compress(EVIL["protocol 4"]),
    "bzip2": bz2.compress(EVIL["protocol 0"]),
    "xz": lzma.compress(EVIL["protocol 4"]),
    "lzma": lzma.compress(EVIL["protocol 4"], format=lzma.FORMAT_ALONE),
    "gzip behind an empty one": gzip.compress(b"") + gzip.compress(EVIL["protocol 4"]),
    "gzip behind many and their padding": (gzip.compress(b"") + bytes(99_999)) * 9 + gzip.compress(EVIL["protocol 4"]),
    "bzip2 in two streams": bz2.compress(EVIL["protocol 0"][:5]) + bz2.compress(EVIL["protocol 0"][5:]),
    "xz behind an empty one": lzma.compress(b"") + bytes(8) + lzma.compress(EVIL["protocol 4"]),
    "gzip in more streams than anybody makes": gzip.compress(b"") * 10_001 + gzip.compress(EVIL["protocol 4"]),
    "gzip in gzip in gzip in gzip in gzip": gzip_of(5, EVIL["protocol 4"]),
    "a tar in a tar in a tar in a tar in a tar": tar_of_tars(5, EVIL["protocol 2"]),
    "a frame that ends within an argument": b"\x95" + struct.pack("<Q", 2) + b"J\0\0\0\0\x81" + EVIL["protocol 0"],
    "a frame that is longer than the file": b"\x95" + struct.pack("<Q", 999) + EVIL["protocol 0"],
    "a frame that ends behind a stop": b"\x88\x85\x95" + struct.pack("<Q", 2) + b".u" + EVIL["protocol 0"],
    "a long line before": b"V" + b"a" * 70_000 + b"\n0" + EVIL["protocol 0"],
    "a long number before": b"I" + b" " * 200_000 + b"1\n0" + EVIL["protocol 0"],
    "a long line before, in gzip": gzip.compress(b"V" + b"a" * 9_000_000 + b"\n0" + EVIL["protocol 0"]),
    "gzip that is cut": gzip.compress(EVIL["protocol 4"] + random.Random(1).randbytes(9999))[:-50],
    "a tar": in_tar("model/weights", EVIL["protocol 2"]),
    "an old tar": old_tar(EVIL["protocol 2"]),
    "a tar in gzip": gzip.compress(in_tar("weights", EVIL["protocol 2"])),
    "a zip in a zip": in_zip("inner", in_zip("archive/data.pkl", b"x")),
}
SAFETENSORS = struct.pack("<Q", 64) + json.dumps({"w": {"dtype": "F32", "shape": [2]}}).ljust(64).encode() + b"\0" * 8
OTHERS = {
    "nothing": b"",
    "safetensors": SAFETENSORS,
    "gguf": b"GGUF\x03\0\0\0" + b"\0" * 100,
    "onnx": b"\x08\x07\x12\x07pytorch\x1a\x051.2.0:\x80\x01\n\x10" + b"\0" * 64,
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0" * 64,
    "json": b'{"model_type": "bert", "a": [1, 2.5, null]}\n',
    "a list in json": b"[1, 2, 3]\n",
    "a readme": b"# Model\n\nI am a model.\nSee (here) and `there`.\n",
    "a licence": b"Copyright 2026 Somebody\nAll rights reserved.\n",
    "small letters": b"copyright somebody\nall rights reserved\nname\n",
    "a vocabulary": b"cat\ndog\nmouse\n[UNK]\n##ing\n",
    "a vocabulary of numbers": b"I\nIs\n1\n2\n",
    "merges": b"#version: 0.2\ni n\nt h\na n\nth e\n",
    "a full stop": b".",
    "dots": b"...\n",
    "brackets": b"((((((()))))))",
    "csv": b"a,b,c\n1,2,3\n",
    "python": b"import os\n\nclass Model:\n    pass\n",
    "yaml": b"name: x\nlist:\n  - a\n",
    "zip": in_zip("weights.bin", SAFETENSORS),
    "numbers in numpy": numpy_array("'<f4'"),
    "a field called O": numpy_array("[('Oh', '<f4')]"),
    "a tar of texts": in_tar("readme", b"# hello\n"),
    "gzip of text": gzip.compress(b"hello\n" * 99),
    "a long text in gzip": gzip.compress(b"The quick brown fox\n" * 600_000),
    "gzip of text in many streams": gzip.compress(b"hello\n") * 999,
    "a text of long lines": (b"In the beginning " * 9_000 + b"\n") * 9,
    "what would be a frame": b"\x95" + b"\xff" * 99,
    "a long line without an end": b"In the beginning " * 9_000,
    "gzip with something behind it": gzip.compress(b"hello\n" * 99) + b"signature",
    "a long text in zip": in_zip("t", b"The quick brown fox\n" * 600_000),
    "zeros": b"\0" * 4096,
    "ones": b"\xff" * 4096,
    "noise": random.Random(2).randbytes(100_000),
    "a mark alone": b"\x80\x04",
    "a mark and no opcode": b"\x80\x04\xff\xff",
    "a mark of a protocol that is not there": b"\x80\x09K\x01.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_recognised_whatever_it_is_wrapped_in(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(PICKLES[kind])

    assert pickled(str(path), "weights.bin") is not None


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_pickle_is_not_taken_for_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(OTHERS[kind])

    assert pickled(str(path), "weights.bin") is None


@pytest.mark.parametrize("name", ["a.pkl", "A.PICKLE", "dir/a.joblib", "a.tar.pkl"])
def test_a_name_is_taken_at_its_word(name: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(SAFETENSORS)

    assert pickled(str(tmp_path / "x"), name) is not None


def test_an_archive_that_cannot_be_looked_into_is_refused(tmp_path: Path) -> None:
    whole = bytearray(in_zip("weights", b"x" * 999))
    start = whole.index(b"weights") + 7
    whole[start : start + 4] = b"\xff\xff\xff\xff"  # Of the compressed bytes.
    (tmp_path / "x").write_bytes(whole)

    assert "cannot be looked into" in str(pickled(str(tmp_path / "x"), "x.bin"))


@settings(max_examples=300, deadline=None)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
        max_leaves=10,
    ),
    protocol=st.integers(0, 5),
    evil=st.booleans(),
)
def test_every_pickle_that_python_writes_is_recognised(
    value: Any, protocol: int, evil: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_bytes(pickle.dumps([value, Evil()] if evil else [value], protocol))

    assert pickled(str(path), "weights.bin") is not None


@settings(max_examples=500, deadline=None)
@given(content=st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_no_content_makes_the_look_fail(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "drawn"
    path.write_bytes(content)

    pickled(str(path), "weights.bin")
