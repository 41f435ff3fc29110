"""Blobs in a folder: what is put is there, whole; keys cannot leave the folder."""

import asyncio
import os
from pathlib import Path

import pytest

from propeller.errors import StartError
from propeller.process.files import DurableFile, remove_left_over, write_durably
from propeller.protocol.ids import InvalidIdError
from propeller.store.blobs import BlobNotFoundError, BlobStore, BlobStoreError


async def test_what_is_put_is_got_and_listed_until_deleted(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "new" / "blobs")
    await blobs.put("rounds/r-1/b.safetensors", b"second")
    await blobs.put("rounds/r-1/a.safetensors", memoryview(b"first"))
    await blobs.put("rounds/r-10/a", b"other")

    assert await blobs.get("rounds/r-1/a.safetensors") == b"first"
    assert await blobs.list() == ["rounds/r-1/a.safetensors", "rounds/r-1/b.safetensors", "rounds/r-10/a"]

    assert await blobs.has("rounds/r-1/a.safetensors")
    await blobs.delete("rounds/r-1/a.safetensors")
    assert not await blobs.has("rounds/r-1/a.safetensors")
    await blobs.delete("rounds/r-1/a.safetensors")
    assert await BlobStore(tmp_path / "new" / "blobs").list() == [
        "rounds/r-1/b.safetensors",
        "rounds/r-10/a",
    ]


async def test_a_blob_is_replaced_whole(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    await asyncio.gather(*(blobs.put("k", bytes([n]) * 100_000) for n in range(8)))
    data = await blobs.get("k")
    assert len(data) == 100_000
    assert len(set(data)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["k"]


async def test_a_blob_streams_in_pieces(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    data = os.urandom(3_000_000)
    await blobs.put("big", data)
    pieces = [piece async for piece in blobs.stream("big", min_piece=500_000)]
    assert b"".join(pieces) == data
    assert len(pieces) > 1
    assert await blobs.read("big", 1_000_000, 1_000_003) == data[1_000_000:1_000_003]


@pytest.mark.parametrize("location", ["folder", "memory:///"])
async def test_a_blob_from_a_file(tmp_path: Path, location: str) -> None:
    """Nothing is left of one that is not stored."""
    blobs = BlobStore(tmp_path / location if location == "folder" else location)
    content = os.urandom(12_000_000)
    for stored in (True, False):
        with blobs.new_file() as file:
            file.stream.write(content)
            if stored:
                await blobs.put_file("big", file)
    assert await blobs.get("big") == content
    assert await blobs.list() == ["big"]
    assert [path.name for path in tmp_path.glob("folder/*")] == ["big"] * (location == "folder")


async def test_missing_blobs_say_so(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    with pytest.raises(BlobNotFoundError, match="no blob 'a/b'"):
        await blobs.get("a/b")
    with pytest.raises(BlobNotFoundError):
        [piece async for piece in blobs.stream("a/b")]
    with pytest.raises(BlobNotFoundError):
        await blobs.read("a/b", 0, 1)


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", "../a", "a/../b", ".hidden", "a b", "a\x00", "a/" + "b" * 200]
)
async def test_keys_cannot_leave_the_folder(tmp_path: Path, key: str) -> None:
    blobs = BlobStore(tmp_path / "in")
    for action in (blobs.put(key, b""), blobs.get(key), blobs.delete(key)):
        with pytest.raises(InvalidIdError, match="not a valid key"):
            await action
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


async def test_unfinished_writes_are_not_blobs_and_those_left_over_are_removed(tmp_path: Path) -> None:
    left = tmp_path / "r" / ".k.1.tmp"
    left.parent.mkdir()
    left.touch()
    with DurableFile(tmp_path / "r", "k") as running:
        running.stream.write(b"half")
        assert await BlobStore(tmp_path).list() == []
        assert not left.exists()
        running.commit(tmp_path / "r" / "k")
    assert await BlobStore(tmp_path).get("r/k") == b"half"
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["k"]
    remove_left_over([tmp_path / "nowhere"])


def test_of_several_exclusive_writers_one_succeeds(tmp_path: Path) -> None:
    write_durably(tmp_path / "f", b"1", replace=False)
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "f", b"2", replace=False)
    assert (tmp_path / "f").read_bytes() == b"1"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("url", ["ftp://host/x", "nonsense://x"])
def test_an_unknown_store_says_what_to_write(url: str) -> None:
    with pytest.raises(StartError, match="s3://"):
        BlobStore(url)


def test_stores_by_url_open_without_a_network() -> None:
    BlobStore("s3://bucket/prefix")


async def test_a_store_that_cannot_be_used_may_be_used_later(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path)
    (tmp_path / "k").touch()
    for action in (blobs.put("k/a", b""), blobs.get("k/a"), blobs.has("k/a"), blobs.delete("k/a")):
        with pytest.raises(BlobStoreError) as error:
            await action
        assert error.value.temporary
