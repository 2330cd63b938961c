"""Stand-ins for Core ML's compiler, which only macOS has: they show how it is called, and nothing of what it does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any


def compile_(package: str, destination: str) -> None:
    """Write what was asked for, as the real one lays it out: a directory that it makes itself."""
    assert not os.path.exists(destination)
    assert package.endswith((".mlpackage", ".mlmodel"))
    Path(destination, "weights").mkdir(parents=True)
    Path(destination, "analytics").mkdir()  # One without a file.
    if os.path.isdir(package):
        from modelcache.mlpackage import read

        found = read(package)
        facts: dict[str, Any] = {leaf.path: leaf.digest for leaf in found.leaves}
    else:
        facts = {"model": Path(package).read_bytes().hex()}
    Path(destination, "metadata.json").write_text(json.dumps(facts, sort_keys=True))
    Path(destination, "weights", "weight.bin").write_bytes(b"compiled")


def compile_and_open(package: str, destination: str) -> None:
    """Open the package with coremltools on the way, which writes to it."""
    from tests.coreml.models import tools

    tools().models.MLModel(package, skip_model_load=True)
    compile_(package, destination)


def compile_nothing(package: str, destination: str) -> None:
    return None


def compile_badly(package: str, destination: str) -> None:
    raise RuntimeError("Error compiling model: no such operator")


def compile_and_die(package: str, destination: str) -> None:
    """Die with half of the product written."""
    Path(destination).mkdir()
    Path(destination, "model.mil").write_bytes(b"half of")
    os.kill(os.getpid(), signal.SIGSEGV)


def compile_to_a_file(package: str, destination: str) -> None:
    Path(destination).write_bytes(b"no directory")


def compile_and_report(package: str, destination: str) -> None:
    """Say that a build has begun, by a line in a file that the test names."""
    with open(os.environ["TEST_REPORT"], "a") as file:
        file.write("built\n")
    compile_(package, destination)


def accept(units: str, path: str) -> None:
    """Stand in for the trial: what it is called with is what will be stored, and a tree holds no empty directories."""
    assert units
    assert all(directories or names for _, directories, names in os.walk(path))
