"""Whether content is signed by whom a policy names: OpenSSF model signing, by its own library (the extra ``signing``).

The library is imported here, and only when a policy asks for signatures: it takes a third of a second. What it verifies
is that somebody signed these bytes. Which model they are, and that there is no newer one, a signature does not say: a
digest or a commit does.

The library lets a signature leave files out (those of git, by default). What is left out is vouched for by nobody, so
that only git's own notes at the top, which no program loads, may be: `UNSIGNED`.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection
from typing import Any

from . import files
from .errors import ConfigurationError, MissingLibraryError, SignatureError
from .policy import Policy

IN_TREE = "model.sig"
BESIDE = ".sig"
BYTES_MAX = 64 << 20
UNSIGNED = frozenset({IN_TREE, ".gitattributes", ".gitignore"})
_SHARD = re.compile(r":\d+:\d+$")


def prepare(policy: Policy) -> None:
    """Check that signatures can be verified at all, before anything is fetched.

    Raises:
        MissingLibraryError: The library is not installed, or cannot be imported.
        ConfigurationError: A file that says whom to trust cannot be read.
    """
    _library()
    assert policy.signatures is not None
    for path in policy.signatures.files:
        trusted(policy, path)


def trusted(policy: Policy, path: str) -> bytes:
    """Return what is in a file that says whom *policy* trusts; raise ConfigurationError."""
    try:
        found = files.read(path, follow=True)
    except OSError:
        found = None
    if not found:
        setting = f"signatures of the policy in {policy.origin}"
        raise ConfigurationError(setting=setting, value=path, expected="a file that is there and can be read")
    return found


def verify(policy: Policy, ref: str, path: str, signature: str, leaves: Collection[str] | None) -> None:
    """Check that the file *signature* signs what is at *path*.

    Args:
        policy: Which says by whom.
        ref: How errors name it.
        path: A file, or the directory of a tree.
        signature: The path of the signature.
        leaves: The files of the tree, None for a file.

    Raises:
        SignatureError: It does not.
        MissingLibraryError, ConfigurationError: As `prepare`.
    """
    prepare(policy)
    try:
        _verifier(policy).verify(path, signature)
        left_out = sorted(set(leaves or ()) - UNSIGNED - _named(signature))
    except Exception as error:  # The library raises what its parts raise; each means that it is not verified.
        raise SignatureError(ref=ref, origin=policy.origin, problem=f"not verified: {_brief(error)}") from error
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        problem = f"the signature leaves out {', '.join(left_out[:3])}{more}"
        raise SignatureError(ref=ref, origin=policy.origin, problem=problem)


def _verifier(policy: Policy) -> Any:
    wanted = policy.signatures
    assert wanted is not None
    config = _library().Config()
    if wanted.key is not None:
        return config.use_elliptic_key_verifier(public_key=wanted.key)
    if wanted.certificates:
        return config.use_certificate_verifier(certificate_chain=wanted.certificates)
    return config.use_sigstore_verifier(identity=wanted.identity, oidc_issuer=wanted.issuer)


def _named(signature: str) -> set[str]:
    """Return the files that the verified *signature* names (in-toto statement in a DSSE envelope)."""
    bundle = json.loads(files.read(signature, follow=True) or b"")
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    names = {str(one["name"]) for one in statement["predicate"]["resources"]}
    return names | {_SHARD.sub("", name) for name in names}  # Large files may be signed in shards.


def _library() -> Any:
    try:
        from model_signing import verifying
    except ImportError as error:
        raise MissingLibraryError(
            library="model-signing", extra="signing", purpose="verify signatures", reason=str(error)
        ) from error
    return verifying


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"
