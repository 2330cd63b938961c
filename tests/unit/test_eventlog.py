"""Events reach the standard logging, with their facts, and cost nothing where nobody listens."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from modelcache import Cache, RetryPolicy, errors, eventlog
from modelcache.events import Event
from modelcache.testing import Fault, FaultServer

CONTENT = b"x" * 5000


def facts(caplog: pytest.LogCaptureFixture) -> list[dict[str, object]]:
    return [record.modelcache for record in caplog.records if hasattr(record, "modelcache")]


def test_each_event_is_a_record_with_its_facts(
    root: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.add("/m.onnx", CONTENT, [Fault(abort_after=2000)])
    caplog.set_level(logging.DEBUG, "modelcache")
    told: list[Event] = []

    with Cache(root, retry=RetryPolicy(base=0), on_event=told.append) as cache:
        cache.get(url.replace("://", "://user:secret@"))

    assert facts(caplog) == [event.as_dict() for event in told]
    levels = {str(one["kind"]): record.levelname for one, record in zip(facts(caplog), caplog.records, strict=True)}
    assert levels["fetched"] == levels["retry"] == "INFO"
    assert levels["started"] == levels["received"] == "DEBUG"
    assert "secret" not in caplog.text + json.dumps(facts(caplog))


def test_a_failure_says_its_class_and_is_no_warning_for_it_is_raised(
    root: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelcache")
    with Cache(root, retry=RetryPolicy(attempts=1)) as cache, pytest.raises(errors.DigestMismatchError):
        cache.get(server.add("/m.onnx", CONTENT), digest="sha256:" + "0" * 64)

    (failed,) = (one for one in facts(caplog) if one["kind"] == "failed")
    assert failed["error"] == "DigestMismatchError"
    assert {record.levelname for record in caplog.records} == {"INFO"}


def test_what_is_served_although_it_is_stale_is_one_warning(
    root: Path, server: FaultServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = server.add("/m.onnx", CONTENT)
    with Cache(root, retry=RetryPolicy(attempts=1)) as cache:
        cache.get(url)
        server.close()
        caplog.clear()
        cache.get(url, max_age=0)

    (record,) = (one for one in caplog.records if one.levelno >= logging.WARNING)
    assert record.modelcache["kind"] == "stale"  # type: ignore[attr-defined]


def test_no_handler_is_installed_and_no_level_set(root: Path) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="m")

    log = logging.getLogger("modelcache")
    assert (log.handlers, log.level, log.filters, log.propagate) == ([], logging.NOTSET, [], True)


def test_a_level_that_is_off_formats_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Event, "as_dict", lambda _self: pytest.fail("it was made for nobody"))
    logging.getLogger("modelcache").setLevel(logging.ERROR)
    try:
        eventlog.log(Event("fetched", "m"))
    finally:
        logging.getLogger("modelcache").setLevel(logging.NOTSET)
