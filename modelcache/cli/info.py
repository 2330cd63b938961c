"""``modelcache info REF``: everything known of one model."""

from __future__ import annotations

import argparse
import json
import time

from ..cache import Cache
from ..derivation import Derivation
from ..errors import EntryNotFoundError
from ..partials import Partials
from ..pins import Pins
from ..records import Entries
from ..reference import parse
from .console import Console


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("ref", help="a URL, a path, or a name that was put")


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print the record, whether the object stands, and partials."""
    key = parse(arguments.ref).key
    with Cache(arguments.root) as cache:
        entry = Entries(cache.root).read(key)
        made = None if entry is None else entry.derived
        partials = len(Partials(cache.root).of(key))
        products = [] if entry is None else [one.key for one in Entries(cache.root).derived_from(entry.digest)]
        if entry is None and not partials:
            raise EntryNotFoundError(ref=key, root=cache.root)
        facts: dict[str, object] = {"ref": key, "partials": partials, "pinned": Pins(cache.root).has(key)}
        if entry is not None:
            used = int(Entries(cache.root).used(key))
            facts = {**entry.as_dict(), **facts, "cached": cache.lookup(key) is not None, "used": used}
            if products:
                facts["products"] = products
    if console.json:
        console.data_json(facts)
        return 0
    for name, value in facts.items():
        if name in {"key", "mtime_ns", "serial"} or value in (None, []):
            continue
        if name == "derivation" and made is not None:
            _show(made, console)
            continue
        if name in {"created", "checked", "used"} and isinstance(value, int):
            shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(value)) if value else "never"
        else:
            shown = str(value)
        console.data(f"{name:<14}{shown}")
    return 0


def _show(made: Derivation, console: Console) -> None:
    """Print all that a derived artefact depends on."""
    console.data(f"{'recipe':<14}{made.recipe}, version {made.version}, built in {made.seconds:g} s")
    for part in made.inputs:
        where = f", {part.path}" if part.path else ""
        console.data(f"{'input':<14}{part.name}: {part.ref or 'a path'}{where}, {part.digest}")
    for title, values in (("param", made.params), ("platform", made.platform)):
        for name, value in values.items():
            console.data(f"{title:<14}{name} = {json.dumps(value, ensure_ascii=False)}")
