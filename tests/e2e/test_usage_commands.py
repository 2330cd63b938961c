"""Usage on the command line: what is counted, shown, measured, and made a manifest of; by real processes."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.testing import FaultServer
from tests.support.buckets import s3_server

CONTENT = b"x" * 5000
Run = Callable[..., subprocess.CompletedProcess[str]]
COUNTS = {"MODELCACHE_USAGE": "1"}


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MODELCACHE_DIR": str(root), **variables}
        done = subprocess.run(
            [sys.executable, "-m", "modelcache", *arguments],
            env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


@pytest.fixture
def url(server: FaultServer, run: Run) -> str:
    """A model that was fetched by one process, and used by three more."""
    found = server.add("/m.onnx", CONTENT)
    for command in ("get", "get", "path", "path"):
        assert run(command, found, **COUNTS).returncode == 0
    return found


def test_stats_sum_up_what_processes_counted(url: str, run: Run) -> None:
    said = run("stats", "--json").stdout
    usage = json.loads(said)["usage"]

    assert (usage["total"]["hits"], usage["total"]["misses"], usage["total"]["hit_ratio"]) == (3, 1, 0.75)
    assert (usage["total"]["bytes_saved"], usage["total"]["bytes_from_sources"]) == (15_000, 5000)
    assert [row["name"] for row in usage["rows"]] == [url]
    assert json.loads(said)["entries"] == 1
    text = run("stats").stdout
    assert "75.0 % of 4 gets" in text
    assert url in text
    by_day = json.loads(run("stats", "--by", "day", "--since", "2d", "--json").stdout)["usage"]
    assert (by_day["total"]["hits"], len(by_day["rows"])) == (3, 1)
    by_host = json.loads(run("stats", "--by", "host", "--json").stdout)["usage"]
    assert [row["name"] for row in by_host["rows"]] == [os.uname().nodename]


def test_without_usage_stats_say_so_and_count_what_is_on_disk(run: Run, root: Path) -> None:
    Cache(root).put(CONTENT, name="m")

    done = run("stats")

    assert done.returncode == 0
    assert "entries      1" in done.stdout
    assert "MODELCACHE_USAGE=1" in done.stderr


def test_the_short_path_counts_without_anything_heavy(url: str, root: Path) -> None:
    code = """
import sys
sys.argv = ["modelcache", "path", sys.argv[1]]
import os
os._exit = lambda code: None
from modelcache import __main__
__main__.main.__globals__["sys"].modules["modelcache.cli"] = type(sys)("modelcache.cli")
sys.modules["modelcache.cli"].run = lambda argv: 0
__main__.main()
print(*sys.modules)
"""
    environ = {**os.environ, **COUNTS, "MODELCACHE_DIR": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, url], env=environ, capture_output=True, text=True, check=True
    ).stdout.split()

    assert done[0].endswith("m.onnx")
    assert "modelcache.looks" in done
    heavy = {"modelcache.cache", "modelcache.commit", "logging", "json", "hashlib", "modelcache.process", "typing"}
    assert heavy.isdisjoint(done)


def test_an_archive_tells_what_other_nodes_use_and_makes_a_manifest(
    server: FaultServer, run: Run, tmp_path: Path
) -> None:
    url = server.add("/m.onnx", CONTENT)
    place = f"sqlite://{tmp_path}/usage.db"
    for node in ("one", "two"):
        node_is = {"MODELCACHE_DIR": str(tmp_path / node), "MODELCACHE_USAGE_ARCHIVE": place}
        assert run("get", url, **node_is).returncode == 0
        assert run("get", url, **node_is).returncode == 0

    usage = json.loads(run("stats", "--from", place, "--json").stdout)["usage"]
    written = run("lock", "--from-usage", "--top", "5", "--since", "30d", "--from", place, "fleet.toml")
    warmed = run("prewarm", "--locked", "fleet.toml", MODELCACHE_DIR=str(tmp_path / "new"))

    assert (usage["total"]["hits"], usage["total"]["fetches"]) == (2, 2)
    assert written.stdout == f"{url}\n"
    assert warmed.returncode == 0, warmed.stderr
    assert Cache(tmp_path / "new").lookup(url) is not None


def test_a_bucket_is_an_archive_with_credentials_from_the_variables_of_its_provider(root: Path, run: Run) -> None:
    place = "s3://models/usage"
    with s3_server() as endpoint:
        variables = {
            "AWS_ENDPOINT": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
        }  # fmt: skip
        Cache(root).put(CONTENT, name="m")
        for _ in range(2):
            assert run("get", "m", MODELCACHE_USAGE_ARCHIVE=place, **variables).returncode == 0
        done = run("stats", "--from", place, "--json", **variables)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["usage"]["total"]["hits"] == 2


def test_metrics_are_printed_and_written_for_node_exporter(url: str, run: Run, tmp_path: Path) -> None:
    printed = run("stats", "--prometheus")
    done = run("stats", "--prometheus", "--models", "--output", "modelcache.prom")

    assert "modelcache_hits_total 3.0" in printed.stdout
    assert (done.returncode, done.stdout) == (0, "")
    file = tmp_path / "modelcache.prom"
    assert f'modelcache_model_hits_total{{model="{url}"}} 3.0' in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) & 0o444 == 0o444


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["stats", "--output", "x.prom"], 2),
        (["stats", "--by", "week"], 2),
        (["stats", "--since", "yesterday"], 2),
        (["stats", "--top", "0"], 2),
        (["stats", "--from", "nowhere"], 2),
        (["stats", "--from", "sqlite:///no/such/usage.db"], 14),
        (["stats", "--prometheus", "--output", "no/such/x.prom"], 1),
        (["stats", "--prometheus", "--output", ""], 2),
        (["stats", "--prometheus", "--since", "30d"], 2),
        (["stats", "--prometheus", "--from", "sqlite:///x"], 2),
        (["stats", "--prometheus", "--json"], 2),
        (["lock", "--from-usage", "out.toml"], 2),
        (["lock", "--from-usage", "--top", "0", "out.toml"], 2),
        (["lock", "--from-usage", "--top", "1", "out.lock"], 2),
        (["lock", "--from-usage", "--top", "1", "--check", "out.toml"], 2),
        (["lock", "--from-usage", "--top", "1", "out.toml"], 2),
        (["lock", "--top", "1", "models.toml"], 2),
        (["lock", "--from", "sqlite:///x", "models.toml"], 2),
    ],
)
def test_senseless_calls_are_told_with_a_hint(arguments: list[str], code: int, run: Run) -> None:
    done = run(*arguments)

    assert (done.returncode, done.stdout) == (code, "")
    assert ('"error"' if "--json" in arguments else "error: ") in done.stderr


@pytest.mark.parametrize("said", ["maybe", "on", "yes"])
def test_a_variable_is_read_as_everywhere_also_by_the_short_path(said: str, url: str, run: Run) -> None:
    done = run("path", url, MODELCACHE_USAGE=said)

    assert done.returncode == (2 if said == "maybe" else 0)
    hits = json.loads(run("stats", "--json").stdout)["usage"]["total"]["hits"]
    assert hits == (3 if said == "maybe" else 4)


def test_an_event_is_shown_once_by_a_command(url: str, server: FaultServer, run: Run) -> None:
    server.close()

    done = run("get", url, "--mode", "refresh", MODELCACHE_HTTP_RETRIES="0")

    assert done.returncode == 0
    assert done.stderr.count("the cached content is served") == 1
