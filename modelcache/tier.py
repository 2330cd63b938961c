"""What is said of a tier: where it is, how it is read, and how it is written to. Checked before any I/O.

A tier is a directory (the root of another modelcache, or the cache of huggingface_hub), which is read, or a *bucket*: a
backend, which can be written to as well. As a text, what is not the default stands behind the place, with commas.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import hubcache
from .archive.registration import BEST_EFFORT, REQUIRED, Direct, Queued
from .config import is_seconds
from .errors import MissingLibraryError, UsageError
from .layout import sha256_hex

HUB = "huggingface"
STORES = ("s3", "gs", "az")  # In an object store.
SCHEMES = (*STORES, "directory")
TRUSTS = ("records", "content")
LEASE_S = 15.0
LEASE_MIN_S = 1.0  # Below that a machine that is busy for a moment passes for dead.
LOOK_S = 0.9  # With what else a look costs, a get waits a second at most for all tiers together.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # It is the name of a directory, in the outbox.
_OPTIONS: dict[str, tuple[str, Any]] = {
    "promote": ("promote", True),
    "in-place": ("promote", False),
    "write": ("write", True),
    "write-direct": ("write", "direct"),
    "single-flight": ("single_flight", True),
    "content-only": ("trust", "content"),
    "private": ("private", True),
    "required": ("failure", REQUIRED),
}


@dataclass(frozen=True, slots=True)
class Tier:
    """A place that is asked before any source.

    Attributes:
        path: The absolute path of a directory; or, of a bucket, ``s3://bucket/prefix``, ``gs://…``, ``az://…``, or
            ``directory:///path``, a shared disk laid out as a bucket. With `backend`, what people are to read.
        promote: Whether what it has is copied here when it is first asked for. None: what another modelcache holds is
            served in place, all else is promoted. A bucket always promotes.
        timeout: How long it may take to say whether it has something, in seconds.
        name: Of it in logs, events and the outbox: letters, digits, ``.``, ``_`` and ``-``, 64 at most. Default: made
            from the place.
        write: Whether new content is brought to it: False, True or ``Queued(...)`` in the background, ``"direct"`` or
            ``Direct()`` before the get that fetched it returns. Only a bucket can be written to.
        failure: ``best-effort``: that it could not be written is told by its state. ``required``: it is raised.
        private: Whether what was fetched with somebody's credentials goes there as well.
        single_flight: Whether a claim in it lets one machine of many fetch; it is written to then.
        trust: ``records`` believes what it has on record for a ref; ``content`` takes only what the caller gives the
            digest of.
        lease: With `single_flight`, a machine that has not been heard of for so long, in seconds, has lost its claim.
        backend: In place of what `path` says: a `Backend`, or what makes one when it is called.
        config: What obstore takes for such a store, ``{"endpoint": …}``. Credentials are best left to the environment.
        client_options: What obstore takes for its HTTP client.

    Raises:
        UsageError: Something makes no sense.
        ConfigurationError: Of the policy in `write`.
    """

    path: str
    promote: bool | None = None
    timeout: float = LOOK_S
    name: str = field(default="", kw_only=True)
    write: bool | str | Direct | Queued = field(default=False, kw_only=True)
    failure: str = field(default=BEST_EFFORT, kw_only=True)
    private: bool = field(default=False, kw_only=True)
    single_flight: bool = field(default=False, kw_only=True)
    trust: str = field(default="records", kw_only=True)
    lease: float = field(default=LEASE_S, kw_only=True)
    backend: Any = field(default=None, kw_only=True, compare=False, repr=False)
    config: Mapping[str, Any] | None = field(default=None, kw_only=True, compare=False, repr=False)
    client_options: Mapping[str, Any] | None = field(default=None, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._check_place()
        if not (is_seconds(self.timeout) and self.timeout > 0):
            raise self._refusal("timeout", self.timeout, "seconds above 0")
        if self.promote not in {None, True, False}:
            raise self._refusal("promote", self.promote, "True, False or None")
        if not self.name and isinstance(self.name, str):
            object.__setattr__(self, "name", _name_of(self.path))
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise self._refusal("name", self.name, "letters, digits, '.', '_' and '-', 64 at most")
        if not isinstance(self.write, bool | Direct | Queued) and self.write != "direct":
            raise self._refusal("write", self.write, "True, False, 'direct', Direct() or Queued()")
        if self.failure not in {REQUIRED, BEST_EFFORT}:
            raise self._refusal("failure", self.failure, f"{REQUIRED} or {BEST_EFFORT}")
        if self.trust not in TRUSTS:
            raise self._refusal("trust", self.trust, f"one of {', '.join(TRUSTS)}")
        if not (is_seconds(self.lease) and self.lease >= LEASE_MIN_S):
            raise self._refusal("lease", self.lease, f"seconds from {LEASE_MIN_S:g}")
        for option in ("private", "single_flight"):
            if not isinstance(getattr(self, option), bool):
                raise self._refusal(option, getattr(self, option), "True or False")
        self._check_use()

    def _check_use(self) -> None:
        """Raise UsageError if what is said of it contradicts itself."""
        if self.single_flight and not self.write:
            object.__setattr__(self, "write", True)
        if not self.is_bucket and (self.write or self.failure == REQUIRED or self.trust != "records"):
            hint = f"A shared disk that is written to is a bucket: directory://{self.path}"
            raise UsageError(problem=f"the tier {self.path} is a directory, which is only read", hint=hint)
        if self.is_bucket and self.promote is False:
            raise self._refusal("promote", False, "what a bucket has is promoted")
        if self.failure == REQUIRED and not self.write:
            raise self._refusal("failure", REQUIRED, "a tier that is written to")
        if isinstance(self.write, Queued) and self.failure == REQUIRED and self.write.overflow.startswith("drop"):
            raise self._refusal("failure", REQUIRED, f"not with {self.write.overflow}, which drops what it must have")

    def _check_place(self) -> None:
        """Raise UsageError if the path can be none."""
        scheme, separator, rest = self.path.partition("://") if isinstance(self.path, str) else ("", "", "")
        if not isinstance(self.path, str) or "\0" in self.path or not self.path.isprintable() or not self.path.strip():
            raise UsageError(problem=f"the tier {self.path!r:.200} makes no sense: the place of a tier")
        if self.backend is None and separator and scheme not in SCHEMES:
            problem = f"the tier {_shown(self.path)} makes no sense: one of {', '.join(f'{one}://' for one in SCHEMES)}"
            raise UsageError(problem=problem)
        if separator and ("@" in rest.partition("/")[0] or "?" in rest or "#" in rest):
            hint = "Leave them to the environment (AWS_ACCESS_KEY_ID …), or give Tier(config=…)"
            raise UsageError(problem=f"the tier {_shown(self.path)} holds credentials, or options", hint=hint)
        if scheme in STORES and not rest.partition("/")[0]:
            raise UsageError(problem=f"the tier {self.path} names no bucket")
        if scheme in SCHEMES and (rest != rest.strip() or ({".", ".."} & {*rest.split("/")} and scheme in STORES)):
            raise UsageError(
                problem=f"the tier {self.path!r} makes no sense: white space at its end, '.' or '..' in it"
            )
        if scheme == "directory" and not rest.startswith("/"):
            raise UsageError(problem=f"the tier {self.path} makes no sense: directory:///an/absolute/path")
        if self.backend is None and not separator and not os.path.isabs(self.path):
            raise UsageError(problem=f"the tier {self.path!r} makes no sense: the absolute path of a directory")

    @property
    def is_bucket(self) -> bool:
        """Whether it is a backend, not the directory of another cache."""
        return self.backend is not None or "://" in self.path

    @property
    def is_direct(self) -> bool:
        """Whether what is new is brought there before the call that stored it returns."""
        return isinstance(self.write, Direct) or self.write == "direct"

    @property
    def queue(self) -> Queued:
        """How what is new waits for it."""
        return self.write if isinstance(self.write, Queued) else Queued()

    @property
    def is_required(self) -> bool:
        """Whether it must have what is new."""
        return bool(self.write) and self.failure == REQUIRED

    @property
    def directory(self) -> str | None:
        """Where on this machine it is; None if it is elsewhere, or its backend does not say."""
        if self.backend is not None:
            location = str(getattr(self.backend, "location", "")).removeprefix("file://")
            return location if location.startswith("/") else None
        scheme, separator, rest = self.path.partition("://")
        if not separator:
            return self.path
        return rest if scheme == "directory" else None

    @classmethod
    def parse(cls, text: object, environ: Mapping[str, str]) -> Tier:
        """Return the tier that *text* says: a directory, ``huggingface`` or a bucket; then its options, with commas.

        Raises:
            UsageError: It makes no sense.
        """
        if isinstance(text, Tier):
            return text
        if not isinstance(text, str | os.PathLike):
            raise UsageError(problem=f"a tier is a Tier or a path, not {type(text).__name__}")
        path, options = _split(str(os.fspath(text)))
        if not path.strip():
            raise UsageError(problem="a tier is empty: name a directory")
        if path == HUB:
            path = hubcache.default_directory(environ)
        elif "://" not in path:
            path = os.path.abspath(os.path.expanduser(path))
        return cls(path, **options)

    def check_with(self, others: list[Tier], root: str) -> None:
        """Raise what speaks against it beside *others*, before it in the list, and above it the cache at *root*.

        Raises:
            UsageError: Its name is taken, or it is the cache itself, or lies in it.
            MissingLibraryError: Its backend needs a library that is not installed.
        """
        if any(self.name == other.name for other in others):
            problem = f"two tiers are called {self.name!r}: a name is one's own"
            raise UsageError(problem=problem, hint="Name one: Tier(name=…), or ,name=… behind its place")
        here = None if self.directory is None else os.path.realpath(self.directory)
        top = os.path.realpath(root)
        if here is not None and (here == top or here.startswith(f"{top}/")):
            raise UsageError(problem=f"the tier {self.path} is the cache {root} itself, or lies in it")
        if self.backend is None and self.path.partition("://")[0] in STORES and "://" in self.path:
            from importlib.util import find_spec

            if find_spec("obstore") is None:
                reason = "it is not installed"
                raise MissingLibraryError(library="obstore", extra="s3", purpose=f"use {self.path}", reason=reason)

    def __str__(self) -> str:
        said = [self.path]
        said += [] if self.promote is None else ["promote" if self.promote else "in-place"]
        if self.write:
            said.append("write-direct" if self.is_direct else "write")
        said += ["required"] if self.is_required else []
        said += ["private"] if self.private else []
        said += ["single-flight"] if self.single_flight else []
        said += [f"lease={self.lease:g}"] if self.lease != LEASE_S else []
        said += ["content-only"] if self.trust == "content" else []
        said += [f"name={self.name}"] if self.name != _name_of(self.path) else []
        return ",".join(said)

    def _refusal(self, option: str, value: object, expected: str) -> UsageError:
        return UsageError(problem=f"{option}={value!r:.100} of the tier {_shown(self.path)} makes no sense: {expected}")


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """Return the place in *text*, and what its endings say. In a directory's path, a comma may also be one of its own.

    Raises:
        UsageError: An ending of a bucket means nothing, or two contradict each other.
    """
    options: dict[str, Any] = {}
    said: dict[str, str] = {}
    while "," in text:
        rest, _, ending = text.rpartition(",")
        known = ("name", ending[5:]) if len(ending) > 5 and ending.startswith("name=") else _OPTIONS.get(ending)
        if ending.startswith("lease="):
            known = ("lease", _seconds(ending[6:]))
        if known is None:
            if "://" not in text:
                break
            expected = f"one of {', '.join(_OPTIONS)}, name=…, lease=…"
            raise UsageError(problem=f"{ending!r:.100} behind the tier {_shown(rest)} means nothing: {expected}")
        option, value = known
        if option in options and options[option] != value:
            raise UsageError(problem=f"{ending} and {said[option]} of the tier {_shown(rest)} contradict each other")
        options[option], said[option] = value, ending
        text = rest
    return text, options


def _seconds(text: str) -> float | str:
    """Return the number in *text*; as it is if it is none, so that the tier refuses it."""
    try:
        return float(text)
    except ValueError:
        return text


def _name_of(path: str) -> str:
    """Return the name of the tier at *path* that was given none."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path).strip("-._") or "tier"
    return name if len(name) <= 64 else f"{name[:47]}-{sha256_hex(path.encode())[:16]}"


def _shown(path: str) -> str:
    """Return *path* without user and password."""
    scheme, separator, rest = path.partition("://")
    host, slash, inside = rest.partition("/")
    shown = f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{inside.partition('?')[0]}" if separator else path
    return f"{shown:.200}"
