"""The config of a cache itself, the modes that follow from it whatever the umask, and mending what differs."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

import modelcache
from modelcache import Cache, commit, doctor, layout, mending, process, sharing
from modelcache.cli import run
from modelcache.errors import CacheConfigError, GroupError, UsageError
from modelcache.testing import FaultServer
from tests.support.users import needs_users

CONTENT = b"bytes of a model" * 1000
GROUP = 31_007
# What the table in docs/sharing.md says: directory, record, published content, root, of each access.
MODES = {
    "private": (0o0700, 0o600, 0o400, 0o0700),
    "group-read": (0o2750, 0o640, 0o440, 0o2750),
    "group": (0o2770, 0o660, 0o440, 0o2750),
    "everyone-read": (0o2755, 0o644, 0o444, 0o2755),
    "group-everyone-read": (0o2775, 0o664, 0o444, 0o2755),
}
UMASKS = [0o000, 0o002, 0o022, 0o027, 0o077, 0o777]


@pytest.fixture
def umask() -> Iterator[None]:
    was = os.umask(0o022)
    yield
    os.umask(was)


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def config(root: Path, text: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.toml").write_text(text)
    return root


# -- the config --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", sharing.ACCESS)
def test_what_a_config_says_decides_each_mode(access: str) -> None:
    rule = sharing.rule(access, "")

    assert (rule.directory, rule.file, rule.content(executable=False), rule.root) == MODES[access]
    assert rule.content(executable=True) & 0o111 == rule.directory & 0o111
    assert rule.fixed & 0o022 == 0


@pytest.mark.parametrize("access", [access for access in sharing.ACCESS if access != "private"])
@pytest.mark.parametrize("group", ["", "0", "root"])
def test_a_config_that_is_written_is_read_as_what_it_was(access: str, group: str) -> None:
    rule = sharing.rule(access, group)

    assert sharing.parse("config.toml", sharing.text(rule).encode()) == rule


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("[sharing", 1, "not TOML"),
        ('# ours\n[sharing]\naccess = "everyone"\n', 3, "makes no sense"),
        ("[sharing]\naccess = 664\n", 2, "one of private"),
        ('[sharing]\ngroup = "root"\n', 1, "one of private"),
        ('[sharing]\naccess = "group"\nmode = "0664"\n', 3, "unknown"),
        ('[sharing]\naccess = "group"\ngroup = -1\n', 3, "number of a group"),
        ('[sharing]\naccess = "group"\ngroup = true\n', 3, "number of a group"),
        ('[sharing]\naccess = "group"\ngroup = "no such group"\n', 3, "no group"),
        ('[sharing]\naccess = "private"\ngroup = "root"\n', 3, "gives nothing to a group"),
        ("[shared]\n", 1, "unknown"),
        ('sharing = "group"\n', 1, "a table is expected"),
        ("\n\xff".encode("latin-1"), 2, "not UTF-8"),
        (b"#" * (1 << 17), None, "more than"),
    ],
)
def test_a_config_that_cannot_be_understood_is_named_with_its_line_and_nothing_is_made(
    text: str | bytes, line: int | None, problem: str, root: Path
) -> None:
    root.mkdir(parents=True)
    (root / "config.toml").write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(CacheConfigError, match=problem) as caught, Cache(root) as cache:
        cache.put(CONTENT, name="n")

    assert (caught.value.facts["file"], caught.value.facts["line"]) == (f"{root}/config.toml", line)
    assert os.listdir(root) == ["config.toml"]


def test_a_config_that_is_broken_later_leaves_hits_alone(root: Path) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")
    config(root, "[")

    with Cache(root) as cache:
        assert Path(cache.get("n")).read_bytes() == CONTENT
        with pytest.raises(CacheConfigError):
            cache.put(CONTENT, name="m")


def test_a_config_without_a_word_of_sharing_leaves_it_to_the_umask(root: Path, umask: None) -> None:
    config(root, "# nothing\n")
    os.umask(0o077)

    with Cache(root) as cache:
        cache.put(CONTENT, name="n")

    assert mode(root / layout.ENTRIES) == 0o700


def test_a_lease_after_the_config_has_changed_is_as_it_says_now(root: Path) -> None:
    mending.init(str(root), access="everyone-read")
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")
        (root / "config.toml").write_text('[sharing]\naccess = "private"\n')
        with cache.lease("n"):
            assert {mode(path) for path in (root / layout.LEASES).iterdir()} == {0o600}


def test_a_config_that_changes_is_obeyed_by_a_process_that_runs(root: Path) -> None:
    mending.init(str(root), access="everyone-read")
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")
        (root / "config.toml").write_text('[sharing]\naccess = "private"\n')
        cache.put(CONTENT + b"2", name="m")

    assert {mode(path) for path in (root / layout.ENTRIES).iterdir()} == {0o644, 0o600}


@pytest.mark.parametrize("known", [True, False], ids=["a known root", "after a look at nothing"])
@pytest.mark.parametrize("config", ['[sharing]\naccess = "group-everyone-read"\n', "[model]\n"])
def test_content_that_looks_like_a_cache_decides_nothing(
    config: str, known: bool, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mending.init(str(root), access="private")
    tree = tmp_path / "tree"
    (tree / "staging").mkdir(parents=True)
    (tree / "format").write_text("1\n")
    (tree / "config.toml").write_text(config)
    (tree / "staging" / "weights").write_bytes(CONTENT)

    with Cache(root) as cache:
        cache.put(CONTENT, name="n")
        if not known:
            monkeypatch.setattr(sharing, "_checked", set())
            inside = f"{root}/{layout.STAGING}/x/t"
            shutil.copytree(tree, inside)
            assert sharing.root_of(f"{inside}/staging/weights") == str(root)
            shutil.rmtree(inside)
        found = Path(cache.put_tree(tree, name="t").path)

    assert {mode(path) & 0o077 for path in [found, *found.rglob("*")]} == {0}


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ("99999999999", "no group has"),
        (str((1 << 32) - 1), "no group has"),
        ("9" * 5000, "no group has"),
        ("a\0b", "has no group"),
        ("-1", "has no group"),
    ],
)
def test_a_group_that_cannot_be_is_a_mistake_of_the_call(group: str, problem: str, root: Path) -> None:
    with pytest.raises(UsageError, match=problem):
        mending.init(str(root), access="group", group=group)

    assert not root.exists()


@pytest.mark.parametrize("name", ["CORP\\ml team", 'a"b', "équipe", "00031007"])
def test_a_group_of_any_name_is_written_so_that_it_can_be_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp

    monkeypatch.setattr(grp, "getgrnam", lambda found: grp.struct_group((found, "", GROUP, [])))
    rule = sharing.rule("group", name)

    assert rule.gid == GROUP
    assert sharing.parse("config.toml", sharing.text(rule).encode()) == rule


# -- what is made ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("access", sharing.ACCESS)
@pytest.mark.parametrize("mask", UMASKS, ids=oct)
def test_all_that_is_made_has_the_modes_of_the_config(
    access: str, mask: int, root: Path, tmp_path: Path, server: FaultServer, umask: None
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "run").write_bytes(b"#!")
    (tree / "run").chmod(0o755)
    url = server.add("/m.onnx", CONTENT)
    os.umask(mask)
    try:
        mending.init(str(root), access=access)
        with Cache(root) as cache:
            cache.get(url)
            cache.put(CONTENT + b"2", name="n")
            cache.put(CONTENT, name="again")
            cache.pin("n")
            found = Path(cache.put_tree(tree, name="t").path)
            with cache.lease("n"):
                held = [mode(path) for path in (root / layout.LEASES).iterdir()]
    finally:
        os.umask(0o022)

    directory, file, content, top = MODES[access]
    assert mending.differences(str(root), sharing.rule(access, "")) == []
    assert mode(root) == top
    assert {mode(root / name) for name in sharing.BUCKETS} == {directory}
    assert {mode(path) for path in (root / layout.ENTRIES).iterdir()} == {file}
    assert {mode(path) for path in (root / layout.OBJECTS).glob("sha256-*/*")} == {content}
    assert mode(found / "run") == content | (content >> 2)
    assert held == [file]
    assert {mode(root / name) for name in ("format", "CACHEDIR.TAG", "config.toml")} == {file & ~0o022}


@needs_users
def test_nothing_is_open_to_the_wrong_group_for_a_moment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mending.init(str(root), access="group", group=str(GROUP))
    monkeypatch.setattr(sharing, "_checked", {str(root)})
    wrong = []
    real = os.open

    def look(path: str, flags: int, mode: int = 0o777, **options: int) -> int:
        descriptor = real(path, flags, mode, **options)
        facts = os.fstat(descriptor)
        if flags & os.O_CREAT and facts.st_gid != GROUP and facts.st_mode & 0o077:
            wrong.append(path)
        return descriptor

    os.chmod(root / layout.STAGING, 0o770)  # Without the bit that gives new files the right group.
    os.chown(root / layout.STAGING, 0, 0)
    monkeypatch.setattr(os, "open", look)
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")

    assert wrong == []
    made = [*(root / layout.OBJECTS).rglob("*"), *(root / layout.ENTRIES).iterdir()]
    assert {os.stat(path).st_gid for path in made} == {GROUP}


def test_what_lies_right_in_the_root_is_never_the_groups_to_write(root: Path) -> None:
    mending.init(str(root), access="group-everyone-read")

    commit.commit_record(f"{root}/{layout.STAGING}", f"{root}/CACHEDIR.TAG", layout.CACHEDIR_TAG)

    assert mode(root / "CACHEDIR.TAG") == 0o644


@needs_users
def test_a_lock_file_has_its_mode_when_it_gets_its_name(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mending.init(str(root), access="group", group=str(GROUP))
    named = []
    real = os.link

    def look(source: str, target: str, **options: bool) -> None:
        facts = os.stat(source)
        named.append((stat.S_IMODE(facts.st_mode), facts.st_gid))
        real(source, target, **options)

    monkeypatch.setattr(os, "link", look)
    descriptor = commit.make_lock(f"{root}/{layout.LOCKS}/x.lock")
    os.close(descriptor)

    assert named == [(0o660, GROUP)]
    assert os.listdir(root / layout.STAGING) == []


def test_a_group_that_is_not_ours_is_refused_and_nothing_is_made(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "is_member", lambda _gid: False)

    with pytest.raises(GroupError, match="is not in it") as caught:
        mending.init(str(root), access="group", group=str(GROUP))

    assert caught.value.exit_code == 1
    assert not root.exists()


def test_a_directory_of_something_else_is_made_no_cache(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")

    with pytest.raises(UsageError, match=r"thesis\.tex"):
        mending.init(str(tmp_path), access="private")

    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_what_is_exported_is_of_the_umask(root: Path, tmp_path: Path, umask: None) -> None:
    mending.init(str(root), access="private")
    (tmp_path / "staging").mkdir()
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")
        cache.export("n", to=tmp_path / "staging" / "bundle.tar")
        cache.export("n", to=tmp_path / "folder")

    assert mode(tmp_path / "staging" / "bundle.tar") == 0o644
    assert mode(tmp_path / "folder") == 0o755


# -- mending -----------------------------------------------------------------------------------------------------------


def spoiled(root: Path, access: str = "group-everyone-read") -> list[Path]:
    """Make a cache whose modes somebody has changed; return all that is in it."""
    mending.init(str(root), access=access)
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")
        cache.pin("n")
    found = [root, *root.rglob("*")]
    for path in found:
        path.chmod(0o700 if path.is_dir() else 0o600)
    for path in (root / layout.OBJECTS).glob("*/*"):
        path.chmod(0o444)
    return found


def test_modes_are_mended_once(root: Path) -> None:
    spoiled(root)
    rule = sharing.read(str(root))
    assert rule is not None

    first = doctor.fix(str(root))

    assert len(first) > 10
    assert all(one.mended for one in first)
    assert doctor.fix(str(root)) == []
    assert mode(root / layout.ENTRIES) == rule.directory


def test_what_is_too_wide_is_narrowed(root: Path) -> None:
    for path in spoiled(root, "group"):
        path.chmod(0o777)

    doctor.fix(str(root))

    assert {mode(path) & 0o007 for path in [root, *root.rglob("*")]} == {0}
    assert {mode(path) & 0o222 for path in (root / layout.OBJECTS).glob("*/*")} == {0}


def test_a_dry_run_changes_nothing(root: Path) -> None:
    before = {path: mode(path) for path in spoiled(root)}

    found = doctor.fix(str(root), dry_run=True)

    assert len(found) > 10
    assert not any(one.mended for one in found)
    assert {path: mode(path) for path in before} == before


def test_mending_leads_through_no_link(root: Path, tmp_path: Path) -> None:
    spoiled(root)
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "secret").write_text("s")
    (outside / "secret").chmod(0o600)
    for bucket in (layout.ENTRIES, layout.OBJECTS, layout.STAGING, layout.LOCKS, layout.TRASH):
        (root / bucket / "link").symlink_to(outside / "secret")
        (root / bucket / "directory").symlink_to(outside)
    (root / layout.QUARANTINE).rmdir()
    (root / layout.QUARANTINE).symlink_to(outside)

    found = doctor.fix(str(root))

    assert mode(outside) == 0o700
    assert mode(outside / "secret") == 0o600
    assert len([one for one in found if one.what == "it is a symbolic link"]) == 11


def test_a_file_that_has_a_name_outside_keeps_its_mode(root: Path, tmp_path: Path) -> None:
    spoiled(root)
    secret = tmp_path / "secret"
    secret.write_text("s")
    secret.chmod(0o600)
    os.link(secret, root / layout.ENTRIES / "f00")

    found = doctor.fix(str(root))

    assert mode(secret) == 0o600
    assert [one.why for one in found if not one.mended] == ["the same file has a name outside the cache"]


def test_what_a_live_process_is_writing_is_left_to_it(root: Path) -> None:
    spoiled(root)
    mine = root / layout.STAGING / process.token()
    mine.write_bytes(b"")
    mine.chmod(0o600)

    doctor.fix(str(root))

    assert mode(mine) == 0o600


def test_a_file_that_was_replaced_since_the_look_is_not_touched(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.write_bytes(b"")
        path.chmod(0o600)
    seen = os.lstat(one)
    os.rename(other, one)

    with pytest.raises(FileNotFoundError):
        commit.set_access(str(one), seen, 0o644, None)

    assert mode(one) == 0o600


def test_a_directory_in_which_others_make_something_is_mended(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir(mode=0o700)
    seen = os.lstat(bucket)
    (bucket / "new").mkdir()

    commit.set_access(str(bucket), seen, 0o755, None)

    assert mode(bucket) == 0o755


def test_a_change_that_does_not_come_about_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled(root)
    monkeypatch.setattr(os, "chmod", lambda *_arguments: None)

    found = doctor.fix(str(root))

    assert found
    assert not any(one.mended for one in found)
    assert "did not make it" in found[0].why


def test_two_may_init_at_one_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.path.isdir

    def isdir(path: str) -> bool:
        found = real(path)
        if path == str(root) and not found:
            root.mkdir(mode=0o700)  # The other one, right after the look.
        return found

    monkeypatch.setattr(os.path, "isdir", isdir)

    assert mending.init(str(root), access="private") == []


def test_mending_lets_go_of_no_lock(root: Path) -> None:
    mending.init(str(root), access="group")
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")
        with cache.lease("n"):
            (lease,) = (root / layout.LEASES).iterdir()
            lease.chmod(0o600)
            doctor.fix(str(root))
            pid = os.fork()
            if pid == 0:
                import fcntl

                try:
                    fcntl.lockf(os.open(lease, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    os._exit(0)
                os._exit(1)
            assert os.waitpid(pid, 0)[1] == 0
            assert mode(lease) == 0o660


# -- the doors ---------------------------------------------------------------------------------------------------------


def test_init_makes_a_cache_and_says_so(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["init", str(root), "--access", "group-read", "--json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert said["root"] == str(root)
    assert (root / "config.toml").read_text().endswith('[sharing]\naccess = "group-read"\n')
    assert run(["doctor", "--root", str(root), "--durability"]) == 0
    assert "ok       sharing" in capsys.readouterr().out


def test_init_changes_a_cache_that_is_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")

    assert run(["init", "--root", str(root), "--access", "private"]) == 0

    assert {mode(path) & 0o077 for path in [root, *root.rglob("*")]} == {0}
    with Cache(root) as cache:
        assert Path(cache.get("n")).read_bytes() == CONTENT


def test_doctor_counts_what_differs_and_names_some(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoiled(root)

    assert run(["doctor", "--root", str(root), "--json"]) == 0

    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["sharing"]["level"] == "warning"
    assert "differ: " in checks["sharing"]["detail"]
    assert "more. `modelcache doctor --fix`" in checks["sharing"]["detail"]


def test_doctor_mends_and_reports_each_change(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoiled(root)

    assert run(["doctor", "--fix", "--dry-run", "--root", str(root)]) == 0
    would = capsys.readouterr().out.splitlines()
    assert run(["doctor", "--fix", "--root", str(root)]) == 0
    mended = capsys.readouterr().out.splitlines()
    assert run(["doctor", "--fix", "--root", str(root), "--json"]) == 0

    assert [line.replace("would mend", "mended") for line in would] == mended
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize("arguments", [["--dry-run"], ["--fix"]])
def test_doctor_has_nothing_to_mend_by(arguments: list[str], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Cache(root) as cache:
        cache.put(CONTENT, name="n")

    assert run(["doctor", *arguments, "--root", str(root)]) == 2
    assert "hint: " in capsys.readouterr().err


def test_a_program_can_make_a_shared_cache(root: Path) -> None:
    modelcache.init(root, access="everyone-read")

    assert sharing.read(str(root)) == sharing.rule("everyone-read", "")


def test_who_may_write_below_a_root_of_another_one_is_healthy(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mending.init(str(root), access="group")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: real(path, how) if str(path) != str(root) else False)

    with Cache(root) as cache:
        assert cache.health().writable
