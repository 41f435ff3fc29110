"""Large values by key: files in a folder, or objects in S3, Google Cloud Storage or Azure by URL."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from propeller.process.files import Buffer, remove_left_over, write_durably
from propeller.process.run import StartError
from propeller.protocol.ids import ID_RULE, InvalidIdError, check_id

CHUNK = 1024 * 1024
"""The least size of the pieces that ``stream`` gives, the last one excepted, in bytes."""


class BlobMissingError(LookupError):
    """No blob has this key."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"no blob {key!r}")


class Blobs:
    """Blobs of one service. A key is an id, as a digest, or ids separated by ``/``.

    A blob appears whole or not at all, and is durable once ``put`` returns.
    """

    def __init__(self, place: str | Path) -> None:
        """``place`` is a folder, or a URL: ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///…``.

        The stores' own environment variables give the credentials (``AWS_ACCESS_KEY_ID`` and so on).

        Raises:
            StartError: the folder cannot be used, or the URL is not one of a store.
        """
        text = str(place)
        self._folder: Path | None = None
        self._store: ObjectStore
        if "://" not in text or text.startswith("file://"):
            self._folder = Path(text.removeprefix("file://")).absolute()
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StartError(
                    f"the folder {self._folder} for blobs cannot be used: {error.strerror}"
                ) from None
            remove_left_over([self._folder, *(path for path in self._folder.rglob("*") if path.is_dir())])
            self._store = LocalStore(prefix=self._folder)
            return
        try:
            self._store = from_url(text)
        except (BaseError, ValueError) as error:
            raise StartError(
                f"{text!r} is not a place for blobs ({str(error).splitlines()[0]}); "
                "write a folder, or s3://, gs:// or az:// with a bucket"
            ) from None

    async def put(self, key: str, data: Buffer) -> None:
        """Store a blob, replacing what the key had.

        Raises:
            InvalidIdError: the key cannot be one.
        """
        check_key(key)
        if self._folder is not None:
            # Not through obstore, which does not sync files: an acknowledged blob must survive a power loss.
            await asyncio.to_thread(write_durably, self._folder / key, data)
        else:
            await obstore.put_async(self._store, key, data)

    async def get(self, key: str) -> bytes:
        """A whole blob.

        Raises:
            BlobMissingError: there is none.
            InvalidIdError: the key cannot be one.
        """
        return bytes(await (await self._find(key)).bytes_async())

    async def stream(self, key: str, *, chunk: int = CHUNK) -> AsyncIterator[bytes]:
        """A blob in pieces of about ``chunk`` bytes.

        Raises:
            BlobMissingError: there is none.
            InvalidIdError: the key cannot be one.
        """
        async for piece in (await self._find(key)).stream(min_chunk_size=chunk):
            yield bytes(piece)

    async def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is fine."""
        check_key(key)
        try:
            await obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return

    async def has(self, key: str) -> bool:
        """Whether there is a blob of this key.

        Raises:
            InvalidIdError: the key cannot be one.
        """
        try:
            await obstore.head_async(self._store, check_key(key))
        except FileNotFoundError:
            return False
        return True

    async def list(self) -> list[str]:
        """All keys, sorted."""
        keys = []
        async for batch in obstore.list(self._store):
            keys += [item["path"] for item in batch if _is_key(item["path"])]
        return sorted(keys)

    async def _find(self, key: str) -> "obstore.GetResult":
        check_key(key)
        try:
            return await obstore.get_async(self._store, key)
        except FileNotFoundError:
            raise BlobMissingError(key) from None


def check_key(key: str) -> str:
    """Return ``key`` if it is ids separated by ``/``.

    Raises:
        InvalidIdError: it is not.
    """
    try:
        for part in key.split("/"):
            check_id(part)
    except InvalidIdError:
        raise InvalidIdError(
            f"{key[:80]!r} is not a valid key: separate ids by '/'; an id has {ID_RULE}"
        ) from None
    return key


def _is_key(path: str) -> bool:
    # Temporary files of writers begin with a dot, which no key does.
    try:
        check_key(path)
    except InvalidIdError:
        return False
    return True
