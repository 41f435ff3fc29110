"""Compressed updates where they enter: what they become, what is told of them, and what is refused."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import zstandard

from propeller.coordinator.content_coding import (
    LongContentError,
    coding_of_message,
    decompress,
    decompress_stream,
)
from propeller.coordinator.large_updates import LargeUpdates, stands_for_large, write_document
from propeller.coordinator.updates import MESSAGE, ReceivedUpdate, decode_update, make_document
from propeller.errors import InvalidError, TooLargeError
from propeller.fl.compression import Description, Scheme, encode_update
from propeller.fl.tensors import (
    JSON,
    SAFETENSORS,
    Tensors,
    from_json,
    from_safetensors,
    specs_of,
    to_safetensors,
)
from propeller.process.files import DurableFile
from support.coordinator import BASE, assembled, configure, update

HEADER = {
    "round_id": "r-1",
    "proplet_id": "p-1",
    "base_model_uri": "fl/models/global_model_v0",
    "num_samples": "64",
    "metrics": '{"loss": 0.5}',
    "kind": "delta",
}
MODEL = from_json(BASE)
TRAINED: Tensors = {
    name: array + 0.3 + np.arange(array.size).reshape(array.shape) / 10 for name, array in MODEL.items()
}


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with assembled(tmp_path) as http:
        await configure(http)
        yield http


def document(scheme: Scheme = Scheme(values="int8"), **changed: str) -> bytes:  # noqa: B008 - frozen
    """A compressed update, with other metadata where they are changed."""
    encoded = encode_update(TRAINED, MODEL, scheme, 1)
    described = encoded.description.with_uncompressed(1000).to_text()
    return to_safetensors(encoded.tensors, {**HEADER, "compression": described, **changed})


async def post(http: httpx.AsyncClient, body: bytes, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await http.post("/update", content=body, headers={"content-type": SAFETENSORS, **named})


async def received(http: httpx.AsyncClient) -> dict[str, Any]:
    """What is told of the one update of the round."""
    (one,) = (await http.get("/rounds/r-1")).json()["received"]
    return dict(one)


async def test_a_compressed_update_counts_and_its_bytes_are_told(http: httpx.AsyncClient) -> None:
    body = zstandard.compress(document())
    answer = await post(http, body, content_encoding="zstd")
    assert answer.json() == {"status": "accepted"}
    one = await received(http)
    assert (one["bytes"], one["uncompressed_bytes"], one["compression"]) == (len(body), 1000, "int8 + zstd")
    assert 0 < one["compression_error"] < 0.02
    # The same update again, however it is compressed on its way, is the same one.
    assert (await post(http, document())).json() == {"status": "accepted"}
    assert (await received(http))["bytes"] == len(body)


async def test_an_update_that_is_not_compressed_says_so(http: httpx.AsyncClient) -> None:
    body = json.dumps(update()).encode()
    answer = await http.post("/update", content=body, headers={"content-type": JSON})
    assert answer.json() == {"status": "accepted"}
    one = await received(http)
    assert (one["bytes"], one["uncompressed_bytes"], one["compression"]) == (len(body), len(body), "none")
    assert "compression_error" not in one


async def test_zstd_is_taken_of_each_encoding(http: httpx.AsyncClient) -> None:
    plain = json.dumps(update()).encode()
    body = zstandard.compress(plain)
    headers = {"content-type": JSON, "content-encoding": "Zstd"}
    assert (await http.post("/update", content=body, headers=headers)).json() == {"status": "accepted"}
    one = await received(http)
    assert (one["bytes"], one["uncompressed_bytes"], one["compression"]) == (len(body), len(plain), "zstd")


async def test_a_message_tells_by_its_first_bytes_how_it_is_compressed() -> None:
    for plain in (document(), json.dumps(update()).encode()):
        assert coding_of_message(plain) is None
        for payload in (plain, zstandard.compress(plain)):
            found = await decode_update(MESSAGE, payload, coding=coding_of_message(payload))
            assert (found.header.proplet_id, found.size) == ("p-1", len(plain))


async def test_what_is_stored_is_the_difference(http: httpx.AsyncClient) -> None:
    stored = await make_document(await decode_update(SAFETENSORS, document()), specs_of(MODEL))
    assert isinstance(stored.content, bytes)
    tensors, metadata = from_safetensors(stored.content)
    assert metadata == {"num_samples": "64", "proplet_id": "p-1", "round_id": "r-1"}
    assert tensors.keys() == MODEL.keys()
    assert np.allclose(tensors["w"], [0.3, 0.4, 0.5], atol=0.01)


BOMB = zstandard.compress(bytes(200 * 1024 * 1024))


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (BOMB, {"content_encoding": "zstd", "content_type": JSON}, 413, "decompressed, the body is over the limit of 104857600 bytes"),
        (BOMB, {"content_encoding": "zstd"}, 400, "update: not safetensors: its first 8 bytes must be"),
        (b"\x28\xb5\x2f\xfdx", {"content_encoding": "zstd"}, 400, "update: not safetensors"),
        (document(), {"content_encoding": "zstd"}, 400, "the body is not zstd that can be read: "),
        (document(), {"content_encoding": "gzip"}, 415, "Content-Encoding 'gzip' cannot be read; send zstd, or none"),
        (zstandard.compress(document())[:-20], {"content_encoding": "zstd"}, 400, "update: "),
        (document(kind="weights"), {}, 400, "kind: a compressed update is a delta, this one says 'weights'"),
        (document(compression="{"), {}, 400, "update: compression: not JSON"),
        (document(compression=Description(()).to_text()), {}, 400, "update: tensor '@values/0': is of no tensor"),
        (
            document(compression='{"format":1,"uncompressed":1,"tensors":[{"name":"w","dtype":"F64","shape":[99999999999],"values":"int8"},{"name":"b","dtype":"F64","shape":[],"values":"int8"}]}'),
            {},
            400,
            "update: tensor 'w': is compressed as F64 of shape [99999999999]; of this base model it is F64 of shape [3]",
        ),
    ],
)  # fmt: skip
async def test_what_is_hostile_is_refused(
    http: httpx.AsyncClient, body: bytes, headers: dict[str, str], status: int, reason: str
) -> None:
    answer = await post(http, body, **headers)
    assert (answer.status_code, answer.json()["error"][: len(reason)]) == (status, reason)


def test_a_window_beyond_what_decoders_must_take_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25)
    body = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    compressed = body.compress(bytes(range(256)) * 200_000) + body.flush()
    with pytest.raises(InvalidError, match="not zstd that can be read"):
        decompress(compressed, 10**9)


def test_several_frames_are_one_body() -> None:
    assert decompress(zstandard.compress(b"one ") + zstandard.compress(b"two"), 7) == b"one two"
    with pytest.raises(TooLargeError):
        decompress(zstandard.compress(b"one ") + zstandard.compress(b"two"), 6)


LARGE: Tensors = {
    "w": np.zeros((1200, 1000), np.float32),
    "h": np.zeros(10, np.float16),
    "n": np.arange(5),
    "t": np.array([True, False]),
}


@pytest.mark.parametrize("scheme", [Scheme(values="int8"), Scheme(0.01, "int4")], ids=("all", "top_k"))
async def test_a_large_update_is_written_by_tensors(tmp_path: Path, scheme: Scheme) -> None:
    """However it came, it is stored as the same document as if it had been decompressed in memory."""
    random = np.random.default_rng(0)
    trained = {**LARGE, "w": random.normal(size=(1200, 1000)), "n": LARGE["n"] + 1}
    encoded = encode_update(trained, LARGE, scheme, 1)
    metadata = {**HEADER, "compression": encoded.description.with_uncompressed(9).to_text()}
    body = to_safetensors(encoded.tensors, metadata)
    base = specs_of(LARGE)
    small = await decode_update(SAFETENSORS, body)
    assert stands_for_large(small, base)
    wanted = await make_document(small, base)

    async def pieces(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 50_000):
            yield content[start : start + 50_000]

    async def admit(update: ReceivedUpdate) -> None:
        assert update.header.proplet_id == "p-1"

    for number, coding in enumerate((None, None, "zstd")):
        with contextlib.closing(DurableFile(tmp_path / str(number))) as target:
            if number == 0:
                found = write_document(small, base, target)
            else:
                sent = body if coding is None else zstandard.compress(body)
                async with LargeUpdates(tmp_path).receive(pieces(sent), admit, coding=coding) as update:
                    assert update.transfer is not None
                    assert (update.transfer.bytes, update.transfer.uncompressed_bytes) == (len(sent), 9)
                    found = write_document(update, base, target)
            assert (found.digest, found.size) == (wanted.digest, wanted.size)


async def test_a_stream_of_zstd_is_bounded() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield BOMB[:5000]
        yield BOMB[5000:]

    async def read(stream: AsyncIterator[bytes]) -> list[bytes]:
        return [piece async for piece in stream]

    assert sum(map(len, await read(decompress_stream(pieces(), 300_000_000)))) == 200 * 1024 * 1024
    with pytest.raises(LongContentError, match="over the limit of 20000000 bytes"):
        await read(decompress_stream(pieces(), 20_000_000))

    async def garbage() -> AsyncIterator[bytes]:
        yield b"not zstd"

    with pytest.raises(InvalidError, match="not zstd that can be read"):
        await read(decompress_stream(garbage(), 10))
