"""An update's durable form: one update in each encoding, in the base model's dtypes where nothing is lost."""

import json
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.coordinator.large_updates import LargeUpdates, write_document
from propeller.coordinator.updates import ReceivedUpdate, UpdateDocument, decode_update, make_document
from propeller.errors import InvalidError, UnprocessableError
from propeller.fl.tensors import (
    DTYPES,
    JSON,
    SAFETENSORS,
    Specs,
    Tensors,
    TensorSpec,
    bounds,
    encode,
    from_safetensors,
    is_floating,
    specs_of,
    to_safetensors,
)
from propeller.process.files import DurableFile
from propeller.protocol.updates import CBOR
from propeller.protocol.wire import decode_object

HEADER = {"round_id": "r-1", "proplet_id": "p-1", "num_samples": 3}


def bodies(tensors: Tensors, **more: Any) -> dict[str, bytes]:
    """An update in each encoding; in CBOR with plain lists."""
    plain = decode_object(encode(tensors)[1])
    fields = {**HEADER, **more, "update": plain}
    metadata = {name: str(value) for name, value in {**HEADER, **more}.items()}
    return {
        JSON: json.dumps(fields).encode(),
        CBOR: cbor2.dumps(fields),
        SAFETENSORS: to_safetensors(tensors, metadata),
    }


@st.composite
def models(draw: st.DrawFn) -> Tensors:
    model: Tensors = {}
    for name in draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=4, unique=True)):
        dtype = DTYPES[name]
        least, most = bounds(dtype)
        numbers = (
            st.floats(least, most).map(float) if is_floating(dtype) else st.integers(int(least), int(most))
        )
        shape = draw(st.sampled_from([(), (1,), (2, 2), (0,), (2, 0, 3)]))
        count = int(np.prod(shape))
        values = draw(st.lists(numbers, min_size=count, max_size=count))
        model[name] = np.array(values, object).astype(dtype).reshape(shape)
    return model


@given(models())
async def test_an_update_is_the_same_one_in_each_encoding(model: Tensors) -> None:
    base = specs_of(model)
    found = set()
    for kind, body in bodies(model).items():
        document = await make_document(await decode_update(kind, body), base)
        stored = from_safetensors(content(document))[0]
        assert specs_of(stored) == base
        assert all(np.array_equal(stored[name], array) for name, array in model.items())
        found.add(document.digest)
    assert len(found) == 1


@given(models(), st.sampled_from(sorted(DTYPES)), st.sampled_from(["weights", "delta"]))
async def test_by_blocks_it_is_the_same_document(model: Tensors, dtype: str, kind: str) -> None:
    """Also where the base model has another dtype, whether something is lost by it or it does not fit at all."""
    base = {name: TensorSpec(dtype, array.shape) for name, array in reversed(model.items())}
    body = bodies(model, kind=kind)[SAFETENSORS]
    outcomes: list[tuple[bytes | str, str, int]] = []
    for make in (in_memory, by_blocks):
        try:
            document = await make(body, base)
        except InvalidError as error:
            outcomes.append((str(error), "", 0))
        else:
            outcomes.append((content(document), document.digest, document.size))
    assert outcomes[0] == outcomes[1]


async def in_memory(body: bytes, base: Specs) -> UpdateDocument:
    return await make_document(await decode_update(SAFETENSORS, body), base)


async def by_blocks(body: bytes, base: Specs) -> UpdateDocument:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 17):
            yield body[start : start + 17]

    async def admit(update: ReceivedUpdate) -> None:
        assert update.header.num_samples == HEADER["num_samples"]

    with tempfile.TemporaryDirectory() as folder:
        async with LargeUpdates(Path(folder)).receive(pieces(), admit) as update:
            file = DurableFile(Path(folder))
            with file:
                written = write_document(update, base, file)
                file.stream.seek(0)
                return replace(written, content=file.stream.read())


def content(document: UpdateDocument) -> bytes:
    assert isinstance(document.content, bytes)
    return document.content


async def test_what_would_lose_digits_is_kept_as_it_came() -> None:
    base: Specs = {"w": TensorSpec("F32", (2,)), "steps": TensorSpec("I64", (2,))}
    sent: Tensors = {"w": np.array([0.1, 1]), "steps": np.array([1.5, 2])}
    for kind, body in bodies(sent).items():
        stored = from_safetensors(content(await make_document(await decode_update(kind, body), base)))[0]
        assert {name: spec.dtype for name, spec in specs_of(stored).items()} == {"w": "F64", "steps": "F64"}
        assert stored["w"].tolist() == [0.1, 1]


async def test_a_difference_may_be_negative_where_weights_are_not() -> None:
    base: Specs = {"seen": TensorSpec("U8", (2,))}
    body = bodies({"seen": np.array([-1, 3])})[JSON]
    with pytest.raises(UnprocessableError, match="holds -1, but the base model's U8 goes from 0 to 255"):
        await make_document(await decode_update(JSON, body), base)
    for kind, delta in bodies({"seen": np.array([-1, 3])}, kind="delta").items():
        stored = from_safetensors(content(await make_document(await decode_update(kind, delta), base)))[0]
        assert stored["seen"].tolist() == [-1, 3]
