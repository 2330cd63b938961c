"""Core ML packages: made by hand, for the tests that need no coremltools."""

from __future__ import annotations

import json
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest

AUTHOR = "com.apple.CoreML"
MODEL, WEIGHTS = f"Data/{AUTHOR}/model.mlmodel", f"Data/{AUTHOR}/weights/weight.bin"


def manifest(items: dict[str, str] | None = None, root: str = f"{AUTHOR}/model.mlmodel", **more: Any) -> bytes:
    """Return the text of a manifest, with identifiers that no other one has; *items* are descriptions by path."""
    if items is None:
        items = {f"{AUTHOR}/model.mlmodel": "CoreML Model Specification", f"{AUTHOR}/weights": "CoreML Model Weights"}
    names = {path: str(uuid.uuid4()) for path in items}
    entries = {
        names[path]: {"author": AUTHOR, "description": text, "name": path.rpartition("/")[2], "path": path}
        for path, text in items.items()
    }
    facts = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": names.get(root, root)}
    return json.dumps({**facts, **more}).encode()


def package(directory: Path, *, model: bytes = b"a program", weights: bytes | None = b"weights" * 100) -> Path:
    """Write a package as coremltools lays it out; without *weights* their directory is empty, as there."""
    (directory / WEIGHTS).parent.mkdir(parents=True)
    (directory / "Manifest.json").write_bytes(manifest())
    (directory / MODEL).write_bytes(model)
    if weights is not None:
        (directory / WEIGHTS).write_bytes(weights)
    return directory


def need_coremltools() -> None:
    """Skip the test, or the module, without coremltools, and say why."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # What its libraries warn of at their import is not ours.
        pytest.importorskip("coremltools", reason="coremltools is not installed (pip install 'modelcache[coreml]')")
