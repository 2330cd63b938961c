"""Files with settings and modes as a user meets them: real processes, their output, their exit codes, their sockets."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import modelcache
from modelcache import Cache
from modelcache.errors import LocalNotFoundError, PolicyError
from modelcache.testing import Fault, FaultServer
from tests.support.hub import Hub

CONTENT = b"the bytes of a model" * 1000
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.delenv("MODELCACHE_CONFIG")
    return project


@pytest.fixture
def run(here: Path) -> Run:
    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "modelcache", *arguments]
        environment = {**os.environ, "MODELCACHE_HTTP_RETRIES": "0", **variables}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=here
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


@pytest.mark.parametrize("command", ["path", "get"])
def test_the_short_path_serves_from_the_directory_of_a_file(
    command: str, here: Path, server: FaultServer, run: Run
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(here / "mine") as cache:
        path = cache.get(url)
    (here / "modelcache.toml").write_text('dir = "mine"\n')

    assert run(command, url).stdout == f"{path}\n"
    assert run("path", url, MODELCACHE_CONFIG="").returncode == 4
    assert len(server.seen()) == 1


def test_the_first_get_of_a_process_serves_from_the_directory_of_a_file(here: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(here / "mine") as cache:
        path = cache.get(url)
    (here / "modelcache.toml").write_text('dir = "mine"\noffline = true\n')

    try:
        assert modelcache.get(url) == path
    finally:
        modelcache.close()


def test_the_first_get_of_a_process_is_held_to_the_policy_of_a_file(here: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    try:
        modelcache.get(url)
        modelcache.close()
        (here / "modelcache.toml").write_text("[policy]\nmax-size = 10\n")

        with pytest.raises(PolicyError):
            modelcache.get(url)
    finally:
        modelcache.close()


@pytest.mark.parametrize("how", ["variable", "file", "argument"])
def test_refresh_asks_the_source_of_what_is_cached_in_a_new_process(
    how: str, here: Path, server: FaultServer, run: Run, root: Path
) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url, MODELCACHE_DIR=str(root))
    if how == "file":
        (here / "modelcache.toml").write_text('mode = "refresh"\n')

    arguments = ["--mode", "refresh"] if how == "argument" else []
    variables = {"MODELCACHE_MODE": "refresh"} if how == "variable" else {}
    assert run("get", url, *arguments, MODELCACHE_DIR=str(root), **variables).returncode == 0

    assert len(server.seen()) == 2


def test_config_shows_every_setting_with_where_it_comes_from(here: Path, run: Run) -> None:
    (here / "modelcache.toml").write_text('concurrency = 3\n[policy]\nhosts = ["a.example"]\n')

    shown = run("config", "--json", "--root", "x", MODELCACHE_GRACE="2h", HF_TOKEN="hf_s3cr3t")
    plain = run("config", MODELCACHE_GRACE="2h")

    found = json.loads(shown.stdout)
    assert found["settings"]["dir"] == {"value": str(here / "x"), "origin": "--root"}
    assert found["settings"]["concurrency"] == {"value": 3, "origin": f"{here}/modelcache.toml:1"}
    assert found["settings"]["grace"] == {"value": 7200.0, "origin": "MODELCACHE_GRACE"}
    assert found["settings"]["retries"] == {"value": 0, "origin": "MODELCACHE_HTTP_RETRIES"}
    assert found["settings"]["mode"] == {"value": "cache-first", "origin": "default"}
    assert found["policies"] == [{"origin": f"{here}/modelcache.toml:2", "hosts": ["a.example"], "allow-pickle": False}]
    assert found["files"] == [str(here / "modelcache.toml")]
    assert "s3cr3t" not in shown.stdout + shown.stderr
    assert f"{here}/modelcache.toml:1" in plain.stdout
    assert "policy.hosts" in plain.stdout


@pytest.mark.parametrize("command", [["config"], ["ls"], ["get", "http://h/m"], ["path", "http://h/m"], ["doctor"]])
def test_a_broken_file_is_told_by_every_command(command: list[str], here: Path, run: Run) -> None:
    (here / "modelcache.toml").write_text("\ncapcity = 1\n")

    done = run(*command)

    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: {here}/modelcache.toml:2: capcity: unknown key; did you mean capacity?" in done.stderr
    assert "hint: " in done.stderr


def test_a_broken_file_is_told_in_json_where_that_is_asked_for(here: Path, run: Run) -> None:
    (here / "modelcache.toml").write_text("retries = -1\n")

    told = json.loads(run("ls", "--json").stderr)

    assert (told["error"], told["exit_code"]) == ("ConfigFileError", 2)


def test_a_file_with_settings_costs_the_short_path_a_parser_and_no_cache(
    here: Path, server: FaultServer, run: Run
) -> None:
    url = server.add("/m.onnx", CONTENT)
    (here / "modelcache.toml").write_text('dir = "mine"\n')
    run("get", url)
    code = (
        "import os, sys; exit = os._exit\n"
        "os._exit = lambda code: (os.write(2, '\\n'.join(sys.modules).encode()), exit(code))\n"
        f"sys.argv = ['modelcache', 'path', {url!r}]\n"
        "from modelcache.__main__ import main; main()\n"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)

    loaded = set(done.stderr.split())
    assert "tomllib" in loaded
    assert not loaded & {"modelcache.cache", "argparse", "json", "urllib3", "fasteners", "logging"}


@pytest.mark.parametrize("command", ["get", "prewarm", "lock", "verify"])
def test_offline_and_another_mode_are_a_contradiction(command: str, run: Run) -> None:
    target = ["http://host/m"] if command == "get" else []

    done = run(command, *target, "--offline", "--mode", "refresh")

    assert done.returncode == 2
    assert "contradict each other" in done.stderr


# -- offline -----------------------------------------------------------------------------------------------------------

_NO_SOCKET = """
import os, sys
def watch(event, args):
    if event.startswith("socket.") and event != "socket.gethostname":
        os.write(2, f"SOCKET {event} {args}\\n".encode())
        os._exit(99)
sys.addaudithook(watch)
from modelcache import Cache
from modelcache.errors import LocalNotFoundError
url, repository, other = sys.argv[1:4]
with Cache(OPTIONS) as cache:
    assert open(cache.get(url), "rb").read()
    assert os.listdir(cache.get_tree(repository))
    for call in (cache.get, cache.get_tree):
        try:
            call(other)
        except LocalNotFoundError:
            pass
        else:
            raise SystemExit("it was served")
    cache.get(url, max_age=0)
    assert cache.verify(repair=True).ok
    cache.plan_gc(grace=0).execute()
    assert cache.entries()
    cache.put(b"x", name="mine")
    assert cache.get("mine")
print("done")
"""


@pytest.mark.parametrize(
    "how", ["mode", "offline", "MODELCACHE_MODE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "file"]
)
def test_offline_opens_no_socket(how: str, here: Path, server: FaultServer, root: Path, tmp_path: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    options = f"{str(root)!r}"
    environment = dict(os.environ)
    if how == "file":
        (here / "modelcache.toml").write_text('mode = "offline"\n')
    elif how.isupper():
        environment[how] = "offline" if how == "MODELCACHE_MODE" else "1"
    else:
        options += ", mode='offline'" if how == "mode" else ", offline=True"
    hub = Hub()
    try:
        hub.add("org/name", {"config.json": b"{}", "w.bin": CONTENT})
        environment["HF_ENDPOINT"] = hub.endpoint
        os.environ["HF_ENDPOINT"] = hub.endpoint
        with Cache(root, mode="cache-first") as cache:
            cache.get(url)
            cache.get_tree("hf://org/name")

        code = _NO_SOCKET.replace("OPTIONS", options)
        done = subprocess.run(
            [sys.executable, "-c", code, url, "hf://org/name", "hf://org/other"],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    finally:
        del os.environ["HF_ENDPOINT"]
        hub.close()

    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


def test_the_watch_for_sockets_sees_one(here: Path, root: Path) -> None:
    code = _NO_SOCKET.replace("OPTIONS", f"{str(root)!r}")

    done = subprocess.run(
        [sys.executable, "-c", code, "http://127.0.0.1:9/m", "hf://org/name", "hf://org/other"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.returncode == 99, done.stderr


# -- refresh -----------------------------------------------------------------------------------------------------------


def test_refresh_asks_at_every_get_and_sends_for_nothing_that_is_unchanged(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')

    with Cache(root, mode="refresh") as cache:
        first, second, third = cache.get(url), cache.get(url), cache.get(url)
        assert cache.get(url, max_age=3600) == first

    assert first == second == third
    assert len(server.seen()) == 3
    assert cache.stats().unchanged == 2


def test_refresh_brings_what_the_source_has_by_now(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')

    with Cache(root, mode="refresh") as cache:
        cache.get(url)
        server.add("/m.onnx", CONTENT[:500], etag='"v2"')
        assert Path(cache.get(url)).read_bytes() == CONTENT[:500]


def test_refresh_serves_what_is_here_where_the_source_cannot_be_reached(
    server: FaultServer, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.add("/m.onnx", CONTENT, etag='"v1"')
    retry = modelcache.RetryPolicy(attempts=1)

    with Cache(root, mode="refresh", retry=retry) as cache, caplog.at_level(logging.WARNING, "modelcache"):
        cache.get(url)
        server.add("/m.onnx", CONTENT, [Fault(status=503)] * 9)
        assert Path(cache.get(url)).read_bytes() == CONTENT

    assert "the cached content" in caplog.text


def test_refresh_gives_way_to_local_files_only(server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)

    with Cache(root, mode="refresh") as cache:
        cache.get(url)
        cache.get(url, local_files_only=True)
        with pytest.raises(LocalNotFoundError):
            cache.get(f"{url}.other", local_files_only=True)

    assert len(server.seen()) == 1


def test_config_says_the_default_where_nothing_is_set(here: Path, run: Run) -> None:
    lines = {line.split()[0]: line for line in run("config").stdout.splitlines()}
    assert "30, 60" in lines["http-timeout"]
    assert "no limit" in lines["capacity"]


def test_what_was_repaired_is_counted(here: Path, server: FaultServer, run: Run, tmp_path: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(tmp_path / "cache") as cache:
        path = Path(cache.get(url))
    path.chmod(0o644)
    path.write_bytes(b"x")
    done = run("verify", "--repair", "--root", str(tmp_path / "cache"))
    assert done.returncode == 0
    assert "0 of 1 models are whole, 1 more are repaired" in done.stderr
