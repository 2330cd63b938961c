"""Tests with the real coremltools, on any system; without it they are skipped (`need_coremltools`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # coremltools leaves its own temporary directories to the garbage collector.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"))
            item.add_marker(
                pytest.mark.filterwarnings(
                    "ignore:Exception ignored in. <finalize:pytest.PytestUnraisableExceptionWarning"
                )
            )


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache(root)


@pytest.fixture(scope="session")
def linear() -> Any:
    from tests.coreml.models import linear

    return linear()
