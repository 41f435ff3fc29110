"""A stream of documents comes out the same however it is cut into pieces."""

from collections.abc import AsyncIterator, Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.fl.tensors import (
    DocumentTooLargeError,
    TensorError,
    read_documents,
    to_safetensors,
)


async def stream(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@given(st.lists(st.integers(1, 50), max_size=4), st.lists(st.integers(0, 300), max_size=30))
async def test_pieces_of_any_size(sizes: list[int], cuts: list[int]) -> None:
    documents = [to_safetensors({"w": np.full(size, float(size))}, {"n": str(size)}) for size in sizes]
    whole = b"".join(documents)
    places = sorted(min(cut, len(whole)) for cut in cuts)
    pieces = [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]

    assert [bytes(document) async for document in read_documents(stream(pieces))] == documents


@given(st.data())
async def test_a_stream_that_ends_inside_a_document_is_refused(data: st.DataObject) -> None:
    whole = to_safetensors({"w": np.zeros(4)}) * 2
    kept = data.draw(st.integers(1, len(whole) - 1).filter(lambda kept: kept != len(whole) // 2))
    with pytest.raises(TensorError, match="ends inside"):
        [document async for document in read_documents(stream([whole[:kept]]))]


async def test_a_document_that_announces_too_much_is_refused_before_it_comes() -> None:
    header = b'{"w":{"dtype":"F32","shape":[1000000],"data_offsets":[0,4000000]}}'
    start = len(header).to_bytes(8, "little") + header
    with pytest.raises(DocumentTooLargeError, match="over the limit of 1000 bytes"):
        [document async for document in read_documents(stream([start]), max_document=1000)]
    with pytest.raises(DocumentTooLargeError):
        [
            document
            async for document in read_documents(stream([(900).to_bytes(8, "little")]), max_document=100)
        ]
    with pytest.raises(TensorError, match="first 8 bytes"):
        [document async for document in read_documents(stream([b"\xff" * 8]))]
