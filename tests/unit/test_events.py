"""What the cache tells its caller."""

from __future__ import annotations

import json
from pathlib import Path

from modelcache import Cache
from modelcache.events import Event


def test_an_event_is_json_without_the_fields_that_say_nothing() -> None:
    event = Event("progress", "https://example.org/m", done=0, total=10)

    assert json.loads(json.dumps(event.as_dict())) == {
        "kind": "progress",
        "ref": "https://example.org/m",
        "done": 0,
        "total": 10,
    }


def test_a_verification_tells_how_far_it_is(root: Path) -> None:
    events: list[Event] = []
    with Cache(root, on_event=events.append) as cache:
        for name in "abc":
            cache.put(name.encode() * 1000, name=name)
        cache.verify(jobs=1)

    told = [(event.kind, event.done, event.total) for event in events if event.ref == str(root)]
    assert told == [
        ("started", 0, 3000), ("progress", 1000, 3000), ("progress", 2000, 3000), ("progress", 3000, 3000),
        ("verified", 3000, 3000),
    ]  # fmt: skip
