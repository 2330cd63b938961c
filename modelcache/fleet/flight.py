"""One fetch of the fleet, as one machine goes through it: look, claim or wait, fetch, publish, let go.

The rules are those of `modelcache.fleet`. Here is who waits for how long, and what is said meanwhile.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Generic, Self, TypeVar

from .. import errors, notes
from ..errors import BackendError, CancelledError, ModelCacheError, NoConditionalWritesError
from ..retry import Deadline
from . import parts
from .bucket import Bucket
from .claims import FAILED, NUMBER_MAX, PUBLISHING, WORKING, Beat, Claim, Claims, Sight
from .parts import Sharing

T = TypeVar("T")
R = TypeVar("R")
LEASE_S = 15.0
_BEATS = 5  # In a lease.
_POLL_S, _POLL_MAX_S = 0.1, 5.0
_RELEASE_S = 5.0  # For what is left to do once the caller has gone.
_AFTER_FAILURE_S = 1.0  # A newcomer looks on for so long before it asks again what has just failed.
_STALLED_LEASES, _PUBLISHING_LEASES = 10, 120  # Without a byte more for so long, a claim is lost, whatever it beats.
_HOLD_LEASES = 5  # A download that waits for uploads stands still: for less than what takes a claim away.
_BARREN_MAX = 3  # So often a claim has been let go of, and nothing was there.
_STRIKES = 2  # So many machines must have met an error that may be one machine's own.
_TELL_S = 30.0
_SHOWN_S_MAX = 1e9
_log = logging.getLogger("modelcache")
_told: set[tuple[str, str]] = set()


class _AloneError(Exception):
    """The bucket cannot be used: the machine goes on without the fleet."""


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """What one fetch of the fleet is about, and what its parts are.

    Attributes:
        key: What is claimed.
        look: Returns what the tier has by now, brought here; None if it has nothing.
        fetch: Asks the origin, within the deadline that it is given; shares what comes, if it is given a `Sharing`.
        publish: Brings what was fetched to the tier; raises ModelCacheError.
        heed: Tells whether a note is for this caller too.
        asked: What a note of ours speaks of.
        tell: Told, in a sentence, for whom it waits, and why it goes on without.
        trusted: Whether what the bucket holds is believed without a digest of the caller's.
    """

    key: str
    look: Callable[[], T | None]
    fetch: Callable[[Deadline, Sharing | None], T]
    publish: Callable[[T], object]
    heed: Callable[[bytes], bool]
    asked: Callable[[], list[str]]
    tell: Callable[[str], object]
    trusted: bool = True


class Machine:
    """The clock, the waits and the threads of a machine. Tests have one of their own."""

    def clock(self) -> float:
        """Return the monotonic time, in seconds."""
        return monotonic()

    def pause(self, seconds: float, deadline: Deadline) -> None:
        """Wait so long, less if the deadline ends it; raise CancelledError or DeadlineError."""
        deadline.sleep(deadline.left(seconds))

    def rest(self, over: threading.Event, seconds: float) -> bool:
        """Wait so long, or until *over* is set; tell whether it is."""
        return over.wait(seconds)

    def start(self, work: Callable[[], object], name: str) -> threading.Thread:
        """Start *work* in a thread that keeps no process from ending."""
        thread = threading.Thread(target=work, name=name, daemon=True)
        thread.start()
        return thread

    def join(self, thread: threading.Thread) -> None:
        """Wait for its end."""
        thread.join()


class Fleet:
    """Single flight over all machines that share *bucket*.

    Args:
        bucket: Where the claims are.
        lease: A claim whose beat does not move for so long, in seconds, is lost.
        machine: This one.
    """

    def __init__(self, bucket: Bucket, *, lease: float = LEASE_S, machine: Machine | None = None) -> None:
        self.bucket, self.lease, self.machine = bucket, lease, machine or Machine()

    def run(self, question: Question[T], deadline: Deadline) -> T:
        """Return what *question* is about: found in the tier, or fetched by us, for all.

        Raises:
            NoConditionalWritesError: The bucket cannot hold claims. Nothing was asked for.
            ModelCacheError: What the fetch raises, here or on the machine that did it; DeadlineError, CancelledError.
        """
        return _Flight(self, question, deadline).run()


class _Flight(Generic[T]):
    def __init__(self, fleet: Fleet, question: Question[T], deadline: Deadline) -> None:
        self._fleet, self._bucket, self._question, self._deadline = fleet, fleet.bucket, question, deadline
        self._barren = 0
        self._strikes = 0

    def run(self) -> T:
        try:
            try:
                backend = self._bucket.enter(self._deadline)
            except NoConditionalWritesError:
                raise
            except BackendError as error:
                raise _AloneError(error.summary) from error
            self._claims = Claims(backend, self._question.key)
            return self._run()
        except _AloneError as why:
            self._say_once(f"{why}; the origin is asked without the fleet")
        return self._question.fetch(self._deadline, None)

    def _run(self) -> T:
        newcomer = True
        while True:
            self._deadline.check()
            current = self._ask(self._claims.current)
            after = None if current is None else self._watch(current, newcomer=newcomer)
            newcomer = False
            if after is not None and after.claim.number >= NUMBER_MAX:
                raise _AloneError(f"no claim can follow {after.claim.name}; `modelcache tiers collect` removes it")
            if current is None or after is not None:
                mine = self._claims.next(after)
                if not self._ask(partial(self._claims.acquire, mine, after)):
                    self._pause(_POLL_S)
                    continue
            else:
                mine = None
            found = self._question.look()  # What was published since we looked last, by whom we waited for, say.
            if found is not None:
                if mine is not None:
                    self._let_go(mine, clear=True)
                return found
            if mine is not None:
                fetched = self._hold(mine)
                if fetched is not None:
                    return fetched[0]
                continue
            if self._barren >= _BARREN_MAX:
                raise _AloneError(
                    f"{self._barren} machines have let go of {self._question.key}, and it is not in the tier"
                )

    # -- waiting ---------------------------------------------------------------------------------------------------

    def _watch(self, claim: Claim, *, newcomer: bool) -> Sight | None:
        """Wait while *claim* lives; return how it was seen when it is dead, None if it was let go of.

        Raises:
            ModelCacheError: What its owner has met would meet us too.
        """
        clock, lease = self._fleet.machine.clock, self._fleet.lease
        limit = lease * random.uniform(1.0, 1.5)  # noqa: S311  # Not all at once.
        began = clock()
        told, pause = began + 1 - _TELL_S, _POLL_S
        sight: Sight | None = None
        while True:
            asked = clock()
            data = self._ask(lambda: self._claims.read_beat(claim))
            if sight is None:
                sight = Sight(claim, data, moved=asked, grew=asked)
            sight.look(data, asked)
            if data is None and not self._ask(lambda: self._claims.stands(claim)):
                self._barren += sight.beats > 1  # What was given back before its first beat was no claim.
                return None
            beat = sight.beat
            if beat is not None and beat.state == FAILED:
                return self._after_failure(sight, beat, is_news=not newcomer or sight.beats > 1)
            still = _PUBLISHING_LEASES if beat is not None and beat.state == PUBLISHING else _STALLED_LEASES
            sight.stalled = asked - sight.grew > still * lease
            if asked - sight.moved > limit or sight.stalled:
                return sight
            if asked - told >= _TELL_S:
                told = asked
                self._question.tell(_described(claim, beat, asked - sight.moved))
            self._pause(pause)
            pause = min(1.5 * pause, _POLL_MAX_S, lease / 3)

    def _after_failure(self, sight: Sight, beat: Beat, *, is_news: bool) -> Sight | None:
        """Return *sight*, of a claimer that has failed, once it is our turn to try; None if another one is faster.

        Raises:
            ModelCacheError: It is our error as well. One that we were too late to wait for may be over by now.
        """
        note = beat.note.encode()
        if note and is_news and self._question.heed(note):
            error = notes.error_in(note)
            if beat.strikes >= _STRIKES or not _may_be_ones_own(error):
                raise error
        self._strikes = beat.strikes if note else 0
        self._pause(_AFTER_FAILURE_S, least=0.0 if is_news else _AFTER_FAILURE_S)
        return sight if self._ask(self._claims.current) == sight.claim else None

    # -- holding ---------------------------------------------------------------------------------------------------

    def _hold(self, mine: Claim) -> tuple[T] | None:
        """Fetch for all, and return what came; None if the claim was lost on the way."""
        own = self._own_deadline()
        hold = min(parts.HOLD_S, _HOLD_LEASES * self._fleet.lease)
        sharing = Sharing(
            self._bucket, self._question.key, mine.mark, trusted=self._question.trusted, deadline=own, hold=hold
        )
        beating = _Beating(self._fleet, self._claims, mine, own, lambda: sharing.reached)
        done = False
        try:
            with self._deadline.cutting(own.cancel), beating:
                try:
                    result = self._question.fetch(own, sharing)
                except CancelledError:
                    self._deadline.check()
                    if beating.lost:
                        self._question.tell("this machine was too slow, and another one is fetching it by now")
                        done = True  # It is not ours to let go of.
                        return None
                    raise
                sharing.close()
                beating.state = PUBLISHING
                self._publish(result)
                return (result,)
        except ModelCacheError as error:
            done = self._leave_note(mine, error)
            raise
        finally:
            published = beating.state == PUBLISHING
            sharing.close(wait=published)  # Who gives up waits for no upload.
            if not done:
                self._let_go(mine, clear=published)

    def _publish(self, result: T) -> None:
        try:
            self._question.publish(result)
        except (CancelledError, errors.DeadlineError):
            raise
        except ModelCacheError as error:  # It is here, whatever others have of it.
            self._say_once(f"{error.summary}; the other machines find nothing there")

    def _leave_note(self, mine: Claim, error: ModelCacheError) -> bool:
        """Say that we have failed: with *error*, if it would meet the others too; tell whether that was done."""
        if isinstance(error, CancelledError | errors.DeadlineError):
            return False  # That is our caller's.
        is_for_all = notes.is_for_all(error) and not isinstance(error, errors.NoSpaceError)
        text = notes.note(error, self._question.asked()).decode() if is_for_all else ""
        beat = Beat(FAILED, note=text, strikes=self._strikes + 1)
        try:
            return self._bucket.ask(lambda: self._claims.beat(mine, beat, late=True), _brief(self._question.key))
        except ModelCacheError:
            return False

    def _let_go(self, mine: Claim, *, clear: bool) -> None:
        """Let go of our claim, and of what was shared if it is published; what cannot be removed dies by itself."""
        try:
            if clear:
                parts.clear(self._bucket, parts.directory_of(self._question.key), _brief(self._question.key))
            self._bucket.ask(lambda: self._claims.release(mine), _brief(self._question.key))
        except ModelCacheError as error:
            _log.info("%s: the claim on %s could not be let go of: %s", self._bucket.name, mine.key, error)

    def _own_deadline(self) -> Deadline:
        """Return a deadline that ends with the caller's, and can be ended without it."""
        seconds = None if self._deadline.seconds is None else self._deadline.left(self._deadline.seconds)
        own = Deadline(seconds, ref=self._deadline.ref)
        own.seconds = self._deadline.seconds  # What errors speak of.
        return own

    # -- asking ----------------------------------------------------------------------------------------------------

    def _ask(self, work: Callable[[], R]) -> R:
        try:
            return self._bucket.ask(work, self._deadline)
        except BackendError as error:
            raise _AloneError(error.summary) from error

    def _pause(self, seconds: float, *, least: float | None = None) -> None:
        first = seconds / 2 if least is None else least
        self._fleet.machine.pause(first + random.uniform(0.0, seconds), self._deadline)  # noqa: S311

    def _say_once(self, why: str) -> None:
        self._question.tell(f"{self._bucket.name}: {why}")
        if (self._bucket.name, why) not in _told:
            _told.add((self._bucket.name, why))
            _log.warning("%s: %s", self._bucket.name, why)


class _Beating:
    """Says that *claim* lives, from a thread of its own, while the block runs; ends *deadline* when it is lost."""

    def __init__(
        self,
        fleet: Fleet,
        claims: Claims,
        claim: Claim,
        deadline: Deadline,
        reached: Callable[[], tuple[int, int | None]],
    ) -> None:
        self._fleet, self._claims, self._claim = fleet, claims, claim
        self._deadline, self._reached = deadline, reached
        self._over = threading.Event()
        self._patience = Deadline(None, ref=claim.key)
        self.lost = False
        self.state = WORKING

    def __enter__(self) -> Self:
        self._machine = self._fleet.machine
        self._began = self._last = self._machine.clock()
        self._count = 0
        self._thread = self._machine.start(self._run, "modelcache-fleet-beat")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._patience.cancel()
        self._machine.join(self._thread)

    def _run(self) -> None:
        while True:
            self._beat()
            pause = self._fleet.lease / _BEATS * random.uniform(0.8, 1.0)  # noqa: S311
            if self.lost or self._machine.rest(self._over, pause):
                return

    def _beat(self) -> None:
        now = self._machine.clock()
        done, total = self._reached()
        self._count += 1
        beat = Beat(self.state, self._count, done, total, round(now - self._began, 1))
        late = now - self._last > self._fleet.lease / 2
        try:
            alive = self._fleet.bucket.ask(
                lambda: self._claims.beat(self._claim, beat, late=late), self._patience, patience=0.0
            )
        except ModelCacheError:
            return  # The next one may come through. If none does, the claim is lost, and we shall see that.
        self._last = now
        if not alive and not self._over.is_set():
            self.lost = True
            if self.state == WORKING:
                self._deadline.cancel()


def _brief(key: str) -> Deadline:
    """Return the time for what is to be done whether the caller is still there or not."""
    return Deadline(_RELEASE_S, ref=key)


def _may_be_ones_own(error: ModelCacheError) -> bool:
    """Tell whether *error* may come from the machine that met it: its network, and not the origin's answer."""
    found = getattr(error, "errors", (error,))
    return any(isinstance(one, errors.NetworkError) and not isinstance(one, errors.HttpStatusError) for one in found)


def _described(claim: Claim, beat: Beat | None, still: float) -> str:
    """Return who is at work, since when, and how far."""
    if beat is None:
        return f"{claim.host} has claimed it for the fleet"
    what = "is bringing it to the tier" if beat.state == PUBLISHING else "is fetching it for the fleet"
    seconds = f"{min(beat.seconds, _SHOWN_S_MAX):.0f}"
    far = f"{beat.done} of {beat.total} bytes" if beat.total else f"{beat.done} bytes"
    late = f", and was last heard of {still:.0f} s ago" if still > 2 else ""
    return f"{claim.host} {what}, for {seconds} s, {far}{late}"
