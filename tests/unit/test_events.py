"""What the cache tells its caller."""

from __future__ import annotations

import json

from modelcache.events import Event


def test_an_event_is_json_without_the_fields_that_say_nothing() -> None:
    event = Event("progress", "https://example.org/m", done=0, total=10)

    assert json.loads(json.dumps(event.as_dict())) == {
        "kind": "progress",
        "ref": "https://example.org/m",
        "done": 0,
        "total": 10,
    }
