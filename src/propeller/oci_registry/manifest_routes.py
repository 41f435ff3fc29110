"""Manifests, tags, referrers and the catalogue."""

import asyncio
import json
import re
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from propeller.digests import digest_of, is_digest
from propeller.oci.layout import Layout
from propeller.oci.manifest import IMAGE_INDEX, IMAGE_MANIFEST
from propeller.oci.reference import is_tag
from propeller.oci_registry.errors import DistributionError, check_digest, repository_of, too_large_error
from propeller.protocol.wire import MalformedMessageError, decode_object

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""The largest manifest; the specification asks for at least this."""

_MAX_PAGE = 1000
"""The most names in one answer."""

_COUNT = re.compile(r"[0-9]{1,18}")
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII)
"""RFC 6838, section 4.2; it goes back to clients as a header, so nothing else may."""


def create_routes(layout: Layout) -> list[Route]:
    """The routes of ``/v2/{name}/manifests/…``, ``tags/list``, ``referrers/…`` and ``/v2/_catalog``."""
    manifests = _ManifestHandlers(layout)
    target = "/v2/{name:path}/manifests/{target}"
    return [
        Route("/v2/_catalog", manifests.catalog),
        Route("/v2/{name:path}/tags/list", manifests.tags),
        Route("/v2/{name:path}/referrers/{digest}", manifests.referrers),
        Route(target, manifests.get),
        Route(target, manifests.put, methods=["PUT"]),
        Route(target, manifests.delete, methods=["DELETE"]),
    ]


class _ManifestHandlers:
    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    async def get(self, request: Request) -> Response:
        """GET and HEAD by tag or digest."""
        name, target = repository_of(request), _target_of(request)
        found = await asyncio.to_thread(self._layout.find_manifest, name, target)
        data = await asyncio.to_thread(self._layout.read_blob, found.digest) if found is not None else None
        if found is None or data is None:
            raise DistributionError(404, "MANIFEST_UNKNOWN", f"{name} has no manifest {target}")
        headers = {"Docker-Content-Digest": found.digest, "ETag": f'"{found.digest}"'}
        return Response(data, media_type=found.media_type, headers=headers)

    async def put(self, request: Request) -> Response:
        """PUT under a tag or a digest, once everything it names is here."""
        name, target = repository_of(request), _target_of(request)
        data = await _read_manifest(request)
        if is_digest(target) and digest_of(data) != target:
            raise DistributionError(400, "DIGEST_INVALID", f"the manifest is {digest_of(data)}, not {target}")
        document, media_type = _parse_manifest(data, request.headers.get("content-type", ""))
        for part in _blobs_of(document):
            if await asyncio.to_thread(self._layout.find_blob, part) is None:
                raise DistributionError(
                    404, "MANIFEST_BLOB_UNKNOWN", f"there is no blob {part}; upload it first"
                )
        stored = await asyncio.to_thread(self._layout.store_manifest, name, target, media_type, data)
        headers = {
            "Location": f"/v2/{name}/manifests/{stored.digest}",
            "Docker-Content-Digest": stored.digest,
        }
        if subject := _subject_of(document):
            headers["OCI-Subject"] = subject
        return Response(status_code=201, headers=headers)

    async def delete(self, request: Request) -> Response:
        """DELETE a tag, or a manifest by digest with all its tags."""
        name, target = repository_of(request), _target_of(request)
        if not await asyncio.to_thread(self._layout.delete_manifest, name, target):
            raise DistributionError(404, "MANIFEST_UNKNOWN", f"{name} has no manifest {target}")
        return Response(status_code=202)

    async def tags(self, request: Request) -> Response:
        """The tags of a repository, in pages."""
        name = repository_of(request)
        tags = await asyncio.to_thread(self._layout.list_tags, name)
        if tags is None:
            raise DistributionError(404, "NAME_UNKNOWN", f"there is no repository {name}")
        page, headers = _page_of(request, tags)
        return JSONResponse({"name": name, "tags": page}, headers=headers)

    async def catalog(self, request: Request) -> Response:
        """The repositories, in pages."""
        page, headers = _page_of(request, await asyncio.to_thread(self._layout.list_repositories))
        return JSONResponse({"repositories": page}, headers=headers)

    async def referrers(self, request: Request) -> Response:
        """The manifests whose ``subject`` is a digest (signatures, for example), as an image index."""
        name, digest = repository_of(request), check_digest(request.path_params["digest"])
        wanted = request.query_params.get("artifactType")
        found = await asyncio.to_thread(self._find_referrers, name, digest)
        if wanted is not None:
            found = [entry for entry in found if entry.get("artifactType") == wanted]
        headers = {"OCI-Filters-Applied": "artifactType"} if wanted is not None else {}
        index = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": found}
        return JSONResponse(index, headers=headers, media_type=IMAGE_INDEX)

    def _find_referrers(self, name: str, digest: str) -> list[dict[str, Any]]:
        found = []
        for entry in self._layout.list_manifests(name):
            data = self._layout.read_blob(entry.digest)
            document = {} if data is None else json.loads(data)
            if _subject_of(document) == digest:
                config = document.get("config")
                kind = document.get("artifactType") or (config or {}).get("mediaType")
                fields = {"mediaType": entry.media_type, "digest": entry.digest, "size": entry.size}
                extra = {"artifactType": kind, "annotations": document.get("annotations")}
                found.append(fields | {key: value for key, value in extra.items() if value})
        return found


def _target_of(request: Request) -> str:
    target = str(request.path_params["target"])
    if ":" in target:
        return check_digest(target)
    if not is_tag(target):
        raise DistributionError(400, "MANIFEST_INVALID", f"{target[:150]!r} is not a tag")
    return target


async def _read_manifest(request: Request) -> bytes:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_MANIFEST_BYTES:
            raise too_large_error(MAX_MANIFEST_BYTES)
    return bytes(data)


def _parse_manifest(data: bytes, content_type: str) -> tuple[dict[str, Any], str]:
    """The manifest and its media type, which the header says, the document, or both alike."""
    try:
        document = decode_object(data)
    except MalformedMessageError as error:
        raise DistributionError(
            400, "MANIFEST_INVALID", f"the manifest is not a JSON object: {error}"
        ) from None
    sent, said = content_type.partition(";")[0].strip(), document.get("mediaType")
    if isinstance(said, str) and sent and said != sent:
        raise DistributionError(
            400, "MANIFEST_INVALID", f"the manifest is {said[:100]}, the request says {sent[:100]}"
        )
    media_type = sent or (IMAGE_MANIFEST if said is None else said)
    if not isinstance(media_type, str) or not _MEDIA_TYPE.fullmatch(media_type):
        raise DistributionError(
            400, "MANIFEST_INVALID", f"mediaType: {str(media_type)[:100]!r} is not a media type"
        )
    return document, media_type


def _blobs_of(document: dict[str, Any]) -> list[str]:
    """The digests of what must have been uploaded before: configuration, layers, and the manifests of an index."""
    entries = [document.get("config")]
    for name in ("layers", "manifests"):
        listed = document.get(name)
        if not isinstance(listed, list | None):
            raise DistributionError(400, "MANIFEST_INVALID", f"{name}: must be a list of descriptors")
        entries += listed or []
    parts = []
    for entry in entries:
        if entry is None:
            continue
        digest = entry.get("digest") if isinstance(entry, dict) else None
        if not isinstance(digest, str):
            raise DistributionError(400, "MANIFEST_INVALID", "a descriptor in the manifest has no digest")
        parts.append(check_digest(digest))
    return parts


def _subject_of(document: Any) -> str | None:
    subject = document.get("subject") if isinstance(document, dict) else None
    digest = subject.get("digest") if isinstance(subject, dict) else None
    return digest if isinstance(digest, str) and is_digest(digest) else None


def _page_of(request: Request, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """The names after ``last``, at most ``n``, and the ``Link`` to the next page."""
    asked, last = request.query_params.get("n", str(_MAX_PAGE)), request.query_params.get("last")
    if not _COUNT.fullmatch(asked):
        raise DistributionError(400, "PAGINATION_NUMBER_INVALID", f"n must be a number, not {asked[:20]!r}")
    count = min(int(asked), _MAX_PAGE)
    rest = [name for name in names if last is None or name > last]
    page = rest[:count]
    if not page or len(rest) <= count:
        return page, {}
    query = urlencode({"n": count, "last": page[-1]})
    return page, {"Link": f'<{request.url.path}?{query}>; rel="next"'}
