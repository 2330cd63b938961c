"""The pytest fixture ``failpoints``. pytest finds it by itself; nothing else in this package imports pytest."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

import failpoints as package


@pytest.fixture(name="failpoints")
def scenario() -> Iterator[ModuleType]:
    """The package `failpoints`, with nothing configured; after the test what was configured before is back."""
    with package.scenario():
        yield package
