"""What the Hugging Face Hub is asked, what is made of its answers, and where the token goes: nowhere else."""

from __future__ import annotations

import json
import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelcache import Cache, HfSource, RetryPolicy, Timeout, errors, reference
from modelcache.digest import Digest
from modelcache.errors import ModelCacheError
from modelcache.retry import Deadline
from modelcache.sources import Registry, RemoteFile, RemoteListing, Request
from modelcache.sources.http import parse_rate_limit
from modelcache.testing import Fault, FaultServer
from tests.support.hub import Answer, Asked, Hub, blob_id

TOKEN = "hf_pl4ntedS3cret"
LARGE = bytes(range(256)) * 400
SMALL = b'{"a": 1}'
FILES = {"config.json": SMALL, "onnx/model.onnx": LARGE}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


def request(ref: str = "hf://org/name") -> Request:
    parsed = reference.parse(ref)
    return Request(url=parsed.url, ref=parsed.key, timeout=Timeout(), deadline=Deadline(30, ref=parsed.key))


def get(root: Path, ref: str, *, token: str | None = None, attempts: int = 1) -> Path:
    sources = [HfSource(token)] if token is not None else None
    with Cache(root, sources=sources, retry=RetryPolicy(attempts=attempts, base=0)) as cache:
        return Path(cache.get(ref))


def authorizations(hub: Hub) -> set[str | None]:
    return {asked.headers.get("authorization") for asked in hub.seen()}


# -- what is asked, and what comes


@pytest.mark.parametrize(
    ("repository", "prefix", "asked"),
    [
        ("org/name", "", "/org/name/resolve/"),
        ("datasets/org/name", "datasets/", "/datasets/org/name/resolve/"),
        ("spaces/org/name", "spaces/", "/spaces/org/name/resolve/"),
    ],
)
@pytest.mark.parametrize("path", FILES)
def test_a_file_is_had_with_the_commit_that_its_revision_stood_for(
    path: str, repository: str, prefix: str, asked: str, hub: Hub, root: Path
) -> None:
    commit = hub.add(repository, FILES)

    with Cache(root) as cache:
        found = Path(cache.get(f"hf://{prefix}org/name/{path}"))
        entry = cache.lookup(f"hf://{prefix}org/name/{path}")

    assert found.read_bytes() == FILES[path]
    assert found.name == path.rpartition("/")[2]
    assert entry is not None
    assert entry.revision == commit
    assert hub.seen()[0].path == f"{asked}main/{path}"


def test_a_revision_with_a_slash_and_a_path_with_a_space_arrive_as_they_are(hub: Hub, root: Path) -> None:
    hub.add("org/name", {"a b%/é?.bin": SMALL}, revision="refs/pr/1")

    assert get(root, "hf://org/name@refs%2Fpr%2F1/a b%25/é%3F.bin").read_bytes() == SMALL
    assert hub.seen()[0].path == "/org/name/resolve/refs%2Fpr%2F1/a%20b%25/%C3%A9%3F.bin"


def test_a_ref_without_a_revision_follows_the_default_branch(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    get(root, "hf://org/name/onnx/model.onnx")
    second = hub.add("org/name", {"onnx/model.onnx": LARGE[::-1]})

    with Cache(root) as cache:
        path = Path(cache.get("hf://org/name/onnx/model.onnx", force_download=True))
        entry = cache.lookup("hf://org/name/onnx/model.onnx")

    assert path.read_bytes() == LARGE[::-1]
    assert entry is not None
    assert entry.revision == second


@pytest.mark.parametrize("path", FILES)
def test_a_file_that_has_not_changed_does_not_come_again(path: str, hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    with Cache(root) as cache:
        cache.get(f"hf://org/name/{path}")
        hub.add("org/name", {**FILES, "README.md": b"another commit"})
        cache.get(f"hf://org/name/{path}", force_download=True)

        assert cache.stats().unchanged == 1
        assert cache.stats().bytes_received == len(FILES[path])
    assert len(hub.cdn.seen()) == (1 if path == "onnx/model.onnx" else 0)


def test_the_commit_is_that_which_the_hub_named_first(hub: Hub, root: Path) -> None:
    commit = hub.add("org/name", FILES)
    hub.override = lambda asked: Answer(200, {"ETag": '"e"'}, SMALL) if "/resolve-cache/" in asked.path else None

    with Cache(root) as cache:
        cache.get("hf://org/name/config.json")
        found = cache.lookup("hf://org/name/config.json")

    assert found is not None
    assert (found.revision, found.etag) == (commit, '"e"')


def test_a_whole_repository_is_no_file() -> None:
    with pytest.raises(errors.InvalidReferenceError, match="whole repository"):
        HfSource().open(request())


def test_parts_of_one_file_do_not_ask_the_hub_for_each(hub: Hub) -> None:
    from dataclasses import replace

    hub.add("org/name", FILES)
    source = HfSource()
    asked = request("hf://org/name/onnx/model.onnx")
    first = source.open(asked)
    first.close()

    for start in (0, 1000, 5000):
        part = source.open(replace(asked, start=start, stop=start + 100, same_as=first.validators))
        assert (part.start, part.total) == (start, len(LARGE))
        assert part.read(1000) == LARGE[start : start + 100]
        part.close()

    assert len(hub.seen()) == 1
    source.close()


def test_an_address_that_is_good_no_longer_is_asked_for_anew(hub: Hub) -> None:
    from dataclasses import replace

    hub.add("org/name", FILES, faults=[Fault(), Fault(status=403)])
    source = HfSource()
    asked = request("hf://org/name/onnx/model.onnx")
    first = source.open(asked)
    first.close()

    part = source.open(replace(asked, start=1000, stop=1100, same_as=first.validators))

    assert part.read(1000) == LARGE[1000:1100]
    assert len(hub.seen()) == 2
    part.close()
    source.close()


# -- the token


@pytest.mark.parametrize(
    ("variables", "sent"),
    [
        ({"HF_TOKEN": TOKEN}, TOKEN),
        ({"HF_TOKEN": f" {TOKEN}\n"}, TOKEN),
        ({"HUGGING_FACE_HUB_TOKEN": TOKEN}, TOKEN),
        ({"HF_TOKEN": TOKEN, "HUGGING_FACE_HUB_TOKEN": "hf_other"}, TOKEN),
        ({"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": TOKEN}, TOKEN),
        ({"HF_TOKEN": " \n"}, ".cache/huggingface/token"),
        ({"HF_TOKEN_PATH": "~/elsewhere"}, "elsewhere"),
        ({"HF_HOME": "$HOME/hf"}, "hf/token"),
        ({"XDG_CACHE_HOME": "~/xdg"}, "xdg/huggingface/token"),
        ({}, ".cache/huggingface/token"),
        ({"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}, None),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": "true"}, None),
        ({"HF_TOKEN": TOKEN, "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0"}, TOKEN),
    ],
)
def test_the_token_is_that_which_the_hubs_own_client_would_send(
    variables: dict[str, str], sent: str | None, hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ["HOME"])
    for file in ("elsewhere", "hf/token", "xdg/huggingface/token", ".cache/huggingface/token"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(f"{file}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    hub.token = sent
    hub.add("org/name", FILES)

    get(root, "hf://org/name/config.json")

    assert authorizations(hub) == {None if sent is None else f"Bearer {sent}"}


def test_an_argument_wins_over_the_environment(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    hub.token = TOKEN
    hub.add("org/name", FILES)

    get(root, "hf://org/name/config.json", token=TOKEN)
    with Cache(root, sources=[HfSource(False)]) as cache:
        cache.get("hf://org/name/onnx/model.onnx")

    assert authorizations(hub) == {f"Bearer {TOKEN}", None}


def test_the_environment_is_read_when_the_source_is_made(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    hub.add("org/name", FILES, token=TOKEN)
    with pytest.raises(errors.RepositoryNotFoundError):
        get(root, "hf://org/name/config.json")

    monkeypatch.setenv("HF_TOKEN", TOKEN)

    assert get(root, "hf://org/name/config.json").read_bytes() == SMALL


def test_netrc_is_not_asked_for_what_the_hub_is_told(hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = Path(os.environ["HOME"]) / ".netrc"
    netrc.write_text("machine 127.0.0.1 login me password s3cret\n")
    netrc.chmod(0o600)
    hub.add("org/name", FILES)

    get(root, "hf://org/name/onnx/model.onnx")

    assert authorizations(hub) == {None}
    assert "authorization" not in hub.cdn.seen()[0].headers


@pytest.mark.parametrize("token", ["hf_s3cret\r\nX-Evil: 1", "hf_s3cret hf_s3cret", "hf_s3crét", "hf_s3cret\0"])
def test_a_token_that_cannot_be_one_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        HfSource(token)

    assert "s3cr" not in f"{caught.value} {caught.value!r}"


def test_a_token_file_that_cannot_be_read_is_told_and_left_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))

    assert "without a token" in repr(HfSource())
    assert str(tmp_path / "token") in caplog.text


@pytest.mark.parametrize(
    "endpoint",
    ["huggingface.co", "ftp://host", "https://", "https://me:s3cret@host", "https://host?token=s3cret", "h ttp://x"],
)
def test_an_endpoint_that_makes_no_sense_is_refused_by_name(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)

    with pytest.raises(errors.ConfigurationError, match="HF_ENDPOINT") as caught:
        HfSource()

    assert "s3cret" not in f"{caught.value} {caught.value!r}"


def test_a_get_tells_an_endpoint_that_makes_no_sense(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")

    with pytest.raises(errors.ConfigurationError, match="HF_ENDPOINT"):
        get(root, "hf://org/name/config.json")


def test_an_endpoint_may_have_a_path_and_a_slash_at_its_end() -> None:
    source = HfSource(endpoint="https://mirror.example.org:8443/hub/")

    assert (source.endpoint, source.host("hf://a/b")) == (
        "https://mirror.example.org:8443/hub", "mirror.example.org:8443",
    )  # fmt: skip


def test_the_token_is_shown_to_the_endpoint_only(hub: Hub, root: Path) -> None:
    """Not to the content network, nor to a third host that it redirects to."""
    with FaultServer() as third:
        hub.token = TOKEN
        content = third.add("/far", LARGE)
        hub.add("org/name", FILES, token=TOKEN, faults=[Fault(status=302, headers={"Location": content})])

        get(root, "hf://org/name/onnx/model.onnx", token=TOKEN)
        get(root, "hf://org/name/config.json", token=TOKEN)

        assert authorizations(hub) == {f"Bearer {TOKEN}"}
        for seen in (*hub.cdn.seen(), *third.seen()):
            assert TOKEN not in f"{seen.path} {seen.headers}"
        assert len(third.seen()) == len(hub.cdn.seen()) == 1


def test_a_part_from_the_content_network_is_asked_for_without_the_token(hub: Hub) -> None:
    from dataclasses import replace

    hub.token = TOKEN
    hub.add("org/name", FILES, token=TOKEN)
    source = HfSource(TOKEN)
    asked = request("hf://org/name/onnx/model.onnx")
    first = source.open(asked)
    first.close()

    source.open(replace(asked, start=10, stop=20, same_as=first.validators)).close()

    assert len(hub.cdn.seen()) == 2
    assert all("authorization" not in seen.headers for seen in hub.cdn.seen())
    source.close()


def test_the_token_is_in_no_error_log_record_key_or_repr(
    hub: Hub, root: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    hub.add(
        "org/name", FILES, token=TOKEN, faults=[Fault(abort_after=1000), Fault(status=500), Fault(corrupt_at=5)] * 3
    )
    hub.add("org/gated", FILES, gated=True)
    hub.add("org/off", FILES, disabled=True)
    told: list[str] = []
    with Cache(root, retry=RetryPolicy(attempts=2, base=0), on_event=lambda event: told.append(repr(event))) as cache:
        for ref in (
            "hf://org/name/onnx/model.onnx", "hf://org/name@v9/config.json", "hf://org/name/none", "hf://org/none/x",
            "hf://org/gated/config.json", "hf://org/off/config.json", "hf://org/name", "hf://org/name/config.json",
        ):  # fmt: skip
            try:
                cache.get(ref)
            except ModelCacheError as error:
                chain: BaseException | None = error
                while chain is not None:
                    told.append(f"{chain} {chain!r} {chain.args} {getattr(chain, 'facts', '')}")
                    chain = chain.__cause__ or chain.__context__
                told.append(repr(pickle.dumps(error)))
        told += [repr(entry) for entry in cache.entries()]
        told.append(repr(cache.stats()))
    told.append(repr(HfSource()))
    stored = b"".join(file.read_bytes() for file in root.rglob("*") if file.is_file())

    assert len(told) > 20
    assert authorizations(hub) == {f"Bearer {TOKEN}"}
    assert TOKEN not in "".join(told)
    assert TOKEN not in caplog.text
    assert TOKEN.encode() not in stored


def test_only_a_source_with_a_token_is_personal() -> None:
    assert HfSource(TOKEN).is_personal("hf://org/name/m")
    assert not HfSource(False).is_personal("hf://org/name/m")


# -- refusals


def refused(hub: Hub, root: Path, ref: str, *, token: str | None = None) -> ModelCacheError:
    with pytest.raises(ModelCacheError) as caught:
        get(root, ref, token=token)
    assert not caught.value.transient
    assert not (root / "objects-v1").exists() or not list((root / "objects-v1").iterdir())
    return caught.value


def test_a_missing_file_a_missing_revision_and_a_missing_repository_are_told_apart(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)

    file = refused(hub, root, "hf://org/name/none")
    revision = refused(hub, root, "hf://org/name@v9/config.json")
    repository = refused(hub, root, "hf://org/none/config.json")

    assert type(file) is errors.RemoteNotFoundError
    assert "path within the repository" in file.hint
    assert type(revision) is errors.RevisionNotFoundError
    assert (revision.facts["repository"], revision.facts["revision"]) == ("org/name", "v9")
    assert type(repository) is errors.RepositoryNotFoundError


def test_a_private_repository_says_that_no_token_was_given_or_that_this_one_does_not_do(hub: Hub, root: Path) -> None:
    hub.token = "hf_mine"
    hub.add("org/name", FILES, token="hf_theirs")

    without = refused(hub, root, "hf://org/name/config.json")
    with_one = refused(hub, root, "hf://org/name/config.json", token="hf_mine")

    assert type(without) is type(with_one) is errors.RepositoryNotFoundError
    assert "without a token" in without.summary
    assert "HF_TOKEN" in without.hint
    assert "HF_TOKEN" not in with_one.hint


def test_a_gated_repository_says_where_its_terms_are_accepted(hub: Hub, root: Path) -> None:
    hub.token = TOKEN
    hub.add("datasets/org/name", FILES, gated=True)

    without = refused(hub, root, "hf://datasets/org/name/config.json")
    with_one = refused(hub, root, "hf://datasets/org/name/config.json", token=TOKEN)

    assert type(without) is type(with_one) is errors.GatedRepositoryError
    assert f"{hub.endpoint}/datasets/org/name" in without.hint
    assert "HF_TOKEN" in without.hint
    assert "HF_TOKEN" not in with_one.hint


def test_a_token_that_the_hub_does_not_know_is_named_as_the_cause(hub: Hub, root: Path) -> None:
    hub.token = "hf_fresh"
    hub.add("org/name", FILES)

    error = refused(hub, root, "hf://org/name/config.json", token="hf_stale")

    assert type(error) is errors.AccessDeniedError
    assert "expired or revoked" in error.hint


@pytest.mark.parametrize(
    ("status", "headers", "hint"),
    [
        (403, {}, "HF_TOKEN"),
        (403, {"X-Error-Code": "DisabledRepo"}, "disabled this repository"),
        (403, {"X-Error-Message": "Access to this resource is disabled."}, "disabled this repository"),
    ],
)
def test_a_403_says_what_would_help(status: int, headers: dict[str, str], hint: str, hub: Hub, root: Path) -> None:
    hub.override = lambda asked: Answer(status, headers)

    error = refused(hub, root, "hf://org/name/config.json")

    assert type(error) is errors.AccessDeniedError
    assert hint in error.hint


def test_a_content_network_that_refuses_is_not_a_matter_of_tokens(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES, faults=[Fault(status=401)])

    error = refused(hub, root, "hf://org/name/onnx/model.onnx")

    assert type(error) is errors.AccessDeniedError


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "900"}, 900.0), ({"RateLimit": '"resolvers";r=0;t=777'}, 777.0), ({}, None)],
)
def test_a_429_says_how_long_the_hub_asks_to_wait(
    headers: dict[str, str], seconds: float | None, hub: Hub, root: Path
) -> None:
    hub.override = lambda asked: Answer(429, headers)

    with pytest.raises(errors.HttpStatusError) as caught:
        get(root, "hf://org/name/config.json")

    assert (caught.value.status, caught.value.retry_after) == (429, seconds)


def test_a_hub_that_asks_to_wait_is_left_alone_whichever_repository_is_next(hub: Hub, root: Path) -> None:
    hub.override = lambda asked: Answer(429, {"Retry-After": "900"})
    with Cache(root) as cache:
        for ref in ("hf://org/name/config.json", "hf://other/name/config.json"):
            with pytest.raises(errors.HttpStatusError) as caught:
                cache.get(ref)
            assert caught.value.status == 429

    assert len(hub.seen()) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ('"api";r=0;t=55', 55.0),
        ('"api"; r=0; t=55', 55.0),
        ('"api";r=0;t=5, "pages";r=0;t=60', 60.0),
        ('"api";r=3;t=55', None),
        ('"api";r=0', None),
        ('"api";t=55', None),
        ("nonsense", None),
        ("", None),
        (None, None),
    ],
)
def test_a_rate_limit_is_read_when_nothing_is_left(value: str | None, seconds: float | None) -> None:
    assert parse_rate_limit(value) == seconds


def test_an_answer_that_names_no_commit_is_no_hubs(hub: Hub, root: Path) -> None:
    hub.override = lambda asked: Answer(200, {"Content-Type": "text/html"}, b"<h1>Log in</h1>")

    error = refused(hub, root, "hf://org/name/config.json")

    assert type(error) is errors.ProtocolError
    assert "no hub answers" in error.summary


def test_an_answer_for_another_commit_than_the_one_asked_for_is_refused(hub: Hub, root: Path) -> None:
    commit = hub.add("org/name", FILES)
    hub.add("org/name", FILES, revision="0" * 40)

    assert get(root, f"hf://org/name@{commit}/onnx/model.onnx").read_bytes() == LARGE
    assert type(refused(hub, root / "other", f"hf://org/name@{'0' * 40}/onnx/model.onnx")) is errors.ProtocolError


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "MODELCACHE_OFFLINE"])
def test_offline_opens_no_socket(variable: str, hub: Hub, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/name", FILES)
    cached = get(root, "hf://org/name/config.json")
    monkeypatch.setenv(variable, "1")

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)

    assert get(root, "hf://org/name/config.json") == cached
    with pytest.raises(errors.LocalNotFoundError):
        get(root, "hf://org/name/onnx/model.onnx")


# -- listings


def listing(ref: str = "hf://org/name") -> RemoteListing:
    source = HfSource()
    try:
        return source.listing(request(ref))
    finally:
        source.close()


@pytest.mark.parametrize("kind", ["", "datasets/", "spaces/"])
def test_a_listing_has_every_file_with_what_is_known_of_it(kind: str, hub: Hub) -> None:
    commit = hub.add(f"{kind}org/name", {**FILES, "empty": b""}, revision="refs/pr/1")

    found = listing(f"hf://{kind}org/name@refs/pr/1")

    assert (found.ref.key, found.revision) == (f"hf://{kind}org/name@refs%2Fpr%2F1", commit)
    assert [(file.path, file.size, file.digest, file.blob, file.ref.key) for file in found.files] == [
        ("config.json", len(SMALL), None, blob_id(SMALL), f"hf://{kind}org/name@{commit}/config.json"),
        ("empty", 0, Digest.of_bytes([]), blob_id(b""), f"hf://{kind}org/name@{commit}/empty"),
        ("onnx/model.onnx", len(LARGE), Digest.of_bytes([LARGE]), None, f"hf://{kind}org/name@{commit}/onnx/model.onnx"),
    ]  # fmt: skip


def test_what_was_listed_is_what_is_had_though_the_branch_has_moved(hub: Hub, root: Path) -> None:
    hub.add("org/name", FILES)
    found = listing()
    hub.add("org/name", {"config.json": b"other", "onnx/model.onnx": LARGE[::-1]})

    with Cache(root) as cache:
        files = {file.path: Path(cache.get(file.ref.key)).read_bytes() for file in found.files}

    assert files == FILES


def test_two_listings_of_one_commit_are_equal_and_survive_pickling(hub: Hub) -> None:
    hub.add("org/name", FILES)
    found = listing()

    assert found == listing() == pickle.loads(pickle.dumps(found))
    assert len({file.ref for file in (*found.files, *listing().files)}) == 2


def test_a_commit_is_listed_without_asking_what_it_stands_for(hub: Hub) -> None:
    commit = hub.add("org/name", FILES)

    assert listing(f"hf://org/name@{commit}").revision == commit
    assert [asked.path for asked in hub.seen()] == [
        f"/api/models/org/name/tree/{commit}?recursive=true&expand=false"
    ]  # fmt: skip


@pytest.mark.parametrize("page_files", [1, 2, 3, 1000])
def test_all_pages_of_a_listing_are_read(page_files: int, hub: Hub) -> None:
    files = {f"shard-{number:02}.bin": b"%d" % number for number in range(7)}
    hub.add("org/name", files)
    hub.page_files = page_files

    assert [file.path for file in listing().files] == sorted(files)
    assert len(hub.seen("/tree/")) == -(-7 // page_files)


def test_the_token_goes_with_each_request_of_a_listing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    hub.add("org/name", FILES, token=TOKEN)
    hub.page_files = 1

    assert len(listing().files) == 2
    assert authorizations(hub) == {f"Bearer {TOKEN}"}


def test_the_next_page_is_read_from_the_endpoint_only(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.token = TOKEN
    hub.add("org/name", FILES)
    with FaultServer() as other:

        def elsewhere(asked: Asked) -> Answer | None:
            link = {"Link": f'<{other.url("/api/more")}>; rel="next"'}
            return Answer(200, link, b"[]") if "/tree/" in asked.path else None

        hub.override = elsewhere
        with pytest.raises(errors.ProtocolError, match="another host"):
            listing()

        assert other.seen() == []


@pytest.mark.parametrize(
    "target", ["http://[", "//other.example.org/x", "ftp:/x", "https://127.0.0.1/x", "javascript:1"]
)
def test_a_next_page_at_no_address_of_the_endpoint_is_refused(target: str, hub: Hub) -> None:
    hub.add("org/name", FILES)
    link = {"Link": f'<{target}>; rel="next"'}
    hub.override = lambda asked: Answer(200, link, b"[]") if "/tree/" in asked.path else None

    with pytest.raises(errors.ProtocolError, match="another host"):
        listing()


@pytest.mark.parametrize(
    ("link", "pages"),
    [
        ('<{0}>; rel="next"', 2),
        ("<{0}>; rel=next", 2),
        ('</api/models/org/name/tree/x?last=1>; rel="next"', 2),
        ('<?cursor=9&last=1>; rel="next"', 2),
        ('<{0}>; title="a; b"; REL="prev next"', 2),
        ('<http://x/1>; rel="prev", <{0}>; rel="next"', 2),
        ('<{0}>; rel="next", <http://x/9>; rel="last"', 2),
        ('<{0}>; rel="prev"', 1),
        ('<{0}>; rel="nextish"', 1),
        ("nonsense", 1),
    ],
)
def test_the_link_to_the_next_page_is_read_as_the_standard_has_it(link: str, pages: int, hub: Hub) -> None:
    hub.add("org/name", FILES)

    def paged(asked: Asked) -> Answer | None:
        if "/tree/" not in asked.path or "last" in asked.path:
            return Answer(200, {}, b"[]") if "last" in asked.path else None
        return Answer(200, {"Link": link.format(f"{hub.endpoint}/api/models/org/name/tree/x?a=b,c&last=1")}, b"[]")

    hub.override = paged

    listing()

    assert len(hub.seen("/tree/")) == pages


def test_pages_in_a_circle_end_in_an_error(hub: Hub) -> None:
    hub.add("org/name", FILES)

    def circle(asked: Asked) -> Answer | None:
        link = {"Link": f'<{hub.endpoint}{asked.path}>; rel="next"'}
        return Answer(200, link, b"[]") if "/tree/" in asked.path else None

    hub.override = circle

    with pytest.raises(errors.ProtocolError, match="no end"):
        listing()


def entry(path: object = "m", **facts: object) -> dict[str, object]:
    return {"type": "file", "oid": "0" * 40, "size": 3, "path": path, **facts}


def pages_of(hub: Hub, *pages: object) -> None:
    """Make the hub list *pages*, whatever it has."""
    hub.add("org/name", FILES)

    def answer(asked: Asked) -> Answer | None:
        if "/tree/" not in asked.path:
            return None
        number = int(asked.path.rpartition("page=")[2]) if "page=" in asked.path else 0
        more = {"Link": f'<{hub.endpoint}/api/models/org/name/tree/x?page={number + 1}>; rel="next"'}
        return Answer(200, more if number + 1 < len(pages) else {}, json.dumps(pages[number]).encode())

    hub.override = answer


@pytest.mark.parametrize(
    "path",
    [
        "", "/etc/passwd", "../m", "a/../../m", "a/..", ".", "a//b", "a/", "a\\b", "a\0b", "a\nb", "C:\\m", "x" * 300,
        "a/\u202egnp.exe",
    ],
)  # fmt: skip
def test_a_path_that_could_lead_out_of_its_directory_is_refused(path: str, hub: Hub) -> None:
    pages_of(hub, [entry("fine"), entry(path)])

    with pytest.raises(errors.ListingError):
        listing()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("m", "m"),
        ("README.md", "readme.MD"),
        ("straße", "STRASSE"),
        ("\u00e9", "e\u0301"),
        ("a", "a/b"),
        ("A", "a/b/c"),
    ],
)
def test_two_files_that_are_one_somewhere_are_refused(one: str, other: str, hub: Hub) -> None:
    """On one page, or on two: a listing that changed meanwhile."""
    for pages in ([[entry(one), entry(other)]], [[entry(other)], [entry(one)]]):
        pages_of(hub, *pages)

        with pytest.raises(errors.ListingError):
            listing()


def test_files_whose_names_only_begin_alike_are_fine(hub: Hub) -> None:
    pages_of(hub, [entry("a.bin"), entry("a/b"), entry("a b"), entry("aa/b"), entry("a%2Fb"), entry("A/c")])

    assert len(listing().files) == 6


@pytest.mark.parametrize(
    "item",
    [
        None, 7, [], {}, {"type": "file"}, entry(size="3"), entry(size=-1), entry(size=True), entry(size=1.5),
        entry(path=7), entry(oid="xyz"), entry(oid=None, lfs={"size": 3}), entry(type="submodule"), entry(type=None),
        entry(lfs={"oid": "0" * 63, "size": 3}), entry(lfs={"oid": "0" * 64, "size": None}), entry(lfs="yes"),
    ],
)  # fmt: skip
def test_what_is_neither_a_file_nor_a_directory_is_not_left_out_silently(item: object, hub: Hub) -> None:
    pages_of(hub, [entry("fine"), item])

    with pytest.raises(errors.ProtocolError) as caught:
        listing()

    assert not caught.value.transient


@pytest.mark.parametrize("page", [{"error": "no"}, "files", None])
def test_a_page_that_is_no_list_is_refused(page: object, hub: Hub) -> None:
    pages_of(hub, page)

    with pytest.raises(errors.ProtocolError, match="no list"):
        listing()


@pytest.mark.parametrize("body", [b"<h1>Log in</h1>", b"", b'{"sha": 7}', b'{"sha": "main"}', b"[]", b"[" * 100_000])
def test_a_revision_without_a_commit_is_refused(body: bytes, hub: Hub) -> None:
    hub.override = lambda asked: Answer(200, {}, body)

    with pytest.raises(errors.ProtocolError) as caught:
        listing()

    assert not caught.value.transient


def test_a_page_of_another_commit_is_refused(hub: Hub) -> None:
    hub.add("org/name", FILES)
    hub.override = lambda asked: Answer(200, {"X-Repo-Commit": "1" * 40}, b"[]") if "/tree/" in asked.path else None

    with pytest.raises(errors.ProtocolError, match="another commit"):
        listing()


def test_a_listing_without_an_end_is_cut(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelcache.sources import hf

    monkeypatch.setattr(hf, "FILES_MAX", 3)
    pages_of(hub, *([[entry(f"m{number}")] for number in range(5)]))
    with pytest.raises(errors.ListingError, match="more than 3"):
        listing()

    monkeypatch.setattr(hf, "PAGE_BYTES_MAX", 100)
    pages_of(hub, [entry("m" * 200)])
    with pytest.raises(errors.ProtocolError, match="more than 100 bytes"):
        listing()


@pytest.mark.parametrize(
    ("ref", "kind"),
    [
        ("hf://org/none", errors.RepositoryNotFoundError),
        ("hf://org/name@v9", errors.RevisionNotFoundError),
        ("hf://org/gated", errors.GatedRepositoryError),
        ("hf://org/off", errors.AccessDeniedError),
        ("hf://org/name/config.json", errors.NotListableError),
    ],
)
def test_what_cannot_be_listed_says_why(ref: str, kind: type[ModelCacheError], hub: Hub) -> None:
    hub.add("org/name", FILES)
    hub.add("org/gated", FILES, gated=True)
    hub.add("org/off", FILES, disabled=True)

    with pytest.raises(kind) as caught:
        listing(ref)

    assert type(caught.value) is kind


def test_a_source_of_single_files_lists_nothing() -> None:
    ref = "https://example.org/m"

    with pytest.raises(errors.NotListableError):
        Registry().source(reference.parse(ref)).listing(request(ref))


def test_a_listing_of_any_source_is_safe() -> None:
    ref = reference.parse("custom://x/y")
    file: Callable[[str], RemoteFile] = lambda path: RemoteFile(path, 1, None, None, ref)  # noqa: E731

    assert len(RemoteListing(ref, None, (file("a"), file("b/c"))).files) == 2
    with pytest.raises(errors.ListingError):
        RemoteListing(ref, None, (file("../a"),))
