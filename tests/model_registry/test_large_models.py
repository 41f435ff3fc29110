"""Models that go to the disk as they come, and are sent from there, whole or in parts."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from propeller.fl.tensors import SAFETENSORS, Tensors, from_safetensors, to_safetensors
from propeller.fl.tensors.safetensors import read_header
from propeller.model_registry.uploads import Upload
from propeller.store.documents import BLOCK_BYTES, Document
from support.model_registry import client, post, put

HEADERS = {"content-type": SAFETENSORS}
RNG = np.random.default_rng(0)

LARGE: Tensors = {
    "z": RNG.normal(size=(3, 100_000)).astype(np.float32),
    "a": np.arange(300_001, dtype=np.int64),
    "half": RNG.normal(size=(7, 11)).astype(ml_dtypes.bfloat16),
    "mask": np.array([True, False, True]),
    "none": np.zeros((0, 4), np.float16),
    "step": np.array(2**60 + 1),
}
"""Several blocks, in another order than the names'."""


def in_pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    return pieces()


@pytest.fixture
async def large(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with client(tmp_path, max_body=50_000_000) as opened:
        yield opened


def digest(tensors: Tensors) -> str:
    """As versions have had it from the first one on."""
    return hashlib.sha256(to_safetensors(dict(sorted(tensors.items())))).hexdigest()


@pytest.mark.parametrize("size", [7_919, 1_000_003, 100_000_000])
async def test_a_model_comes_back_as_it_was_sent(large: httpx.AsyncClient, size: int) -> None:
    content = to_safetensors(LARGE, {"note": "kept"})
    assert len(content) > 2 * BLOCK_BYTES
    answer = await large.post("/models", content=in_pieces(content, size), headers=HEADERS)
    assert answer.json()["version"] == 0
    found = await large.get("/models/0", headers={"accept": SAFETENSORS})
    assert found.content == content
    device = "multipart/mixed, application/json;q=0.5, application/vnd.safetensors;q=0.1"
    assert (await large.get("/models/0", headers={"accept": device})).content == content
    assert (await large.get("/models/0/info")).json()["digest"] == digest(LARGE)
    again = await large.post("/models?version=0", content=content, headers=HEADERS)
    assert again.json()["version"] == 0


async def test_parts_of_a_model(large: httpx.AsyncClient) -> None:
    content = to_safetensors(LARGE)
    await post(large, LARGE)
    accept = {"accept": SAFETENSORS}
    header = read_header(content)
    entry = header.entries["a"]
    for first, last in [
        (0, 7),
        (8, header.start + 3),
        (header.start + entry.begin, header.start + entry.end - 1),
    ]:
        part = await large.get("/models/0", headers={**accept, "range": f"bytes={first}-{last}"})
        assert part.status_code == 206
        assert part.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"
        assert part.content == content[first : last + 1]
    np.testing.assert_array_equal(np.frombuffer(part.content, "<i8"), LARGE["a"])
    tag = part.headers["etag"]
    goes_on = await large.get("/models/0", headers={**accept, "range": "bytes=5-", "if-range": tag})
    assert goes_on.content == content[5:]
    other = await large.get("/models/0", headers={**accept, "range": "bytes=5-", "if-range": '"x"'})
    assert other.status_code == 200
    assert (await large.get("/models/0", headers={**accept, "range": "bytes=99999999-"})).status_code == 416
    small = await large.get("/models/0/state", headers={"range": "bytes=0-7"})
    assert small.status_code == 404


async def test_parts_of_small_models_states_and_json(large: httpx.AsyncClient) -> None:
    model = {"w": np.arange(3.0)}
    await post(large, model)
    await put(large, "/models/0/state", LARGE, {"values": "{}"})
    for path, accept in [
        ("/models/0", SAFETENSORS),
        ("/models/0", "application/json"),
        ("/models/0/state", "*/*"),
    ]:
        whole = (await large.get(path, headers={"accept": accept})).content
        part = await large.get(path, headers={"accept": accept, "range": "bytes=3-12"})
        assert part.status_code == 206
        assert part.content == whole[3:13]


async def test_a_part_of_the_header_is_sent_without_reading_the_whole(
    large: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await post(large, LARGE)

    def never(_self: Document) -> str:
        raise AssertionError("the whole model is read")

    monkeypatch.setattr(Document, "check", never)
    async with client(tmp_path) as other:
        headers = {"accept": SAFETENSORS, "range": "bytes=0-7"}
        assert (await other.get("/models/0", headers=headers)).status_code == 206


async def test_numbers_that_changed_on_the_disk_are_not_served(
    large: httpx.AsyncClient, tmp_path: Path
) -> None:
    await post(large, LARGE)
    await put(large, "/models/0/state", LARGE)
    for name, path in (("global_model", "/models/0"), ("server_state", "/models/0/state")):
        file = tmp_path / f"{name}_v0.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        # The second asks for all; of the others, one has numbers that are as they were.
        for asked in ({}, {"range": "bytes=nonsense"}, {"range": "bytes=0-99999"}, {"range": "bytes=-1"}):
            answer = await large.get(path, headers={"accept": SAFETENSORS, **asked})
            assert answer.status_code == 500
            assert "damaged" in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content[:-1], "cut off"),
        (lambda content: content + b"x", "followed by other bytes"),
        (lambda content: content[:5], "cut off"),
        (lambda _content: b"", "cut off"),
        (lambda content: b"\xff" * 8 + content, "not safetensors"),
        (lambda content: content[:-3] + b"\x02\x00\x00", "BOOL"),
    ],
)
async def test_what_is_no_whole_document_leaves_nothing_behind(
    large: httpx.AsyncClient, tmp_path: Path, change: object, reason: str
) -> None:
    assert callable(change)
    content = change(to_safetensors(LARGE))
    for path, method in (("/models", "POST"), ("/models/0/state", "PUT")):
        answer = await large.request(method, path, content=in_pieces(content, 4000), headers=HEADERS)
        if method == "POST":
            assert answer.status_code == 400
            assert reason in answer.json()["error"]
            assert not list(tmp_path.glob("*safetensors*"))
            assert not list(tmp_path.glob(".*.tmp"))
            await post(large, {"w": np.ones(1)})
    assert answer.status_code == 400
    assert reason in answer.json()["error"]
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", ml_dtypes.bfloat16])
async def test_a_number_that_is_not_finite_is_found_in_any_block(
    large: httpx.AsyncClient, dtype: str
) -> None:
    array = np.zeros(2 * BLOCK_BYTES, dtype)
    content = to_safetensors({"first": np.ones(3), "w": array})
    broken = content[:-2] + b"\xff\xff"
    answer = await large.post("/models", content=broken, headers=HEADERS)
    assert answer.status_code == 400
    assert "'w'" in answer.json()["error"]
    assert (await large.get("/models")).json() == {"versions": []}


@pytest.mark.parametrize(
    ("numbers", "accept", "expected"),
    [
        (500_000, f"application/json, {SAFETENSORS};q=0.5", "application/json"),
        (600_000, f"application/json, {SAFETENSORS};q=0.5", SAFETENSORS),
        (600_000, f"application/json, {SAFETENSORS};q=0", "application/json"),
        (600_000, "application/json, */*;q=0.5", "application/json"),
    ],
)
async def test_a_large_model_is_safetensors_for_all_who_name_it(
    tmp_path: Path, numbers: int, accept: str, expected: str
) -> None:
    async with client(tmp_path, max_body=10_000_000, max_decoded=10_000_000) as http:
        await post(http, {"w": np.zeros(numbers)})
        answer = await http.get("/models/0", headers={"accept": accept})
        assert answer.status_code == 200
        assert answer.headers["content-type"] == expected


async def test_what_is_over_a_limit_names_the_setting(tmp_path: Path) -> None:
    content = to_safetensors({"w": np.zeros(30_000)})
    async with client(tmp_path, max_body=100_000, max_decoded=5_000) as http:
        for body in (content, in_pieces(content, 999)):
            answer = await http.post("/models", content=body, headers=HEADERS)
            assert answer.status_code == 413
            assert "REGISTRY_MAX_BYTES" in answer.json()["error"]
        answer = await http.post("/models", json={"model": {"w": [0.5] * 5000}})
        assert answer.status_code == 413
        assert "REGISTRY_MAX_DECODED_BYTES" in answer.json()["error"]
        await post(http, {"w": np.zeros(5_000)})
        answer = await http.get("/models/0")
        assert answer.status_code == 406
        assert "REGISTRY_MAX_DECODED_BYTES" in answer.json()["error"]
        assert (await http.get("/models/0", headers={"accept": SAFETENSORS})).status_code == 200


async def test_a_file_as_earlier_registries_wrote_it(tmp_path: Path) -> None:
    model: Tensors = {"w": np.arange(6, dtype=np.float32), "b": np.array(0.5), "n": np.array([1], np.int64)}
    fields = {"round_id": "r", "propeller.content": digest(model), "propeller.key": "k-1"}
    (tmp_path / "global_model_v3.safetensors").write_bytes(to_safetensors(model, fields))
    async with client(tmp_path) as http:
        found = await http.get("/models/3", headers={"accept": SAFETENSORS})
        assert found.content == to_safetensors(model, {"round_id": "r"})
        again = await http.post("/models", json={"model": {"w": [1]}}, headers={"idempotency-key": "k-1"})
        assert again.json()["version"] == 3
        info = (await http.get("/models/3/info")).json()
        assert info["digest"] == digest(model)
        assert info["created_at"].startswith("20")


arrays = st.sampled_from(["<f8", "<f4", "<f2", "<i8", "i1", "<u8", "?"]).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False} if "f" in dtype else None,
    )
)
models = st.dictionaries(st.sampled_from(["a", "b", "é", "w/1", "w.2"]), arrays, min_size=1)


@given(model=models, order=st.randoms(use_true_random=False), sizes=st.integers(1, 200))
def test_a_digest_is_of_the_content_whatever_its_order_and_pieces(
    tmp_path_factory: pytest.TempPathFactory, model: Tensors, order: object, sizes: int
) -> None:
    folder = tmp_path_factory.getbasetemp()
    names = list(model)
    order.shuffle(names)  # type: ignore[attr-defined]
    content = to_safetensors({name: model[name] for name in names}, {"note": "x"})
    with Upload(folder, lambda given: given, "digest") as upload:
        for start in range(0, len(content), sizes):
            upload.write(content[start : start + sizes])
        upload.finish()
        assert upload.digest == digest(model)
        written = Document(upload.stream)
        assert written.metadata == {"note": "x", "digest": upload.digest}
        tensors, _metadata = from_safetensors(written.read())
    assert list(tensors) == names
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, model[name])
