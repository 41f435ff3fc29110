"""Updates are found, streamed, read and removed alike, whether they are in the database or blobs."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.small_documents import SMALL_BYTES
from propeller.coordinator.store import RoundStore
from propeller.coordinator.updates import UpdateDocument
from propeller.store.blobs import BlobNotFoundError, BlobStore
from propeller.store.database import Database


class Place:
    """The updates of a coordinator, and where they are."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database, self.folder = database, folder
        self.updates = KeptUpdates(BlobStore(folder), database)

    async def keep(self, content: bytes) -> str:
        """Keep one as when it is accepted; its digest."""
        digest = hashlib.sha256(content).hexdigest()
        write = await self.updates.put(UpdateDocument(digest, content, len(content)))
        if write is not None:
            async with self.database.transaction() as connection:
                await write(connection)
        return digest

    def files(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
async def place(url: str, tmp_path: Path) -> AsyncIterator[Place]:
    database = Database(url)
    await RoundStore(database).create()
    yield Place(database, tmp_path / "updates")
    await database.close()


async def test_both_places_are_used_alike(place: Place) -> None:
    """Both sides of the bound, and a small one that an earlier version has stored as a blob."""
    updates, contents = (
        place.updates,
        [b"s" * SMALL_BYTES, b"l" * (SMALL_BYTES + 1), b"a small one of before"],
    )
    small, large = [await place.keep(content) for content in contents[:2]]
    old = hashlib.sha256(contents[2]).hexdigest()
    (place.folder / old).write_bytes(contents[2])
    assert place.files() == sorted([large, old])
    digests = [small, large, old]
    assert sorted(await updates.digests()) == sorted(digests)
    assert await updates.missing(digests) == []
    for digest, content in zip(digests, contents, strict=True):
        assert b"".join([piece async for piece in updates.stream(digest)]) == content
        assert await updates.read(digest, 2, 12) == content[2:12]
    await updates.remove([*digests, "not-there"])
    assert (await updates.digests(), place.files()) == ([], [])
    assert await updates.missing(digests) == digests
    for digest in digests:
        with pytest.raises(BlobNotFoundError):
            await updates.read(digest, 0, 1)
        with pytest.raises(BlobNotFoundError):
            await anext(updates.stream(digest))


async def test_one_that_is_changed_is_missing(place: Place) -> None:
    digest = await place.keep(b"content")
    await place.updates.remove([digest])
    write = await place.updates.put(UpdateDocument(digest, b"another", 7))
    assert write is not None
    async with place.database.transaction() as connection:
        await write(connection)
    assert await place.updates.missing([digest]) == [digest]


async def test_the_same_one_twice(place: Place) -> None:
    """In two transactions, and in the database after a version before it had come as far as the blob."""
    digest = await place.keep(b"content")
    (place.folder / digest).write_bytes(b"content")
    assert await place.keep(b"content") == digest
    assert await place.updates.missing([digest]) == []
    await place.updates.remove([digest])
    await place.updates.remove(await place.updates.digests())
    assert (await place.updates.digests(), place.files()) == ([], [])


async def test_nothing_is_left_of_one_whose_transaction_fails(place: Place) -> None:
    write = await place.updates.put(UpdateDocument("d", b"content", 7))
    assert write is not None

    async def fail() -> None:
        async with place.database.transaction() as connection:
            await write(connection)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await fail()
    assert (await place.updates.digests(), place.files()) == ([], [])


async def test_many(place: Place) -> None:
    """More than a query takes."""
    async with place.database.transaction() as connection:
        for number in range(1001):
            write = await place.updates.put(UpdateDocument(f"{number}", b"x", 1))
            assert write is not None
            await write(connection)
    digests = await place.updates.digests()
    assert sorted(digests, key=int) == [f"{number}" for number in range(1001)]
    await place.updates.remove(digests)
    assert await place.updates.digests() == []
