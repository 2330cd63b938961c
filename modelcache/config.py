"""The value objects that settings are made of, and how their texts are read. No I/O.

Which settings there are, and where they come from, is in `settings`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .errors import ConfigurationError, UsageError

SECONDS_MAX = 1_000_000  # Eleven days. Sockets and locks refuse, each at another number, to wait for much longer.
GRACE_S = 3600.0
SPAN_MAX_S = 100_000_000_000  # Three thousand years: a time that is over after that fits in every record.
_ABOVE_ZERO = f"seconds above 0, {SECONDS_MAX} at most"


@dataclass(frozen=True, slots=True)
class Timeout:
    """Limits on waiting, all in seconds.

    Attributes:
        connect: To establish one connection.
        read: Between two arrivals of bytes.
        stall: To make `stall_bytes` of progress; a stream that drips is cut and resumed.
        total: For one get, retries and waits included; None for no limit.
    """

    connect: float = 10.0
    read: float = 30.0
    stall: float = 60.0
    total: float | None = None

    def __post_init__(self) -> None:
        for name in ("connect", "read", "stall", "total"):
            value = getattr(self, name)
            if not (is_seconds(value) and value > 0) and not (value is None and name == "total"):
                raise ConfigurationError(setting=f"Timeout.{name}", value=str(value), expected=_ABOVE_ZERO)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how far apart a source is asked again.

    The wait before try n is drawn uniformly from 0 to min(cap, base * 2**(n-1)) seconds ("full jitter": M. Brooker,
    Exponential Backoff and Jitter, 2015), but never less than a ``Retry-After`` asks for. Only attempts
    without progress count: a download that gets further each time goes on.

    Attributes:
        attempts: Tries in a row without one new byte before the error is raised; 1 means no retry.
        base: Scale of the first wait, in seconds.
        cap: Longest drawn wait, in seconds.
        retry_after_max: Longest wait that a server can impose, in seconds; one that asks for more is given up.
    """

    attempts: int = 6
    base: float = 0.5
    cap: float = 30.0
    retry_after_max: float = 600.0

    def __post_init__(self) -> None:
        if not is_whole(self.attempts) or self.attempts < 1:
            raise ConfigurationError(
                setting="RetryPolicy.attempts", value=str(self.attempts), expected="a whole number from 1"
            )
        for name in ("base", "cap", "retry_after_max"):
            value = getattr(self, name)
            if not is_seconds(value) or value < 0:
                raise ConfigurationError(
                    setting=f"RetryPolicy.{name}", value=str(value), expected=f"seconds from 0 to {SECONDS_MAX}"
                )


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much of the disk a cache may use. Just one of these is set.

    Attributes:
        most: So many bytes: ``"50GB"``, ``"20GiB"`` or a number.
        share: That part of the file system, from 0 to 1: ``"20%"``.
        spare: All but so many bytes, which stay free for others: ``"free:10GB"``.
    """

    most: int | None = None
    share: float | None = None
    spare: int | None = None

    @classmethod
    def parse(cls, value: object, *, setting: str = "capacity") -> Capacity:
        """Return the capacity that *value* says.

        Raises:
            ConfigurationError: It makes no sense; the error names *setting*.
        """
        text = str(value).strip()
        try:
            if isinstance(value, bool) or not isinstance(value, int | str):
                raise ConfigurationError(setting=setting, value=text, expected="")
            if text.endswith("%"):
                share = float(text[:-1]) / 100
                if not 0 < share <= 1:
                    raise ValueError(text)
                return cls(share=share)
            kind, colon, rest = text.partition(":")
            if colon:
                if kind.strip().lower() != "free":
                    raise ValueError(text)
                return cls(spare=parse_bytes(rest, setting=setting))
            return cls(most=parse_bytes(text, setting=setting))
        except ValueError as error:
            expected = "bytes (50GB, 20GiB), a share of the disk (20%), or what stays free of it (free:10GB)"
            raise ConfigurationError(setting=setting, value=text, expected=expected) from error

    def limit(self, *, used: int, size: int, free: int) -> int:
        """Return how many bytes the cache may use, that now uses *used*, on a disk of *size* with *free* to spare."""
        if self.most is not None:
            return self.most
        if self.share is not None:
            return int(self.share * size)
        assert self.spare is not None
        return max(0, used + free - self.spare)

    def __str__(self) -> str:
        if self.share is not None:
            return f"{100 * self.share:g}%"
        return f"free:{self.spare}" if self.spare is not None else str(self.most)


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may unpack to. What exceeds it is refused while it is unpacked, before it fills the disk.

    Attributes:
        bytes_max: Bytes of all its files together.
        files_max: Members, directories and links included.
        ratio_max: Unpacked bytes for each packed one; counted from 64 MiB unpacked on.
        depth_max: Names in a path; 64 at most.
        name_bytes_max: Bytes of a name; 255 at most.
    """

    bytes_max: int = 1 << 40
    files_max: int = 100_000
    ratio_max: float = 200.0
    depth_max: int = 32
    name_bytes_max: int = 255

    def __post_init__(self) -> None:
        for name in ("bytes_max", "files_max", "depth_max", "name_bytes_max"):
            value = getattr(self, name)
            if not is_whole(value) or value < 1:
                raise ConfigurationError(
                    setting=f"ArchiveLimits.{name}", value=str(value), expected="a whole number from 1"
                )
        if isinstance(self.ratio_max, bool) or not isinstance(self.ratio_max, int | float) or not self.ratio_max >= 1:
            raise ConfigurationError(
                setting="ArchiveLimits.ratio_max", value=str(self.ratio_max), expected="a number from 1"
            )


def parse_bytes(text: str, *, setting: str) -> int:
    """Return the number of bytes in *text*: ``"1500"``, ``"50MB"`` (powers of 1000) or ``"2GiB"`` (of 1024).

    Raises:
        ConfigurationError: *text* is anything else, zero or negative; the error names *setting*.
    """
    units = {"": 1, "B": 1}
    for power, letter in enumerate("KMGT", 1):
        units[letter] = units[f"{letter}B"] = 1000**power
        units[f"{letter}IB"] = 1024**power
    stripped = text.strip().upper()
    number = stripped.rstrip("BIKMGT").strip()
    try:
        value = float(number) * units[stripped[len(stripped.rstrip("BIKMGT")) :]]
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value >= 1):
        raise ConfigurationError(setting=setting, value=text, expected="bytes, such as 500000, 50MB or 2GiB")
    return int(value)


def parse_seconds(text: str, *, setting: str) -> float:
    """Return the seconds in *text*: ``"90"``, ``"45s"``, ``"30min"``, ``"12h"``, ``"30d"``, ``"2w"``.

    Raises:
        ConfigurationError: *text* is anything else, or negative; the error names *setting*.
    """
    units = {"": 1, "s": 1, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
    stripped = text.strip().lower()
    number = stripped.rstrip("smindhw ")
    try:
        value = float(number) * units[stripped[len(number) :].strip()]
    except (ValueError, KeyError):
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ConfigurationError(setting=setting, value=text, expected="seconds from 0, or such as 30min, 12h or 30d")
    return value


def lifetime(ttl: float) -> float:
    """Return *ttl* if it is a time, in seconds, for which content can be wanted; else raise UsageError."""
    if span("ttl", ttl) == 0:
        raise UsageError(problem="ttl=0 makes no sense: seconds, above 0", hint="`max_age=0` asks the source each time")
    return ttl


def span(name: str, value: float) -> float:
    """Return *value* if it is a span of time in seconds; else raise UsageError, which names the argument."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= SPAN_MAX_S:
        raise UsageError(problem=f"{name}={value!r} makes no sense: seconds from 0 to {SPAN_MAX_S}")
    return value


def parse_moment(text: str, *, now: float, setting: str) -> float:
    """Return the time that *text* means, in Unix seconds: a date, with a time if need be (ISO 8601), or so long ago.

    Without an offset it is local time.

    Raises:
        ConfigurationError: *text* is anything else; the error names *setting*.
    """
    from datetime import datetime  # Not on the path of a hit.

    try:
        return datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        pass
    try:
        return now - parse_seconds(text, setting=setting)
    except ConfigurationError as error:
        expected = "a date such as 2026-11-21 or 2026-11-21T08:00, or a time ago such as 12h or 2d"
        raise ConfigurationError(setting=setting, value=text, expected=expected) from error


def is_whole(value: object) -> bool:
    """Tell whether *value* is a whole number; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_seconds(value: object) -> bool:
    """Tell whether *value* is a span of time in seconds that every wait can take; it may be negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= SECONDS_MAX
