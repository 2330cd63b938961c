"""Every setting from every place: which one wins, where it comes from, and how a mistake is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelcache import Cache, RetryPolicy, Timeout, configfiles
from modelcache.config import Capacity
from modelcache.errors import ConfigFileError, ConfigurationError, UsageError
from modelcache.settings import DEFAULT, TABLE, Settings, arguments

DOCS = Path(__file__).parent.parent.parent / "docs" / "configuration.md"
EVERYTHING = """
dir = "cache"
mode = "refresh"
retries = 2
http-timeout = 7.5
deadline = 90
lock-timeout = 5
concurrency = 3
capacity = "50GB"
grace = "2h"
max-bandwidth = "20MB"
tiers = ["one", "/two"]
verify-derived = true
usage = true
usage-archive = ["sqlite:///srv/usage.db"]
progress = "plain"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of a project, with a user's file to come in ``home``."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.delenv("MODELCACHE_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    (tmp_path / "xdg" / "modelcache").mkdir(parents=True)
    return project


@pytest.fixture
def user(tmp_path: Path, here: Path) -> Path:
    return tmp_path / "xdg" / "modelcache" / "config.toml"


def load(**given: Any) -> Settings:
    return configfiles.load(os.environ, **given)[0]


def origins(**given: Any) -> dict[str, str]:
    return configfiles.load(os.environ, **given)[1]


def mistake(text: str, here: Path, name: str = "modelcache.toml") -> ConfigFileError:
    (here / name).write_text(text)
    with pytest.raises(ConfigFileError) as raised:
        load()
    assert raised.value.facts["file"] == str(here / name)
    return raised.value


def test_the_table_of_the_documentation_is_the_table_of_the_code() -> None:
    table = DOCS.read_text().partition("## Files")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \| (.*?) \| (.*) \| (.*?) \|$", table, re.MULTILINE)
    documented = {row[0]: row[1:] for row in rows}

    assert list(documented) == [setting.key for setting in TABLE]
    for setting in TABLE:
        variables, argument, means, shown = documented[setting.key]
        assert re.findall(r"`(\w+)`", variables) == list(setting.variables)
        assert (argument.strip("`"), means, shown) == (setting.argument.strip("`"), setting.means, setting.shown)


def test_every_setting_has_its_default_its_variable_and_its_help() -> None:
    for setting in TABLE:
        assert setting.default == getattr(Settings(), setting.name)
        assert setting.variables
        assert setting.means
    assert len({variable for setting in TABLE for variable in setting.variables}) == sum(
        len(setting.variables) for setting in TABLE
    )


def test_a_file_can_say_everything(here: Path) -> None:
    (here / "modelcache.toml").write_text(EVERYTHING)

    assert load() == Settings(
        dir=str(here / "cache"),
        mode="refresh",
        retries=2,
        http_timeout=7.5,
        deadline=90.0,
        lock_timeout=5.0,
        concurrency=3,
        capacity=Capacity(most=50_000_000_000),
        grace=7200.0,
        max_bandwidth=20_000_000,
        tiers=(str(here / "one"), "/two"),
        verify_derived=True,
        usage=True,
        usage_archive=("sqlite:///srv/usage.db",),
        progress="plain",
    )
    assert {setting.key for setting in TABLE} - {"offline"} == set(re.findall(r"^([\w-]+) =", EVERYTHING, re.MULTILINE))


def test_the_nearest_place_wins_setting_by_setting(here: Path, user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user.write_text("retries = 1\nconcurrency = 1\ndeadline = 1\nlock-timeout = 1\n")
    (here / "pyproject.toml").write_text("[tool.modelcache]\nretries = 2\nconcurrency = 2\ndeadline = 2\n")
    (here / "modelcache.toml").write_text("\nretries = 3\nconcurrency = 3\n")
    monkeypatch.setenv("MODELCACHE_CONCURRENCY", "4")

    found, places = load(), origins()

    assert (found.concurrency, found.retries, found.deadline, found.lock_timeout) == (4, 3, 2.0, 1.0)
    assert places["concurrency"] == "MODELCACHE_CONCURRENCY"
    assert places["retries"] == f"{here}/modelcache.toml:2"
    assert places["deadline"] == f"{here}/pyproject.toml:4"
    assert places["lock_timeout"] == f"{user}:4"
    assert places["capacity"] == DEFAULT


def test_a_cache_takes_what_the_files_say_and_an_argument_wins(here: Path, tmp_path: Path) -> None:
    (here / "modelcache.toml").write_text(
        'dir = "mine"\noffline = true\nmax-bandwidth = 1000\ngrace = 5\nretries = 0\n'
    )

    with Cache() as named, Cache(tmp_path / "other", offline=False, grace=7, retry=RetryPolicy(3)) as other:
        assert (named.root, named.offline) == (str(here / "mine"), True)
        assert (named._limits.bandwidth, named._limits.grace, named._limits.retry.attempts) == (1000, 5, 1)
        assert (other.root, other.offline) == (str(tmp_path / "other"), False)
        assert (other._limits.grace, other._limits.retry.attempts, other._limits.timeout) == (7, 3, Timeout())


def test_a_file_of_the_working_directory_limits_the_cache_that_it_names_and_no_other(
    here: Path, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (("capacity", '"1kB"'), ("grace", "0"), ("usage-archive", '["s3://elsewhere"]')):
        (here / "modelcache.toml").write_text(f"{key} = {value}\n")
        with pytest.raises(ConfigFileError, match=r"modelcache.toml:1: .*give dir as well"):
            load()
    user.write_text('grace = 9\ncapacity = "9GB"\n')
    (here / "modelcache.toml").write_text('dir = "mine"\ncapacity = "1kB"\ngrace = 0\n')

    with Cache() as mine, Cache(tmp_path / "other") as other:
        assert (str(mine._limits.capacity), mine._limits.grace) == ("1000", 0)
        assert (str(other._limits.capacity), other._limits.grace) == ("9000000000", 9)
    monkeypatch.setenv("MODELCACHE_DIR", str(tmp_path / "third"))
    assert (str(load().capacity), load().grace) == ("9000000000", 9)
    monkeypatch.setenv("MODELCACHE_CONFIG", str(here / "modelcache.toml"))  # Named by who starts it: not a stranger's.
    assert (str(load().capacity), load().grace) == ("1000", 0)


def test_a_variable_names_the_directory_before_a_file_does(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "modelcache.toml").write_text('dir = "mine"\n')
    monkeypatch.setenv("MODELCACHE_HOME", "/srv/home")

    with Cache() as cache:
        assert cache.root == "/srv/home"


def test_the_file_that_a_variable_names_is_the_only_one(
    here: Path, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user.write_text("retries = 1\n")
    (here / "modelcache.toml").write_text("concurrency = 3\n")
    (tmp_path / "named.toml").write_text('dir = "near-the-file"\n')
    monkeypatch.setenv("MODELCACHE_CONFIG", str(tmp_path / "named.toml"))

    assert load() == replace(Settings(), dir=str(tmp_path / "near-the-file"))


@pytest.mark.parametrize("nothing", ["", " ", "/dev/null"])
def test_no_file_is_read_where_the_variable_names_none(
    nothing: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "modelcache.toml").write_text("not even TOML")
    monkeypatch.setenv("MODELCACHE_CONFIG", nothing)

    assert load() == Settings()


def test_a_named_file_that_is_missing_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_CONFIG", "missing.toml")

    with pytest.raises(ConfigFileError, match=r"missing\.toml: it cannot be read: No such file"):
        load()


@pytest.mark.parametrize("text", ["[tool.other]\nx = 1\n", "this is = = not TOML", "# [tool. modelcache]\n"])
def test_a_pyproject_without_our_table_is_nobody_s_business(text: str, here: Path) -> None:
    (here / "pyproject.toml").write_text(text)

    assert load() == Settings()
    assert configfiles.plain({})


def test_a_mark_across_two_reads_of_a_pyproject_is_found(here: Path) -> None:
    for length in range((1 << 16) - 20, (1 << 16) + 2):
        (here / "pyproject.toml").write_text("#" * (length - 1) + "\n[tool.modelcache]\nretries = 4\n")
        assert load().retries == 4, length


@pytest.mark.parametrize(
    ("text", "line", "key", "said"),
    [
        ("retries = 3\ncapcity = '1GB'\n", 2, "capcity", "did you mean capacity?"),
        ("lock_timeout = 3\n", 1, "lock_timeout", "did you mean lock-timeout?"),
        ("xyzzy = 3\n", 1, "xyzzy", "known: dir, mode,"),
        ('token = "hf_s3cr3t"\n', 1, "token", "credentials never are"),
        ('hf-token = "hf_s3cr3t"\n', 1, "hf-token", "credentials never are"),
        ("retries = '3'\n", 1, "retries", "is a whole number, not a string"),
        ("retries = true\n", 1, "retries", "is a whole number, not true or false"),
        ("retries = -1\n", 1, "retries", "-1 makes no sense: expected a whole number from 0"),
        ("\n\noffline = 1\n", 3, "offline", "is true or false, not a whole number"),
        ("http-timeout = 0\n", 1, "http-timeout", "expected seconds above 0"),
        ("deadline = inf\n", 1, "deadline", "expected seconds above 0"),
        ("deadline = nan\n", 1, "deadline", "expected seconds above 0"),
        ("mode = 'online'\n", 1, "mode", "expected one of cache-first, offline, refresh"),
        ("capacity = 'lots'\n", 1, "capacity", "free:10GB"),
        ("tiers = '/mnt'\n", 1, "tiers", "is a list of strings, not a string"),
        ("tiers = [1]\n", 1, "tiers", "expected a list of directories"),
        ("tiers = ['/mnt', ' ']\n", 1, "tiers", "none of them empty"),
        ("dir = ''\n", 1, "dir", "expected the path of a directory"),
        ("mode = 'refresh'\noffline = true\n", 2, "offline", "contradicts mode = 'refresh'"),
        ("policy = 3\n", 1, "policy", "is a table, [policy], not a whole number"),
        ("[policy]\nhost = ['a']\n", 2, "host", "did you mean hosts?"),
        ("[policy]\nhosts = 'a'\n", 2, "hosts", "is a list of strings"),
        ("[policy]\nmax-size = 'big'\n", 2, "max-size", "expected bytes"),
        ("[policy]\ndigests = 'wanted'\n", 2, "digests", "expected 'required'"),
        ("[policy]\nallow-pickle = 'no'\n", 2, "allow-pickle", "is true or false"),
        ("retries = 1\n[policy.signatures]\n", 2, None, "either key, or certificates"),
        ("[policy.signatures]\nidentity = 'a@b'\n", 1, None, "identity and issuer together"),
        ("[policy.signatures]\nkeys = 'a'\n", 2, "keys", "did you mean key?"),
        ("retries = 1\nretries = 2\n", 2, None, "not TOML"),
        ("retries = \n", 1, None, "not TOML"),
        ("a = {\n", 1, None, "not TOML"),
    ],
)
def test_a_mistake_names_file_line_and_key(text: str, line: int, key: str | None, said: str, here: Path) -> None:
    error = mistake(text, here)

    assert (error.facts["line"], error.facts["key"]) == (line, key)
    assert said in error.summary
    assert "s3cr3t" not in str(error)


def test_a_mistake_in_a_pyproject_has_the_line_of_its_table(here: Path) -> None:
    error = mistake("[project]\nretries = 5\n\n[tool.modelcache]\nretries = 'x'\n", here, "pyproject.toml")

    assert error.facts["line"] == 5


def test_a_file_that_is_no_text_is_told(here: Path) -> None:
    (here / "modelcache.toml").write_bytes(b"a = 1\nb = '\xff'\n")

    with pytest.raises(ConfigFileError, match=r"modelcache\.toml:2: not UTF-8"):
        load()


def test_tiers_in_a_variable_are_separated_as_paths_are(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCACHE_TIERS", ":/a:b::~/c")

    assert load().tiers == ("/a", str(here / "b"), str(Path("~/c").expanduser()))


# -- modes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "variables", "text", "mode"),
    [
        ({}, {}, "", "cache-first"),
        ({}, {}, "mode = 'refresh'", "refresh"),
        ({}, {}, "offline = true", "offline"),
        ({}, {}, "offline = true\nmode = 'offline'", "offline"),
        ({}, {"MODELCACHE_MODE": "cache-first"}, "offline = true", "cache-first"),
        ({}, {"MODELCACHE_OFFLINE": "0"}, "offline = true", "cache-first"),
        ({}, {"MODELCACHE_OFFLINE": "0"}, "mode = 'refresh'", "refresh"),
        ({}, {"MODELCACHE_OFFLINE": "0", "MODELCACHE_MODE": "offline"}, "", "offline"),
        ({}, {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"}, "offline = true", "offline"),
        ({}, {"HF_HUB_OFFLINE": "1"}, "mode = 'refresh'", "offline"),
        ({}, {"TRANSFORMERS_OFFLINE": "1"}, "", "offline"),
        ({}, {"MODELCACHE_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, "", "offline"),
        ({"offline": False}, {"MODELCACHE_OFFLINE": "1"}, "", "cache-first"),
        ({"offline": False}, {"MODELCACHE_OFFLINE": "1"}, "mode = 'refresh'", "refresh"),
        ({"mode": "refresh"}, {"MODELCACHE_OFFLINE": "1"}, "", "refresh"),
        ({"offline": True, "mode": "offline"}, {"MODELCACHE_MODE": "refresh"}, "", "offline"),
        ({"offline": True}, {}, "mode = 'refresh'", "offline"),
    ],
)
def test_the_nearest_place_that_speaks_of_the_mode_decides_it(
    given: dict[str, Any], variables: dict[str, str], text: str, mode: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "modelcache.toml").write_text(text)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    found = load(**given)

    assert (found.mode, found.offline) == (mode, mode == "offline")


@pytest.mark.parametrize(
    "given",
    [{"offline": True, "mode": "refresh"}, {"offline": False, "mode": "offline"}, {"mode": "online"}, {"mode": 1}],
)
def test_arguments_that_contradict_each_other_are_refused(given: dict[str, Any], root: Path) -> None:
    with pytest.raises(UsageError):
        arguments(**given)
    with pytest.raises(UsageError):
        Cache(root, **given)


@pytest.mark.parametrize("name", ["MODELCACHE_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_variables_that_contradict_each_other_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MODELCACHE_MODE", "refresh")

    with pytest.raises(ConfigurationError, match=rf"MODELCACHE_MODE.*because {name} is set"):
        load()


# -- the cost of looking -----------------------------------------------------------------------------------------------


def test_without_files_no_parser_is_imported_and_three_places_are_looked_at(here: Path) -> None:
    code = (
        "import os, sys\n"
        "from modelcache import configfiles\n"
        "seen, before = [], set(sys.modules)\n"
        "sys.addaudithook(lambda event, args: seen.append(args[0]) if event in {'open', 'os.listdir'} else None)\n"
        "looks, real = [], os.stat\n"
        "os.stat = lambda *a, **k: (looks.append(a[0]), real(*a, **k))[1]\n"
        "assert configfiles.plain(os.environ)\n"
        "print(len(seen) + len(looks), *(set(sys.modules) - before))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["3"]


@pytest.mark.parametrize("mode", ["refresh", "nonsense"])
def test_a_mode_that_asks_the_source_leaves_the_short_path(mode: str) -> None:
    assert not configfiles.plain({"MODELCACHE_MODE": mode})


def test_a_file_with_settings_leaves_the_short_path(here: Path, user: Path) -> None:
    assert configfiles.plain({"XDG_CONFIG_HOME": str(user.parent.parent)})
    user.write_text("")
    assert not configfiles.plain({"XDG_CONFIG_HOME": str(user.parent.parent)})
