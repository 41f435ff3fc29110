"""A client of OCI registries for Wasm programs: push, pull, resolve; every byte is checked against its digest.

It speaks the OCI distribution specification 1.1. Why it is written here: docs/decisions/0020-oci-client.md.
"""

import asyncio
import hashlib
import io
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import httpx

from propeller.oci import manifest
from propeller.oci.answers import read_document
from propeller.oci.authorization import Authorizer, Purpose, Scope
from propeller.oci.connection import RETRY_DELAYS, Connections
from propeller.oci.credentials import Logins
from propeller.oci.errors import LOGIN_HELP, DigestMismatchError, InvalidReferenceError, TooLargeError
from propeller.oci.manifest import Descriptor, digest_of
from propeller.oci.reference import Reference, is_digest
from propeller.oci.upload import Artifact, Progress, upload_program
from propeller.protocol.programs import WASM_MAGIC

MAX_PROGRAM = 64 * 1024 * 1024
"""The largest program that is pulled, in bytes; the sandbox takes no larger one."""

_PIECE = 64 * 1024
_MOST_PROBED = 16
_REFUSED = (
    "nothing of it was used; push the artifact again, or check what stands between you and the registry"
)


class ManifestStore(Protocol):
    """Keeps manifests by digest, so that a reference by digest needs no registry."""

    def get(self, digest: str) -> bytes | None:
        """The manifest, or ``None``."""

    def put(self, digest: str, data: bytes) -> None:
        """Keep a manifest, which is checked already."""


class RegistryClient:
    """Pushes and pulls programs; keeps connections and tokens, close it with ``aclose`` or ``async with``."""

    def __init__(
        self,
        logins: Logins | None = None,
        *,
        login_help: str = LOGIN_HELP,
        manifests: ManifestStore | None = None,
        max_bytes: int = MAX_PROGRAM,
        idle_timeout: float = 30.0,
        total_timeout: float = 600.0,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        """Make a client.

        Args:
            logins: credentials by registry; ``logins_for`` reads those of ``docker login``.
            login_help: how a person gives a login, for errors (``errors.LOGIN_HELP``).
            manifests: where manifests are kept; without it they are asked for each time.
            max_bytes: the largest program that is pulled.
            idle_timeout: seconds a registry may say nothing.
            total_timeout: seconds for one try of a whole transfer.
            retry_delays: seconds between tries after transient faults.
        """
        self._manifests, self._max_bytes = manifests, max_bytes
        self._http = Connections(
            Authorizer(logins or {}, login_help),
            idle_timeout=idle_timeout,
            total_timeout=total_timeout,
            retry_delays=retry_delays,
        )

    async def resolve(self, reference: Reference) -> Artifact:
        """Find the program that a reference names now: one ``HEAD`` if its manifest is kept.

        Raises:
            OciError: with the cause and the remedy.
        """
        digest = reference.digest or await self._current_digest(reference)
        data = await self._manifest(reference, digest)
        found = manifest.layers(data, str(reference))
        typed = [layer for layer in found if manifest.is_wasm_type(layer.media_type)]
        if not typed:
            typed = [layer for layer in found[:_MOST_PROBED] if await self._starts_as_wasm(reference, layer)]
        return Artifact(digest_of(data), manifest.the_one(typed, str(reference), found))

    async def pull(self, reference: Reference, progress: Progress | None = None) -> tuple[Artifact, bytes]:
        """Resolve a reference and get its program's bytes, verified.

        Raises:
            OciError: with the cause and the remedy.
        """
        resolution = await self.resolve(reference)
        sink = io.BytesIO()
        await self.fetch(
            reference, resolution.program.digest, sink, size=resolution.program.size, progress=progress
        )
        return resolution, sink.getvalue()

    async def fetch(
        self,
        reference: Reference,
        digest: str,
        sink: BinaryIO,
        *,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Stream a program of the reference's repository into ``sink``, verified when this returns.

        Args:
            reference: gives the registry and repository.
            digest: of the program, as ``resolve`` found it.
            sink: is written from its start, also when a broken transfer begins again.
            size: what the manifest says, if it is known.
            progress: told after each piece.

        Returns:
            The size in bytes.

        Raises:
            OciError: with the cause and the remedy; then ``sink`` holds nothing that may be used.
        """
        what = f"{reference.registry}/{reference.repository}@{digest}"
        purpose = _purpose(reference, what)
        if size is not None:
            self._check_size(size, what)

        async def transfer() -> int:
            async with self._get(purpose, f"blobs/{digest}") as response:
                announced = response.headers.get("content-length", "")
                total = size if size is not None else int(announced) if announced.isdigit() else 0
                self._check_size(total, what)
                sink.seek(0)
                sink.truncate()
                hashed, done, head = hashlib.sha256(), 0, b""
                async for piece in response.aiter_bytes(_PIECE):
                    hashed.update(piece)
                    sink.write(piece)
                    done += len(piece)
                    head = head or piece[:8]
                    if size is not None and done > size:
                        break  # it is the wrong one already: the digest below says so
                    self._check_size(done, what)
                    if progress is not None:
                        progress(done, total)
            if f"sha256:{hashed.hexdigest()}" != digest or (size is not None and done != size):
                raise DigestMismatchError(
                    f"{what}: the registry sent {done} bytes that are not this", _REFUSED
                )
            manifest.check_wasm(head, what)
            return done

        return await self._http.retrying(purpose, transfer)

    async def push(
        self,
        reference: Reference,
        program: Path | bytes,
        *,
        title: str | None = None,
        progress: Progress | None = None,
    ) -> Artifact:
        """Store a program under a tag, as ``oras push REFERENCE TITLE:application/wasm`` does.

        Blobs that the registry has are not sent again.

        Args:
            reference: where to; it names a tag.
            program: the file, or its bytes.
            title: the file name that the artifact keeps; without it that of ``program``.
            progress: told after each piece.

        Raises:
            OciError: with the cause and the remedy.
        """
        if reference.digest is not None:
            raise InvalidReferenceError(
                f"{reference}: cannot push to a digest", "push to a tag; the digest follows from the file"
            )
        if isinstance(program, Path):
            title, program = title or program.name, await asyncio.to_thread(program.read_bytes)
        title = title or "program.wasm"
        manifest.check_wasm(program, title)
        return await upload_program(self._http, reference, program, title, progress)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def _current_digest(self, reference: Reference) -> str:
        async def head() -> str | None:
            async with self._get(
                _purpose(reference), f"manifests/{reference.target}", method="HEAD", accept=manifest.ACCEPTED
            ) as response:
                digest: str | None = response.headers.get("docker-content-digest")
                return digest

        digest = await self._http.retrying(_purpose(reference), head)
        # Some registries do not say the digest; then it follows from the manifest itself.
        return (
            digest
            if digest and is_digest(digest)
            else digest_of(await self._document(reference, reference.target))
        )

    async def _manifest(self, reference: Reference, digest: str) -> bytes:
        kept = self._manifests.get(digest) if self._manifests is not None else None
        if kept is not None:
            return kept
        data = await self._document(reference, digest)
        if digest_of(data) != digest:
            raise DigestMismatchError(f"{reference}: its manifest is not what {digest} names", _REFUSED)
        if self._manifests is not None:
            self._manifests.put(digest, data)
        return data

    async def _document(self, reference: Reference, target: str) -> bytes:
        async def get() -> bytes:
            async with self._get(
                _purpose(reference), f"manifests/{target}", accept=manifest.ACCEPTED
            ) as response:
                return await read_document(response, str(reference))

        return await self._http.retrying(_purpose(reference), get)

    async def _starts_as_wasm(self, reference: Reference, layer: Descriptor) -> bool:
        async def head_of_layer() -> bytes:
            async with self._get(
                _purpose(reference), f"blobs/{layer.digest}", byte_range="bytes=0-7"
            ) as response:
                async for piece in response.aiter_bytes(len(WASM_MAGIC)):
                    return piece
            return b""

        if layer.size < len(WASM_MAGIC):
            return False
        head = await self._http.retrying(_purpose(reference), head_of_layer)
        return head == WASM_MAGIC

    def _get(
        self,
        purpose: Purpose,
        path: str,
        *,
        method: str = "GET",
        accept: str = "*/*",
        byte_range: str | None = None,
    ) -> AbstractAsyncContextManager[httpx.Response]:
        headers = {"Accept": accept} | ({"Range": byte_range} if byte_range else {})
        return self._http.send(method, f"/v2/{purpose.scope.repository}/{path}", purpose, headers=headers)

    def _check_size(self, size: int, what: str) -> None:
        if size > self._max_bytes:
            raise TooLargeError(
                f"{what} has {size} bytes, over the limit of {self._max_bytes}", "make the program smaller"
            )


def _purpose(reference: Reference, what: str | None = None) -> Purpose:
    return Purpose(reference.registry, Scope(reference.repository), what or str(reference))
