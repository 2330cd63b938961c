"""What may be cached: by whom it is served, how large it is, in which format, who vouches for it. Facts, no I/O.

Several policies may be in force at once: an argument's, those of files with settings, a manifest's. Each is asked, and
one refusal is enough: together they allow what all of them allow. So a file found in a working directory, whoever wrote
it, can forbid, and never permit.

Whoever opens connections asks `Policies.check_place` and `Policies.check_hop`, before one is opened; whoever receives,
`check_size`; whoever is about to publish, or to serve what is here, `gate`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase

from .config import is_whole, parse_bytes
from .digest import Digest
from .errors import ConfigurationError, ModelCacheError, PolicyError
from .reference import Ref
from .settings import FileTable

# Rules that another place may keep: a mirror is asked then. All others judge the content.
PLACE_RULES = frozenset({"hosts", "schemes"})
_COMMIT = re.compile("[0-9a-f]{40}")
_ARGUMENT = "the argument policy"


@dataclass(frozen=True, slots=True)
class Signatures:
    """By whom content must be signed (OpenSSF model signing); one of three ways.

    Attributes:
        key: Path of an elliptic-curve public key (PEM).
        certificates: Paths of the certificates (PEM) that a signing certificate must descend from.
        identity: Who signed, for sigstore: such as an e-mail address or a workflow.
        issuer: Who vouches for *identity*: the address of its OpenID provider.
    """

    key: str | None = None
    certificates: Sequence[str] = ()
    identity: str | None = None
    issuer: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "certificates", _texts("Policy.signatures.certificates", self.certificates) or ())
        ways = [self.key is not None, bool(self.certificates), self.identity is not None or self.issuer is not None]
        if sum(ways) != 1 or (ways[2] and not (self.identity and self.issuer)):
            expected = "either key, or certificates, or identity and issuer together"
            raise ConfigurationError(setting="Policy.signatures", value=_said(self), expected=expected)
        for name in ("key", "identity", "issuer"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value.strip()):
                raise ConfigurationError(setting=f"Policy.signatures.{name}", value=str(value), expected="a text")

    @property
    def files(self) -> tuple[str, ...]:
        """The files that say whom to trust."""
        return tuple(self.certificates) if self.key is None else (self.key,)


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be cached. None asks nothing; once any policy is in force, pickles are refused unless it allows them.

    Attributes:
        hosts: Patterns (``*.example.org``) of the hosts that may be connected to, redirects included.
        schemes: Of refs and mirrors, such as ``https`` or ``hf``.
        max_size: Most bytes of one model: ``"20GB"`` or a number. Of a tree, of all its files together.
        formats: Endings that a file may have, such as ``safetensors``; ``""`` for none.
        allow_pickle: Whether content may be a pickle, or hold one, which can run any code when it is loaded.
        digests: ``"required"``: a get must say what the bytes are, by a digest, a lock file, or a commit of a hub.
        signatures: By whom content must be signed.
        origin: Where this policy stands, for people.
    """

    hosts: Sequence[str] | None = None
    schemes: Sequence[str] | None = None
    max_size: int | str | None = None
    formats: Sequence[str] | None = None
    allow_pickle: bool = False
    digests: str | None = None
    signatures: Signatures | None = None
    origin: str = field(default=_ARGUMENT, compare=False)

    def __post_init__(self) -> None:
        for name in ("hosts", "schemes", "formats"):
            object.__setattr__(self, name, _texts(f"Policy.{name}", getattr(self, name)))
        if self.formats is not None:
            object.__setattr__(self, "formats", tuple(ending.removeprefix(".") for ending in self.formats))
        if isinstance(self.max_size, str):
            object.__setattr__(self, "max_size", parse_bytes(self.max_size, setting="Policy.max_size"))
        if self.max_size is not None and not (is_whole(self.max_size) and int(self.max_size) >= 1):
            raise ConfigurationError(setting="Policy.max_size", value=str(self.max_size), expected="bytes, from 1")
        if not isinstance(self.allow_pickle, bool):
            raise ConfigurationError(
                setting="Policy.allow_pickle", value=str(self.allow_pickle), expected="True or False"
            )
        if self.digests not in {None, "required"}:
            raise ConfigurationError(setting="Policy.digests", value=str(self.digests), expected="'required'")
        if self.signatures is not None and not isinstance(self.signatures, Signatures):
            raise ConfigurationError(
                setting="Policy.signatures", value=str(self.signatures), expected="an instance of Signatures"
            )


class Policies(tuple[Policy, ...]):
    """All policies in force; none is the empty tuple, and costs a test of that."""

    __slots__ = ()

    def check_place(self, ref: Ref, host: str) -> None:
        """Check that *ref*, served by *host* (``""``: this machine), may be asked at all; raise PolicyError."""
        for policy in self:
            if policy.schemes is not None and ref.scheme not in policy.schemes:
                raise _refusal(policy, "schemes", ref.key, f"it is served by {ref.scheme}, and {_only(policy.schemes)}")
            if host:
                _check_host(policy, ref.key, host)

    def check_hop(self, ref: str, scheme: str, host: str) -> None:
        """Check that a connection to *host* may be opened for *ref*; raise PolicyError.

        A ref of another scheme may lead to https; in plain http it goes on only where that is named.
        """
        for policy in self:
            if policy.schemes is not None and scheme == "http" and scheme not in policy.schemes:
                raise _refusal(policy, "schemes", ref, f"it leads to http://{host}, and {_only(policy.schemes)}")
            _check_host(policy, ref, host)

    def check_size(self, ref: str, size: int) -> None:
        """Check that *size* bytes of *ref* are not too many; raise PolicyError."""
        for policy in self:
            if policy.max_size is not None and size > int(policy.max_size):
                raise _refusal(policy, "max-size", ref, f"it has {size} bytes or more, and {policy.max_size} may be")

    def check_names(self, ref: str, paths: Iterable[str]) -> None:
        """Check the endings of the files *paths* of *ref*; raise PolicyError."""
        judges = [policy for policy in self if policy.formats is not None]
        for path in paths if judges else ():
            ending = os.path.splitext(path.rpartition("/")[2])[1].removeprefix(".").lower()
            for policy in judges:
                if ending not in (policy.formats or ()):
                    problem = f"{path} is called .{ending}" if ending else f"the name of {path} has no ending"
                    raise _refusal(policy, "formats", ref, f"{problem}, and {_only(policy.formats or ())}")

    def check_question(self, ref: Ref, digest: Digest | None) -> None:
        """Check that the question for *ref* says which bytes it means; raise PolicyError.

        A name stands for what this machine's programs have put. A commit of a hub says which bytes there are; of a
        single file, whether the hub vouches for them is seen when it answers (`check_announced`).
        """
        for policy in self:
            if policy.digests is None or digest is not None or not ref.scheme or is_at_commit(ref):
                continue
            raise _refusal(policy, "digests", ref.key, "no digest says which bytes are meant")

    def check_announced(self, ref: Ref, digest: Digest | None, announced: Digest | None) -> None:
        """Check that somebody said what a file hashes to, before a byte of it comes; raise PolicyError."""
        for policy in self:
            if policy.digests is not None and digest is None and announced is None:
                raise _refusal(policy, "digests", ref.key, "its source announces no digest of it")

    @property
    def forbid_pickle(self) -> Policy | None:
        """The first policy that refuses pickles, or None."""
        return next((policy for policy in self if not policy.allow_pickle), None)

    @property
    def ask_for_digests(self) -> bool:
        """Whether a get may be refused for what it does not say."""
        return any(policy.digests is not None for policy in self)

    @property
    def signed(self) -> tuple[Policy, ...]:
        """Those that ask for signatures."""
        return tuple(policy for policy in self if policy.signatures is not None)

    def and_also(self, policy: Policy | None) -> Policies:
        """Return these and *policy*."""
        return self if policy is None else Policies((*self, policy))

    def for_resolving(self) -> Policies:
        """Return these for a get that finds out the digest, to lock it."""
        return Policies(replace(policy, digests=None) for policy in self)


NONE = Policies()


def refused_pickle(policy: Policy, ref: str, path: str, why: str) -> PolicyError:
    """Return the error for the file *path* of *ref*, which *why* calls a pickle."""
    return _refusal(policy, "allow-pickle", ref, f"{path} {why}, and a pickle can run any code when it is loaded")


def is_at_commit(ref: Ref) -> bool:
    """Tell whether *ref* names one commit of a hub, whose files can be no other ones."""
    if ref.scheme != "hf":
        return False
    try:
        return _COMMIT.fullmatch(ref.hub.revision or "") is not None
    except ModelCacheError:
        return False


def from_table(table: FileTable) -> Policy:
    """Return the policy that *table* states; relative paths in it start at its file.

    Raises:
        ConfigFileError: With file, line and key.
    """
    table.check(one.name.replace("_", "-") for one in fields(Policy) if one.name != "origin")
    given: dict[str, object] = {}
    for name in ("hosts", "schemes", "formats"):
        if name in table.values:
            given[name] = table.value(name, (list,), lambda value, setting, _: _texts(setting, value))
    for key, kinds in (("max-size", (int, str)), ("allow-pickle", (bool,)), ("digests", (str,))):
        if key in table.values:
            name = key.replace("-", "_")
            given[name] = table.value(key, kinds, lambda value, _, __, name=name: getattr(_try(name, value), name))  # type: ignore[misc]
    if "signatures" in table.values:
        given["signatures"] = _signatures(table.inside("signatures"))
    return Policy(**given, origin=table.where(""))  # type: ignore[arg-type]


def _signatures(table: FileTable) -> Signatures:
    table.check(("key", "certificates", "identity", "issuer"))

    def absolute(text: str, base: str) -> str:
        return os.path.abspath(os.path.join(base, os.path.expanduser(text)))

    given: dict[str, object] = {}
    for key in ("identity", "issuer"):
        if key in table.values:
            given[key] = table.value(key, (str,), lambda value, _, __: value)
    if "key" in table.values:
        given["key"] = table.value("key", (str,), lambda value, _, base: absolute(str(value), base))
    if "certificates" in table.values:
        given["certificates"] = table.value(
            "certificates", (list,),
            lambda value, setting, base: tuple(absolute(text, base) for text in _texts(setting, value) or ()),
        )  # fmt: skip
    try:
        return Signatures(**given)  # type: ignore[arg-type]
    except ConfigurationError as error:
        raise table.error("", f"expected {error.facts['expected']}") from None


def _try(name: str, value: object) -> Policy:
    return Policy(**{name: value})  # type: ignore[arg-type]


def _check_host(policy: Policy, ref: str, host: str) -> None:
    name = host_name(host)
    if policy.hosts is not None and not any(fnmatchcase(name, pattern.rstrip(".")) for pattern in policy.hosts):
        raise _refusal(policy, "hosts", ref, f"it leads to {name}, and {_only(policy.hosts)}")


def host_name(host: str) -> str:
    """Return the name in *host*, which may have a user, a port, brackets and a dot at its end."""
    name = host.rpartition("@")[2].lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    head, colon, port = name.rpartition(":")
    if colon and ":" not in head and port.isdigit():
        name = head
    return name.rstrip(".")


def _only(allowed: Sequence[str]) -> str:
    return f"only {', '.join(repr(one) for one in allowed)} may be" if allowed else "none may be"


def _refusal(policy: Policy, rule: str, ref: str, problem: str) -> PolicyError:
    return PolicyError(ref=ref, rule=rule, origin=policy.origin, problem=problem)


def _texts(setting: str, value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigurationError(setting=setting, value=str(value), expected="a list of texts")
    texts = tuple(value)
    if not all(isinstance(text, str) for text in texts):
        raise ConfigurationError(setting=setting, value=str(value), expected="a list of texts")
    return texts if "certificates" in setting else tuple(text.strip().lower() for text in texts)


def _said(signatures: Signatures) -> str:
    names = [one.name for one in fields(signatures) if getattr(signatures, one.name)]
    return ", ".join(names) or "nothing"
