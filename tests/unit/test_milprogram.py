"""A specification in one form: maps in one order, and nothing else moved or lost."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from modelcache import milprogram


def number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def part(at: int, content: bytes) -> bytes:
    return number(at << 3 | 2) + number(len(content)) + content


def entry(at: int, key: str, value: bytes = b"") -> bytes:
    return part(at, part(1, key.encode()) + part(2, value))


def operation(inputs: list[str], outputs: list[str]) -> bytes:
    return b"".join(
        [part(1, b"add"), *(entry(2, name) for name in inputs), *(part(3, part(1, o.encode())) for o in outputs)]
    )


def program(operations: list[bytes], functions: list[str]) -> bytes:
    block = entry(3, "CoreML7", b"".join(part(3, one) for one in operations))
    return b"\x08\x07" + part(502, b"\x08\x01" + b"".join(entry(2, name, block) for name in functions))


NAMES = st.lists(st.text(max_size=3), unique=True, max_size=4)


@given(st.lists(st.tuples(NAMES, NAMES), max_size=3), NAMES, st.data())
def test_only_the_order_of_maps_does_not_count(
    operations: list[tuple[list[str], list[str]]], functions: list[str], data: st.DataObject
) -> None:
    one = program([operation(*names) for names in operations], functions)
    shuffled = [(data.draw(st.permutations(inputs)), outputs) for inputs, outputs in operations]

    other = program([operation(*names) for names in shuffled], data.draw(st.permutations(functions)))

    found = milprogram.settled(one)
    assert milprogram.settled(other) == found
    assert milprogram.settled(found) == found
    assert sorted(found) == sorted(one)


def test_what_has_an_order_keeps_it() -> None:
    outputs = [program([operation([], names)], ["main"]) for names in (["a", "b"], ["b", "a"])]
    operations = [program([operation([], [name]) for name in names], ["main"]) for names in (["a", "b"], ["b", "a"])]

    assert len({milprogram.settled(one) for one in outputs + operations}) == 4


def test_a_key_that_is_there_twice_leaves_it_as_it_is() -> None:
    """The last one counts: the order is not one that does not matter."""
    twice = [part(502, entry(2, "b") + entry(2, "a", b"x") + entry(2, "a", value)) for value in (b"y", b"")]

    assert [milprogram.settled(one) for one in twice] == twice


@given(st.binary(max_size=60))
@example(number(502 << 3 | 2) + b"\x7f")
@example(b"\xff" * 20)
@example(b"")
def test_what_is_no_specification_is_returned_whole(data: bytes) -> None:
    found = milprogram.settled(data)

    assert milprogram.settled(found) == found


def test_what_is_too_deep_is_returned_as_it_is() -> None:
    found = b""
    for _ in range(3000):
        found = part(202, part(1, found))

    assert milprogram.settled(found) == found
