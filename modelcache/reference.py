"""What a user may write to name a model, and its one canonical form, the key. No I/O.

A ref is one of

  * a URL, ``scheme://…``; the schemes are those of the registered sources;
  * ``hf://[datasets/|spaces/]org/name[@revision][/path]``, a file of a repository of the Hugging Face Hub, or all;
  * a path of this machine (``/…``, ``./…``, ``../…``, ``~/…`` or any ``os.PathLike``), which means ``file://``;
  * a name under which something was put, such as ``resnet50`` or ``vision/resnet50.onnx``;
  * ``derived:<recipe>/<action>``, what was derived: `Cache.derive` made it, and nothing else can.

Two refs with one key are one model. A key holds no credentials: user and password, and the query parameters that only
sign a request (AWS, Google, Azure and CloudFront signatures, bearer tokens), say who asks and not what is asked for. So
a pre-signed URL has the same key every time, and no record, event or error shows a secret.

An ``hf`` ref is split as huggingface_hub splits it, without asking the hub: a repository always has two parts, so that
``hf://gpt2/config.json`` means the repository ``gpt2/config.json``; ``refs/pr/1`` and ``refs/convert/x`` are revisions
whole, and any other slash in a revision is written ``%2F``. Each part of the path is percent-decoded. No revision and
``@main`` are the same; neither is pinned to what ``main`` is today.

Names from outside end up as file names under the root, so the last segment of a ref is checked here, once.
This module is on the path of a warm hit in a new process: it imports nothing that the interpreter has not loaded.
"""

import os

from .layout import DERIVED_REF

REF_CHARACTERS_MAX = 8192
_NAME_BYTES_MAX = 255
_RECIPE_CHARACTERS_MAX = 64
_HEX = frozenset("0123456789abcdef")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_SIGNATURE_PREFIXES = ("x-amz-", "x-goog-")
_SIGNATURES = frozenset({"signature", "sig", "access_token", "token", "api_key", "apikey"})
_TREE = "#tree"  # In a key: a directory that was fetched. No other key of a URL has a fragment.
_HUB_KINDS = ("datasets", "models", "spaces")
_HUB_OTHERS = ("buckets", "kernels", "bucket", "dataset", "kernel", "model", "space")
_HUB_PART_CHARACTERS_MAX = 96
_HUB_DEFAULT_REVISION = "main"
_HUB_HINT = "Give hf://org/name/path/to/file, hf://org/name@revision/path, hf://datasets/org/name/path or hf://org/name"
_IN_NO_REVISION = frozenset(" \\~^:?*[#")  # git-check-ref-format(1); and what a URL reads something else into.
# Parameters that are credentials only beside a signature (Azure SAS; CloudFront, old S3 and Google signatures).
_BESIDE_SIGNATURE = frozenset(
    [
        "expires",
        "policy",
        "key-pair-id",
        "awsaccesskeyid",
        "googleaccessid",
        "se",
        "sp",
        "sv",
        "sr",
        "st",
        "spr",
        "sip",
        "skoid",
        "sktid",
        "skt",
        "ske",
        "sks",
        "skv",
        "ss",
        "srt",
        "si",
        "saoid",
        "suoid",
        "scid",
        "sdd",
        "ses",
    ]
)


class Ref:
    """A ref that was checked.

    Attributes:
        key: The canonical form, free of credentials. What records hold and errors show.
        url: What a source is asked for, credentials included; equal to the key for names.
        scheme: ``https``, ``file``, …; ``""`` for a name that was put.
    """

    __slots__ = ("key", "scheme", "url")

    def __init__(self, key: str, url: str, scheme: str) -> None:
        self.key, self.url, self.scheme = key, url, scheme

    def __repr__(self) -> str:
        return f"Ref({self.key!r})"

    def __eq__(self, other: object) -> bool:
        # By what is asked for: with other credentials it may be another answer.
        return self.url == other.url if isinstance(other, Ref) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.url)

    @property
    def name(self) -> str:
        """The file name that the model has in the cache: the last segment of the path, percent-decoded."""
        path = self.key
        if self.scheme == "hf":
            place = self.hub
            return check_name((place.path or place.repository).rpartition("/")[2], ref=self.key)
        if self.scheme:
            path = path.partition("://")[2].partition(_TREE)[0].partition("?")[0].partition("/")[2]
        last = path.rpartition("/")[2]
        if self.scheme and "%" in last:
            from urllib.parse import unquote  # 5 ms, and a warm hit never comes here.

            last = unquote(last)
        return check_name(last or "model", ref=self.key)

    @property
    def path(self) -> str:
        """The path on this machine that a ``file`` ref names."""
        return _file_path(self.key.removeprefix("file://").partition(_TREE)[0], self.key)

    @property
    def hub(self) -> "HubPlace":
        """What an ``hf`` ref names."""
        return _hub_place(self.key.removeprefix("hf://").partition(_TREE)[0], self.key)

    def tree(self, selection: str = "") -> "Ref":
        """Return the ref of the tree that is fetched from here: what *selection*, of `Patterns`, lets through.

        All of a repository is called by its own ref; everything else has a mark, as a file may be called the same.
        """
        mark = "" if not selection and self._is_repository else f"{_TREE}{selection}"
        return Ref(f"{self.key.partition(_TREE)[0]}{mark}", self.url, self.scheme)

    def at_revision(self, revision: str) -> "Ref":
        """Return the ref that is asked for at *revision* of its hub, and recorded under its own key."""
        place = self.hub
        return Ref(self.key, place.at(revision, place.path).url, self.scheme)

    @property
    def file(self) -> "Ref":
        """The ref of the file that a tree is unpacked from."""
        return Ref(self.key.partition(_TREE)[0], self.url.partition(_TREE)[0], self.scheme)

    @property
    def selection(self) -> str:
        """What `tree` was given."""
        return self.key.partition(_TREE)[2]

    @property
    def is_tree(self) -> bool:
        """Whether it is one that `tree` has returned."""
        return (bool(self.scheme) and _TREE in self.key) or self._is_repository

    @property
    def is_derived(self) -> bool:
        """Whether it names what `Cache.derive` has made."""
        return self.key.startswith(DERIVED_REF)

    @property
    def _is_repository(self) -> bool:
        return self.scheme == "hf" and not self.hub.path


class HubPlace:
    """A file in a repository of the Hugging Face Hub, or the whole repository; nothing in it is percent-encoded.

    Attributes:
        kind: ``models``, ``datasets`` or ``spaces``.
        repository: ``org/name``.
        revision: A branch, a tag, a commit or another ref of git; None for the default branch, ``main``.
        path: Of the file within the repository; ``""`` for all of it.
    """

    __slots__ = ("kind", "path", "repository", "revision")

    def __init__(self, kind: str, repository: str, revision: "str | None", path: str) -> None:
        self.kind, self.repository, self.revision, self.path = kind, repository, revision, path

    @property
    def prefix(self) -> str:
        """What stands before the repository in an address: nothing for models."""
        return "" if self.kind == "models" else f"{self.kind}/"

    def at(self, revision: "str | None", path: str = "") -> Ref:
        """Return the ref of *path* in the same repository at *revision*; raise InvalidReferenceError."""
        written = f"@{_escaped(revision)}" if revision is not None else ""
        inside = "".join(f"/{_escaped(segment)}" for segment in path.split("/")) if path else ""
        return parse(f"hf://{self.prefix}{self.repository}{written}{inside}")


def parse(ref: str | os.PathLike[str]) -> Ref:
    """Return the checked form of *ref*; raise InvalidReferenceError."""
    text = ref if isinstance(ref, str) else _path_text(ref)
    if not text or len(text) > REF_CHARACTERS_MAX:
        raise _invalid(text, "it is empty" if not text else f"it has more than {REF_CHARACTERS_MAX} characters")
    if not text.isprintable() or text != text.strip():
        raise _invalid(text, "it holds a control character or white space at an end")
    scheme, separator, rest = text.partition("://")
    if not separator:
        is_path = not isinstance(ref, str) or text.startswith(("/", "./", "../", "~"))
        parsed = _file(os.path.abspath(os.path.expanduser(text)), text) if is_path else _name(text)
    else:
        if not scheme.replace("+", "").replace("-", "").isalnum() or not scheme.isascii():
            raise _invalid(text, "its scheme is malformed")
        scheme = scheme.lower()
        selection = None
        if _TREE in rest:
            before, _, after = rest.partition(_TREE)
            if after[:1] in {"", "&"}:
                rest, selection = before, after
        if scheme == "hf":
            parsed = _hub(rest, text)
        else:
            parsed = _file(_file_path(rest, text), text) if scheme == "file" else _url(scheme, rest, text)
        if selection is not None:
            parsed = parsed.tree(selection)
    if len(parsed.key) > REF_CHARACTERS_MAX:
        raise _invalid(text, f"its canonical form has more than {REF_CHARACTERS_MAX} characters")
    return parsed


def check_name(name: str, *, ref: str) -> str:
    """Return *name* if it can be a file name under the root; raise InvalidReferenceError.

    Refused are separators, ``.`` and ``..``, control characters, and more than 255 bytes (the limit of the usual
    file systems): each could leave the object's directory or fail only after the download.
    """
    if name in {"", ".", ".."} or "/" in name or "\\" in name:
        raise _invalid(ref, f"{name[:80]!r} cannot be a file name")
    if not name.isprintable():
        raise _invalid(ref, "its file name holds a control character")
    if len(name.encode("utf-8", "surrogatepass")) > _NAME_BYTES_MAX:
        raise _invalid(ref, f"its file name is longer than {_NAME_BYTES_MAX} bytes")
    return name


def _url(scheme: str, rest: str, text: str) -> Ref:
    rest = rest.partition("#")[0]
    authority = rest.partition("/")[0].partition("?")[0]
    path, _, query = rest[len(authority) :].partition("?")
    host = authority.rpartition("@")[2].lower()
    if scheme in _DEFAULT_PORTS:
        host = _host(host, _DEFAULT_PORTS[scheme], text)
    if not host or " " in rest or "\\" in authority:
        raise _invalid(text, "it has no host" if not host else "it holds a space or a backslash; percent-encode it")
    if query:
        query = _without_signature(query)
    key = f"{scheme}://{host}{path or '/'}{'?' + query if query else ''}"
    return Ref(key, f"{scheme}://{rest}", scheme)


def _host(host: str, default_port: int, text: str) -> str:
    """Return *host* with its port only if that says something (RFC 3986, 3.2.2 and 6.2.3)."""
    name, colon, port = host.rpartition(":")
    if not colon or port.endswith("]"):  # No port, or the colons of an IPv6 address.
        name, port = host, ""
    if port and not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise _invalid(text, "its port is no number up to 65535")
    bracketed = name[:1] == "[" and name[-1:] == "]"
    if not bracketed and (":" in name or "[" in name or "]" in name):
        raise _invalid(text, "its host is malformed; an IPv6 address stands in brackets")
    return f"{name}:{int(port)}" if name and port and int(port) != default_port else name


def _without_signature(query: str) -> str:
    """Return *query* less the parameters that say who asks, not what is asked for."""
    pairs = query.split("&")
    names = [pair.partition("=")[0].lower() for pair in pairs]
    signed = not _SIGNATURES.isdisjoint(names)
    kept = [
        pair
        for pair, name in zip(pairs, names, strict=True)
        if not (name in _SIGNATURES or name.startswith(_SIGNATURE_PREFIXES) or (signed and name in _BESIDE_SIGNATURE))
    ]
    return "&".join(kept)


def _file_path(rest: str, text: str) -> str:
    """Return the path in a file URL (RFC 8089); a host other than localhost is refused."""
    host, slash, path = rest.partition("/")
    if host.lower() not in {"", "localhost"} or not slash:
        raise _invalid(text, "a file URL has an absolute path and no host: file:///path")
    path = f"/{path.partition('#')[0].partition('?')[0]}"
    if "%" in path:
        from urllib.parse import unquote_to_bytes

        path = os.fsdecode(unquote_to_bytes(path))  # What is no text is refused below, not replaced.
    if "\0" in path:
        raise _invalid(text, "it holds a NUL")
    return os.path.normpath(path)


def _file(path: str, text: str) -> Ref:
    if path.endswith(("/", " ")) or not path.isprintable():
        raise _invalid(text, "a file is expected, by a name without control characters and no space at its end")
    # normpath keeps a leading "//", which POSIX lets mean something else; nobody wants that here.
    # Escaped where a URL would read something else into it, so that the key means this very file again.
    key = f"file:///{path.lstrip('/').replace('%', '%25').replace('?', '%3F').replace('#', '%23')}"
    return Ref(key, key, "file")


def _hub(rest: str, text: str) -> Ref:
    place = _hub_place(rest, text)
    revision = "" if place.revision is None else f"@{_escaped(place.revision)}"
    inside = "".join(f"/{_escaped(segment)}" for segment in place.path.split("/")) if place.path else ""
    key = f"hf://{place.prefix}{place.repository}{revision}{inside}"
    return Ref(key, key, "hf")


def _hub_place(rest: str, text: str) -> HubPlace:
    if "?" in rest or "#" in rest:
        raise _invalid(text, "it holds '?' or '#', which in the name of a file are written %3F and %23", _HUB_HINT)
    kind, *parts = rest.split("/")
    if kind in _HUB_OTHERS:
        raise _invalid(text, f"{kind!r} is none of {', '.join(_HUB_KINDS)}", _HUB_HINT)
    if kind not in _HUB_KINDS:
        kind, parts = "models", [kind, *parts]
    if len(parts) < 2:
        raise _invalid(text, "a repository has two parts, org/name", _HUB_HINT)
    name, at, written = parts[1].partition("@")
    repository, parts = f"{parts[0]}/{name}", parts[2:]
    if not all(_is_hub_part(part) for part in repository.split("/")) or name.endswith(".git"):
        raise _invalid(
            text, "its repository is not of the form org/name, of letters, digits, '-', '_' and '.'", _HUB_HINT
        )
    if written == "refs" and len(parts) > 1 and (parts[0] == "convert" or (parts[0] == "pr" and parts[1].isdecimal())):
        written, parts = "/".join([written, *parts[:2]]), parts[2:]
    revision = _decoded(written, text)
    if at and not _is_revision(revision):
        raise _invalid(text, "its revision is none that git can have; a slash in it is written %2F", _HUB_HINT)
    if parts == [""]:
        parts = []  # A slash after a repository means all of it, as none does.
    path = "/".join(check_name(_decoded(part, text), ref=text) for part in parts)
    return HubPlace(kind, repository, None if not at or revision == _HUB_DEFAULT_REVISION else revision, path)


def _is_hub_part(part: str) -> bool:
    """Tell whether *part* can be a name of an owner or a repository (huggingface_hub's own rule)."""
    plain = part.replace("-", "").replace(".", "").replace("_", "")
    ends = not part.startswith(("-", ".")) and not part.endswith(("-", "."))
    inside = part.isascii() and (plain.isalnum() or (not plain and "_" in part)) and "--" not in part
    return 0 < len(part) <= _HUB_PART_CHARACTERS_MAX and ends and inside and ".." not in part


def _is_revision(text: str) -> bool:
    """Tell whether *text* can be a revision, by the rules of git that matter for an address."""
    parts = text.split("/")
    plain = text.isprintable() and _IN_NO_REVISION.isdisjoint(text) and ".." not in text and not text.startswith("-")
    return plain and all(part and part[0] != "." for part in parts) and len(text.encode("utf-8")) <= _NAME_BYTES_MAX


def _decoded(text: str, ref: str) -> str:
    if "%" not in text:
        return text
    from urllib.parse import unquote

    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise _invalid(ref, "what it holds percent-encoded is no text") from error


def _escaped(text: str) -> str:
    """Return one part of a path or a revision as it stands in a key."""
    for character, code in (("%", "%25"), ("/", "%2F"), ("?", "%3F"), ("#", "%23"), (" ", "%20")):
        text = text.replace(character, code)
    return text


def is_recipe(text: str) -> bool:
    """Tell whether *text* can be the name of a recipe: lower case letters, digits, and ``.``, ``_``, ``-`` inside."""
    plain = text.replace(".", "").replace("_", "").replace("-", "")
    inside = plain.isascii() and plain.isalnum() and plain == plain.lower()
    return inside and text[0].isalnum() and len(text) <= _RECIPE_CHARACTERS_MAX


def _derived(text: str) -> Ref:
    recipe, slash, action = text.removeprefix(DERIVED_REF).partition("/")
    if not slash or not is_recipe(recipe) or len(action) != 64 or not set(action) <= _HEX:
        raise _invalid(
            text,
            "what was derived is called derived:<recipe>/<64 hexadecimal digits>",
            "`modelcache ls` lists what is there",
        )
    return Ref(text, text, "")


def _name(text: str) -> Ref:
    if text.startswith(DERIVED_REF):
        return _derived(text)
    if ":" in text:
        raise _invalid(text, "a name holds no ':', and a URL has '://' after its scheme")
    for segment in text.split("/"):
        check_name(segment, ref=text)
    return Ref(text, text, "")


def _path_text(ref: object) -> str:
    path = os.fspath(ref) if isinstance(ref, os.PathLike) else None
    if not isinstance(path, str):
        raise _invalid(repr(ref), f"a ref is a str or a path, not {type(ref).__name__}")
    return path


def _invalid(ref: str, problem: str, hint: str = "") -> Exception:
    from .errors import InvalidReferenceError  # Not on the path of a hit.

    scheme, separator, rest = ref.partition("://")
    if separator:  # However malformed, it may hold a password or a signature.
        # In an hf ref an @ stands before a revision too; somebody's token can only be in the first part.
        first, slash, others = rest.partition("/") if scheme.lower() == "hf" else (rest, "", "")
        ref = f"{scheme}://{(first.rpartition('@')[2] + slash + others).partition('?')[0]}"
    return InvalidReferenceError(ref=ref, problem=problem, hint=hint)
