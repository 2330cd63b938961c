"""What a cache directory may look like when all is done."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def leftovers(root: Path) -> list[str]:
    """Return what should not be there when nobody is at work: staged files, partials, locks, trash."""
    found = []
    for bucket in ("staging", "partial-v1", "locks", "trash", "failures-v1"):
        if (root / bucket).is_dir():
            found += [f"{bucket}/{name}" for name in os.listdir(root / bucket)]
    return found


def wrong_objects(root: Path) -> list[str]:
    """Return the objects of files whose content is not what their name says (I1)."""
    wrong = []
    for directory in sorted((root / "objects-v1").glob("sha256-*")):
        files = list(directory.iterdir())
        if not files:
            wrong.append(f"{directory.name} is empty")
        wrong += [str(file) for file in files if f"sha256-{sha256(file)}" != directory.name]
    return wrong


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
