"""Packages that are converted, and models that are compiled, once: with the real coremltools.

Core ML's compiler is on macOS alone. What compiles here is a stand-in (`compilers`), which shows how the compiler is
called and what becomes of its product, and nothing of what Core ML does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, coreml, errors, layout
from modelcache.coreml import library
from modelcache.promises import check_cache
from tests.coreml import compilers, models
from tests.support.coreml import MODEL, WEIGHTS, need_coremltools, package
from tests.support.state import leftovers

need_coremltools()


def convert(cache: Cache, build: Callable[[Any], object] = models.build_linear, **options: Any) -> str:
    return coreml.converted(build, **{"recipe": "test", "version": "1", "cache": cache, **options})


def compile_(
    cache: Cache, ref: Any, compiler: Callable[[str, str], object] = compilers.compile_, **options: Any
) -> str:
    return coreml.compiled(ref, cache=cache, compiler=compiler, **options)


def is_clean(cache: Cache) -> bool:
    # That a build has failed is noted for a while.
    left = [name for name in leftovers(Path(cache.root)) if not name.startswith(layout.FAILURES)]
    wrong = [violation for violation in check_cache(cache.root) if layout.FAILURES not in str(violation)]
    assert left == []
    assert wrong == []
    return True


# -- converted ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize(
    ("build", "name"),
    [
        (models.build_linear, "model.mlpackage"),
        (models.build_to_a_path, "Net.mlpackage"),
        (models.build_left_there, "Small.mlpackage"),
    ],
)
def test_what_a_callable_builds_is_a_package_of_the_cache(
    build: Callable[[Any], object], name: str, isolate: bool, cache: Cache
) -> None:
    path = convert(cache, build, isolate=isolate)

    assert os.path.basename(path) == name
    assert coreml.spec(path, cache=cache).WhichOneof("Type") == "mlProgram"
    coreml.model(path, cache=cache, skip_model_load=True)
    assert convert(cache, lambda workspace: pytest.fail("it was here")) == path
    assert is_clean(cache)


def test_a_build_that_is_repeated_comes_to_the_same_bytes(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """In another process, where coremltools writes the maps of a program in another order."""
    path = convert(cache, isolate=True)

    monkeypatch.setenv("MODELCACHE_VERIFY_DERIVED", "1")
    for seed in ("1", "2", "3"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        assert convert(Cache(cache.root), isolate=True) == path
    metadata = coreml.spec(path, cache=cache).description.metadata.userDefined
    assert "com.github.apple.coremltools.version" in metadata
    assert not any("date" in name for name in metadata)  # Or it would be another one tomorrow.


def test_params_version_and_name_of_what_it_is_made_from_are_keys(cache: Cache) -> None:
    paths = {
        convert(cache),
        convert(cache, params={"scale": 2.0}),
        convert(cache, version="2", params={"scale": 3.0}),
        convert(cache, platform={"torch": "2.9"}, params={"scale": 4.0}),
    }

    assert len(paths) == 4


@pytest.mark.parametrize("isolate", [False, True])
def test_a_package_as_input_is_a_private_copy(isolate: bool, cache: Cache) -> None:
    source = convert(cache)

    path = convert(cache, models.quantised, recipe="int8", inputs={"model": source}, name="Int8", isolate=isolate)

    assert os.path.getsize(f"{path}/{WEIGHTS}") < os.path.getsize(f"{source}/{WEIGHTS}") / 1.5
    assert os.path.basename(path) == "Int8.mlpackage"
    assert cache.verify().ok
    assert cache.explain(path).inputs[0].name == "model"
    assert is_clean(cache)


def test_palettised_weights_are_a_derivation_too(cache: Cache) -> None:
    source = convert(cache)

    sizes = []
    for bits in (2, 4):
        path = convert(cache, models.palettised, recipe="lut", inputs={"model": source}, params={"bits": bits})
        sizes.append(os.path.getsize(f"{path}/{WEIGHTS}"))

    assert sizes[0] < sizes[1] < os.path.getsize(f"{source}/{WEIGHTS}")


def test_two_models_become_one_of_two_functions_that_share_weights(cache: Cache) -> None:
    source = convert(cache)
    other = convert(cache, params={"same": True})
    assert other == source

    path = convert(cache, models.multifunction, recipe="both", inputs={"one": source, "two": other})

    spec = coreml.spec(path, cache=cache)
    assert sorted(function.name for function in spec.description.functions) == ["one", "two"]
    assert os.path.getsize(f"{path}/{WEIGHTS}") < 1.5 * os.path.getsize(f"{source}/{WEIGHTS}")
    opened = coreml.model(path, cache=cache, skip_model_load=True, function_name="two")
    assert opened.function_name == "two"


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (models.build_nothing, errors.ProductError, "wrote nothing"),
        (models.build_rubbish, errors.PackageError, r"'Manifest\.json' in it: it is not there"),
        (models.build_without_weights, errors.PackageError, "weights' in it: its manifest names it"),
        (models.build_elsewhere, errors.ProductError, "outside"),
    ],
)
def test_a_build_that_makes_no_package_leaves_nothing(
    build: Callable[[Any], object], error: type[errors.ModelCacheError], says: str, isolate: bool, cache: Cache
) -> None:
    with pytest.raises(error, match=says):
        convert(cache, build, isolate=isolate)

    assert cache.entries() == []
    assert is_clean(cache)
    assert convert(cache, version="2").endswith(".mlpackage")


def test_a_build_that_is_killed_in_the_middle_leaves_nothing(cache: Cache) -> None:
    with pytest.raises(errors.BuildDiedError, match="SIGKILL"):
        convert(cache, models.build_and_die, isolate=True)

    assert is_clean(cache)
    convert(cache)
    assert is_clean(cache)


_DYING = """
import sys
from modelcache import Cache, coreml
from tests.coreml import models
coreml.converted(models.build_and_die, recipe="test", version="1", cache=Cache(sys.argv[1]))
"""


def run(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "MODELCACHE_CONFIG": ""},
    )  # fmt: skip


def test_what_a_killed_process_left_is_swept_by_the_next(cache: Cache) -> None:
    victim = run(_DYING, cache.root)
    _, said = victim.communicate()
    assert victim.returncode == -9, said
    assert leftovers(Path(cache.root)) != []

    path = convert(cache)

    assert coreml.spec(path, cache=cache).WhichOneof("Type") == "mlProgram"
    assert is_clean(cache)


_TWO = """
import sys
from modelcache import Cache, coreml
from tests.coreml import compilers, models
cache = Cache(sys.argv[1])
print(coreml.compiled(sys.argv[2], cache=cache, compiler=compilers.compile_and_report))
"""


def test_processes_that_ask_at_once_compile_once(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the compiler."""
    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)
    monkeypatch.setenv("TEST_REPORT", str(tmp_path / "report"))

    processes = [run(_TWO, cache.root, "Net.mlpackage") for _ in range(4)]
    said = [process.communicate() for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0, 0], said
    assert len({out for out, _ in said}) == 1
    assert (tmp_path / "report").read_text() == "built\n"
    assert is_clean(cache)


# -- compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "darwin", reason="compiles for real on macOS")
@pytest.mark.parametrize("call", [coreml.compiled, coreml.load, lambda ref, cache: coreml.recipe(cache, ref)])
def test_elsewhere_than_on_macos_nothing_is_fetched_or_written(call: Any, root: Path) -> None:
    with pytest.raises(errors.UnsupportedPlatformError, match=f"needs macOS, and this is {sys.platform}"):
        call("https://example.invalid/Net.mlpackage.zip", cache=Cache(root))

    assert not root.exists()


def test_two_saves_of_one_model_share_one_compiled_model(cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler. Trees that differ by their manifests alone."""
    refs = []
    for number in range(2):
        refs.append(f"v{number}/Net.mlpackage")
        cache.put_tree(package(tmp_path / f"{number}" / "Net.mlpackage"), name=refs[-1])
    assert len({entry.digest for entry in cache.entries()}) == 2

    first = compile_(cache, refs[0])
    found = compile_(cache, refs[1], compilers.compile_)

    assert found == first
    assert first.endswith("/Net.mlmodelc")
    assert Path(first, "weights", "weight.bin").read_bytes() == b"compiled"
    assert is_clean(cache)


def test_one_bit_of_the_weights_is_another_compiled_model(cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler."""
    directory = package(tmp_path / "Net.mlpackage")
    first = compile_(cache, directory)

    (directory / WEIGHTS).write_bytes(b"Weights" * 100)

    assert compile_(cache, directory) != first
    (directory / WEIGHTS).write_bytes(b"weights" * 100)
    assert compile_(cache, directory) == first


def test_a_hit_reads_no_weights_and_imports_no_coremltools(cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler. A package of gigabytes is not hashed again at each start."""
    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)
    path = compile_(cache, "Net.mlpackage")
    Path(cache.get("Net.mlpackage"), WEIGHTS).chmod(0)
    code = """
import sys
sys.modules["coremltools"] = None
sys.modules["numpy"] = None
from modelcache import Cache, coreml, files, milprogram
def never(*_, **__): raise AssertionError("it was hashed")
files.digest_of = files.chunks = milprogram.settled = never
from tests.coreml import compilers
cache = Cache(sys.argv[1])
print(coreml.compiled("Net.mlpackage", cache=cache, compiler=compilers.compile_))
print(coreml.converted(never, recipe="test", version="1", cache=cache))
"""
    made = convert(cache)
    process = run(code, cache.root)
    out, said = process.communicate()

    assert out.split() == [path, made], said


def test_an_old_model_is_compiled_too(cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler. One ``.mlmodel`` file, which coremltools itself has written."""
    models.tools().utils.save_spec(models.regressor(), str(tmp_path / "Old.mlmodel"))
    cache.put(tmp_path / "Old.mlmodel", name="Old")

    for ref in ("Old", tmp_path / "Old.mlmodel"):
        assert os.path.basename(compile_(cache, ref)) == "Old.mlmodelc"
    assert coreml.spec("Old", cache=cache) == models.regressor()
    assert is_clean(cache)


def test_a_compiler_that_opens_the_package_changes_a_copy_only(cache: Cache, linear: Any, tmp_path: Path) -> None:
    """With a stand-in for the compiler, which has coremltools write to the manifest."""
    linear.save(str(tmp_path / "Net.mlpackage"))
    manifest = tmp_path / "Net.mlpackage" / "Manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"    ", b""))
    cache.put_tree(tmp_path / "Net.mlpackage", name="Net.mlpackage")

    compile_(cache, "Net.mlpackage", compilers.compile_and_open)

    assert cache.verify().ok
    assert cache.get("Net.mlpackage", verify="full")


@pytest.mark.parametrize(
    ("compiler", "error", "says"),
    [
        (compilers.compile_nothing, errors.ProductError, "where nothing is"),
        (compilers.compile_badly, errors.BuildFailedError, "no such operator"),
        (compilers.compile_and_die, errors.BuildDiedError, "SIGSEGV"),
        (compilers.compile_to_a_file, errors.ProductRefusedError, "is a directory"),
    ],
)
def test_a_compiler_that_fails_leaves_nothing_and_the_next_call_begins_anew(
    compiler: Any, error: type[errors.ModelCacheError], says: str, cache: Cache, tmp_path: Path
) -> None:
    """With stand-ins for the compiler."""
    cache.put_tree(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage")

    with pytest.raises(error, match=says):
        compile_(cache, "Net.mlpackage", compiler)

    assert not any("coreml-compile" in entry.key for entry in cache.entries())
    assert is_clean(cache)
    assert compile_(cache, "Net.mlpackage")


def test_what_a_stand_in_made_is_no_other_compilers(cache: Cache, tmp_path: Path) -> None:
    cache.put_tree(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage")

    path = compile_(cache, "Net.mlpackage")

    assert "compiler" in cache.explain(path).platform
    compile_(cache, "Net.mlpackage", compilers.compile_and_open)
    assert len(compiled_keys(cache)) == 2


def test_a_package_within_a_repository_or_an_archive_is_found(cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler."""
    for name in ("A", "B"):
        package(tmp_path / "repository" / f"{name}.mlpackage", model=name.encode())
    cache.put_tree(tmp_path / "repository", name="both")
    cache.put_tree(tmp_path / "repository" / "A.mlpackage", name="one.mlpackage")

    with pytest.raises(errors.PackageError, match=r"several packages: A\.mlpackage, B\.mlpackage"):
        compile_(cache, "both")
    alone = compile_(cache, "one.mlpackage")
    assert compile_(cache, "both", package="A.mlpackage") == alone
    assert compile_(cache, f"{cache.get('both')}/A.mlpackage") == alone
    assert os.path.basename(compile_(cache, "both", package="B.mlpackage")) == "B.mlmodelc"
    with pytest.raises(errors.PackageError, match="Manifest"):
        compile_(cache, "both", package="C.mlpackage")
    with pytest.raises(errors.ModelCacheError):
        compile_(cache, "both", package="../../A.mlpackage")


def test_what_is_no_package_is_not_compiled(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "net.bin").write_bytes(b"x")

    with pytest.raises(errors.PackageError, match="no package in it"):
        compile_(cache, tmp_path / "nets")

    with pytest.raises(errors.RemoteNotFoundError):
        compile_(cache, tmp_path / "nothing.mlpackage")


def test_a_flipped_bit_in_the_product_is_compiled_anew(cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler."""
    cache.put_tree(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage")
    path = Path(compile_(cache, "Net.mlpackage"), "weights", "weight.bin")
    path.chmod(0o644)
    path.write_bytes(b"cOmpiled")

    again = compile_(cache, "Net.mlpackage")

    assert Path(again, "weights", "weight.bin").read_bytes() == b"compiled"


@pytest.mark.parametrize("path", [MODEL, "Manifest.json"])
def test_an_altered_package_is_given_no_identity(path: str, cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler. The identity stays on record when the package is whole again."""
    directory = package(tmp_path / "Net.mlpackage")
    entry = coreml.put_package(directory, name="Net.mlpackage", cache=cache)
    altered = Path(entry.path, path)
    before = altered.read_bytes()
    altered.chmod(0o644)
    altered.write_bytes(before.replace(b"a program", b"A program").replace(b"Weights", b"weights"))
    assert altered.read_bytes() != before

    with pytest.raises(errors.CorruptObjectError, match="set aside in"):
        compile_(cache, "Net.mlpackage")

    assert [one.key for one in cache.entries()] == ["Net.mlpackage"]


def test_a_bit_that_flipped_in_the_package_is_not_compiled_under_its_digest(cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler. A hit on a tree does not look at its files."""
    directory = package(tmp_path / "Net.mlpackage")
    entry = coreml.put_package(directory, name="Net.mlpackage", cache=cache)
    weights = Path(entry.path, WEIGHTS)
    weights.chmod(0o644)
    weights.write_bytes(b"Weights" * 100)

    with pytest.raises(errors.CorruptObjectError, match="set aside in"):
        compile_(cache, "Net.mlpackage")

    assert not any("coreml-compile" in entry.key for entry in cache.entries())
    assert len(list(Path(cache.root).glob("quarantine/*"))) == 1
    coreml.put_package(directory, name="Net.mlpackage", cache=cache)
    assert compile_(cache, "Net.mlpackage")
    assert is_clean(cache)


@pytest.mark.parametrize("path", [MODEL, WEIGHTS])
def test_a_package_that_lost_a_file_in_the_cache_is_not_compiled(path: str, cache: Cache, tmp_path: Path) -> None:
    """With a stand-in for the compiler."""
    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)
    Path(cache.get("Net.mlpackage"), path).unlink()

    with pytest.raises(errors.ModelCacheError):
        compile_(cache, "Net.mlpackage")


# -- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", ["cpu", "", "all", None, 3, ["ALL"]])
def test_compute_units_that_are_none_are_told_with_those_there_are(units: Any, root: Path) -> None:
    for call in (coreml.compiled, coreml.load):
        with pytest.raises(errors.UsageError, match="one of ALL, CPU_AND_GPU, CPU_AND_NE, CPU_ONLY"):
            call("x", compute_units=units, cache=Cache(root))

    assert not root.exists()


def test_compute_units_are_those_of_coremltools() -> None:
    known = models.tools().ComputeUnit

    assert sorted(unit.name for unit in known) == list(library.COMPUTE_UNITS)
    assert [library.units_name(unit) for unit in known] == [unit.name for unit in known]


def test_hints_are_those_of_coremltools() -> None:
    ct = models.tools()
    hints = {
        "reshapeFrequency": ct.ReshapeFrequency.Infrequent,
        "specializationStrategy": "FastPrediction",
        "allowLowPrecisionAccumulationOnGPU": True,
    }

    assert library.hint_names(hints) == {**hints, "reshapeFrequency": "Infrequent"}
    for wrong in ({"reshape": "x"}, {"reshapeFrequency": True}, {"allowLowPrecisionAccumulationOnGPU": "yes"}):
        with pytest.raises(errors.UsageError, match="optimization_hints"):
            library.hint_names(wrong)


def test_coremltools_is_called_as_its_signatures_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the real signatures, with the two calls that need macOS replaced: they were not run here."""
    from inspect import signature

    ct = models.tools()
    called: list[Any] = []
    for owner, name in ((ct.models.utils, "compile_model"), (ct.models, "CompiledMLModel")):
        real = signature(getattr(owner, name))
        monkeypatch.setattr(owner, name, lambda *args, real=real, **options: called.append(real.bind(*args, **options)))

    library.compile_model("/a/Net.mlpackage", "/b/Net.mlmodelc")
    library.load_compiled("/b/Net.mlmodelc", "CPU_AND_NE", "main", {"reshapeFrequency": "Infrequent"})
    library.load_compiled("/b/Net.mlmodelc", "ALL", None, {})

    assert called[0].arguments == {"model": "/a/Net.mlpackage", "destination_path": "/b/Net.mlmodelc"}
    assert called[1].arguments == {
        "path": "/b/Net.mlmodelc", "compute_units": ct.ComputeUnit.CPU_AND_NE, "function_name": "main",
        "optimization_hints": {"reshapeFrequency": ct.ReshapeFrequency.Infrequent},
    }  # fmt: skip
    assert called[2].arguments["optimization_hints"] is None


# -- what only macOS does, as far as it can be seen here ---------------------------------------------------------------


SAID = "ProductName:\t\tmacOS\nProductVersion:\t\t15.1\nProductVersionExtra:\t(a)\nBuildVersion:\t\t24B83\n"


def test_what_sw_vers_says_is_read() -> None:
    assert library.system_of(SAID) == {"macos": "15.1 (a)", "build": "24B83"}
    assert library.system_of(SAID.replace("ProductVersionExtra:\t(a)\n", ""))["macos"] == "15.1"


@pytest.mark.skipif(sys.platform == "darwin", reason="sw_vers is there")
def test_a_mac_that_does_not_say_its_build_compiles_nothing(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")

    with pytest.raises(errors.UnsupportedPlatformError, match="sw_vers"):
        coreml.compiled("Net.mlpackage", cache=Cache(root))

    assert not root.exists()


@pytest.fixture
def a_mac(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let this process, and none that it starts, take this system for a Mac; return what it depends on."""
    facts = library.system_of(SAID)
    monkeypatch.setattr(library, "this_mac", lambda what: {**facts, "machine": "arm64"})
    return facts


@pytest.mark.skipif(sys.platform == "darwin", reason="it would compile")
def test_the_real_compiler_is_called_in_a_child_and_what_it_raises_is_typed(
    a_mac: dict[str, str], cache: Cache, tmp_path: Path
) -> None:
    """coremltools itself refuses here: its own words come back, and nothing is cached."""
    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)

    with pytest.raises(errors.BuildFailedError, match=r"only support on macOS 10\.13 or higher"):
        coreml.compiled("Net.mlpackage", cache=cache)

    assert is_clean(cache)


def test_version_and_build_of_macos_and_coremltools_are_keys_and_compute_units_are_not(
    a_mac: dict[str, str], cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in in the place of coremltools' own call, and without the trial."""
    from modelcache.coreml import compiling

    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)
    monkeypatch.setattr(library, "compile_model", compilers.compile_)
    monkeypatch.setattr(compiling, "_check_loads", compilers.accept)

    def key(**options: Any) -> str:
        coreml.compiled("Net.mlpackage", cache=cache, **options)
        return max(compiled_keys(cache), key=lambda one: one not in seen)

    seen: set[str] = set()
    first = key()
    seen.add(first)
    assert cache.explain(first).platform == {
        "macos": "15.1 (a)", "build": "24B83", "machine": "arm64", "coremltools": library.version(),
    }  # fmt: skip
    for units in library.COMPUTE_UNITS:
        key(compute_units=units)
    assert compiled_keys(cache) == seen
    for name, value in (("build", "24B91"), ("macos", "15.2"), ("machine", "x86_64")):
        monkeypatch.setitem(a_mac, name, value)
        monkeypatch.setattr(library, "this_mac", lambda what: {"machine": "arm64", **a_mac})
        seen.add(key())
    monkeypatch.setattr(library, "version", lambda: "10.0")
    seen.add(key())
    assert len(seen) == 5


def compiled_keys(cache: Cache) -> set[str]:
    return {entry.key for entry in cache.entries() if "coreml-compile" in entry.key}


class Loaded:
    """Stands in for a ``CompiledMLModel``."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


def test_a_loaded_model_is_leased_until_it_is_gone(
    a_mac: dict[str, str], cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Core ML."""
    from modelcache.coreml import compiling

    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)
    path = compile_(cache, "Net.mlpackage")
    monkeypatch.setattr(compiling, "compiled", lambda *args, **options: path)
    monkeypatch.setattr(library, "load_compiled", Loaded)

    model = coreml.load("Net.mlpackage", compute_units="CPU_AND_NE", function_name="f", cache=cache)

    assert model.arguments == (path, "CPU_AND_NE", "f", {})
    cache.plan_gc(unused_for=0, grace=0).execute()
    assert os.path.isdir(path)
    del model
    cache.plan_gc(unused_for=0, grace=0).execute()
    assert not os.path.exists(path)


def test_what_core_ml_does_not_load_is_typed_and_not_leased(
    a_mac: dict[str, str], cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelcache.coreml import compiling

    def refuse(*_: Any) -> None:
        raise RuntimeError("no such function")

    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)
    path = compile_(cache, "Net.mlpackage")
    monkeypatch.setattr(compiling, "compiled", lambda *args, **options: path)
    monkeypatch.setattr(library, "load_compiled", refuse)

    with pytest.raises(errors.ModelLoadError, match="no such function"):
        coreml.load("Net.mlpackage", cache=cache)

    cache.plan_gc(unused_for=0, grace=0).execute()
    assert not os.path.exists(path)


# -- doors ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "darwin", reason="it would compile")
def test_the_command_line_says_where_it_can_be_done(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coreml.put_package(package(tmp_path / "Net.mlpackage"), name="Net.mlpackage", cache=cache)
    code = "import sys; from modelcache.__main__ import main; sys.exit(main())"

    monkeypatch.setenv("MODELCACHE_DIR", cache.root)
    process = run(code, "derive", "coreml", "Net.mlpackage")
    out, said = process.communicate()

    assert process.returncode == 2, said
    assert out == ""
    assert "compiling a Core ML model needs macOS" in said
    assert "hint: Do it on macOS" in said


def test_a_recipe_takes_its_own_options_only(cache: Cache) -> None:
    with pytest.raises(errors.UsageError, match="coreml has no option 'compiler'"):
        coreml.recipe(cache, "Net.mlpackage", compiler="os.system")


def test_without_coremltools_the_error_says_which_extra(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    monkeypatch.setitem(sys.modules, "coremltools", None)

    for call in (lambda: convert(cache), library.tools):
        with pytest.raises(errors.MissingLibraryError, match=r"pip install 'modelcache\[coreml\]'"):
            call()
    assert cache.entries() == []
