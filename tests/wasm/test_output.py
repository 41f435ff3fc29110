"""What a task writes, cut into lines."""

from hypothesis import given
from hypothesis import strategies as st

from propeller.wasm.output import LineSplitter


@given(
    st.lists(st.text(st.characters(exclude_characters="\n\r", codec="utf-8"), max_size=20), max_size=8),
    st.data(),
)
def test_lines(lines: list[str], data: st.DataObject) -> None:
    """However the bytes are cut, the lines are the same."""
    content = "".join(f"{line}\n" for line in lines).encode()
    got: list[str] = []
    feed = LineSplitter(got.append)
    while content:
        size = data.draw(st.integers(1, len(content)))
        feed.feed(content[:size])
        content = content[size:]
    feed.end()
    assert got == lines


def test_line_without_end() -> None:
    got: list[str] = []
    feed = LineSplitter(got.append)
    feed.feed(b"x" * 40_000)
    assert [len(part) for part in got] == [16384, 16384]
    feed.feed(b"\xff")
    feed.end()
    assert "".join(got) == "x" * 40_000 + "\ufffd"
