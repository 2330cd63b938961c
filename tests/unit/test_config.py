"""Settings, and what the environment says about them."""

from __future__ import annotations

from typing import Any

import pytest

from modelcache.config import Capacity, RetryPolicy, Timeout, parse_bytes, parse_seconds
from modelcache.errors import ConfigurationError
from modelcache.settings import Settings


def test_an_empty_environment_gives_the_defaults() -> None:
    found = Settings.from_environment({})

    assert found == Settings()
    assert (found.mode, found.offline, found.retry, found.timeout) == ("cache-first", False, RetryPolicy(), Timeout())
    assert (found.lock_timeout, found.concurrency, found.capacity, found.grace) == (600.0, 8, None, 3600.0)


@pytest.mark.parametrize(
    "name",
    [
        "MODELCACHE_OFFLINE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "MODELCACHE_MODE",
        "MODELCACHE_TIERS",
        "MODELCACHE_MAX_BANDWIDTH",
        "MODELCACHE_PROGRESS",
        "MODELCACHE_HTTP_RETRIES",
        "MODELCACHE_HTTP_TIMEOUT",
        "MODELCACHE_DEADLINE",
        "MODELCACHE_LOCK_TIMEOUT",
        "MODELCACHE_CONCURRENCY",
        "MODELCACHE_CAPACITY",
        "MODELCACHE_GRACE",
    ],
)
@pytest.mark.parametrize("text", ["", "  "])
def test_a_variable_without_a_value_counts_as_unset(name: str, text: str) -> None:
    assert Settings.from_environment({name: text}) == Settings.from_environment({})


@pytest.mark.parametrize("name", ["MODELCACHE_OFFLINE", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize(
    ("text", "offline"), [("1", True), ("TRUE", True), (" yes ", True), ("on", True), ("0", False), ("off", False)]
)
def test_either_offline_variable_keeps_the_cache_offline(name: str, text: str, offline: bool) -> None:
    assert Settings.from_environment({name: text}).offline is offline


@pytest.mark.parametrize(("text", "attempts"), [("0", 1), ("5", 6), ("100", 101)])
def test_retries_are_the_tries_after_the_first(text: str, attempts: int) -> None:
    assert Settings.from_environment({"MODELCACHE_HTTP_RETRIES": text}).retry.attempts == attempts


def test_the_http_timeout_sets_read_and_stall_and_never_lengthens_connect() -> None:
    short = Settings.from_environment({"MODELCACHE_HTTP_TIMEOUT": "2.5"}).timeout
    long = Settings.from_environment({"MODELCACHE_HTTP_TIMEOUT": "500"}).timeout

    assert (short.connect, short.read, short.stall) == (2.5, 2.5, 2.5)
    assert (long.connect, long.read, long.stall) == (Timeout().connect, 500, 500)


def test_the_other_limits_are_taken_as_they_are() -> None:
    settings = Settings.from_environment(
        {"MODELCACHE_DEADLINE": "90", "MODELCACHE_LOCK_TIMEOUT": "0.5", "MODELCACHE_CONCURRENCY": "32"}
    )

    assert settings.timeout.total == 90
    assert settings.lock_timeout == 0.5
    assert settings.concurrency == 32


_SENSELESS = {
    "MODELCACHE_OFFLINE": ["2", "maybe", "-1"],
    "HF_HUB_OFFLINE": ["2", "ja"],
    "MODELCACHE_HTTP_RETRIES": ["-1", "1.5", "many", "٣", "9" * 5000],
    "MODELCACHE_HTTP_TIMEOUT": ["0", "-1", "nan", "inf", "1e300", "soon", "9" * 5000],
    "MODELCACHE_DEADLINE": ["0", "-0.5", "nan", "1e10", "1h"],
    "MODELCACHE_LOCK_TIMEOUT": ["0", "-1", "inf", "1e300", "x"],
    "MODELCACHE_CONCURRENCY": ["0", "-4", "2.0", "all", "9" * 5000],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in _SENSELESS.items() for text in texts])
def test_a_senseless_variable_is_refused_by_its_name(name: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Settings.from_environment({name: text})

    assert raised.value.facts["setting"] == name
    assert name in str(raised.value)


@pytest.mark.parametrize("name", ["connect", "read", "stall", "total"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), 1e300, True, "30"])
def test_a_timeout_that_makes_no_sense_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"Timeout\.{name}"):
        Timeout(**{name: value})


@pytest.mark.parametrize("name", ["connect", "read", "stall"])
def test_only_the_total_may_be_without_limit(name: str) -> None:
    assert Timeout(total=None).total is None
    with pytest.raises(ConfigurationError, match=rf"Timeout\.{name}"):
        Timeout(**{name: None})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "3"])
def test_a_policy_without_a_whole_number_of_attempts_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="attempts"):
        RetryPolicy(attempts=value)


@pytest.mark.parametrize("name", ["base", "cap", "retry_after_max"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e300, True, None])
def test_a_policy_with_a_senseless_wait_is_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"RetryPolicy\.{name}"):
        RetryPolicy(**{name: value})


def test_a_policy_may_wait_no_time_at_all() -> None:
    assert RetryPolicy(base=0, cap=0, retry_after_max=0).cap == 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1500", 1500),
        ("1500B", 1500),
        ("50MB", 50_000_000),
        ("50 mb", 50_000_000),
        (" 2GiB ", 2 * 1024**3),
        ("1.5k", 1500),
        ("2T", 2 * 10**12),
        ("1TiB", 1024**4),
        ("1e3", 1000),
    ],
)
def test_bytes_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text, setting="--max-bandwidth") == count


@pytest.mark.parametrize(
    "text", ["", " ", "MB", "0", "0.5", "-5MB", "5iB", "5MBB", "5PB", "5 M B", "nan", "inf", "much", "1" * 5000, "\0"]
)
def test_what_is_no_number_of_bytes_is_refused_with_the_name_of_the_setting(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parse_bytes(text, setting="--max-bandwidth")

    assert raised.value.facts["setting"] == "--max-bandwidth"


@pytest.mark.parametrize(
    ("text", "capacity"),
    [
        (50, Capacity(most=50)),
        ("50", Capacity(most=50)),
        ("50GB", Capacity(most=50_000_000_000)),
        ("20GiB", Capacity(most=20 << 30)),
        ("20%", Capacity(share=0.2)),
        (" 12.5 % ", Capacity(share=0.125)),
        ("100%", Capacity(share=1.0)),
        ("free:10GB", Capacity(spare=10_000_000_000)),
        ("FREE: 1GiB", Capacity(spare=1 << 30)),
    ],
)
def test_a_capacity_is_bytes_a_share_or_what_stays_free(text: int | str, capacity: Capacity) -> None:
    assert Capacity.parse(text) == capacity
    assert Capacity.parse(str(capacity)) == capacity


@pytest.mark.parametrize(
    "text", [0, -1, True, 1.5, None, "", "%", "0%", "101%", "nan%", "-5%", "free:", "free:20%", "used:1GB", "lots"]
)
def test_a_senseless_capacity_names_the_setting_and_what_it_takes(text: object) -> None:
    with pytest.raises(ConfigurationError, match=r"MODELCACHE_CAPACITY.*free:10GB"):
        Capacity.parse(text, setting="MODELCACHE_CAPACITY")


def test_a_capacity_is_a_limit_on_what_the_cache_uses() -> None:
    facts = {"used": 300, "size": 1000, "free": 200}

    assert Capacity(most=50).limit(**facts) == 50
    assert Capacity(share=0.2).limit(**facts) == 200
    assert Capacity(spare=100).limit(**facts) == 400
    assert Capacity(spare=250).limit(**facts) == 250
    assert Capacity(spare=900).limit(**facts) == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90", 90), ("1.5", 1.5), ("45s", 45), ("30min", 1800), ("12 h", 43200),
                          ("30d", 30 * 86400), ("2w", 14 * 86400)]
)  # fmt: skip
def test_a_time_has_a_unit_or_is_in_seconds(text: str, seconds: float) -> None:
    assert parse_seconds(text, setting="x") == seconds


@pytest.mark.parametrize("text", ["", "-1", "soon", "nan", "inf", "1y", "h", "1 2h"])
def test_a_senseless_time_names_the_setting(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--unused-for"):
        parse_seconds(text, setting="--unused-for")
