"""Updates are found, streamed, read and removed alike, whether they are in the database or blobs."""

import contextlib
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.small_documents import SMALL_BYTES
from propeller.coordinator.store import RoundStore
from propeller.coordinator.updates import UpdateDocument
from propeller.store.blobs import BlobNotFoundError, BlobStore
from propeller.store.database import Database
from support.coordinator import Peers, configure, ended, send


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
async def kept(url: str, tmp_path: Path) -> AsyncIterator[Place]:
    database = Database(url)
    await RoundStore(database).create()
    yield Place(database, tmp_path / "updates")
    await database.close()


async def test_both_places_are_used_alike(kept: Place) -> None:
    """Both sides of the bound, and a small one that an earlier version has stored as a blob."""
    updates, contents = (
        kept.updates,
        [b"s" * SMALL_BYTES, b"l" * (SMALL_BYTES + 1), b"a small one of before"],
    )
    small, large = [await kept.keep(content) for content in contents[:2]]
    old = hashlib.sha256(contents[2]).hexdigest()
    (kept.folder / old).write_bytes(contents[2])
    assert kept.files() == sorted([large, old])
    digests = [small, large, old]
    assert sorted(await updates.digests()) == sorted(digests)
    assert await updates.missing(digests) == []
    for digest, content in zip(digests, contents, strict=True):
        assert b"".join([piece async for piece in updates.stream(digest)]) == content
        assert await updates.read(digest, 2, 12) == content[2:12]
    await updates.remove([*digests, "not-there"])
    assert (await updates.digests(), kept.files()) == ([], [])
    assert await updates.missing(digests) == digests
    for digest in digests:
        with pytest.raises(BlobNotFoundError):
            await updates.read(digest, 0, 1)
        with pytest.raises(BlobNotFoundError):
            await anext(updates.stream(digest))


async def test_one_that_is_changed_is_missing(kept: Place) -> None:
    digest = await kept.keep(b"content")
    await kept.updates.remove([digest])
    write = await kept.updates.put(UpdateDocument(digest, b"another", 7))
    assert write is not None
    async with kept.database.transaction() as connection:
        await write(connection)
    assert await kept.updates.missing([digest]) == [digest]


async def test_the_same_one_twice(kept: Place) -> None:
    """In two transactions, and in the database after a version before it had come as far as the blob."""
    digest = await kept.keep(b"content")
    (kept.folder / digest).write_bytes(b"content")
    assert await kept.keep(b"content") == digest
    assert await kept.updates.missing([digest]) == []
    await kept.updates.remove([digest])
    await kept.updates.remove(await kept.updates.digests())
    assert (await kept.updates.digests(), kept.files()) == ([], [])


async def test_nothing_is_left_of_one_whose_transaction_fails(kept: Place) -> None:
    write = await kept.updates.put(UpdateDocument("d", b"content", 7))
    assert write is not None

    async def fail() -> None:
        async with kept.database.transaction() as connection:
            await write(connection)
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        await fail()
    assert (await kept.updates.digests(), kept.files()) == ([], [])


async def test_many(kept: Place) -> None:
    """More than a query takes."""
    async with kept.database.transaction() as connection:
        for number in range(1001):
            write = await kept.updates.put(UpdateDocument(f"{number}", b"x", 1))
            assert write is not None
            await write(connection)
    digests = await kept.updates.digests()
    assert sorted(digests, key=int) == [f"{number}" for number in range(1001)]
    await kept.updates.remove(digests)
    assert await kept.updates.digests() == []


async def test_a_damaged_one_is_found_and_a_good_one_is_read_once(kept: Place) -> None:
    digest = await kept.keep(b"l" * (SMALL_BYTES + 1))
    file, again = kept.folder / digest, KeptUpdates(BlobStore(kept.folder), kept.database)
    for updates in (kept.updates, again):
        assert await updates.damaged([digest]) == []
    file.write_bytes(b"l" * SMALL_BYTES + b"L")
    for updates in (kept.updates, again):
        assert await updates.damaged([digest]) == [digest]
    file.unlink()
    with pytest.raises(BlobNotFoundError):
        await kept.updates.damaged([digest])


async def test_a_damaged_update_is_left_out_by_name_and_the_round_goes_on(
    place: str, http: httpx.AsyncClient, peers: tuple[Peers, str], tmp_path: Path
) -> None:
    await configure(http, k_of_n=3, min_updates=2)
    await send(http, "p-2", value=2.0)
    if place == "files":
        [path] = (tmp_path / "updates").iterdir()
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    else:
        with contextlib.closing(sqlite3.connect(tmp_path / "coordinator.db")) as database:
            assert database.execute("UPDATE update_documents SET content = x'00'").rowcount == 1
            database.commit()
    await send(http, "p-1")
    await send(http, "p-3", value=3.0)
    found = await ended(http)
    assert (found["state"], found["num_updates"]) == ("completed", 2)
    [failure] = (await http.get("/rounds/r-1")).json()["failures"]
    assert failure["proplet_id"] == "p-2"
    assert "damaged where the coordinator keeps it" in failure["reason"]
    assert peers[0].aggregations == [["p-1", "p-3"]]
