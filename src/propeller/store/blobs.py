"""Large values by key: files in a folder, or objects in S3, Google Cloud Storage or Azure by URL."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from propeller.errors import NotFoundError, StartError, UnavailableError
from propeller.process.files import Buffer, DurableFile, remove_left_over, write_durably
from propeller.protocol.ids import ID_RULE, InvalidIdError, check_id

MIN_PIECE_BYTES = 1024 * 1024
"""The least size of the pieces that ``stream`` yields, but for the last one."""


class BlobNotFoundError(NotFoundError):
    """No blob has this key."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"no blob {key!r}")


class BlobStoreError(UnavailableError):
    """The folder or the object store cannot be used now."""


class BlobStore:
    """Blobs of one service. A key is an id, as a digest, or ids separated by ``/``.

    A blob appears whole or not at all, and is durable once ``put`` returns.
    """

    def __init__(self, location: str | Path) -> None:
        """``location`` is a folder, or a URL: ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///…``.

        Credentials are those of the store's own environment variables (``AWS_ACCESS_KEY_ID`` and so on).

        Raises:
            StartError: the folder cannot be used, or the URL is not one of a store.
        """
        text = str(location)
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
                f"{text!r} is not a location for blobs ({str(error).splitlines()[0]}); "
                "write a folder, or s3://, gs:// or az:// with a bucket"
            ) from None

    async def put(self, key: str, data: Buffer) -> None:
        """Store a blob, replacing what the key had.

        Raises:
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        with _store_errors(check_key(key)):
            if self._folder is not None:
                # Not through obstore, which does not sync files: an acknowledged blob must survive a power loss.
                await asyncio.to_thread(write_durably, self._folder / key, data)
            else:
                await obstore.put_async(self._store, key, data)

    def new_file(self) -> DurableFile:
        """A file for a blob that is not in memory, to be closed; ``put_file`` stores what was written to it.

        Raises:
            BlobStoreError: it cannot be made.
        """
        with _store_errors(""):
            return DurableFile(self._folder or Path(tempfile.gettempdir()), "blob")

    async def put_file(self, key: str, file: DurableFile) -> None:
        """Store a file of ``new_file`` as a blob, replacing what the key had, which is an id without ``/``.

        Raises:
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        with _store_errors(check_id(key)):
            if self._folder is not None:
                await asyncio.to_thread(file.commit, self._folder / key)
            else:
                file.stream.seek(0)
                await obstore.put_async(self._store, key, file.stream)

    async def get(self, key: str) -> bytes:
        """A whole blob.

        Raises:
            BlobNotFoundError: there is none.
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        with _store_errors(check_key(key)):
            return bytes(await (await obstore.get_async(self._store, key)).bytes_async())

    async def read(self, key: str, start: int, end: int) -> bytes:
        """A blob's bytes from ``start`` to below ``end``, which it must have.

        Raises:
            BlobNotFoundError: there is none.
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        with _store_errors(check_key(key)):
            return bytes(await obstore.get_range_async(self._store, key, start=start, end=end))

    async def stream(self, key: str, *, min_piece: int = MIN_PIECE_BYTES) -> AsyncIterator[bytes]:
        """A blob in pieces of at least ``min_piece`` bytes, but for the last one.

        Raises:
            BlobNotFoundError: there is none.
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        with _store_errors(check_key(key)):
            found = await obstore.get_async(self._store, key)
            async for piece in found.stream(min_chunk_size=min_piece):
                yield bytes(piece)

    async def delete(self, key: str) -> None:
        """Remove a blob; one that is not there is fine.

        Raises:
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        with contextlib.suppress(BlobNotFoundError), _store_errors(check_key(key)):
            await obstore.delete_async(self._store, key)

    async def has(self, key: str) -> bool:
        """Whether there is a blob of this key.

        Raises:
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        try:
            with _store_errors(check_key(key)):
                await obstore.head_async(self._store, key)
        except BlobNotFoundError:
            return False
        return True

    async def version(self, key: str) -> str:
        """What is another text once a blob was written again or changed; empty if the store does not say.

        Raises:
            BlobNotFoundError: there is none.
            BlobStoreError: the store cannot be used now.
            InvalidIdError: the key cannot be one.
        """
        with _store_errors(check_key(key)):
            return (await obstore.head_async(self._store, key))["e_tag"] or ""

    async def list(self) -> list[str]:
        """All keys, sorted.

        Raises:
            BlobStoreError: the store cannot be used now.
        """
        keys = []
        with _store_errors(""):
            async for batch in obstore.list(self._store):
                keys += [item["path"] for item in batch if _is_key(item["path"])]
        return sorted(keys)


@contextlib.contextmanager
def _store_errors(key: str) -> Iterator[None]:
    """Raises the errors of a folder or object store as those of this module."""
    try:
        yield
    except FileNotFoundError:
        raise BlobNotFoundError(key) from None
    except (BaseError, OSError) as error:
        raise BlobStoreError(f"blobs cannot be read or written: {str(error).splitlines()[0]}") from error


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
