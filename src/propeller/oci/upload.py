"""Uploads to an OCI registry: blobs and manifests, by the distribution specification 1.1."""

from collections.abc import AsyncIterator, Callable

import httpx

from propeller.digests import digest_of
from propeller.oci import manifest
from propeller.oci.authorization import Purpose, Scope
from propeller.oci.connection import PIECE_BYTES, Body, RegistryConnections
from propeller.oci.errors import DigestMismatchError, RegistryError
from propeller.oci.manifest import Descriptor
from propeller.oci.reference import Reference

Progress = Callable[[int, int], None]
"""Takes the bytes done and the bytes in all."""

_MISSING = frozenset({404})


class Upload:
    """Uploads to one repository: blobs, each only if the registry lacks it, then a manifest under the reference's tag."""

    def __init__(self, http: RegistryConnections, reference: Reference) -> None:
        """Nothing is sent yet."""
        self._http, self._tag = http, reference.target
        self._root = f"/v2/{reference.repository}"
        self._purpose = Purpose(reference.registry, Scope(reference.repository, "pull,push"), str(reference))

    async def store_blob(self, descriptor: Descriptor, data: bytes, progress: Progress | None) -> None:
        """Store a blob; ``progress`` is told how far it is.

        Raises:
            OciError: with the cause and the remedy.
        """

        async def store() -> None:
            if await self._has(descriptor.digest):
                if progress is not None:
                    progress(descriptor.size, descriptor.size)
                return
            location = await self._start()
            mark = "&" if "?" in location else "?"
            await self._put(
                f"{location}{mark}digest={descriptor.digest}", "application/octet-stream", data, progress
            )

        await self._http.with_retries(self._purpose, store)

    async def store_manifest(self, data: bytes) -> str:
        """Store a manifest under the tag; returns its digest.

        Raises:
            OciError: with the cause and the remedy.
        """
        digest = digest_of(data)

        async def store() -> str:
            stored = await self._put(
                f"{self._root}/manifests/{self._tag}", manifest.IMAGE_MANIFEST, data, None
            )
            return stored or digest

        stored = await self._http.with_retries(self._purpose, store)
        if stored != digest:
            raise DigestMismatchError(
                f"{self._purpose.what}: the registry stored {stored[:80]} instead of {digest}",
                "push it again",
            )
        return digest

    async def _has(self, digest: str) -> bool:
        url = f"{self._root}/blobs/{digest}"
        async with self._http.send("HEAD", url, self._purpose, allow=_MISSING) as response:
            return response.status_code == httpx.codes.OK

    async def _start(self) -> str:
        """Where the registry wants the bytes; it may be relative, and may have a query of its own."""
        url, headers = f"{self._root}/blobs/uploads/", {"Content-Length": "0"}
        async with self._http.send("POST", url, self._purpose, headers=headers) as response:
            location = response.headers.get("location", "")
            if not location:
                raise RegistryError(
                    f"{self._purpose.what}: the registry did not say where to upload to",
                    "see the registry's own log",
                    temporary=False,
                )
            return str(response.url.join(location))

    async def _put(self, url: str, media_type: str, data: bytes, progress: Progress | None) -> str | None:
        headers = {"Content-Type": media_type, "Content-Length": str(len(data))}
        async with self._http.send(
            "PUT", url, self._purpose, headers=headers, body=_pieces(data, progress)
        ) as response:
            digest: str | None = response.headers.get("docker-content-digest")
            return digest


def _pieces(data: bytes, progress: Progress | None) -> Body:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]
            if progress is not None:
                progress(min(start + PIECE_BYTES, len(data)), len(data))

    return pieces
