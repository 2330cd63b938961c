"""Claims in a bucket: who fetches a key for the whole fleet. The protocol is argued in `modelcache.fleet`.

::

    claims/<key id>/<number>           a claim: made once, by a conditional create; its number is its generation
    claims/<key id>/<number>.<mark>    its beat, replaced by its owner alone; *mark* names the claim for all time

Nothing here waits, tries again or knows the time: a caller says when, and which moments lie between two looks.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from failpoints import fail_point

from .. import layout
from ..backends.base import Backend
from ..errors import NotInArchiveError
from ..sealed import seal, unseal

WORKING, PUBLISHING, FAILED = "working", "publishing", "failed"
_TOP = "claims"
_DIGITS = 10  # Of a number: names are in order.
NUMBER_MAX = 10**_DIGITS - 1  # Nobody counts as far; a stranger may write it.
_HOST_MAX, _COUNT_MAX = 255, 1 << 63


@dataclass(frozen=True, slots=True)
class Claim:
    """One generation of one key.

    Attributes:
        key: What is fetched.
        number: Its generation, from 1.
        mark: A random name; empty if the claim cannot be read, so that it has no beats and nobody's word.
        host: Of whom, for people.
    """

    key: str
    number: int
    mark: str
    host: str

    @property
    def name(self) -> str:
        """Of the claim in the backend."""
        return f"{_directory(self.key)}{self.number:0{_DIGITS}d}"

    @property
    def beat_name(self) -> str:
        """Of its beat in the backend."""
        return f"{self.name}.{self.mark or 'unread'}"


@dataclass(frozen=True, slots=True)
class Beat:
    """What a claimer says of itself.

    Attributes:
        state: ``working``; ``publishing``: all has come, and is on its way to the bucket; ``failed``: it has let go.
        count: Rises with every beat.
        done: Bytes that have come.
        total: Bytes of the whole, None while nobody knows.
        seconds: Since it claimed, by its own clock.
        note: Why it has failed, as `notes` has it; empty if that is nobody else's business.
        strikes: How many claimers in a row have failed so, this one included.
    """

    state: str = WORKING
    count: int = 0
    done: int = 0
    total: int | None = None
    seconds: float = 0.0
    note: str = ""
    strikes: int = 0

    def encode(self) -> bytes:
        """Return its form in the backend."""
        return seal({name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def decode(cls, data: bytes | None) -> Beat | None:
        """Return the beat in *data*, None if there is none, or it is damaged."""
        facts = unseal(data or b"")
        if facts is None or facts.keys() < cls.__dataclass_fields__.keys():
            return None
        found = cls(**{name: facts[name] for name in cls.__dataclass_fields__})
        texts = isinstance(found.state, str) and isinstance(found.note, str)
        numbers = all(_is_count(one) for one in (found.count, found.done, found.strikes, found.total or 0))
        return found if texts and numbers and isinstance(found.seconds, int | float) else None


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _COUNT_MAX


@dataclass(slots=True)
class Sight:
    """What one who waits has seen of the claim of another, by the clock of who looks.

    Attributes:
        claim: Which.
        data: The beat as it was last read, None if there was none.
        moved: When it was first seen as it is.
        grew: When it was first seen to have got as far as it has.
        beats: How many different ones were seen: with one, nobody was seen alive.
        stalled: It is replaced because it gets no further, though it beats.
    """

    claim: Claim
    data: bytes | None
    moved: float
    grew: float
    beats: int = 1
    stalled: bool = False

    @property
    def beat(self) -> Beat | None:
        """What it says."""
        return Beat.decode(self.data)

    def look(self, data: bytes | None, asked: float) -> None:
        """Take in *data*, which was asked for at the moment *asked*."""
        if data == self.data:
            return
        before, self.data = self.beat, data
        self.moved, self.beats = asked, self.beats + 1
        now = self.beat
        if before is None or now is None or (before.state, before.done) != (now.state, now.done):
            self.grew = asked


@dataclass(slots=True)
class Claims:
    """The claims on *key* in *backend*, as *host* sees and makes them. Every method is a few requests."""

    backend: Backend
    key: str
    host: str = field(default_factory=lambda: os.uname().nodename)

    def current(self) -> Claim | None:
        """Return the claim of the highest generation, None if there is none; raise BackendError."""
        for number in sorted(self._numbers(self._names()), reverse=True):
            found = self._read(number)
            if found is not None:
                return found  # One that has gone since the listing is none.
        return None

    def read_beat(self, claim: Claim) -> bytes | None:
        """Return the beat of *claim* as it is, None if there is none; raise BackendError."""
        return self._content(claim.beat_name)

    def stands(self, claim: Claim) -> bool:
        """Tell whether *claim* has neither been let go of nor been replaced; raise BackendError."""
        return self._read(claim.number) == claim

    def next(self, after: Sight | None = None) -> Claim:
        """Return the claim that is to be made: the first one, or in the place of the dead one *after*."""
        return Claim(self.key, 1 if after is None else after.claim.number + 1, os.urandom(8).hex(), self.host)

    def acquire(self, mine: Claim, after: Sight | None = None) -> bool:
        """Make the claim *mine*, which is the `next`; False if another one is ahead: look again.

        What was known when it was decided on is looked at once more when it is made: a claim made on what is not so any
        more is given back. It may be called again with the same claim.

        Raises:
            BackendError: The claim may have been made. Nobody beats for it, and it dies as any other.
        """
        number = mine.number
        fail_point("fleet.claims.before-claim")
        made = self.backend.create(mine.name, seal({"key": mine.key, "mark": mine.mark, "host": mine.host}))
        if not made and self._read(number) != mine:  # A repetition, whose first try had come through, has made it.
            return False
        fail_point("fleet.claims.before-check")
        if max(self._numbers(self._names()), default=0) > number or (after is not None and not self._is_dead(after)):
            self.backend.delete(mine.name)
            return False
        return True

    def _is_dead(self, after: Sight) -> bool:
        return self.stands(after.claim) and (after.stalled or self.read_beat(after.claim) == after.data)

    def beat(self, claim: Claim, beat: Beat, *, late: bool = False) -> bool:
        """Say that we are alive, and *beat*; False if *claim* is not ours any more, and nothing was said.

        *late*: more than half of the lease has passed since the last one, so that all may have begun anew.
        """
        numbers = self._numbers(self._names())
        if claim.number not in numbers or max(numbers) > claim.number or (late and not self.stands(claim)):
            return False
        fail_point("fleet.claims.before-beat")
        self.backend.put(claim.beat_name, beat.encode())
        return True

    def release(self, claim: Claim) -> None:
        """Let go of *claim*, and clear up what earlier ones have left; raise BackendError.

        First the claim, then its beat: who sees the beat gone finds no claim any more, and waits no longer.
        """
        names = self._names()
        numbers = self._numbers(names)
        for name in names:
            number, _, mark = name.partition(".")
            # A beat that no claim has, or not this one, is of one who came back too late.
            is_stray = bool(mark) and (int(number) not in numbers or int(number) == claim.number) and mark != claim.mark
            if int(number) < claim.number or is_stray:
                self.backend.delete(f"{_directory(self.key)}{name}")
        fail_point("fleet.claims.before-release")
        if self.stands(claim):  # Or all has begun anew, and the number is that of another one.
            self.backend.delete(claim.name)
        fail_point("fleet.claims.before-last-beat")
        self.backend.delete(claim.beat_name)

    def _names(self) -> list[str]:
        """Return the names of all claims and beats of the key, without their directory."""
        top = _directory(self.key)
        found = (name[len(top) :] for name in self.backend.names(top))
        return [name for name in found if _is_number(name.partition(".")[0])]

    @staticmethod
    def _numbers(names: list[str]) -> set[int]:
        return {int(name) for name in names if "." not in name}

    def _read(self, number: int) -> Claim | None:
        data = self._content(Claim(self.key, number, "", "").name)
        if data is None:
            return None
        facts: dict[str, Any] = unseal(data) or {}
        mark, host = facts.get("mark"), facts.get("host")
        if facts.get("key") != self.key or not isinstance(host, str) or not _is_mark(mark):
            return Claim(self.key, number, "", "an unknown host")
        return Claim(self.key, number, str(mark), _shown(host))

    def _content(self, name: str) -> bytes | None:
        try:
            return self.backend.read(name)
        except NotInArchiveError:
            return None


def _directory(key: str) -> str:
    return f"{_TOP}/{layout.key_id(key)}/"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) == _DIGITS


def _shown(host: str) -> str:
    """Return *host* as it may stand in a sentence on a terminal: anybody may have written it."""
    return "".join(one if one.isprintable() else "?" for one in host[:_HOST_MAX])


def _is_mark(mark: object) -> bool:
    return isinstance(mark, str) and len(mark) == 16 and set(mark) <= set("0123456789abcdef")
