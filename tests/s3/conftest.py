"""The suite on a real S3 server: collected with ``--s3-endpoint`` alone, as `make test` has none (docs/testing.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcache.archive import ObjectStoreBackend
from tests.support.buckets import KEYS, s3_server

HERE = Path(__file__).resolve().parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if HERE in collection_path.parents and not config.getoption("s3_endpoint") else None


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def in_bucket(s3: str, tmp_path: Path) -> Callable[..., ObjectStoreBackend]:
    """Makes one more backend in the same place: another machine's."""

    def make(**options: Any) -> ObjectStoreBackend:
        config = {"endpoint": s3, **KEYS, **options.pop("config", {})}
        place = options.pop("place", f"s3://models/{tmp_path.name}")
        return ObjectStoreBackend(place, config=config, client_options={"allow_http": True}, **options)

    return make
