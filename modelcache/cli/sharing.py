"""What ``init`` and ``doctor`` have in common: whose modes they mend, and how that is told."""

from __future__ import annotations

import os

from .. import configfiles
from ..errors import UsageError
from ..layout import default_root
from ..mending import Difference


def root_of(named: str | None) -> str:
    """Return the root that *named*, an argument, means; the default one for None.

    Raises:
        UsageError: It is empty.
    """
    if named == "":
        raise UsageError(problem="--root is empty: give a directory, or leave it out for the default one")
    if named:
        return default_root({"MODELCACHE_DIR": named})
    return configfiles.root_of(configfiles.load(os.environ)[0], os.environ)


def said(one: Difference, *, dry_run: bool = False) -> str:
    """Return *one* as a line for a person."""
    if one.mended:
        return f"mended: {one.path}: {one.what}{f' ({one.why})' if one.why else ''}"
    why = f" ({one.why})" if one.why else ""
    return f"{'would mend' if dry_run and not one.why else 'left'}: {one.path}: {one.what}{why}"
