"""The recipes of deploy/: their files say what they must, and their command lines do what docs/fleet-recipes.md says.

No kubelet, no slurmd and no systemd runs here: each command is taken out of its file and run with the environment that
the file gives it, as a user who is not root, where nothing but the volumes can be written.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelcache import Cache
from modelcache.testing import Fault, FaultServer
from tests.support.users import User, needs_users

DEPLOY = Path(__file__).parents[2] / "deploy"
CONTENT = b"the bytes of a model" * 5000
WORKLOADS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SCRIPTS = sorted((DEPLOY / "slurm").iterdir())


class Node:
    """The directories that a recipe names, somewhere else."""

    def __init__(self, place: Path, server: FaultServer) -> None:
        self.place, self.server = place, server
        self.url = server.add("/m.onnx", CONTENT)
        for name in ("models", "etc", "run", "bin"):
            (place / name).mkdir()
        manifest = place / "etc" / "models.toml"
        manifest.write_text(f'[[model]]\nref = "{self.url}"\n')
        with Cache(place / "scratch") as cache:
            cache.lock(manifest)
        shim = place / "bin" / "modelcache"
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m modelcache "$@"\n')
        shim.chmod(0o755)
        self.requests = len(server.seen())

    def here(self, text: str) -> str:
        """Return *text* with the paths of this node."""
        for there, name in {
            "/var/cache/modelcache": "models", "/etc/modelcache": "etc", "/run/modelcache": "run", "/models": "models",
            "/usr/bin/modelcache": "bin/modelcache",
        }.items():  # fmt: skip
            text = re.sub(rf"(?<![\w/.]){re.escape(there)}(?![\w.-])", str(self.place / name), text)
        return text

    @property
    def ready(self) -> Path:
        return self.place / "run" / "ready"

    @property
    def cache(self) -> Path:
        return next(path for path in (self.place / "models").iterdir() if (path / "entries-v1").is_dir())

    def environment(self, variables: dict[str, str]) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
        path = f"{self.place / 'bin'}:{os.environ['PATH']}"
        return {**kept, "PATH": path, **{name: self.here(value) for name, value in variables.items()}}

    def open_to(self, uid: int) -> None:
        """Give the volumes to *uid*, as fsGroup, chown or CacheDirectory do."""
        for name in ("models", "run"):
            os.chown(self.place / name, uid, uid)
        for path in (self.place, *self.place.parents):
            if path == Path(tempfile.gettempdir()):
                break
            path.chmod(0o755)  # pytest closes what it makes to all others.


@pytest.fixture
def node(tmp_path: Path, server: FaultServer) -> Iterator[Node]:
    place = tmp_path / "node"
    place.mkdir()
    yield Node(place, server)
    shutil.rmtree(place, ignore_errors=True)


def in_container(arguments: Sequence[str], environment: dict[str, str]) -> int:
    """Run the command line as a container with a read-only root does: no HOME, and nothing writable where it starts."""
    from modelcache.cli import run

    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    return run(arguments)


def pod(path: Path) -> dict[str, Any]:
    spec = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def containers() -> list[Any]:
    return [
        pytest.param(path, container, id=f"{path.stem}-{container['name']}")
        for path in WORKLOADS
        for container in [*pod(path).get("initContainers", []), *pod(path)["containers"]]
    ]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {variable["name"]: variable["value"] for variable in container.get("env", [])}


def container_of(name: str, container: str) -> dict[str, Any]:
    spec = pod(DEPLOY / "kubernetes" / name)
    found = [one for one in [*spec["initContainers"], *spec["containers"]] if one["name"] == container]
    assert len(found) == 1
    return dict(found[0])


@pytest.mark.parametrize(("path", "container"), containers())
def test_a_container_can_do_no_more_than_it_must(path: Path, container: dict[str, Any]) -> None:
    spec = pod(path)
    security = {**spec.get("securityContext", {}), **container["securityContext"]}

    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"]["drop"] == ["ALL"]
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    if container["name"] == "directory":  # The one that is for what only root can do, and that alone.
        assert security["capabilities"]["add"] == ["CHOWN"]
    else:
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == 10001
        assert "add" not in security["capabilities"]
    assert "memory" in container["resources"]["limits"]
    assert "cpu" in container["resources"]["requests"]
    assert {mount["name"] for mount in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}


@pytest.mark.parametrize("path", WORKLOADS, ids=lambda path: path.stem)
def test_a_new_manifest_rolls_and_the_cache_is_never_beyond_its_volume(path: Path) -> None:
    document = yaml.safe_load(path.read_text())
    labels = document["spec"]["template"]["metadata"]["labels"]

    assert document["spec"]["selector"]["matchLabels"] == labels
    assert "modelcache/models-lock" in document["spec"]["template"]["metadata"]["annotations"]
    assert pod(path)["terminationGracePeriodSeconds"] >= 30
    strategy = document["spec"].get("strategy", document["spec"].get("updateStrategy"))
    assert "rollingUpdate" in strategy
    for container in [*pod(path).get("initContainers", []), *pod(path)["containers"]]:
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        root = variables(container).get("MODELCACHE_DIR", "/models/cache")
        assert any(root.startswith(f"{mount}/") for mount in mounts), "a mount point itself is not ours to mark"


@needs_users
def test_the_init_container_brings_the_models_as_a_user_that_is_not_root(node: Node) -> None:
    container = container_of("init-container.yaml", "prewarm")
    service = container_of("init-container.yaml", "service")
    node.open_to(10001)
    user = User(10001, groups=(10001,))

    code = user.does(
        in_container, [node.here(word) for word in container["args"]], node.environment(variables(container))
    )
    again = user.does(in_container, ["path", node.url], node.environment(variables(service)))

    assert (code, again) == (0, 0)
    assert len(node.server.seen()) == node.requests + 1


@needs_users
def test_the_daemon_set_makes_a_cache_that_every_user_of_the_node_reads(node: Node) -> None:
    access, prewarm = container_of("daemonset.yaml", "access"), container_of("daemonset.yaml", "prewarm")
    line = next(line for line in prewarm["args"][0].splitlines() if "prewarm" in line)
    words = shlex.split(node.here(line.partition("&")[0]))
    node.open_to(10001)
    user = User(10001, groups=(10001,))

    made = user.does(in_container, [node.here(word) for word in access["command"][1:]], node.environment({}))
    warmed = user.does(in_container, words[1:], node.environment(variables(prewarm)))
    stranger = User(20002).does(in_container, ["path", node.url], node.environment(variables(prewarm)))

    assert (made, warmed, stranger) == (0, 0, 0)
    assert node.ready.read_text() == "1 models\n"
    assert prewarm["readinessProbe"]["exec"]["command"] == ["test", "-e", "/run/modelcache/ready"]


def shell(node: Node, change: Callable[[str], str] = lambda text: text) -> subprocess.Popen[str]:
    prewarm = container_of("daemonset.yaml", "prewarm")
    return subprocess.Popen(
        [*prewarm["command"], change(node.here(prewarm["args"][0]))],
        env=node.environment(variables(prewarm)), cwd="/", text=True, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def test_the_pod_of_a_node_is_ready_last_and_ends_at_once_when_told(node: Node) -> None:
    node.server.add("/m.onnx", CONTENT, faults=[Fault(hold_after=1000)])
    process = shell(node, lambda text: text.replace("sleep 86400", "echo asleep >&2; sleep 86400"))
    try:
        node.server.wait_for_requests(node.requests + 1)
        assert not node.ready.exists(), "ready, and nothing is there yet"
        node.server.release()
        assert process.stderr is not None
        while process.stderr.readline() not in {"asleep\n", ""}:
            pass
        assert node.ready.exists()
        process.terminate()
        assert process.wait(30) == 143
    finally:
        end(process)


def test_a_pod_that_is_ended_meanwhile_resumes_and_was_never_ready(node: Node) -> None:
    node.ready.write_text("of the manifest before\n")
    node.server.add("/m.onnx", CONTENT, faults=[Fault(hold_after=50_000)])
    process = shell(node)
    try:
        node.server.wait_for_sent(len(CONTENT) + 50_000)  # The lock file has cost one download.
        process.terminate()
        assert process.wait(30) == 143
    finally:
        end(process)

    assert not node.ready.exists()
    again = shell(node, lambda text: text.replace("while :; do", "exit 0; while :; do"))
    assert again.wait(30) == 0
    end(again)
    assert node.ready.exists()


def test_a_pod_whose_source_has_other_bytes_is_never_ready(node: Node) -> None:
    node.ready.write_text("of the manifest before\n")
    node.server.add("/m.onnx", b"other bytes")

    process = shell(node)
    assert process.wait(60) == 11
    end(process)
    assert not node.ready.exists()


def end(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_for_slurm_is_one_for_bash(script: Path) -> None:
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert os.access(script, os.X_OK)


def test_a_job_of_slurm_warms_once_a_node_and_then_works_offline(node: Node) -> None:
    text = (DEPLOY / "slurm" / "prewarm.sbatch").read_text()
    (line,) = re.findall(r"^srun (.*modelcache prewarm.*)$", text, re.MULTILINE)
    assert "--ntasks-per-node=1" in line.split()
    words = line.partition("modelcache prewarm")[2].replace('"$manifest"', str(node.place / "etc" / "models.toml"))
    environment = node.environment({"MODELCACHE_DIR": "/var/cache/modelcache/models"})

    done = subprocess.run(["modelcache", "prewarm", *shlex.split(words)], env=environment, check=False)

    assert done.returncode == 0
    assert text.index("modelcache prewarm") < text.index("export MODELCACHE_OFFLINE=1") < text.index('srun "$@"')


def test_a_prolog_of_slurm_never_fails_for_a_node_would_be_drained(node: Node) -> None:
    text = (DEPLOY / "slurm" / "prolog.sh").read_text().replace(
        "setpriv --reuid=modelcache --regid=modelcache --init-groups", ""
    )  # fmt: skip
    environment = node.environment(
        {"MODELCACHE_DIR": "/models/cache", "MODELCACHE_MANIFEST": "/etc/modelcache/none.toml"}
    )
    warm = {**environment, "MODELCACHE_MANIFEST": str(node.place / "etc" / "models.toml")}

    broken = subprocess.run(["bash", "-c", text], env=environment, capture_output=True, check=False)
    well = subprocess.run(["bash", "-c", text], env=warm, capture_output=True, check=False)

    assert (broken.returncode, well.returncode) == (0, 0)
    assert (node.cache / "entries-v1").is_dir()


def lines(unit: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_may_write_to_its_cache_alone(unit: Path) -> None:
    for key, value in {
        "ProtectSystem": "strict", "ProtectHome": "yes", "NoNewPrivileges": "yes", "CapabilityBoundingSet": "",
        "CacheDirectory": "modelcache", "User": "modelcache", "Type": "oneshot",
    }.items():  # fmt: skip
        assert lines(unit, key) == [value]
    (root,) = lines(unit, "Environment")
    assert root == "MODELCACHE_DIR=/var/cache/modelcache/models"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze comes with systemd")
def test_systemd_takes_the_units_as_they_are(node: Node, tmp_path: Path) -> None:
    copies = []
    for unit in sorted((DEPLOY / "systemd").glob("*.*")):
        if unit.suffix in {".service", ".timer"}:
            copies.append(tmp_path / unit.name)
            # The program has to be there; all else is as it is.
            text = unit.read_text().replace("/usr/bin/modelcache", str(node.place / "bin" / "modelcache"))
            copies[-1].write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, check=False
    )  # fmt: skip

    ours = [line for line in done.stderr.splitlines() if "modelcache" in line]
    assert (done.returncode, ours) == (0, [])


@needs_users
def test_the_unit_makes_a_cache_that_other_services_read(node: Node) -> None:
    unit = DEPLOY / "systemd" / "modelcache-prewarm.service"
    commands = [shlex.split(node.here(line))[1:] for line in [*lines(unit, "ExecStartPre"), *lines(unit, "ExecStart")]]
    environment = node.environment(dict(line.split("=", 1) for line in lines(unit, "Environment")))
    collect = shlex.split(lines(DEPLOY / "systemd" / "modelcache-gc.service", "ExecStart")[0])[1:]
    node.open_to(15015)
    user = User(15015)

    codes = [user.does(in_container, command, environment) for command in [*commands, *commands]]

    assert codes == [0] * 4
    # gc tries its lock in a second process: of this user, whom this Python is sure to be open to.
    assert subprocess.run(["modelcache", *collect], env=environment, check=False).returncode == 0
    assert node.ready.exists()
    assert len(node.server.seen()) == node.requests + 1
    assert User(20002).does(in_container, ["path", node.url], environment) == 0
    assert lines(unit, "RestartPreventExitStatus") == ["2 11 12"], "a mistake, drift, a refusal"


def test_the_image_runs_as_no_root_by_number() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()

    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["10001:10001"]
    assert "--uid 10001" in text
    assert text.rstrip().endswith('ENTRYPOINT ["modelcache"]')
