"""Claims, one race at a time: what was decided on what is not so any more is given back, and nobody takes another's."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelcache.backends.memory import MemoryBackend
from modelcache.fleet.claims import FAILED, Beat, Claim, Claims, Sight
from modelcache.sealed import seal

KEY = "https://example.org/m.onnx"
FACTS = {name: getattr(Beat(), name) for name in Beat.__dataclass_fields__}


class Racing(MemoryBackend):
    """A bucket where *meanwhile* happens, once, when the answer to the next create is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], object] | None = None

    def create(self, name: str, data: bytes) -> bool:
        made = super().create(name, data)
        work, self.meanwhile = self.meanwhile, None
        if work is not None:
            work()
        return made


@pytest.fixture
def backend() -> Racing:
    return Racing()


def claims(backend: MemoryBackend, host: str = "a") -> Claims:
    return Claims(backend, KEY, host)


def held(backend: MemoryBackend, host: str, after: Sight | None = None) -> Claim:
    one = claims(backend, host)
    mine = one.next(after)
    assert one.acquire(mine, after)
    return mine


def seen(backend: MemoryBackend, claim: Claim) -> Sight:
    return Sight(claim, claims(backend).read_beat(claim), moved=0.0, grew=0.0)


def test_of_one_generation_there_is_one_owner(backend: Racing) -> None:
    first = held(backend, "a")
    other = claims(backend, "b")

    assert not other.acquire(other.next())
    assert claims(backend).current() == first


def test_a_create_whose_answer_was_lost_is_recognised(backend: Racing) -> None:
    mine = claims(backend).next()
    assert claims(backend).acquire(mine)

    assert claims(backend).acquire(mine)


def test_a_newcomer_beside_a_higher_generation_gives_its_claim_back(backend: Racing) -> None:
    late = claims(backend, "late")
    mine = late.next()  # It saw no claim, and then stood still, while two others came.
    second = held(backend, "b", seen(backend, held(backend, "a")))
    backend.delete(f"{second.name[:-1]}1")

    assert not late.acquire(mine)
    assert claims(backend).current() == second


def test_a_claim_on_a_dead_one_that_beats_after_all_is_given_back(backend: Racing) -> None:
    first = held(backend, "a")
    sight = seen(backend, first)
    other = claims(backend, "b")
    mine = other.next(sight)
    backend.meanwhile = lambda: backend.put(first.beat_name, Beat(count=7).encode())

    assert not other.acquire(mine, sight)
    assert claims(backend).stands(first)
    assert list(backend.names("claims/")) == [first.name, first.beat_name]


def test_what_stalls_is_replaced_though_it_beats(backend: Racing) -> None:
    first = held(backend, "a")
    sight = seen(backend, first)
    sight.stalled = True
    backend.put(first.beat_name, Beat(count=9).encode())

    second = held(backend, "b", sight)

    assert not claims(backend).beat(first, Beat())
    assert claims(backend).beat(second, Beat())


def test_an_old_sight_replaces_no_claim_of_a_new_beginning(backend: Racing) -> None:
    first = held(backend, "a")
    old = seen(backend, first)
    claims(backend).release(first)
    new = held(backend, "b")  # Its number is that of the old one.
    late = claims(backend, "late")

    assert not late.acquire(late.next(old), old)
    assert claims(backend).current() == new
    assert claims(backend).beat(new, Beat())


def test_who_is_replaced_or_gone_says_nothing_more(backend: Racing) -> None:
    first = held(backend, "a")
    second = held(backend, "b", seen(backend, first))

    assert not claims(backend).beat(first, Beat())
    assert claims(backend).beat(second, Beat())
    backend.delete(second.name)
    assert not claims(backend).beat(second, Beat())


def test_who_comes_back_late_does_not_take_the_number_of_another_for_its_own(backend: Racing) -> None:
    first = held(backend, "a")
    backend.delete(first.name)
    new = held(backend, "b")

    assert not claims(backend).beat(first, Beat(), late=True)
    claims(backend).release(first)
    assert claims(backend).current() == new


def test_who_lets_go_clears_up_below(backend: Racing) -> None:
    first = held(backend, "a")
    assert claims(backend).beat(first, Beat())
    second = held(backend, "b", seen(backend, first))
    assert claims(backend).beat(second, Beat())
    backend.put(f"{first.name[:-1]}9.0123456789abcdef", b"the beat of one who came back too late")

    claims(backend).release(second)

    assert list(backend.names()) == []


def test_a_claim_that_cannot_be_read_has_no_beats_and_is_replaced(backend: Racing) -> None:
    mine = claims(backend).next()
    backend.put(mine.name, b"damaged")
    found = claims(backend).current()
    assert found is not None
    assert found.mark == ""

    second = held(backend, "b", seen(backend, found))

    assert claims(backend).current() == second


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"damaged",
        seal({"state": "working"}),
        seal({**FACTS, "done": -1}),
        seal({**FACTS, "note": 7}),
        seal({**FACTS, "total": "x"}),
        seal({**FACTS, "done": 1 << 63}),
    ],
)
def test_a_damaged_beat_says_nothing(data: bytes) -> None:
    assert Beat.decode(data) is None


def test_a_beat_comes_back_as_it_was_said() -> None:
    said = Beat(FAILED, 3, 10, None, 1.5, '{"error": "x"}', 2)

    assert Beat.decode(said.encode()) == said


def test_names_of_strangers_are_no_claims(backend: Racing) -> None:
    first = held(backend, "a")
    top = first.name.rpartition("/")[0]
    for name in ("x", "7", "99999999999", "-000000001"):
        backend.put(f"{top}/{name}", b"")

    assert claims(backend).current() == first


def test_what_a_claim_says_of_its_host_is_fit_for_a_terminal(backend: Racing) -> None:
    held(backend, "a\x1b[31m\nb" + "c" * 1000)

    found = claims(backend).current()

    assert found is not None
    assert found.host.startswith("a?[31m?bc")
    assert len(found.host) == 255
