"""Every test starts and ends with nothing configured."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from failpoints import configured, scenario


@pytest.fixture(autouse=True)
def _nothing_configured() -> Iterator[None]:
    with scenario():
        yield
    assert configured() == {}
