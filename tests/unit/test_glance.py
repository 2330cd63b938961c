"""A look at a record without the entry store: the same facts, or none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from modelcache import Cache, glance, layout


def test_it_says_what_the_entry_says_and_nothing_of_a_record_that_is_broken(root: Path) -> None:
    with Cache(root) as cache:
        entry = cache.put(b"weights", name="m.bin")
        cache.put(b"others", name="n.bin")
    record = Path(layout.record_path(str(root), "m.bin"))
    whole = record.read_bytes()

    found = glance.facts(str(root), "m.bin")
    assert found is not None
    assert (found["key"], found["source"], found["created"]) == ("m.bin", "put", entry.created)

    for broken in (
        b"", whole[:-1], whole[:-20], whole.replace(b"put", b"Put"), whole.replace(b"m.bin", b"o.bin"),
        Path(layout.record_path(str(root), "n.bin")).read_bytes(),
    ):  # fmt: skip
        record.write_bytes(broken)
        assert glance.facts(str(root), "m.bin") is None, broken
    record.unlink()
    assert glance.facts(str(root), "m.bin") is None


def test_it_costs_no_entry_store() -> None:
    code = "import sys; from modelcache import glance; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()

    heavy = {"hashlib", "logging", "subprocess", "modelcache.records", "modelcache.commit", "modelcache.process"}
    assert heavy.isdisjoint(loaded)
