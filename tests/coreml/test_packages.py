"""Packages in and out of the cache, with the real coremltools."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, coreml, errors
from modelcache.promises import check_cache
from tests.coreml import models
from tests.support.coreml import WEIGHTS, need_coremltools, package
from tests.support.state import leftovers

need_coremltools()


def saved(model: Any, directory: Path) -> Path:
    model.save(str(directory))
    return directory


def test_two_saves_of_one_model_are_one_object(cache: Cache, linear: Any, tmp_path: Path) -> None:
    one = saved(linear, tmp_path / "One.mlpackage")
    other = tmp_path / "Other.mlpackage"
    models.tools().utils.save_spec(linear.get_spec(), str(other), weights_dir=linear.weights_dir)
    assert (one / "Manifest.json").read_bytes() != (other / "Manifest.json").read_bytes()

    entries = [cache_put(cache, path, name=f"{path.name}") for path in (one, other)]

    assert coreml.canonical_digest(one) == coreml.canonical_digest(other)
    assert entries[0].digest == entries[1].digest
    assert check_cache(cache.root) == []
    assert leftovers(Path(cache.root)) == []


def cache_put(cache: Cache, content: Any, *, name: str) -> Any:
    return coreml.put_package(content, name=name, cache=cache)


_BUILD = """
import sys
from modelcache import Cache, coreml
from tests.coreml import models
print(coreml.put_package(models.linear(), name="Net.mlpackage", cache=Cache(sys.argv[1])).digest)
"""


def test_a_model_that_two_processes_convert_is_one_object(root: Path) -> None:
    """coremltools writes the maps of a program in another order in each process."""
    found = {
        subprocess.run(
            [sys.executable, "-c", _BUILD, str(root)], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": str(seed), "PYTHONPATH": ":".join(sys.path), "MODELCACHE_CONFIG": ""},
        ).stdout
        for seed in range(3)
    }  # fmt: skip

    assert len(found) == 1


def test_what_was_put_is_opened_by_coremltools_and_stays_what_it_is(cache: Cache, linear: Any) -> None:
    entry = cache_put(cache, linear, name="nets/Net.mlpackage")

    opened = coreml.model("nets/Net.mlpackage", cache=cache, skip_model_load=True)

    assert [one.name for one in opened.get_spec().description.output] == ["y"]
    assert opened.get_spec() == coreml.spec("nets/Net.mlpackage", cache=cache)
    assert cache.verify().ok
    assert cache.get("nets/Net.mlpackage", verify="full") == entry.path
    del opened
    assert leftovers(Path(cache.root)) == []


def test_a_package_whose_manifest_has_another_form_stays_what_it_is(cache: Cache, linear: Any, tmp_path: Path) -> None:
    """As Xcode writes it. Opened by its path, coremltools writes it anew, and the cache would set it aside."""
    directory = saved(linear, tmp_path / "Net.mlpackage")
    text = json.dumps(json.loads((directory / "Manifest.json").read_bytes()))
    (directory / "Manifest.json").write_text(text)
    entry = cache.put_tree(directory, name="Net.mlpackage")

    coreml.model("Net.mlpackage", cache=cache, skip_model_load=True)
    coreml.spec(entry.path, cache=cache)

    assert Path(entry.path, "Manifest.json").read_text() == text
    assert cache.get("Net.mlpackage", verify="full") == entry.path


def test_what_put_package_stored_survives_being_opened_by_its_path(cache: Cache, linear: Any) -> None:
    """Nobody should; but its manifest has the form that coremltools writes, so that its bytes stay."""
    entry = cache_put(cache, linear, name="Net.mlpackage")

    models.tools().models.MLModel(entry.path, skip_model_load=True)

    assert cache.get("Net.mlpackage", verify="full") == entry.path


def test_a_model_without_weights_can_be_opened_again(cache: Cache, tmp_path: Path) -> None:
    directory = saved(models.weightless(), tmp_path / "Small.mlpackage")
    assert not any((directory / WEIGHTS).parent.iterdir())

    entry = cache_put(cache, directory, name="Small.mlpackage")

    opened = coreml.model("Small.mlpackage", cache=cache, skip_model_load=True)
    opened.save(str(tmp_path / "Again.mlpackage"))
    assert coreml.canonical_digest(entry.path) == coreml.canonical_digest(directory)
    assert coreml.canonical_digest(tmp_path / "Again.mlpackage") == coreml.canonical_digest(directory)


def zipped(directory: Path, *, top: str, mac: bool = False) -> io.BytesIO:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(directory.rglob("*")):
            archive.write(path, f"{top}{path.relative_to(directory)}")
        if mac:
            archive.writestr(f"__MACOSX/{top}._Manifest.json", b"\0")
    return stream


def tarred(directory: Path, mode: str) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{mode}") as archive:  # type: ignore[call-overload]
        archive.add(directory, "release/Net.mlpackage")
    return stream


ARCHIVES: dict[str, Callable[[Path], io.BytesIO]] = {
    "zip": lambda one: zipped(one, top=""),
    "zip, one directory, as Finder makes it": lambda one: zipped(one, top="Net.mlpackage/", mac=True),
    "tar": lambda one: tarred(one, ""),
    "tar.gz": lambda one: tarred(one, "gz"),
    "tar.xz": lambda one: tarred(one, "xz"),
}


@pytest.mark.parametrize("weights", [b"weights" * 100, None], ids=["weights", "no weights"])
@pytest.mark.parametrize("make", ARCHIVES.values(), ids=ARCHIVES)
def test_a_package_in_an_archive_is_the_package(
    make: Callable[[Path], io.BytesIO], weights: bytes | None, cache: Cache, tmp_path: Path
) -> None:
    directory = package(tmp_path / "Net.mlpackage", weights=weights)
    stream = make(directory)
    stream.seek(0)

    entry = cache_put(cache, stream, name="nets/Net.mlpackage")

    assert entry.path.endswith("/Net.mlpackage")
    assert coreml.canonical_digest(entry.path) == coreml.canonical_digest(directory)
    assert entry.digest == cache_put(cache, directory, name="direct.mlpackage").digest
    assert leftovers(Path(cache.root)) == []


def test_an_archive_on_disk_is_unpacked_as_well(cache: Cache, tmp_path: Path) -> None:
    directory = package(tmp_path / "Net.mlpackage")
    (tmp_path / "Net.mlpackage.zip").write_bytes(zipped(directory, top="Net.mlpackage/").getvalue())

    entry = cache_put(cache, tmp_path / "Net.mlpackage.zip", name="Net.mlpackage")

    assert coreml.canonical_digest(entry.path) == coreml.canonical_digest(directory)


def _no_weights(directory: Path) -> Path:
    (directory / WEIGHTS).unlink()
    (directory / WEIGHTS).parent.rmdir()
    return directory


def _old_format(directory: Path) -> Path:
    path = directory.with_suffix(".mlmodel")
    path.write_bytes(b"old")
    return path


def _no_package(directory: Path) -> Path:
    (directory / "Manifest.json").unlink()
    return directory


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda one: one / "nothing", errors.RemoteNotFoundError, "nothing does not exist"),
        (_no_package, errors.PackageError, r"'Manifest\.json' in it: it is not there"),
        (_no_weights, errors.PackageError, "weights' in it: its manifest names it, and it is not there"),
        (_old_format, errors.PackageError, "a .mlmodel is one file"),
        (lambda one: zipped(_no_weights(one), top="x/"), errors.PackageError, "no package in it"),
        (lambda one: zipped(_no_weights(one), top=""), errors.PackageError, "weights' in it: its manifest names it"),
        (lambda one: io.BytesIO(b"no archive"), errors.ModelCacheError, "the archive"),
        (lambda one: io.StringIO("text"), errors.UsageError, "binary mode"),
        (lambda one: 7, errors.UsageError, "not int"),
        (lambda one: one / ".." / "no.zip", errors.RemoteNotFoundError, "No such file"),
    ],
)  # fmt: skip
def test_what_is_no_whole_package_is_not_stored(
    make: Callable[[Path], Any], error: type[errors.ModelCacheError], says: str, cache: Cache, tmp_path: Path
) -> None:
    content = make(package(tmp_path / "Net.mlpackage"))
    if isinstance(content, io.BytesIO):
        content.seek(0)

    with pytest.raises(error, match=says):
        cache_put(cache, content, name="Net.mlpackage")

    assert cache.entries() == []
    assert leftovers(Path(cache.root)) == []
    assert list(Path(cache.root).glob("objects-v1/*")) == []


@pytest.mark.parametrize("name", ["https://host/Net.mlpackage", "/tmp/Net.mlpackage", "..", "a\0b", "", "x" * 300])
def test_a_name_that_can_be_none_is_refused_before_anything_is_written(name: str, root: Path, tmp_path: Path) -> None:
    directory = package(tmp_path / "Net.mlpackage")

    with pytest.raises(errors.InvalidReferenceError):
        coreml.put_package(directory, name=name, cache=Cache(root))

    assert leftovers(root) == []
    assert list(root.glob("objects-v1/*")) == []


def test_the_package_of_the_user_stays_as_it_is(cache: Cache, tmp_path: Path) -> None:
    directory = package(tmp_path / "Net.mlpackage")
    (directory / ".DS_Store").write_bytes(b"x")
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in directory.rglob("*") if path.is_file()}

    entry = cache_put(cache, directory, name="Net.mlpackage")

    assert {path: (path.stat().st_ino, path.read_bytes()) for path in directory.rglob("*") if path.is_file()} == before
    assert not Path(entry.path, ".DS_Store").exists()
    assert {path.stat().st_nlink for path in before} == {1}


def test_a_flipped_bit_is_found(cache: Cache, linear: Any) -> None:
    entry = cache_put(cache, linear, name="Net.mlpackage")
    weights = Path(entry.path, WEIGHTS)
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)

    assert not cache.verify().ok
    with pytest.raises(errors.ModelCacheError):
        cache.get("Net.mlpackage", verify="full")


def test_importing_coremltools_is_silent_but_for_news() -> None:
    code = """
import logging, sys
from modelcache.coreml import library
library.tools()
for words in ("news", "Failed to load _ML: but later"):
    logging.getLogger("coremltools").warning(words)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    # Of other libraries that are installed it may have news of its own, by their versions.
    said = [line for line in done.stderr.splitlines() if " version " not in line]
    assert said == ["news", "Failed to load _ML: but later"]


def _maps(message: Any, found: dict[str, Any]) -> dict[str, Any]:
    """Return the message types below *message* that hold a map, or hold what does, by name."""
    if message.full_name not in found:
        found[message.full_name] = message
        for field in message.fields:
            if field.message_type is not None:
                _maps(field.message_type, found)
    return found


def test_all_maps_of_programs_and_metadata_are_known() -> None:
    """Against the descriptors of coremltools: a new map in a later version turns this red."""
    from modelcache import milprogram

    model = models.tools().proto.Model_pb2.Model.DESCRIPTOR
    seen: dict[str, Any] = {}

    def is_map(field: Any) -> bool:
        return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)

    def compare(message: Any, kind: Any) -> None:
        if message.full_name in seen:
            assert seen[message.full_name] is kind or message.full_name not in holders
            return
        seen[message.full_name] = kind
        for field in message.fields:
            below = field.message_type
            if is_map(field):
                assert field.number in kind.maps, f"{message.full_name}.{field.name}"
                value = below.fields_by_name["value"].message_type
                if value is not None and value.full_name in holders:
                    compare(value, kind.maps[field.number])
            elif below is not None and below.full_name in holders:
                assert field.number in kind.parts, f"{message.full_name}.{field.name}"
                compare(below, kind.parts[field.number])

    everything = _maps(model, {})
    holders: set[str] = set()
    while True:
        more = {
            name
            for name, message in everything.items()
            if any(
                is_map(one) or (one.message_type and one.message_type.full_name in holders) for one in message.fields
            )
        }
        if more == holders:
            break
        holders = more
    kinds = milprogram._model.parts
    compare(model.fields_by_name["mlProgram"].message_type, kinds[502])
    compare(model.fields_by_name["description"].message_type, kinds[2])
    assert len(seen) > 15


def test_a_settled_program_is_the_same_program(linear: Any) -> None:
    from modelcache import milprogram

    spec = linear.get_spec()
    spec.description.metadata.userDefined.update({str(number): "x" for number in range(20)})

    found = milprogram.settled(spec.SerializeToString())

    again = type(spec)()
    again.ParseFromString(found)
    assert again == spec
    assert milprogram.settled(spec.SerializeToString(deterministic=True)) == found
