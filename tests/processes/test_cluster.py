"""A manifest on every host of a real dask cluster, whose workers are killed, stopped and missing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from modelcache import cluster
from modelcache.cluster import ClusterReport
from modelcache.errors import (
    ClusterError,
    ClusterTLSError,
    HostFailedError,
    HostSetupError,
    HostTimeoutError,
    NoSchedulerError,
    NotASchedulerError,
    NoWorkersError,
)
from modelcache.testing import Fault, FaultServer
from tests.support.dask import Cluster

CONTENT = random.Random(11).randbytes(600_000)
FIRST, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Cluster(tmp_path_factory.mktemp("cluster"), {FIRST: 2, SECOND: 1, THIRD: 1})
    yield running
    running.close()


@pytest.fixture
def manifest(server: FaultServer, tmp_path: Path) -> Path:
    """One model, of an address that no other test has."""
    path = tmp_path / "models.toml"
    path.write_text(f'[[model]]\nref = "{server.add(f"/{tmp_path.name}.onnx", CONTENT)}"\n')
    return path


def states(report: ClusterReport) -> dict[str, str]:
    return {host.host: host.state for host in report.hosts}


@contextmanager
def begun(manifest: Path, dask: Cluster, **options: Any) -> Iterator[list[ClusterReport]]:
    """A prewarm under way in a thread; what it returns is in the list after the block."""
    found: list[ClusterReport] = []
    thread = threading.Thread(target=lambda: found.append(cluster.prewarm(manifest, dask.address, **options)))
    thread.start()
    try:
        yield found
    finally:
        thread.join(60)
    assert not thread.is_alive()


def command(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "modelcache", "prewarm", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_each_host_downloads_once_however_many_workers_it_has(
    dask: Cluster, server: FaultServer, manifest: Path
) -> None:
    first = cluster.prewarm(manifest, dask.address)
    again = cluster.prewarm(manifest, dask.address.replace("tcp://", "dask://"))

    assert states(first) == dict.fromkeys([FIRST, SECOND, THIRD], "ok")
    assert server.methods() == ["GET"] * 3
    assert [(host.bytes, host.from_origin, host.here) for host in first.hosts] == [(600_000, 600_000, 0)] * 3
    assert [(host.bytes, host.from_origin, host.here) for host in again.hosts] == [(600_000, 0, 600_000)] * 3
    assert [host.root for host in first.hosts] == [str(dask.root(host)) for host in (FIRST, SECOND, THIRD)]
    first.check()


def test_a_worker_killed_in_the_middle_is_replaced_and_the_download_goes_on(
    dask: Cluster, server: FaultServer, manifest: Path, tmp_path: Path
) -> None:
    server.add(f"/{tmp_path.name}.onnx", CONTENT, faults=[Fault(hold_after=200_000)] * 3)
    with begun(manifest, dask) as found:
        server.wait_for_sent(600_000)
        os.kill(dask.pids()[SECOND][0], signal.SIGKILL)
        server.wait_for_requests(4)  # Of another worker: the nanny's, at another address.
        server.release()

    assert server.seen()[3].headers["range"].startswith("bytes="), "what had arrived is not asked for again"
    (report,) = found
    assert states(report) == dict.fromkeys([FIRST, SECOND, THIRD], "ok")
    assert {host.host: host.tries for host in report.hosts} == {FIRST: 1, SECOND: 2, THIRD: 1}


def test_a_host_that_hangs_times_out_and_holds_no_other_up(dask: Cluster, manifest: Path) -> None:
    told: list[str] = []
    frozen = dask.pids()[SECOND][0]
    os.kill(frozen, signal.SIGSTOP)
    try:
        # It takes connections, as the kernel does that for it, and says nothing.
        report = cluster.prewarm(manifest, dask.address, silence=1.5, on_host=lambda host: told.append(host.host))
    finally:
        os.kill(frozen, signal.SIGCONT)

    assert states(report) == {FIRST: "ok", SECOND: "timeout", THIRD: "ok"}
    assert isinstance(report.failures[SECOND], HostTimeoutError)
    assert told[-1] == SECOND, "the others were done, and told, before it was given up"


def test_a_deadline_ends_the_work_on_the_hosts_too(
    dask: Cluster, server: FaultServer, manifest: Path, tmp_path: Path
) -> None:
    server.add(f"/{tmp_path.name}.onnx", CONTENT, faults=[Fault(hold_after=1000)] * 3)

    report = cluster.prewarm(manifest, dask.address, deadline=2)

    assert set(states(report).values()) == {"timeout"}
    assert all(isinstance(error, HostTimeoutError) for error in report.failures.values())
    # The first requests are held to this day: whoever waits for them is gone, and so is its lock.
    assert set(states(cluster.prewarm(manifest, dask.address, deadline=20)).values()) == {"ok"}


def test_a_host_that_cannot_store_fails_alone_with_exit_code_3(
    dask: Cluster, server: FaultServer, manifest: Path
) -> None:
    root = dask.root(THIRD)
    shutil.rmtree(root, ignore_errors=True)
    root.write_text("a file where the cache should be")
    try:
        done = command(manifest, "--cluster", dask.address)
        stdout, stderr = done.communicate(timeout=60)
    finally:
        root.unlink()

    assert done.returncode == 3
    table = [line.split() for line in stdout.splitlines()]
    assert [row[:2] for row in table] == [["HOST", "STATE"], [FIRST, "ok"], [SECOND, "ok"], [THIRD, "failed"]]
    assert "error: 1 of 3 hosts are not ready" in stderr
    assert str(root) in stderr
    assert "hint: " in stderr


def test_a_host_with_some_of_the_models_is_partial(dask: Cluster, server: FaultServer, manifest: Path) -> None:
    with manifest.open("a") as file:
        file.write(f'[[model]]\nref = "{server.url("/nothing.onnx")}"\n')

    report = cluster.prewarm(manifest, dask.address)

    assert set(states(report).values()) == {"partial"}
    (error, *_) = report.failures.values()
    assert isinstance(error, HostFailedError)
    assert (error.error, error.code) == ("RemoteNotFoundError", 4)
    assert report.hosts[0].bytes == 600_000


def test_a_host_that_joins_meanwhile_is_asked_and_one_without_our_modelcache_told_so(
    dask: Cluster, server: FaultServer, manifest: Path, tmp_path: Path
) -> None:
    server.add(f"/{tmp_path.name}.onnx", CONTENT, faults=[Fault(hold_after=1000)] * 3)
    older = tmp_path / "older" / "modelcache"
    older.mkdir(parents=True)
    (older / "__init__.py").touch()  # A modelcache from before there were clusters.
    told = threading.Event()

    with begun(manifest, dask, on_host=lambda _: told.set()) as found:
        server.wait_for_requests(3)
        late = dask.join("127.0.0.5", PYTHONPATH=str(older.parent))
        assert told.wait(30)
        server.release()

    late.end()
    assert states(found[0]) == {**dict.fromkeys([FIRST, SECOND, THIRD], "ok"), "127.0.0.5": "failed"}
    assert isinstance(found[0].failures["127.0.0.5"], HostSetupError)


def test_an_interrupt_ends_it_and_says_what_was_done(
    dask: Cluster, server: FaultServer, manifest: Path, tmp_path: Path
) -> None:
    server.add(f"/{tmp_path.name}.onnx", CONTENT, faults=[Fault(hold_after=1000)] * 2)
    process = command(manifest, "--cluster", dask.address, "--json")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())  # The host whose request was answered in full.
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert f"until then: {first['host']} ok" in stderr
    again = cluster.prewarm(manifest, dask.address, deadline=20)
    assert set(states(again).values()) == {"ok"}, "what was interrupted, and held by the server, holds nobody up"


def test_where_no_scheduler_is_an_error_of_its_own_says_so(server: FaultServer, dask: Cluster, manifest: Path) -> None:
    with FaultServer() as gone:
        port = gone.port
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    with FaultServer(tls=context) as secure, ThreadPoolExecutor() as at_once:
        places: dict[str, tuple[type[ClusterError], str]] = {
            f"dask://127.0.0.1:{port}": (NoSchedulerError, "nothing was begun"),
            f"dask://127.0.0.1:{server.port}": (NotASchedulerError, "does not speak as dask does"),
            dask.worker_address(): (NotASchedulerError, "another part of dask"),
            dask.address.replace("tcp://", "tls://"): (ClusterTLSError, "it speaks no TLS"),
            f"tcp://127.0.0.1:{secure.port}": (ClusterTLSError, "it speaks TLS"),
        }
        begun = {at_once.submit(cluster.prewarm, manifest, place, connect_timeout=0.5): place for place in places}
        for call, place in begun.items():
            kind, says = places[place]
            with pytest.raises(kind, match=says):
                call.result(60)


def test_a_cluster_with_certificates_is_one_for_who_has_them(
    manifest: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--crash-budget") != "large":
        pytest.skip("a second cluster takes four seconds: --crash-budget=large")
    authority, stranger = trustme.CA(), trustme.CA()
    ours = authority.issue_cert("127.0.0.1", FIRST)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    ours.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))
    ca, own = str(tmp_path / "ca.pem"), str(tmp_path / "own.pem")
    files = ("--tls-ca-file", ca, "--tls-cert", own, "--tls-key", own)
    secure = Cluster(tmp_path, {FIRST: 1}, options=("--protocol", "tls", *files))

    def warmed(trusted: str) -> tuple[int, str]:
        settings = {"CA_FILE": trusted, "CLIENT__CERT": own, "CLIENT__KEY": own}
        environment = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in settings.items()}
        words = ["prewarm", str(manifest), "--cluster", secure.address, "--connect-timeout", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "modelcache", *words],
            env={**os.environ, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr

    try:
        assert secure.address.startswith("tls://")
        assert warmed(ca)[0] == 0
        code, said = warmed(str(tmp_path / "stranger.pem"))
        assert (code, "certificate verify failed" in said) == (6, True)
    finally:
        secure.close()


def test_a_scheduler_without_workers_is_an_error(manifest: Path, tmp_path: Path) -> None:
    empty = Cluster(tmp_path, {})
    try:
        with pytest.raises(NoWorkersError):
            cluster.prewarm(manifest, empty.address, connect_timeout=0.5)
    finally:
        empty.close()
