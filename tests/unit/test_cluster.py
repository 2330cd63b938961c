"""What a host of a cluster comes to, with an engine that does as each test says; the real one: tests/processes."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Self

import pytest

from modelcache import cluster, errors, warmup
from modelcache.cluster import _Run, hosts, onhost
from modelcache.cluster.engine import address_of
from modelcache.cluster.hosts import GoneError, HostReport, Patience, Roll, SilentError, UnfitError, Warming
from modelcache.errors import (
    HostLostError,
    HostSetupError,
    HostTimeoutError,
    ManifestError,
    MissingLibraryError,
    SchedulerLostError,
    UsageError,
)

DONE = {"state": "done", "bytes": 7, "from_origin": 5, "from_tiers": 1, "here": 1, "models": []}


class Told:
    """An engine whose workers answer what they are told to: a dict, or an error."""

    def __init__(self, **answers: list[Any]) -> None:
        self.answers = answers
        self.started: list[str] = []
        self.stopped: list[str] = []

    async def look(self) -> dict[str, tuple[str, ...]]:
        return {"h": tuple(self.answers)}

    async def start(self, worker: str, token: str, order: dict[str, Any]) -> dict[str, Any]:
        self.started.append(worker)
        return await self.ask(worker, token)

    async def ask(self, worker: str, token: str) -> dict[str, Any]:
        answer = self.answers[worker].pop(0)
        if answer == "never":
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return dict(answer)

    async def stop(self, worker: str, token: str) -> None:
        self.stopped.append(worker)


def warmed(engine: Told, *, seconds: float = 20.0, back: float = 0.05) -> HostReport:
    async def run() -> HostReport:
        roll = Roll()
        await roll.update(await engine.look())
        end = asyncio.get_running_loop().time() + seconds
        order = {"modelcache": "2.0"}
        return await Warming("h", engine, roll, token="t", order=order, end=end, patience=Patience(back)).run()

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "_ASK_S_MIN", 0.001)
    monkeypatch.setattr(hosts, "_ASK_S_MAX", 0.002)


def test_a_host_that_answers_is_reported_as_it_says() -> None:
    report = warmed(Told(a=[{"state": "running"}, {"state": "running"}, DONE]))

    assert (report.state, report.bytes, report.from_origin, report.from_tiers, report.here) == ("ok", 7, 5, 1, 1)
    assert (report.tries, report.error) == (1, None)


def test_a_worker_that_goes_or_begins_anew_is_told_again() -> None:
    engine = Told(a=[GoneError("killed"), {"state": "unknown"}, DONE])

    report = warmed(engine)

    assert (report.state, report.tries, engine.started) == ("ok", 3, ["a", "a", "a"])
    assert engine.stopped == []


def test_a_worker_that_dies_each_time_loses_its_host_after_a_bounded_number_of_tries() -> None:
    report = warmed(Told(a=[GoneError("killed")] * 100))

    assert (report.state, report.tries) == ("lost", hosts.TRIES)
    assert isinstance(report.error, HostLostError)
    assert "killed" in str(report.error)


def test_a_worker_that_hangs_is_left_for_another_of_its_host() -> None:
    engine = Told(a=[SilentError("no answer")], b=[DONE])

    assert warmed(engine).state == "ok"
    assert engine.started == ["a", "b"]


def test_a_host_whose_only_worker_hangs_has_timed_out() -> None:
    engine = Told(a=[SilentError("no answer")])

    report = warmed(engine, seconds=2, back=600)  # None will come in its place: that is not waited for.

    assert report.state == "timeout"
    assert isinstance(report.error, HostTimeoutError)
    assert report.error.detail == "its worker hangs: no answer", "and not the deadline"
    assert engine.stopped == ["a"], "it may hear that nobody wants it any more"


def test_a_host_whose_workers_stay_away_is_lost() -> None:
    report = warmed(Told())

    assert (report.state, report.tries) == ("lost", 0)


def test_a_worker_that_its_scheduler_has_lost_is_not_waited_for() -> None:
    engine = Told(a=["never"], b=[DONE])

    async def run() -> HostReport:
        roll = Roll()
        await roll.update({"h": ("a",)})
        end = asyncio.get_running_loop().time() + 60
        warming = Warming("h", engine, roll, token="t", order={}, end=end, patience=Patience(30))
        under_way = asyncio.create_task(warming.run())
        while not engine.started:
            await asyncio.sleep(0)
        await roll.update({"h": ("b",)})
        return await under_way

    report = asyncio.run(run())
    assert (report.state, report.tries, engine.started) == ("ok", 2, ["a", "b"])


def test_the_deadline_ends_a_wait_for_whatever() -> None:
    engine = Told(a=["never"])

    report = warmed(engine, seconds=0.05, back=60)

    assert report.state == "timeout"
    assert engine.stopped == ["a"]


@pytest.mark.parametrize(
    "answer",
    [UnfitError("No module named 'modelcache'"), {"state": "skew", "modelcache": "1.0"}],
    ids=["none", "older"],
)
def test_a_host_without_this_modelcache_fails_at_once(answer: Any) -> None:
    report = warmed(Told(a=[answer]))

    assert (report.state, report.tries) == ("failed", 1)
    assert isinstance(report.error, HostSetupError)


@pytest.mark.parametrize(
    ("failed", "state"), [([True, False], "partial"), ([True, True], "failed"), ([False, False], "ok")]
)
def test_models_that_failed_decide_the_state(failed: list[bool], state: str) -> None:
    models = [{"ref": "m", "state": "failed" if bad else "fetched", "message": "404", "exit_code": 4} for bad in failed]

    report = warmed(Told(a=[{**DONE, "models": models}]))

    assert report.state == state
    assert (report.error is None) == (state == "ok")


class Crowd(Told):
    """An engine of many hosts, which counts how many work at a time. The second look finds 21."""

    def __init__(self, hosts: int) -> None:
        super().__init__()
        self.hosts, self.now, self.most = hosts, 0, 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def look(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {f"h{number}": (f"w{number}",) for number in range(self.hosts)}
        self.hosts = 21
        return found

    async def start(self, worker: str, token: str, order: dict[str, Any]) -> dict[str, Any]:
        self.now += 1
        self.most = max(self.most, self.now)
        # The first ones are not done before another host has come.
        while worker == "w0" and self.hosts < 21:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.001)
        self.now -= 1
        return DONE


def crowd(monkeypatch: pytest.MonkeyPatch, engine: Crowd, at_once: int | None) -> list[HostReport]:
    monkeypatch.setattr("modelcache.cluster._LOOK_S", 0.01)
    monkeypatch.setattr("modelcache.cluster.engine.Dask", lambda *_, **__: engine)
    return list(asyncio.run(_Run("tcp://h:1", {"modelcache": "1"}, 30.0, at_once, 5.0, 5.0).run()).hosts)


def test_no_more_hosts_than_allowed_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Crowd(21)

    assert [host.state for host in crowd(monkeypatch, engine, 3)] == ["ok"] * 21
    assert engine.most == 3


def test_a_host_that_joins_meanwhile_is_warmed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Crowd(20)

    found = crowd(monkeypatch, engine, None)

    assert "h20" in {host.host for host in found}
    assert {host.state for host in found} == {"ok"}


def test_a_scheduler_that_goes_is_told_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Going(Crowd):
        looks = 0

        async def look(self) -> dict[str, tuple[str, ...]]:
            self.looks += 1
            if self.looks > 1:
                raise GoneError("connection refused")
            return {"h0": ("w0",)}

        async def start(self, worker: str, token: str, order: dict[str, Any]) -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

    engine = Going(1)
    monkeypatch.setattr("modelcache.cluster._LOOK_S", 0.01)
    monkeypatch.setattr("modelcache.cluster.engine.Dask", lambda *_, **__: engine)

    with pytest.raises(SchedulerLostError, match="connection refused"):
        asyncio.run(_Run("tcp://h:1", {"modelcache": "1"}, 30.0, None, 0.05, 5.0).run())
    assert engine.stopped == ["w0"]


def test_who_waits_is_told_for_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcache.cluster.HEARTBEAT_S", 0.0)
    monkeypatch.setattr("modelcache.cluster._LOOK_S", 0.001)
    engine = Crowd(20)
    monkeypatch.setattr("modelcache.cluster.engine.Dask", lambda *_, **__: engine)
    run = _Run("tcp://h:1", {"modelcache": "1"}, 30.0, 1, 5.0, 5.0)

    asyncio.run(run.run())

    run.news.put(None)
    waits = [news for news in iter(run.news.get, None) if isinstance(news, tuple)]
    assert waits
    assert all(set(hosts) <= {f"h{number}" for number in range(21)} for hosts in waits)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("dask://head:8786", "tcp://head:8786"),
        ("dask://head", "tcp://head:8786"),
        ("tcp://10.0.0.1:99/", "tcp://10.0.0.1:99"),
        ("tls://head:8786", "tls://head:8786"),
        ("dask://[::1]:8786", "tcp://[::1]:8786"),
    ],
)
def test_an_address_is_taken_as_dask_writes_it(text: str, address: str) -> None:
    assert address_of(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "head:8786",
        "ray://head:1",
        "dask://",
        "dask://head:many",
        "dask://u:p@head:1",
        "dask://head/x",
        "dask://[::1",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no address of a scheduler"):
        address_of(text)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "models.toml"
    path.write_text('[[model]]\nref = "https://example.org/m.onnx"\n')
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"deadline": 0}, {"deadline": float("nan")}, {"connect_timeout": -1}, {"silence": "1"}, {"jobs": 0},
        {"at_once": True}, {"root": "cache"}, {"ready_file": "ready"},
    ],
    ids=str,
)  # fmt: skip
def test_senseless_arguments_are_refused_before_anybody_is_asked(options: dict[str, Any], manifest: Path) -> None:
    with pytest.raises(UsageError):
        cluster.prewarm(manifest, "dask://127.0.0.1:1", **options)


@pytest.mark.parametrize(
    "ref",
    [
        "https://user:secret@example.org/m.onnx",
        "https://example.org/m.onnx?X-Amz-Signature=secret&X-Amz-Expires=60",
        "https://example.org/m.onnx?token=secret",
    ],
)
@pytest.mark.parametrize("key", ["ref", "mirrors"])
def test_credentials_are_not_sent(ref: str, key: str, tmp_path: Path) -> None:
    path = tmp_path / "models.toml"
    lines = {"ref": f'ref = "{ref}"', "mirrors": f'ref = "https://example.org/n"\nmirrors = ["{ref}"]'}
    path.write_text(f"[[model]]\n{lines[key]}\n")

    with pytest.raises(UsageError, match="holds credentials") as caught:
        cluster.prewarm(path, "dask://127.0.0.1:1")

    assert "secret" not in str(caught.value)


def test_a_manifest_with_a_mistake_is_refused_before_anybody_is_asked(manifest: Path) -> None:
    manifest.write_text('[[model]]\nreff = "https://example.org/m.onnx"\n')

    with pytest.raises(ManifestError):
        cluster.prewarm(manifest, "dask://127.0.0.1:1")


def test_without_the_engine_the_extra_is_named(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(MissingLibraryError, match=r"modelcache\[fleet\]"):
        cluster.prewarm(manifest, "dask://127.0.0.1:1")


def _order(manifest: Path, root: Path, **changed: Any) -> dict[str, Any]:
    found = cluster._order(warmup.read(manifest, locked=False), root=str(root), ready_file=None, jobs=None, options={})
    return {**found, "seconds": 60.0, **changed}


def test_what_runs_on_a_host_needs_no_file_there(tmp_path: Path, root: Path, server: Any) -> None:
    gone = tmp_path / "models.toml"
    gone.write_text(f'[[model]]\nref = "{server.add("/m.onnx", b"x" * 5000)}"\n')
    order = _order(gone, root)
    gone.unlink()

    answer = onhost.warm(order)

    assert (answer["state"], answer["bytes"], answer["from_origin"], answer["here"]) == ("done", 5000, 5000, 0)
    assert onhost.warm(order)["here"] == 5000


def test_what_was_copied_from_a_tier_is_counted_apart(tmp_path: Path, root: Path, server: Any) -> None:
    gone = tmp_path / "models.toml"
    gone.write_text(f'[[model]]\nref = "{server.add("/m.onnx", b"x" * 5000)}"\n')
    below = tmp_path / "below"
    onhost.warm(_order(gone, below))

    answer = onhost.warm({**_order(gone, root), "options": {"tiers": [f"{below},promote"]}})

    assert (answer["from_origin"], answer["from_tiers"], answer["here"]) == (0, 5000, 0)


def test_an_order_of_another_time_is_answered_with_the_version(manifest: Path, root: Path) -> None:
    answer = onhost.start("t", _order(manifest, root, protocol=99))

    assert (answer["state"], answer["protocol"]) == ("skew", onhost.PROTOCOL)


def test_a_job_that_a_worker_does_not_know_is_unknown() -> None:
    assert onhost.ask("nobody") == {"state": "unknown"}
    assert onhost.stop("nobody") == {"state": "stopped"}


def test_the_errors_are_drawn_with_what_they_cost() -> None:
    assert errors.HostsError(failures={}, total=1).exit_code == 3
    assert errors.NoSchedulerError(address="a", detail="b").exit_code == 6


def test_a_command_line_for_one_machine_refuses_what_only_a_cluster_takes(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from modelcache.cli import run

    assert run(["prewarm", os.fspath(manifest), "--deadline", "5"]) == 2
    assert "--deadline is given without --cluster" in capsys.readouterr().err


def test_how_long_a_worker_may_be_silent_is_said_on_the_command_line(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelcache.cli import run

    told: dict[str, Any] = {}
    monkeypatch.setattr(
        cluster, "prewarm", lambda *_arguments, **options: told.update(options) or cluster.ClusterReport(())
    )

    assert run(["prewarm", os.fspath(manifest), "--cluster", "dask://nobody", "--silence", "30s"]) == 0
    assert told["silence"] == 30
    assert run(["prewarm", os.fspath(manifest), "--silence", "30s"]) == 2


def test_what_an_engine_leaves_under_way_is_ended_with_the_loop() -> None:
    loop = asyncio.new_event_loop()
    left = loop.create_task(asyncio.sleep(1000))

    cluster._end(loop)

    assert (left.cancelled(), loop.is_closed()) == (True, True)
