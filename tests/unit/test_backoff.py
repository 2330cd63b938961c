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
    assert Backoff(store, longest=600).left(HOST) == 0


def test_a_stamp_is_seen_by_others_until_its_time_is_over(store: str, clock: list[float]) -> None:
    Backoff(store, longest=600).set(HOST, 30)
    other = Backoff(store, longest=600)

    assert other.left(HOST) == 30
    clock[0] += 29
    assert other.left(HOST) == 1
    clock[0] += 2
    assert other.left(HOST) == 0


def test_a_stamp_holds_for_its_host_alone(store: str) -> None:
    backoff = Backoff(store, longest=600)
    backoff.set(HOST, 30)

    assert backoff.left("example.org") == 0


def test_a_shorter_wait_does_not_replace_a_longer_one(store: str, clock: list[float]) -> None:
    backoff = Backoff(store, longest=600)
    backoff.set(HOST, 30)
    backoff.set(HOST, 5)

    assert backoff.left(HOST) == 30


def test_no_stamp_makes_anybody_wait_longer_than_the_policy_allows(store: str, clock: list[float]) -> None:
    Backoff(store, longest=1e9).set(HOST, 1e6)

    assert Backoff(store, longest=600).left(HOST) == 600


@pytest.mark.parametrize("identity", ["boot_id", "machine_id"])
def test_a_stamp_of_another_boot_or_machine_is_ignored(
    store: str, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Backoff(store, longest=600).set(HOST, 30)
    monkeypatch.setattr(process, identity, lambda: "another0")

    assert Backoff(store, longest=600).left(HOST) == 0


@pytest.mark.parametrize("data", [b"", b"\0" * 64, seal({}), seal({"until": 1e12})])
def test_a_broken_stamp_is_ignored(store: str, data: bytes) -> None:
    backoff = Backoff(store, longest=600)
    backoff.set(HOST, 30)
    Path(store, layout.BACKOFF, layout.key_id(HOST)).write_bytes(data)

    assert backoff.left(HOST) == 0


def test_a_host_that_has_answered_may_be_asked_at_once(store: str) -> None:
    backoff = Backoff(store, longest=600)
    backoff.set(HOST, 30)
    backoff.clear(HOST)
    backoff.clear(HOST)

    assert backoff.left(HOST) == 0


def test_a_stamp_that_cannot_be_written_costs_nothing(store: str) -> None:
    Path(store, layout.BACKOFF).write_text("a file in the way")

    Backoff(store, longest=600).set(HOST, 30)

    assert Backoff(store, longest=600).left(HOST) == 0
