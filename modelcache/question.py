"""What a get asks for: checked before any I/O, and one thing for all who may answer it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from time import time
from typing import TYPE_CHECKING

from . import layout, reference
from .config import GRACE_S, ArchiveLimits, Capacity, RetryPolicy, Timeout, lifetime
from .digest import Digest
from .errors import InvalidReferenceError, UsageError
from .policy import NONE, Policies
from .records import Entry
from .reference import Ref

if TYPE_CHECKING:
    from .levels.base import Offer
    from .patterns import Patterns
    from .tier import Tier

VERIFY = ("stat", "sample", "full")
RefLike = str | os.PathLike[str]


@dataclass(slots=True)
class Ask:
    """What a get asks for, checked.

    With ``promote``, what a tier has is copied here in any case. One that is not ``for_use`` brings a model ahead of
    its use, and does not count as one. The last four are filled in by the look: ``record`` is
    what was on record for the key, ``known`` is what was found whole, whether it is fresh enough or not, ``unread``
    says that there was a record, and that it could not be read, ``offer`` is what a tier has, if it is not here.
    """

    ref: Ref
    digest: Digest | None
    mirrors: tuple[Ref, ...]
    max_age: float | None
    local: bool
    force: bool
    verify: str
    size: int | None
    patterns: Patterns | None = None  # Of a tree.
    archive: Digest | None = None  # What the archive of a tree must be.
    ttl: float | None = None
    promote: bool = False
    own: bool = False  # Tiers are not asked.
    for_use: bool = True
    policies: Policies = NONE
    record: Entry | None = None
    known: Entry | None = None
    unread: bool = False
    offer: Offer | None = None

    @property
    def flight(self) -> tuple[object, ...]:
        """What makes two questions one."""
        # By URL too: it may hold the credentials that decide the answer. Trees of one URL differ by their keys.
        return (
            self.ref.key,
            self.ref.url,
            self.digest,
            self.archive,
            self.size,
            self.force,
            tuple(mirror.url for mirror in self.mirrors),
            self.local,
            self.policies,
        )

    def is_stale(self, entry: Entry) -> bool:
        """Tell whether *entry* was confirmed too long ago, or in a future that a clock has taken back."""
        age = time() - entry.checked
        return (self.max_age is not None and not 0 <= age <= self.max_age) or 0 < entry.expires <= time()

    def takes(self, entry: Entry) -> bool:
        """Tell whether *entry*, which is here, will do without a word from its source."""
        return self.local or not self.ref.scheme or not (self.force or self.is_stale(entry))


@dataclass(frozen=True, slots=True)
class Limits:
    """How a cache fetches, and what it keeps.

    Waits and the grace period are in seconds, bandwidth in bytes per second, ``concurrency`` in models at a time.
    ``refresh`` makes the source be asked each time, as ``max_age=0`` does. With ``verify_derived``, what is derived is
    built again and compared.
    """

    offline: bool
    retry: RetryPolicy
    timeout: Timeout
    lock_timeout: float
    concurrency: int
    bandwidth: int | None
    capacity: Capacity | None = None
    grace: float = GRACE_S
    tiers: tuple[Tier, ...] = ()
    refresh: bool = False
    policies: Policies = NONE
    archives: ArchiveLimits = field(default_factory=ArchiveLimits)
    verify_derived: bool = False


def question(
    limits: Limits,
    ref: RefLike,
    digest: str | None = None,
    mirrors: Iterable[RefLike] = (),
    max_age: float | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    verify: str = "stat",
    size: int | None = None,
    patterns: Patterns | None = None,
    promote: bool = False,
    ttl: float | None = None,
    policies: Policies | None = None,
    revision: str | None = None,
    for_use: bool = True,
) -> Ask:
    """Return the question to a cache with *limits*, checked before any I/O; with *patterns*, it is one for a tree.

    *policies* are those in force, in place of the cache's own. *revision* is the version that a hub is asked for,
    in place of the one that *ref* names, under which it is recorded.
    """
    if max_age is not None and not (isinstance(max_age, int | float) and max_age >= 0):  # inf is "never ask".
        raise UsageError(problem=f"max_age={max_age!r} makes no sense: seconds, from 0")
    if verify not in VERIFY:
        raise UsageError(problem=f"verify={verify!r} makes no sense: one of {', '.join(VERIFY)}")
    if force_download and local_files_only:
        raise UsageError(problem="force_download and local_files_only contradict each other")
    parsed = reference.parse(ref)
    _ = parsed.name  # Raises for a name that cannot be a file's.
    wanted = None if digest is None else Digest.parse(digest)
    if patterns is not None and not parsed.scheme and not patterns.all:
        problem = f"patterns choose from what a source has, and {parsed.key!r} is a name, which stands for what was put"
        raise UsageError(problem=problem)
    if parsed.selection or (patterns is None and parsed.is_tree):
        from .patterns import Patterns

        if patterns is not None and not patterns.all:
            raise UsageError(problem=f"{parsed.key} holds patterns already")
        patterns = Patterns.parse(parsed.selection)
    elif patterns is not None and parsed.scheme:
        parsed = parsed.tree(patterns.text)
    if patterns is not None and listed(mirrors):
        raise UsageError(problem=f"a tree comes from one source: no mirrors for {parsed.key}")
    archive = None
    if patterns is not None and parsed.scheme and layout.archive_form(parsed.name) and wanted is not None:
        archive, wanted = (None, wanted) if wanted.is_tree else (wanted, None)
    if wanted is not None and wanted.is_tree != (patterns is not None or parsed.is_tree) and parsed.scheme:
        kind = "a tree" if wanted.is_tree else "a file"
        raise UsageError(problem=f"{wanted} is the digest of {kind}, and {parsed.key} is none")
    if revision is not None and parsed.scheme == "hf":
        parsed = parsed.at_revision(revision)
    return Ask(
        ref=parsed,
        digest=wanted,
        mirrors=tuple(_place(mirror) for mirror in listed(mirrors)),
        max_age=0 if max_age is None and limits.refresh else max_age,
        local=local_files_only or limits.offline,
        force=force_download,
        verify=verify,
        size=size,
        patterns=patterns,
        promote=promote or bool(limits.policies if policies is None else policies),
        ttl=None if ttl is None else lifetime(ttl),
        policies=limits.policies if policies is None else policies,
        archive=archive,
        for_use=for_use,
    )


def _place(mirror: RefLike) -> Ref:
    """Return *mirror* as a ref of something that can be asked."""
    parsed = reference.parse(mirror)
    if not parsed.scheme:
        raise InvalidReferenceError(ref=parsed.key, problem="a mirror is a URL or a path")
    return parsed


def listed(refs: Iterable[RefLike]) -> list[RefLike]:
    """Return *refs* as a list; a single one, which is iterable too, is a mistake."""
    if isinstance(refs, str | os.PathLike) or not isinstance(refs, Iterable):
        raise UsageError(problem=f"a list of refs is expected, not a single {type(refs).__name__}")
    return list(refs)
