"""Chunks become the program again, in whatever order they come, or are refused by name."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.digests import digest_of
from propeller.proplet.assembly import MAX_CHUNKS, Assembly
from propeller.proplet.errors import AssemblyError, ChunkError
from propeller.protocol.programs import ProgramChunk

LIMIT = 10_000


def chunk(number: int, total: int, data: bytes, digest: str | None = None) -> ProgramChunk:
    return ProgramChunk(
        app_name="a",
        chunk_idx=number,
        total_chunks=total,
        data=base64.b64encode(data).decode(),
        digest=digest,
    )


def split(content: bytes, size: int) -> list[ProgramChunk]:
    parts = [content[at : at + size] for at in range(0, len(content), size)]
    return [chunk(number, len(parts), part) for number, part in enumerate(parts)]


@given(st.binary(min_size=1, max_size=500), st.integers(1, 60), st.randoms(), st.booleans())
def test_any_order_and_repetition_gives_the_program(
    content: bytes, size: int, random: object, announced: bool
) -> None:
    chunks = split(content, size)
    one = Assembly(LIMIT)
    if announced:
        one = Assembly(LIMIT, digest=digest_of(content), size=len(content), total=len(chunks))
    sent = chunks * 2
    random.shuffle(sent)  # type: ignore[attr-defined]
    new = [one.add(each) for each in sent]
    assert sum(new) == len(chunks)
    assert one.complete
    assert one.missing() == []
    assert one.content() == content


@given(st.sets(st.integers(0, 9)))
def test_missing_names_what_did_not_come(came: set[int]) -> None:
    one = Assembly(LIMIT, total=10)
    for number in came:
        one.add(chunk(number, 10, b"x"))
    assert set(one.missing()) == set(range(10)) - came
    assert one.complete == (len(came) == 10)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (chunk(0, MAX_CHUNKS + 1, b"x"), "is more than"),
        (chunk(0, 4, b"x"), "total_chunks: 4"),
        (chunk(0, 3, b"x", digest_of(b"other")), "not the expected"),
        (chunk(0, 3, b"x" * 31), "more than the 30 bytes"),
        (ProgramChunk(app_name="a", total_chunks=3, data="***"), "base64"),
        (chunk(1, 3, b"other"), "other bytes"),
    ],
)
def test_a_chunk_that_does_not_fit_is_refused_and_changes_nothing(bad: ProgramChunk, reason: str) -> None:
    one = Assembly(LIMIT, digest=digest_of(b"p"), size=30, total=3)
    one.add(chunk(1, 3, b"kept"))
    with pytest.raises(ChunkError, match=reason):
        one.add(bad)
    assert one.missing() == [0, 2]


def test_what_is_not_announced_is_not_taken_for_the_program() -> None:
    one = Assembly(LIMIT, digest=digest_of(b"good"), size=4, total=1)
    one.add(chunk(0, 1, b"evil"))
    with pytest.raises(AssemblyError, match="digest"):
        one.content()
    one.clear()
    one.add(chunk(0, 1, b"bad"))
    with pytest.raises(AssemblyError, match="size: 3 bytes"):
        one.content()


@pytest.mark.parametrize("moved", [chunk(0, 3, b"new"), chunk(0, 2, b"new")])
def test_without_announcement_a_contradiction_starts_anew(moved: ProgramChunk) -> None:
    one = Assembly(LIMIT)
    one.add(chunk(0, 2, b"old"))
    one.add(chunk(1, 2, b"old"))
    one.add(moved)
    assert one.chunks == 1
    assert not one.complete


def test_an_s_proxy_that_does_say_the_digest_is_held_to_it() -> None:
    one = Assembly(LIMIT)
    one.add(chunk(0, 1, b"x", digest_of(b"y")))
    with pytest.raises(AssemblyError, match="digest"):
        one.content()


@pytest.mark.parametrize(
    ("announced", "reason"),
    [({"size": LIMIT + 1}, "PROPLET_TASK_MODULE_BYTES"), ({"total": 0}, "total_chunks")],
)
def test_what_is_announced_has_limits(announced: dict[str, int], reason: str) -> None:
    with pytest.raises(AssemblyError, match=reason):
        Assembly(LIMIT, **announced)  # type: ignore[arg-type]
