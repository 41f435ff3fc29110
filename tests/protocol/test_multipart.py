import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.protocol.multipart import MULTIPART, pack, packed_type, unpack
from propeller.protocol.wire import MalformedMessageError

BOUNDARY = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"

documents = st.dictionaries(st.from_regex(r"[a-z]{1,9}/[a-z.]{1,9}", fullmatch=True), st.binary(), max_size=4)


@given(documents)
def test_documents_come_out_as_they_went_in(given: dict[str, bytes]) -> None:
    assert unpack(packed_type(BOUNDARY), pack(given, BOUNDARY)) == given


@given(documents, st.data())
def test_a_part_of_a_body_is_none(given: dict[str, bytes], data: st.DataObject) -> None:
    body = pack(given, BOUNDARY)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(MalformedMessageError, match="no whole"):
        unpack(packed_type(BOUNDARY), body[:cut])


@given(st.text(), st.binary())
def test_garbage_is_malformed(content_type: str, body: bytes) -> None:
    for said in (content_type, packed_type(content_type)):
        with pytest.raises(MalformedMessageError):
            unpack(said, body)


def test_it_is_read_as_the_rfc_writes_it() -> None:
    body = (
        b"\r\n--b\r\nContent-Type: text/plain\r\n\r\n\r\n\x00\r\n--b\r\ncontent-type:a/b\r\n\r\n\r\n--b--\r\n"
    )
    assert unpack(f"{MULTIPART}; boundary=b", body) == {"text/plain": b"\r\n\x00", "a/b": b""}
    with pytest.raises(MalformedMessageError, match="says not what it is"):
        unpack(f"{MULTIPART}; boundary=b", body.replace(b"content-type:", b"content-length:"))
