"""A prepared cache root, and entries and objects to put into it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcache import roots


@pytest.fixture
def store(tmp_path: Path) -> str:
    """The root of an empty cache, ready to be written."""
    root = str(tmp_path / "cache")
    roots.prepare_root(root)
    return root
