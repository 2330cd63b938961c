"""One stamp a host, shared by the processes of one boot of one machine."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modelcache import layout, process
from modelcache.backoff import Backoff
from modelcache.sealed import seal

HOST = "example.org:8443"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, which stands still at its only item."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_host_may_be_asked_when_nobody_was_told_to_wait(store: str) -> None:
    assert Backoff(store).wait(HOST).seconds == 0


def test_a_stamp_is_seen_by_others_until_its_time_is_over(store: str, clock: list[float]) -> None:
    Backoff(store).set(HOST, 30, 429)
    other = Backoff(store)

    assert other.wait(HOST).seconds == 30
    clock[0] += 29
    assert other.wait(HOST).seconds == 1
    clock[0] += 2
    assert other.wait(HOST).seconds == 0


def test_a_stamp_holds_for_its_host_alone(store: str) -> None:
    backoff = Backoff(store)
    backoff.set(HOST, 30, 429)

    assert backoff.wait("example.org").seconds == 0


def test_a_shorter_wait_does_not_replace_a_longer_one(store: str, clock: list[float]) -> None:
    backoff = Backoff(store)
    backoff.set(HOST, 30, 429)
    backoff.set(HOST, 5, 429)

    assert backoff.wait(HOST).seconds == 30


def test_a_host_that_asked_for_a_year_is_asked_again_after_an_hour(store: str, clock: list[float]) -> None:
    Backoff(store).set(HOST, 365 * 86400, 503)

    assert Backoff(store).wait(HOST) == (3600, 503)
    clock[0] += 3600
    assert Backoff(store).wait(HOST).seconds == 0


@pytest.mark.parametrize("identity", ["boot_id", "machine_id"])
def test_a_stamp_of_another_boot_or_machine_is_ignored(
    store: str, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Backoff(store).set(HOST, 30, 429)
    monkeypatch.setattr(process, identity, lambda: "another0")

    assert Backoff(store).wait(HOST).seconds == 0


@pytest.mark.parametrize("data", [b"", b"\0" * 64, seal({}), seal({"until": 1e12})])
def test_a_broken_stamp_is_ignored(store: str, data: bytes) -> None:
    backoff = Backoff(store)
    backoff.set(HOST, 30, 429)
    Path(store, layout.BACKOFF, layout.key_id(HOST)).write_bytes(data)

    assert backoff.wait(HOST).seconds == 0


def test_a_stamp_that_cannot_be_written_costs_nothing(store: str) -> None:
    Path(store, layout.BACKOFF).write_text("a file in the way")

    Backoff(store).set(HOST, 30, 429)

    assert Backoff(store).wait(HOST).seconds == 0
