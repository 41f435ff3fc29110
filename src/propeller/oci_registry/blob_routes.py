"""Blobs: downloads from the disk, uploads to it, never a whole one in memory."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from propeller.oci.errors import DigestMismatchError
from propeller.oci.layout import Layout
from propeller.oci_registry.errors import DistributionError, check_digest, repository_of, too_large_error
from propeller.process.keyed_locks import KeyedLocks
from propeller.web.ranges import Body, asked_ranges, respond

_WRITE_BYTES = 1024 * 1024
"""The size of the pieces in which files are written."""
_BLOB = "application/octet-stream"
_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})")


def create_routes(layout: Layout, max_blob: int) -> list[Route]:
    """The routes of ``/v2/{name}/blobs/…``; ``max_blob`` is the largest blob, in bytes."""
    blobs = _BlobHandlers(layout, max_blob)
    uploads, upload = "/v2/{name:path}/blobs/uploads", "/v2/{name:path}/blobs/uploads/{upload}"
    blob = "/v2/{name:path}/blobs/{digest}"
    return [
        Route(f"{uploads}/", blobs.start, methods=["POST"]),
        Route(uploads, blobs.start, methods=["POST"]),
        Route(upload, blobs.status),
        Route(upload, blobs.append, methods=["PATCH"]),
        Route(upload, blobs.finish, methods=["PUT"]),
        Route(upload, blobs.cancel, methods=["DELETE"]),
        Route(blob, blobs.get),
        Route(blob, blobs.delete, methods=["DELETE"]),
    ]


class _BlobHandlers:
    def __init__(self, layout: Layout, max_bytes: int) -> None:
        self._layout, self._max_bytes = layout, max_bytes
        self._upload_locks = KeyedLocks()  # one request at a time writes to an upload

    async def get(self, request: Request) -> Response:
        """GET and HEAD, also of a range."""
        repository_of(request)
        digest = check_digest(request.path_params["digest"])
        unknown = DistributionError(404, "BLOB_UNKNOWN", f"there is no blob {digest}")
        path = await asyncio.to_thread(self._layout.find_blob, digest)
        if path is None:
            raise unknown

        def open_blob() -> BinaryIO:
            try:
                return path.open("rb")
            except FileNotFoundError:  # it has just been deleted
                raise unknown from None

        if (size := _size(path)) is None:
            raise unknown
        etag = f'"{digest}"'
        headers = {"Docker-Content-Digest": digest, "ETag": etag}
        if request.method == "HEAD":
            headers |= {"Content-Length": str(size), "Accept-Ranges": "bytes"}
            return Response(headers=headers, media_type=_BLOB)
        ranges = asked_ranges(request.headers, size, etag)
        if ranges == []:
            wrong = {"Content-Range": f"bytes */{size}"}
            raise DistributionError(416, "RANGE_INVALID", f"the blob has {size} bytes", wrong)
        return respond(Body(b"", size, open_blob), ranges, headers, _BLOB)

    async def delete(self, request: Request) -> Response:
        """DELETE a blob."""
        repository_of(request)
        digest = check_digest(request.path_params["digest"])
        if not await asyncio.to_thread(self._layout.delete_blob, digest):
            raise DistributionError(404, "BLOB_UNKNOWN", f"there is no blob {digest}")
        return Response(status_code=202)

    async def start(self, request: Request) -> Response:
        """POST: start an upload; with ``digest`` the body is all of it; with ``mount`` a blob that is here is used."""
        name, query = repository_of(request), request.query_params
        mount = query.get("mount")
        if mount is not None:
            there = await asyncio.to_thread(self._layout.find_blob, check_digest(mount))
            if there is not None:
                return _blob_created(name, mount)
        whole = query.get("digest")
        if whole is not None:
            check_digest(whole)
        upload = await asyncio.to_thread(self._layout.start_upload)
        if whole is None:
            return _upload_status(name, upload, 0)
        return await self._finish(request, name, upload, whole)

    async def status(self, request: Request) -> Response:
        """GET an upload: how many bytes of it have come."""
        name, upload = _upload_of(request)
        path = self._layout.find_upload(upload)
        if path is None or (size := _size(path)) is None:
            raise _unknown_upload()
        return _upload_status(name, upload, size, status=204)

    async def append(self, request: Request) -> Response:
        """PATCH: the next bytes."""
        name, upload = _upload_of(request)
        async with self._upload(upload) as path:
            size = await self._receive(request, path)
        return _upload_status(name, upload, size)

    async def finish(self, request: Request) -> Response:
        """PUT: the last bytes, if there are any, and the digest of the whole."""
        name, upload = _upload_of(request)
        self._find_upload(upload)
        return await self._finish(request, name, upload, check_digest(request.query_params.get("digest", "")))

    async def cancel(self, request: Request) -> Response:
        """DELETE an upload."""
        _name, upload = _upload_of(request)
        async with self._upload(upload) as path:
            path.unlink()
        return Response(status_code=204)

    async def _finish(self, request: Request, name: str, upload: str, digest: str) -> Response:
        async with self._upload(upload) as path:
            await self._receive(request, path)
            try:
                await asyncio.to_thread(self._layout.finish_upload, upload, digest)
            except DigestMismatchError as error:
                raise DistributionError(400, "DIGEST_INVALID", error.cause) from None
        return _blob_created(name, digest)

    async def _receive(self, request: Request, path: Path) -> int:
        """Append the body to an upload's file; returns the file's size."""
        size = _size(path) or 0
        asked = request.headers.get("content-range")
        if asked is not None:
            match = _CONTENT_RANGE.fullmatch(asked)
            if match is None or int(match[1]) != size:
                raise DistributionError(
                    416, "BLOB_UPLOAD_INVALID", f"expected the bytes from {size} on", {"Range": _range(size)}
                )
        length = request.headers.get("content-length", "0")
        if length.isdigit() and size + int(length) > self._max_bytes:
            raise self._refuse_upload(path)
        with path.open("ab") as file:
            batch = bytearray()
            async for piece in request.stream():
                batch += piece
                size += len(piece)
                if size > self._max_bytes:
                    raise self._refuse_upload(path)
                if len(batch) >= _WRITE_BYTES:
                    await asyncio.to_thread(file.write, batch)
                    batch = bytearray()
            file.write(batch)
        return size

    def _refuse_upload(self, path: Path) -> DistributionError:
        path.unlink()
        return too_large_error(self._max_bytes)

    @contextlib.asynccontextmanager
    async def _upload(self, upload: str) -> AsyncIterator[Path]:
        """The file of an upload, for this request alone; another one may have ended it while this one waited."""
        async with self._upload_locks.holding(upload):
            yield self._find_upload(upload)

    def _find_upload(self, upload: str) -> Path:
        path = self._layout.find_upload(upload)
        if path is None:
            raise _unknown_upload()
        return path


def _upload_of(request: Request) -> tuple[str, str]:
    """The repository and the upload in a request's path."""
    return repository_of(request), str(request.path_params["upload"])


def _unknown_upload() -> DistributionError:
    return DistributionError(404, "BLOB_UPLOAD_UNKNOWN", "there is no such upload; start another one")


def _size(path: Path) -> int | None:
    """The size of a file; ``None`` if another request has just removed it."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def _blob_created(name: str, digest: str) -> Response:
    headers = {"Location": f"/v2/{name}/blobs/{digest}", "Docker-Content-Digest": digest}
    return Response(status_code=201, headers=headers)


def _upload_status(name: str, upload: str, size: int, status: int = 202) -> Response:
    headers = {
        "Location": f"/v2/{name}/blobs/uploads/{upload}",
        "Docker-Upload-UUID": upload,
        "Range": _range(size),
    }
    return Response(status_code=status, headers=headers)


def _range(size: int) -> str:
    return f"0-{max(size - 1, 0)}"
