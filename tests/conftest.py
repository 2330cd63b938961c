"""What every test has: an environment without the user's own settings, and a server that fails on purpose."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcache.testing import FaultServer
from tests.support import buckets

_PREFIXES = ("MODELCACHE_", "HF_", "TRANSFORMERS_", "FAILPOINTS")
_OTHERS = {
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "netrc", "xdg_cache_home", "xdg_config_home",
    "ssl_cert_file", "ssl_cert_dir", "requests_ca_bundle", "curl_ca_bundle",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in list(os.environ):
        if name.startswith(_PREFIXES) or name.lower() in _OTHERS:
            monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    # A file with settings where the tests are started is no test's; those of such files take this away again.
    monkeypatch.setenv("MODELCACHE_CONFIG", "")


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("s3_endpoint"):
        buckets.use(config.getoption("s3_endpoint"))
    os.environ["MODELCACHE_CONFIG"] = ""  # For what is started before a test has its own environment.
    # A shell ignores SIGINT in what it starts in the background, and all that is started from there inherits that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--crash-budget",
        choices=("small", "large"),
        default="small",
        help="how much the crash tests try: small in CI, large by hand",
    )
    parser.addoption("--crash-seed", type=int, default=1, help="what the crash tests draw from (default: 1)")
    parser.addoption(
        "--soak-seconds", type=float, default=15, help="how long everything runs at once (default: 15; in CI 20)"
    )
    parser.addoption(
        "--s3-endpoint",
        default="",
        help="an S3 server with the bucket `models`, in place of moto's; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
        "open it. `make test-s3` starts one",
    )
