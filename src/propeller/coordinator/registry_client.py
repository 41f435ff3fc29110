"""The model registry, as the coordinator calls it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, BinaryIO
from urllib.parse import quote

from cachetools import LRUCache

from propeller.coordinator.documents import read_document_header
from propeller.coordinator.json_registry import JsonRegistry
from propeller.errors import NotFoundError, PropellerError
from propeller.fl.tensors import (
    JSON,
    SAFETENSORS,
    Specs,
    Tensors,
    TensorSpec,
    decode,
    from_safetensors,
    media_type,
    specs_of,
    to_safetensors,
)
from propeller.fl.tensors.json import encode_json
from propeller.fl.tensors.safetensors import Header, read_header
from propeller.process.byte_lru import ByteLru
from propeller.process.http import Answer, ServiceClient, ServiceError, UnreadableAnswerError
from propeller.protocol.models import SENT_ALONG_BYTES, SentModel, without_updates
from propeller.protocol.wire import MalformedMessageError, decode_trusted

VALUES_FIELD = "values"
"""Where a server state's document has its values, in ``__metadata__``."""

_MAX_KNOWN_BYTES = 64 * 1024 * 1024
"""Of the models and states that are kept, so that the next round need not ask for them."""

_MAX_KNOWN_VERSIONS = 64
_COPIED_BYTES = 1024 * 1024
_PARTIAL_CONTENT = 206


class RegistryDocument:
    """A document of the model registry, which is read as it is needed."""

    def __init__(
        self, client: ServiceClient, path: str, as_whole: Callable[[], Awaitable[bytes]] | None = None
    ) -> None:
        """``path`` is where it is: ``/models/7``; ``as_whole`` gives it from a registry that has it as JSON."""
        self._client, self._path, self._as_whole = client, path, as_whole

    async def read(self, start: int, end: int) -> bytes:
        """As ``StoredDocument.read``."""
        headers = {"accept": SAFETENSORS, "range": f"bytes={start}-{end - 1}"}

        async def read_part(answer: Answer) -> bytes:
            if self._as_whole is not None and _is_json(answer):
                return (await self._as_whole())[start:end]
            # Not by ``content``: the connection would keep it for as long as it has nothing else to do.
            content = b"".join([piece async for piece in answer.aiter_bytes()])
            return content if answer.status_code == _PARTIAL_CONTENT else content[start:end]

        return await self._client.get(self._path, read_part, headers=headers)


class ModelRegistryClient:
    """Model versions: what is known of one, a new one for an aggregate, and the server state beside it."""

    def __init__(self, client: ServiceClient) -> None:
        """Call the registry through ``client``."""
        self._client = client
        self._json_registry = JsonRegistry(client)
        self._specs: LRUCache[int, Specs] = LRUCache(_MAX_KNOWN_VERSIONS)
        self._digests: LRUCache[int, str | None] = LRUCache(_MAX_KNOWN_VERSIONS)
        self._documents: ByteLru[int, bytes] = ByteLru(_MAX_KNOWN_BYTES, len)
        self._states: ByteLru[int, bytes] = ByteLru(_MAX_KNOWN_BYTES, len)  # empty: it has none

    async def specs(self, version: int) -> Specs:
        """The names, types and shapes of a version's tensors; asked for once, as versions never change.

        Raises:
            NotFoundError: there is no such version.
            ServiceError: the registry does not answer.
        """
        known = self._specs.get(version)
        if known is None:
            try:
                known = _read_specs(await self.info(version))
            except NotFoundError:
                # A registry of absmach/propeller knows models, and nothing about them.
                known = specs_of(from_safetensors(await self.document(version))[0])
                self._digests[version] = None
            self._specs[version] = known
        return known

    async def info(self, version: int | str) -> dict[str, Any]:
        """What the registry says of a version or alias: ``version``, ``tensors``, ``lineage``, ``has_state`` …

        Raises:
            NotFoundError: there is no such version.
            ServiceError: the registry does not answer.
        """
        try:
            answer = await self._client.request("GET", f"/models/{quote(str(version))}/info")
        except ServiceError as error:
            raise self._not_found(version, error) from None
        return self._note_digest(self._json(answer))

    async def digest(self, version: int) -> str | None:
        """The digest of a version, by which a device may read it; ``None`` if the registry has no digests.

        Raises:
            NotFoundError: there is no such version.
            ServiceError: the registry does not answer.
        """
        if version not in self._digests:
            try:
                await self.info(version)
            except NotFoundError:  # a registry of absmach/propeller knows models, and nothing about them
                self._digests[version] = None
        return self._digests[version]

    def _note_digest(self, answer: dict[str, Any]) -> dict[str, Any]:
        """What the registry says of a version, whose digest is kept.

        Raises:
            ServiceError: it names no version.
        """
        version, digest = answer.get("version"), answer.get("digest")
        if type(version) is not int:
            raise UnreadableAnswerError(self._client.service, "its answer names no version")
        self._digests[version] = digest if isinstance(digest, str) else None
        return answer

    def remember(self, version: int, document: bytes, specs: Specs, state: bytes | None) -> None:
        """Keep a version that was just stored, so that the next round need not ask for it."""
        self._specs[version], self._documents[version], self._states[version] = (
            specs,
            document,
            state or b"",
        )
        self._digests.setdefault(version, None)

    async def document(self, version: int) -> bytes:
        """A version as a safetensors document.

        Raises:
            NotFoundError: there is no such version.
            ServiceError: the registry does not answer.
        """
        known = self._documents.get(version)
        if known is None:
            answer = await self._get_model(version)
            if answer.headers.get("content-type") == SAFETENSORS:
                known = answer.content
            else:  # a registry of absmach/propeller
                known = to_safetensors(await self._decode(f"/models/{version}", answer, answer.content))
            self._documents[version] = known
        return known

    def sent_along(self, version: int) -> SentModel | None:
        """A version as devices get it with the start of their tasks, if it is small and was stored by this process just now."""
        document = self._documents.get(version)
        if document is None or len(document) > SENT_ALONG_BYTES:
            return None
        tensors, metadata = from_safetensors(document, finite=False)
        # As the model registry sends it.
        return SentModel(
            text=encode_json(tensors, {}).decode(), tensors=to_safetensors(tensors, without_updates(metadata))
        )

    async def write_document(self, version: int, file: BinaryIO) -> None:
        """Write a version as a safetensors document to a file; it is not in memory as a whole.

        Raises:
            NotFoundError: there is no such version.
            ServiceError: the registry does not answer.
        """
        try:
            await self._write(f"/models/{version}", file)
        except ServiceError as error:
            raise self._not_found(version, error) from None

    async def write_state(self, version: int, file: BinaryIO) -> bool:
        """Write a version's server state to a file, likewise; ``False`` if it has none.

        Raises:
            ServiceError: the registry does not answer.
        """
        try:
            await self._write(f"/models/{version}/state", file)
        except ServiceError as error:
            if error.kind is not NotFoundError:
                raise
            return False
        return True

    async def _write(self, path: str, file: BinaryIO) -> None:
        async with self._client.stream("GET", path, headers={"accept": SAFETENSORS}) as answer:
            if _is_json(answer):  # a registry of absmach/propeller
                document = to_safetensors(await self._decode(path, answer, await answer.aread()))
                await asyncio.to_thread(file.write, document)
                return
            async for piece in answer.aiter_bytes(_COPIED_BYTES):
                await asyncio.to_thread(file.write, piece)

    async def json_document(self, version: int) -> bytes:
        """A version as JSON.

        Raises:
            NotFoundError: there is no such version.
            ServiceError: the registry does not answer.
        """
        try:
            answer = await self._client.request(
                "GET", f"/models/{version}", headers={"accept": "application/json"}
            )
        except ServiceError as error:
            raise self._not_found(version, error) from None
        return answer.content

    def document_in_parts(self, version: int) -> RegistryDocument:
        """A version that need not be in memory."""
        return RegistryDocument(self._client, f"/models/{version}", lambda: self.document(version))

    def state_in_parts(self, version: int) -> RegistryDocument:
        """A version's server state that need not be in memory; ``state`` says whether there is one."""
        return RegistryDocument(self._client, f"/models/{version}/state")

    async def add_version(self, model: bytes | AsyncIterator[bytes], key: str) -> int:
        """Store a safetensors document as a new version; the same ``key`` again gives the version it gave first.

        A registry that reads JSON alone, as absmach/propeller's, is sent that (``json_registry``).

        Raises:
            ServiceError: the registry refused it or does not answer.
            UnprocessableError: it reads JSON alone, and the model is large.
        """
        if self._json_registry.encoding.is_json:
            return await self._json_registry.add_version(model, key)
        try:
            answer = await self._client.request(
                "POST",
                "/models",
                content=model,
                headers={"content-type": SAFETENSORS, "idempotency-key": key},
                retry=False,
            )
        except ServiceError as error:
            if not self._json_registry.encoding.may_be_json(error):
                raise
            return await self._json_registry.add_version(model, key)
        return int(self._note_digest(self._json(answer))["version"])

    async def put_state(self, version: int, state: bytes | AsyncIterator[bytes]) -> None:
        """Keep a version's server state, a safetensors document; the same one again is fine.

        Raises:
            ServiceError: the registry refused it or does not answer.
            UnprocessableError: it keeps none.
        """
        path, headers = f"/models/{version}/state", {"content-type": SAFETENSORS}
        try:
            await self._client.request(
                "PUT", path, content=state, headers=headers, retry=isinstance(state, bytes)
            )
        except ServiceError as error:
            if error.kind is NotFoundError and not error.explained:
                raise self._json_registry.no_state() from None
            raise

    def require_state(self) -> None:
        """See that it is not known already that the registry keeps no server states.

        Raises:
            UnprocessableError: it is.
        """
        if self._json_registry.encoding.is_json:
            raise self._json_registry.no_state()

    async def set_alias(self, name: str, version: int) -> None:
        """Have a name, such as ``EXPERIMENT/latest``, stand for a version from now on; a registry of absmach/propeller has no names.

        Raises:
            ServiceError: the registry refused it or does not answer.
        """
        try:
            await self._client.request("PUT", f"/aliases/{quote(name)}", json={"version": version})
        except ServiceError as error:
            if error.kind is not NotFoundError or error.explained:
                raise

    async def state(self, version: int) -> bytes | None:
        """A version's server state, a safetensors document; ``None`` if it has none.

        Raises:
            ServiceError: the registry does not answer.
        """
        known = self._states.get(version)
        if known is None:
            try:
                answer = await self._client.request("GET", f"/models/{version}/state")
            except ServiceError as error:
                if error.kind is NotFoundError:
                    return None
                raise
            known = self._states[version] = answer.content
        return known or None

    async def values_of_state(self, version: int) -> dict[str, Any]:
        """The values in a version's server state, of which the tensors may be large and are not read; empty without one.

        Raises:
            ServiceError: the registry does not answer.
        """
        known = self._states.get(version)
        if known is not None:
            return read_state_values(known) if known else {}
        if not await self.has_state(version):
            return {}
        return state_values(await read_document_header(self.state_in_parts(version)))

    async def has_state(self, version: int) -> bool:
        """Whether a version has a server state.

        Raises:
            ServiceError: the registry does not answer.
        """
        try:
            return bool((await self.info(version)).get("has_state"))
        except NotFoundError:  # a registry of absmach/propeller knows models, and nothing about them
            return False

    async def _get_model(self, version: int) -> Answer:
        accept = {"accept": f"{SAFETENSORS}, application/json;q=0.5"}
        try:
            return await self._client.request("GET", f"/models/{version}", headers=accept)
        except ServiceError as error:
            raise self._not_found(version, error) from None

    async def _decode(self, path: str, answer: Answer, content: bytes) -> Tensors:
        try:
            content_type = answer.headers.get("content-type")
            return (await asyncio.to_thread(decode, content_type, content))[0]
        except ValueError as error:
            raise UnreadableAnswerError(self._client.service, f"{path}: {error}") from None

    def _not_found(self, version: int | str, error: ServiceError) -> PropellerError:
        if error.temporary:
            return error
        return NotFoundError(
            f"model_ref: the model registry has no version {version} ({error.reason}); GET /models lists those "
            "it has, POST /models adds one"
        )

    def _json(self, answer: Answer) -> dict[str, Any]:
        try:
            return decode_trusted(answer.content)
        except MalformedMessageError as error:
            raise UnreadableAnswerError(self._client.service, f"its answer cannot be read: {error}") from None


def _is_json(answer: Answer) -> bool:
    return media_type(answer.headers.get("content-type")) == JSON


def _read_specs(info: Mapping[str, Any]) -> Specs:
    return {
        name: TensorSpec(str(spec["dtype"]), tuple(spec["shape"])) for name, spec in info["tensors"].items()
    }


def read_state_values(state: bytes) -> dict[str, Any]:
    """The values in a server state's document.

    Raises:
        InvalidError: they are not JSON.
    """
    return state_values(read_header(state))


def state_values(header: Header) -> dict[str, Any]:
    """The values in the header of a server state's document.

    Raises:
        InvalidError: they are not JSON.
    """
    return decode_trusted(header.metadata.get(VALUES_FIELD, "{}"))


def has_tensors(document: bytes) -> bool:
    """Whether a document has tensors beside its metadata."""
    return bool(read_header(document).entries)
