"""The command line as a user meets it: real processes, their output, their exit codes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcache import Cache
from modelcache.testing import Fault, FaultServer
from tests.support.state import leftovers

CONTENT = random.Random(7).randbytes(400_000)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    def call(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MODELCACHE_DIR": str(root), "MODELCACHE_HTTP_RETRIES": "0", **variables}
        command = [sys.executable, "-m", "modelcache", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return call


@pytest.fixture
def manifest(server: FaultServer, tmp_path: Path) -> Path:
    first = server.add("/a.onnx", CONTENT)
    second = server.add("/b.onnx", CONTENT[:1000])
    file = tmp_path / "models.toml"
    file.write_text(f'[[model]]\nref = "{first}"\ndigest = "{DIGEST}"\npin = true\n\n[[model]]\nref = "{second}"\n')
    return file


def test_get_prints_the_path_alone(server: FaultServer, run: Run) -> None:
    url = server.add("/m.onnx", CONTENT)

    cold, warm = run("get", url), run("get", url)

    assert cold.returncode == warm.returncode == 0
    assert cold.stdout == warm.stdout
    assert Path(cold.stdout.removesuffix("\n")).read_bytes() == CONTENT
    assert len(server.seen()) == 1


def test_path_prints_what_is_cached_and_fetches_nothing(server: FaultServer, run: Run) -> None:
    url = server.add("/m.onnx", CONTENT)

    missing = run("path", url)
    run("get", url)
    there = run("path", url)

    assert (missing.returncode, missing.stdout) == (4, "")
    assert "hint: " in missing.stderr
    assert Path(there.stdout.strip()).is_file()


def test_a_cached_get_loads_no_parser_and_no_network(server: FaultServer, run: Run, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url)
    code = (
        "import os, sys; exit = os._exit\n"
        "os._exit = lambda code: (os.write(2, '\\n'.join(sys.modules).encode()), exit(code))\n"
        f"sys.argv = ['modelcache', 'path', {url!r}]\n"
        "from modelcache.__main__ import main; main()\n"
    )
    environment = {**os.environ, "MODELCACHE_DIR": str(root)}

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)

    loaded = set(done.stderr.split())
    assert not loaded & {"argparse", "json", "hashlib", "typing", "pathlib", "urllib3", "fasteners", "logging", "re"}
    assert len(loaded) <= 60


def test_get_unpacks_an_archive_when_it_is_told_to(server: FaultServer, run: Run, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    with tarfile.open(tmp_path / "m.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "m.onnx", "m.onnx")
    url = server.add("/m.tar.gz", (tmp_path / "m.tar.gz").read_bytes())

    plain, unpacked = run("get", url), run("get", url, "--unpack")
    told = json.loads(run("get", url, "--unpack", "--json").stdout)
    no_tree = run("get", server.add("/m.onnx.gz", b"x"), "--unpack")

    assert Path(plain.stdout.strip()).is_file()
    assert (Path(unpacked.stdout.strip()) / "m.onnx").read_bytes() == CONTENT
    assert (told["ref"], told["path"]) == (f"{url}#tree", unpacked.stdout.strip())
    assert no_tree.returncode == 2
    assert "hint: " in no_tree.stderr


def test_what_one_machine_exports_another_one_imports(server: FaultServer, run: Run, tmp_path: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url)
    other = str(tmp_path / "other")

    exported = run("export", url, "--to", "bundle.tar")
    dry = run("import", "bundle.tar", "--dry-run", "--root", other)
    imported = run("import", "bundle.tar", "--digest", exported.stdout.strip(), "--json", "--root", other)

    assert exported.stdout.startswith("sha256:")
    assert dry.stdout.splitlines()[1].split() == ["new", "400", "kB", url]
    assert json.loads(imported.stdout)["models"] == [{"ref": url, "digest": DIGEST, "size": 400_000, "state": "new"}]
    assert Path(run("path", url, "--root", other).stdout.strip()).read_bytes() == CONTENT
    assert len(server.seen()) == 1


def test_export_takes_all_or_a_manifest_and_import_says_what_is_wrong(manifest: Path, run: Run, tmp_path: Path) -> None:
    run("prewarm", str(manifest))
    assert run("export", "--to", "out").returncode == 2
    everything = json.loads(run("export", "--all", "--to", "all", "--json").stdout)
    listed = json.loads(run("export", "--manifest", str(manifest), "--to", "listed", "--json").stdout)
    next((tmp_path / "all/contents").iterdir()).write_bytes(b"short")

    damaged = run("import", "all", "--root", "other")

    assert everything["refs"] == listed["refs"]
    assert everything["digest"] == listed["digest"]
    assert damaged.returncode == 7
    assert "hint: " in damaged.stderr
    assert not (tmp_path / "other").exists()


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys; before = set(sys.modules); import modelcache; print(*(set(sys.modules) - before))"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert loaded == ["modelcache"]


def test_a_fetch_without_tiers_loads_nothing_that_tiers_need(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(CONTENT)
    code = (
        "import sys; from modelcache import Cache; Cache(sys.argv[1], tiers=[]).get(sys.argv[2]); "
        "print(*(name for name in sys.modules if name.startswith('modelcache.')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "root"), str(tmp_path / "model.onnx")]

    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    below = ("archive", "backends", "fleet", "levels", "replication", "sources.tier", "tier", "tiers", "together")
    inside = [name.removeprefix("modelcache.") for name in loaded]
    assert [name for name in inside if name.startswith(below) and name != "tiering"] == []
    assert "modelcache.fetch" in loaded


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["nonsense"], 2),
        (["get"], 2),
        (["get", ""], 2),
        (["get", "nope://host/m.onnx"], 2),
        (["get", "https://"], 2),
        (["get", "http://host/a\tb"], 2),
        (["get", "http://host/%2e%2e"], 2),
        (["get", "http://host/..%2Fetc%2Fpasswd"], 2),
        (["get", "http://host/a%00b"], 2),
        (["get", "http://host/" + "n" * 300], 2),
        (["get", "../.."], 4),
        (["get", "/no/such/file.onnx"], 4),
        (["get", "never-put"], 4),
        (["get", "http://host/m", "--digest", "sha256:12"], 2),
        (["get", "http://host/m", "--digest", "md5:" + "0" * 32], 2),
        (["get", "http://host/m", "--max-age", "-1"], 2),
        (["get", "http://host/m", "--max-bandwidth", "fast"], 2),
        (["get", "http://host/m", "--offline"], 10),
        (["get", "http://127.0.0.1:1/m"], 6),
        (["prewarm", "missing.toml"], 2),
        (["prewarm", "-j", "0"], 2),
        (["info", "http://host/m"], 4),
        (["rm", "http://host/m"], 4),
        (["verify", "http://host/m"], 4),
        (["pin", "http://host/m"], 4),
        (["unpin", "http://host/m"], 4),
    ],
)
def test_nonsense_is_a_usage_error_or_a_miss_with_a_hint(arguments: list[str], code: int, run: Run) -> None:
    done = run(*arguments)

    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODELCACHE_HTTP_RETRIES", "many"),
        ("MODELCACHE_HTTP_TIMEOUT", "-3"),
        ("MODELCACHE_DEADLINE", "nan"),
        ("MODELCACHE_OFFLINE", "perhaps"),
        ("MODELCACHE_CONCURRENCY", "0"),
    ],
)
def test_a_senseless_variable_is_named(name: str, value: str, run: Run) -> None:
    done = run("ls", **{name: value})

    assert done.returncode == 2
    assert name in done.stderr


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(status=404), 4),
        (Fault(status=403), 5),
        (Fault(status=500), 6),
        (Fault(hang_up=True), 6),
        (Fault(body=b""), 7),
    ],
    ids=["404", "403", "500", "hang up", "empty"],
)
def test_each_failure_has_its_exit_code(fault: Fault, code: int, server: FaultServer, run: Run) -> None:
    url = server.add("/m.onnx", CONTENT, [fault] * 9)

    done = run("get", url)

    assert (done.returncode, done.stdout) == (code, "")


def test_a_wrong_digest_names_both(server: FaultServer, run: Run) -> None:
    url = server.add("/m.onnx", CONTENT)

    done = run("get", url, "--digest", "sha256:" + "0" * 64)

    assert done.returncode == 7
    assert DIGEST in done.stderr
    assert "0" * 64 in done.stderr


def test_prewarm_gets_everything_and_writes_the_ready_file_last(manifest: Path, run: Run, tmp_path: Path) -> None:
    done = run("prewarm", str(manifest), "--ready-file", "ready")

    assert done.returncode == 0
    assert done.stdout.count("fetched") == 2
    assert (tmp_path / "ready").exists()


def test_prewarm_of_which_some_fail_says_which_and_is_not_ready(
    manifest: Path, server: FaultServer, run: Run, tmp_path: Path
) -> None:
    server.add("/b.onnx", b"", [Fault(status=404)] * 9)

    done = run("prewarm", str(manifest), "--ready-file", "ready")

    assert done.returncode == 3
    assert "/b.onnx" in done.stderr
    assert not (tmp_path / "ready").exists()
    assert run("path", server.url("/a.onnx")).returncode == 0


def test_prewarm_as_json_is_one_event_a_line_and_a_report(manifest: Path, run: Run) -> None:
    done = run("prewarm", str(manifest), "--json")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events].count("fetched") == 2
    assert events[-1]["event"] == "report"
    assert [model["state"] for model in events[-1]["models"]] == ["fetched", "fetched"]
    assert events[-1]["stats"]["requests"] == 2


def test_lock_then_prewarm_locked_accepts_exactly_those_bytes(
    manifest: Path, server: FaultServer, run: Run, root: Path
) -> None:
    locked = run("lock", str(manifest))
    text = manifest.with_suffix(".lock").read_text()
    agreed = run("prewarm", str(manifest), "--locked")
    run("rm", server.url("/b.onnx"))
    server.add("/b.onnx", b"moved on")
    drifted = run("prewarm", str(manifest), "--locked")

    assert locked.returncode == agreed.returncode == 0
    assert DIGEST in text
    assert "size = 1000" in text
    assert drifted.returncode == 11
    assert run("lock", str(manifest), "--check").returncode == 11


def test_a_lock_file_holds_no_credentials_and_still_fits_its_manifest(
    manifest: Path, server: FaultServer, run: Run
) -> None:
    text = manifest.read_text().replace("http://", "http://user:hunter2@").replace('/b.onnx"', '/b.onnx?token=s3cr3t"')
    manifest.write_text(text)
    server.add("/b.onnx?token=s3cr3t", CONTENT[:1000])

    locked = run("lock", str(manifest))
    written = manifest.with_suffix(".lock").read_text()

    assert locked.returncode == 0, locked.stderr
    assert "hunter2" not in written
    assert "s3cr3t" not in written
    assert run("prewarm", str(manifest), "--locked").returncode == 0
    assert run("lock", "--check", str(manifest)).returncode == 0


def test_a_manifest_that_the_lock_file_does_not_describe_is_refused(
    manifest: Path, server: FaultServer, run: Run
) -> None:
    run("lock", str(manifest))
    manifest.write_text(manifest.read_text() + f'\n[[model]]\nref = "{server.url("/c.onnx")}"\n')

    done = run("prewarm", str(manifest), "--locked")

    assert done.returncode == 11
    assert "/c.onnx" in done.stderr


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("[[model]\n", 1, ""),
        ('[[model]]\nref = "http://h/m"\ndigets = "x"\n', 3, "digets"),
        ('[[model]]\nref = "http://h/m"\n\n[[model]]\ndigest = "sha256:1"\n', 4, "ref"),
        ('[[model]]\nref = "http://h/m"\ndigest = "sha256:1"\n', 3, "digest"),
        ("[[model]]\nref = 3\n", 2, "ref"),
        ('[[model]]\nref = "http://h/m"\npin = "yes"\n', 3, "pin"),
        ('[[model]]\nref = "http://h/m"\n[[model]]\nref = "HTTP://H:80/m"\n', 4, "ref"),
    ],
)
def test_a_mistake_in_a_manifest_is_told_with_file_line_and_key(
    text: str, line: int, key: str, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "models.toml").write_text(text)

    done = run("prewarm")

    assert done.returncode == 2
    assert f"models.toml:{line}: {key}" in done.stderr


def test_ls_info_stats_and_rm_tell_and_forget(server: FaultServer, run: Run, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url)

    assert url in run("ls").stdout
    assert json.loads(run("ls", "--json").stdout)[0]["digest"] == DIGEST
    assert DIGEST in run("info", url).stdout
    assert json.loads(run("stats", "--json").stdout)["object_bytes"] == len(CONTENT)
    assert run("rm", url).returncode == 0
    assert run("path", url).returncode == 4
    assert json.loads(run("stats", "--json").stdout)["objects"] == 0
    assert leftovers(root) == []


def test_a_pinned_model_is_not_removed_without_force(server: FaultServer, run: Run) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url)
    run("pin", url)

    assert run("rm", url).returncode == 1
    assert run("path", url).returncode == 0
    assert run("rm", "--force", url).returncode == 0


def test_gc_says_what_would_go_and_then_removes_it(run: Run, root: Path) -> None:
    with Cache(root) as cache:
        for name in ("old", "pinned", "new"):
            cache.put(name.encode() * 1000, name=name)
            if name != "new":
                os.utime(cache._entries.path(name), (1e9, 1e9))
        cache.pin("pinned")

    dry = run("gc", "--dry-run", "--unused-for", "30d")
    assert dry.returncode == 0
    assert [line.split()[-1] for line in dry.stdout.splitlines()] == ["REF", "old"]
    assert "1 would go" in dry.stderr
    assert "old" in run("ls").stdout  # `path` would be a use.

    done = json.loads(run("gc", "--json", "--unused-for", "30d").stdout)
    assert [item["refs"] for item in done["collected"]["removed"]] == [["old"]]
    assert done["freed_bytes"] == done["collected"]["freed_bytes"] == 3000
    assert run("path", "old").returncode == 4
    assert run("path", "pinned").returncode == run("path", "new").returncode == 0


def test_gc_that_cannot_keep_a_limit_says_what_may_not_go(run: Run, root: Path) -> None:
    with Cache(root) as cache:
        cache.put(b"x" * 2000, name="pinned")
        cache.pin("pinned")

    done = run("gc", MODELCACHE_CAPACITY="500")

    assert done.returncode == 8
    assert "1.5 kB above its limit: 2.0 kB pinned" in done.stderr


@pytest.mark.parametrize(
    "arguments", [("--capacity", "lots"), ("--unused-for", "soon"), ("--grace", "-1"), ("--capacity", "free:20%")]
)
def test_a_senseless_argument_of_gc_is_named(arguments: tuple[str, str], run: Run) -> None:
    done = run("gc", f"{arguments[0]}={arguments[1]}")

    assert done.returncode == 2
    assert f"{arguments[0].removeprefix('--capacity') or 'capacity'}={arguments[1]!r} makes no sense" in done.stderr


def test_a_model_that_another_process_uses_is_not_removed_without_force(run: Run, root: Path) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="m")
        with cache.lease("m") as lease:
            refused, forced = run("rm", "m"), run("rm", "--force", "m")
            collected = run("gc", "--grace", "0")
            assert Path(lease.path).read_bytes() == CONTENT

    assert (refused.returncode, forced.returncode, collected.returncode) == (1, 0, 0)
    assert "in use by a live process" in refused.stderr
    assert run("gc", "--grace", "0").returncode == 0
    assert not Path(lease.path).exists()


def test_verify_finds_a_flipped_bit_sets_the_object_aside_and_repairs(
    server: FaultServer, run: Run, root: Path
) -> None:
    url = server.add("/m.onnx", CONTENT)
    path = Path(run("get", url).stdout.strip())
    facts = path.stat()
    path.chmod(0o644)
    path.write_bytes(b"X" + CONTENT[1:])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # So that a hit cannot notice.

    found = run("verify")
    aside = run("path", url)
    repaired = run("verify", "--repair")

    assert found.returncode == 7
    assert url in found.stdout
    assert aside.returncode == 4
    assert repaired.returncode == 0
    assert Path(run("path", url).stdout.strip()).read_bytes() == CONTENT
    reason = json.loads(next((root / "quarantine").glob("*/REASON.json")).read_text())
    assert DIGEST in reason["reason"]


def test_a_write_through_by_another_tool_is_noticed_by_the_next_get(server: FaultServer, run: Run) -> None:
    url = server.add("/m.onnx", CONTENT)
    path = Path(run("get", url).stdout.strip())
    path.chmod(0o644)
    path.write_bytes(b"X" + CONTENT[1:])

    again = run("get", url)

    assert Path(again.stdout.strip()).read_bytes() == CONTENT
    assert len(server.seen()) == 2


def test_offline_serves_what_is_cached_and_opens_no_connection(server: FaultServer, run: Run) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url)

    assert run("get", url, "--max-age", "0", MODELCACHE_OFFLINE="1").returncode == 0
    assert run("get", server.url("/other"), HF_HUB_OFFLINE="1").returncode == 10
    assert len(server.seen()) == 1


def test_doctor_examines_a_healthy_root_and_fails_on_a_file_in_the_way(run: Run, root: Path) -> None:
    fresh = run("doctor")
    assert fresh.returncode == 0
    assert "does not exist yet" in fresh.stdout
    assert list(root.parent.iterdir()) == []  # To look is not to make.

    Cache(root).put(b"content", name="m.onnx")
    healthy = run("doctor")
    checks = json.loads(run("doctor", "--json").stdout)

    assert healthy.returncode == 0, healthy.stdout
    assert {check["name"]: check["level"] for check in checks}["locks"] == "ok"
    for occupied in (root / "format", root / "format" / "below"):
        assert run("doctor", "--root", str(occupied)).returncode == 1


def test_a_file_where_the_root_should_be_is_told(run: Run, server: FaultServer, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("x")
    url = server.add("/m.onnx", CONTENT)

    done = run("get", url, "--root", str(tmp_path / "occupied"))

    assert done.returncode == 1
    assert "not a directory" in done.stderr
    assert server.seen() == []


def test_a_root_of_a_newer_modelcache_is_refused_and_left_alone(run: Run, root: Path, server: FaultServer) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url)
    (root / "format").write_text("99\n")

    for command in (["get", url], ["path", url], ["ls"], ["rm", url]):
        done = run(*command)
        assert done.returncode == 1, command
        assert "99" in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_root_of_another_user_serves_hits_and_names_its_owner_on_a_miss(
    server: FaultServer, request: pytest.FixtureRequest
) -> None:
    url = server.add("/m.onnx", CONTENT)
    # Not below pytest's own directory: another pytest that begins meanwhile closes that to others.
    place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    request.addfinalizer(place.cleanup)
    shared = Path(place.name) / "shared"
    Path(place.name).chmod(0o755)
    code = (
        "import os, sys\n"
        "from modelcache.cli import run\n"
        # The interpreter may lie where only its owner can read: what will be imported is imported first.
        "run(['get', sys.argv[-1] + '.missing'])\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    environment = {**os.environ, "MODELCACHE_DIR": str(shared)}
    subprocess.run([sys.executable, "-m", "modelcache", "get", url], env=environment, check=True, capture_output=True)

    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    hit, miss = as_nobody("get", url), as_nobody("get", server.url("/other.onnx"))

    assert hit.returncode == 0, hit.stderr
    assert Path(hit.stdout.strip()).read_bytes() == CONTENT
    assert miss.returncode == 1
    assert "belongs to user 0" in miss.stderr


def test_output_into_a_closed_pipe_is_no_traceback(server: FaultServer, run: Run, root: Path) -> None:
    run("get", server.add("/m.onnx", CONTENT))
    reading, writing = os.pipe()
    os.close(reading)

    with os.fdopen(writing, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "modelcache", "ls"],
            env={**os.environ, "MODELCACHE_DIR": str(root)},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert "Traceback" not in done.stderr
    assert done.returncode == 1


def test_no_output_shows_a_password_or_a_signature(server: FaultServer, run: Run, tmp_path: Path) -> None:
    good = server.add("/m.onnx?X-Amz-Signature=s3cret", CONTENT).replace("://", "://user:s3cret@")
    bad = server.url("/missing.onnx?X-Amz-Signature=s3cret").replace("://", "://user:s3cret@")
    manifest = tmp_path / "models.toml"
    manifest.write_text(f'[[model]]\nref = "{good}"\n\n[[model]]\nref = "{bad}"\n')

    said = []
    for arguments in (
        ["prewarm"], ["prewarm", "--json"], ["lock"], ["lock", "--json"], ["get", bad], ["get", good], ["path", bad],
        ["path", good, "--json"], ["info", good], ["info", bad], ["pin", good, "--json"], ["pin", bad], ["rm", bad],
        ["unpin", good], ["verify", bad], ["verify", good, "--json"], ["ls"], ["ls", "--json"], ["rm", good, bad],
        ["get", "--mirror", bad, bad],
    ):  # fmt: skip
        done = run(*arguments)
        said.append(done.stdout + done.stderr)

    assert [text for text in said if "s3cret" in text] == []
    assert server.seen()  # The credentials were used all the same.
    assert server.seen()[0].headers["authorization"].startswith("Basic ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here: a disk that is always full")
@pytest.mark.parametrize("arguments", [["ls"], ["path"], ["get"], ["stats", "--json"], ["prewarm", "--json"]])
def test_output_onto_a_full_disk_is_an_error_and_no_traceback(
    arguments: list[str], server: FaultServer, run: Run, root: Path, manifest: Path
) -> None:
    url = server.add("/m.onnx", CONTENT)
    run("get", url)
    arguments = [*arguments, *([url] if arguments[0] in {"path", "get"} else [])]
    arguments += [str(manifest)] if arguments[0] == "prewarm" else []

    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "modelcache", *arguments],
            env={**os.environ, "MODELCACHE_DIR": str(root)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
        )

    assert "Traceback" not in done.stderr
    assert "could not be written: No space left on device" in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_output_is_no_traceback(closed: str, server: FaultServer, root: Path) -> None:
    url = server.add("/m.onnx", CONTENT)
    line = f"{sys.executable} -m modelcache get {url} {closed}"

    for _ in range(2):
        environment = {**os.environ, "MODELCACHE_DIR": str(root)}
        done = subprocess.run(
            ["sh", "-c", line], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

        assert "Traceback" not in done.stderr
        assert done.returncode == (0 if closed == "2>&-" else 1)


def test_lock_of_a_lock_file_leaves_it_alone(run: Run, manifest: Path, tmp_path: Path) -> None:
    run("lock", str(manifest))
    before = (tmp_path / "models.lock").read_text()

    done = run("lock", str(tmp_path / "models.lock"))

    assert done.returncode == 2
    assert "models.toml" in done.stderr
    assert (tmp_path / "models.lock").read_text() == before


def test_drift_is_drift_also_where_a_mirror_was_asked(server: FaultServer, run: Run, tmp_path: Path) -> None:
    url, mirror = server.add("/m.onnx", CONTENT), server.add("/mirror.onnx", CONTENT)
    (tmp_path / "models.toml").write_text(f'[[model]]\nref = "{url}"\nmirrors = ["{mirror}"]\n')
    run("lock")
    run("rm", url)
    for path in ("/m.onnx", "/mirror.onnx"):
        server.add(path, CONTENT[::-1])

    assert run("prewarm", "--locked").returncode == 11


def test_a_ready_file_of_an_earlier_run_is_gone_when_one_fails(
    server: FaultServer, run: Run, manifest: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready"
    assert run("prewarm", "--ready-file", str(ready)).returncode == 0
    assert ready.exists()

    server.unplug()
    manifest.write_text(f'[[model]]\nref = "{server.url("/other.onnx")}"\n')
    assert run("prewarm", "--ready-file", str(ready)).returncode == 6
    assert not ready.exists()
    run("prewarm", "missing.toml", "--ready-file", str(ready))
    assert not ready.exists()


def test_a_directory_in_the_place_of_the_format_is_told(run: Run, root: Path) -> None:
    (root / "format").mkdir(parents=True)

    for arguments in (["ls"], ["path", "m"], ["get", "https://host.invalid/m.onnx"]):
        done = run(*arguments)
        assert done.returncode == 1
        assert "hint:" in done.stderr


@pytest.mark.parametrize("command", ["ls", "stats", "verify"])
def test_a_root_that_is_a_file_is_told_by_who_only_reads_too(command: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("x")

    done = run(command, "--root", str(tmp_path / "occupied"))

    assert done.returncode == 1
    assert "not a directory" in done.stderr


@pytest.mark.parametrize("jobs", ["0", "-1"])
@pytest.mark.parametrize("command", ["verify", "prewarm"])
def test_a_senseless_number_of_jobs_is_a_usage_error(command: str, jobs: str, run: Run, manifest: Path) -> None:
    assert run(command, "-j", jobs).returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_paths_are_printed_byte_for_byte_whatever_the_encoding(encoding: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "é.bin").write_bytes(CONTENT)
    root = f"{tmp_path}/cache-\udcff"  # A byte that is no text.
    for arguments in (["get", "./é.bin"], ["get", "./é.bin"], ["ls"], ["stats"], ["info", "./é.bin"]):
        done = subprocess.run(
            [sys.executable, "-m", "modelcache", *arguments],
            env={**os.environ, "MODELCACHE_DIR": root, "PYTHONIOENCODING": encoding},
            capture_output=True,
            cwd=tmp_path,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        if arguments[0] == "get":
            assert Path(os.fsdecode(done.stdout.removesuffix(b"\n"))).read_bytes() == CONTENT


def test_lock_check_notices_whatever_would_be_written_otherwise(run: Run, manifest: Path, tmp_path: Path) -> None:
    run("lock")
    lock = tmp_path / "models.lock"
    assert run("lock", "--check").returncode == 0

    lock.write_text(lock.read_text().replace("size = 1000", "size = 999"))

    assert run("lock", "--check").returncode == 11


def test_the_manifest_is_no_ready_file(run: Run, manifest: Path) -> None:
    done = run("prewarm", str(manifest), "--ready-file", str(manifest))

    assert done.returncode == 2
    assert manifest.exists()


def test_what_is_no_file_is_no_ready_file(run: Run, manifest: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    done = run("prewarm", str(manifest), "--ready-file", str(tmp_path / "pipe"))

    assert (done.returncode, "no regular file" in done.stderr) == (2, True)
    assert (tmp_path / "pipe").is_fifo()


def test_an_unknown_kind_of_progress_is_named(run: Run) -> None:
    done = run("ls", MODELCACHE_PROGRESS="bogus")

    assert done.returncode == 2
    assert "MODELCACHE_PROGRESS" in done.stderr


@pytest.mark.parametrize(("command", "done"), [("pin", "pinned"), ("unpin", "unpinned"), ("rm", "removed")])
def test_what_is_done_to_several_goes_on_after_a_failure(
    command: str, done: str, server: FaultServer, run: Run
) -> None:
    first, missing, last = server.add("/a.onnx", CONTENT), server.url("/b.onnx"), server.add("/c.onnx", CONTENT)
    run("get", first)
    run("get", last)

    ended = run(command, first, missing, last, "--json")

    assert ended.returncode == 3
    assert json.loads(ended.stdout) == {done: [first, last]}
    assert missing in ended.stderr


def test_ls_filters_and_sorts_and_du_counts_what_is_shared_once(run: Run, root: Path) -> None:
    with Cache(root) as cache:
        cache.put(b"x" * 3000, name="large.onnx", ttl=86_400)
        cache.put(b"y" * 20, name="small.onnx")
        cache.put(b"y" * 20, name="again.bin")
        cache.pin("small.onnx")

    def names(*arguments: str) -> list[str]:
        return [line.split()[-1] for line in run("ls", *arguments).stdout.splitlines()[1:]]

    assert names() == ["again.bin", "large.onnx", "small.onnx"]
    assert names("--sort", "size") == ["large.onnx", "again.bin", "small.onnx"]
    assert names("--sort", "size", "--reverse")[-1] == "large.onnx"
    assert names("--filter", "size<1kB", "--filter", "ref=*.onnx") == ["small.onnx"]
    assert names("--filter", "pinned") == ["small.onnx"]
    assert "no entry passes" in run("ls", "--filter", "tree").stderr
    assert run("ls", "--filter", "size>").returncode == 2
    assert run("ls", "--sort", "colour").returncode == 2

    assert [line.split()[-1] for line in run("du").stdout.splitlines()[1:]] == ["large.onnx", "small.onnx"]
    told = json.loads(run("du", "--json", "again.bin").stdout)
    assert told["total_bytes"] == 3020
    assert [(one["refs"], one["own_bytes"]) for one in told["models"]] == [(["again.bin", "small.onnx"], 20)]
    assert run("du", "none").returncode == 4
    assert json.loads(run("info", "--json", "large.onnx").stdout)["ttl"] == 86_400


@pytest.mark.parametrize(("since", "code"), [("2d", 0), ("2026-01-01", 0), ("2026-01-01T08:00", 0), ("yesterday", 2)])
def test_verify_since_a_time(run: Run, root: Path, since: str, code: int) -> None:
    with Cache(root) as cache:
        cache.put(b"x" * 3000, name="m")
    done = run("verify", "--since", since)
    assert done.returncode == code
    assert ("1 of 1 models are whole" if code == 0 else "--since") in done.stderr


def test_a_name_that_a_stranger_chose_is_no_line_of_its_own(run: Run, root: Path) -> None:
    with Cache(root) as cache:
        cache.put(b"x", name="m")
    (root / "entries-v1" / "x\nok       promises     all is well\x1b[2J").write_bytes(b"no record")
    for command in (["doctor", "--locks"], ["verify"]):
        told = run(*command).stdout
        assert "all is well" in told
        assert not any(line.startswith("ok       promises     all is well") for line in told.splitlines())
        assert "\x1b" not in told


# -- tiers -------------------------------------------------------------------------------------------------------------


def test_tiers_are_listed_with_how_they_are_and_what_waits(run: Run, root: Path, tmp_path: Path) -> None:
    said = f"/nowhere:directory://{tmp_path}/shared,write,name=shared"

    listed = run("tiers", MODELCACHE_TIERS=said)
    as_json = run("tiers", "--json", MODELCACHE_TIERS=said)
    doctor = run("doctor", "--locks", MODELCACHE_TIERS=said)

    assert (listed.returncode, as_json.returncode, doctor.returncode) == (0, 0, 0)
    assert [line.split()[0] for line in listed.stdout.splitlines()] == ["NAME", "nowhere", "shared"]
    first, second = json.loads(as_json.stdout)
    assert (first["problem"], second["state"], second["write"], second["waiting"]) == (
        "is not there", "healthy", "queued", 0,
    )  # fmt: skip
    assert f"directory://{tmp_path}/shared: ok" in doctor.stdout
    assert "warning  tier nowhere" in doctor.stdout
    assert not root.exists() or os.listdir(root)  # A look makes no cache.


def test_tiers_sync_copies_what_is_missing_either_way(
    run: Run, root: Path, tmp_path: Path, server: FaultServer
) -> None:
    urls = [server.add("/model.onnx", CONTENT), server.add("/other.onnx", CONTENT[:1000])]
    with Cache(root) as cache:
        for url in urls:
            cache.get(url)
    tiers = {"MODELCACHE_TIERS": f"directory://{tmp_path}/shared,write,name=shared"}
    other = {**tiers, "MODELCACHE_DIR": str(tmp_path / "other")}

    pushed = run("tiers", "sync", "--to", "shared", urls[0], "--json", **tiers)
    planned = run("tiers", "sync", "--all", "--dry-run", **tiers)
    with Cache(root, tiers=[tiers["MODELCACHE_TIERS"]]) as cache:
        cache.sync_tiers()
    blob = tmp_path / "shared/files/blobs/sha256" / DIGEST.partition(":")[2]
    blob.chmod(0o644)
    blob.write_bytes(CONTENT[::-1])
    pulled = run("tiers", "sync", "--all", "--from", "shared", **other)

    assert (json.loads(pushed.stdout)["copied"], json.loads(pushed.stdout)["bytes"]) == (1, len(CONTENT))
    assert planned.stdout.split() == ["missing", "1.0", "kB", "shared", urls[1]]
    assert (pushed.returncode, planned.returncode, pulled.returncode) == (0, 0, 3)  # One was damaged meanwhile.
    assert pulled.stdout.split()[0] == "copied"
    assert f"failed: {urls[0]}" in pulled.stderr
    with Cache(tmp_path / "other") as there:
        assert [entry.key for entry in there.entries()] == [urls[1]]


@pytest.mark.parametrize("arguments", [["sync"], ["sync", "--all", "--to", "nobody"]])
def test_a_sync_that_makes_no_sense_is_told_so(run: Run, tmp_path: Path, arguments: list[str]) -> None:
    done = run("tiers", *arguments, MODELCACHE_TIERS=f"directory://{tmp_path}/shared,write")

    assert done.returncode == 2
    assert "hint:" in done.stderr or "name what to copy" in done.stderr


def test_a_get_says_what_still_waits_and_the_next_one_brings_it(run: Run, tmp_path: Path, server: FaultServer) -> None:
    url, other = server.add("/model.onnx", CONTENT), server.add("/other.onnx", CONTENT[:1000])
    tiers = {"MODELCACHE_TIERS": f"directory://{tmp_path}/shared,write,name=shared"}

    first = run("get", url, **tiers, FAILPOINTS="backends.directory.before-copy=raise(OSError)")
    second = run("get", other, **tiers)

    assert first.returncode == second.returncode == 0
    assert "1 object still to go to the tier shared" in first.stderr
    assert "still to go" not in second.stderr
    assert len(list((tmp_path / "shared/files/refs").iterdir())) == 2


def test_a_bucket_that_cannot_be_used_is_an_error_of_the_get_with_a_hint(
    run: Run, tmp_path: Path, server: FaultServer
) -> None:
    (tmp_path / "file").write_text("")

    done = run("get", server.add("/model.onnx", CONTENT), MODELCACHE_TIERS=f"directory://{tmp_path}/file")

    assert done.returncode == 14
    assert "hint:" in done.stderr
    assert done.stdout == ""
