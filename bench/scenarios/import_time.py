"""P3: ``import modelcache``."""

from __future__ import annotations

import subprocess
import sys

from ..measure import Check, Context, Result, alternate, tabulate
from .hit_process import Timed

_HEAVY = ("socket", "urllib.request", "urllib3", "fasteners", "asyncio", "logging", "json", "threading", "ssl")
_COUNT = f"import sys, modelcache; print(*[name for name in {_HEAVY!r} if name in sys.modules])"


def run(context: Context) -> Result:
    """Time the import of the package, as the difference to an empty interpreter."""
    python = sys.executable
    commands = {"python -c pass": "pass", "python -c 'import modelcache'": "import modelcache"}
    if context.peers:
        commands |= {
            f"python -c 'import {peer}'": f"import {peer}" for peer in ("huggingface_hub", "pooch", "cached_path")
        }
    timed = {name: Timed([python, "-c", code], {}) for name, code in commands.items()}
    found = alternate(timed, context.turns(60), warm_up=2)
    ours, floor = found["python -c 'import modelcache'"], found["python -c pass"]
    assert isinstance(ours, list)
    assert isinstance(floor, list)
    added = tuple((a - b) * 1e3 for a, b in zip(ours, floor, strict=True))
    heavy = subprocess.run([python, "-c", _COUNT], capture_output=True, text=True, check=True).stdout.split()
    return Result(
        [tabulate("P3 import", "ms", found, scale=1e3, floor="python -c pass")],
        [
            Check("P3", "import modelcache, ms above an empty interpreter", added, 5.0),
            Check(
                "P3", f"heavy modules that it imports{': ' if heavy else ''}{', '.join(heavy)}", (float(len(heavy)),), 0
            ),
        ],
    )
