"""The services that the coordinator calls: the model registry and the aggregator."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
from cachetools import LRUCache

from propeller.errors import NotFoundError, PropellerError
from propeller.fl.tensors import (
    SAFETENSORS,
    SAFETENSORS_SEQ,
    Specs,
    TensorError,
    Tensors,
    TensorSpec,
    decode,
    from_safetensors,
    specs_of,
)
from propeller.process.http import ServiceClient, ServiceError
from propeller.protocol.wire import MalformedMessageError, decode_object

_MAX_KNOWN_VERSIONS = 64


class ModelRegistryClient:
    """Model versions: what is known of one, a new one for an aggregate, and the server state beside it."""

    def __init__(self, client: ServiceClient) -> None:
        """Call the registry through ``client``."""
        self._client = client
        self._specs: LRUCache[int, Specs] = LRUCache(_MAX_KNOWN_VERSIONS)

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
                known = specs_of(await self._model(version))
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
        info = self._json(answer)
        if type(info.get("version")) is not int:
            raise ServiceError(self._client.service, None, "its answer names no version")
        return info

    def remember_specs(self, version: int, tensors: Tensors) -> Specs:
        """Keep what is known of a version's tensors, so that the next round need not ask for it."""
        specs = self._specs[version] = specs_of(tensors)
        return specs

    async def add_version(self, model: bytes, key: str) -> int:
        """Store a safetensors document as a new version; the same ``key`` again gives the version it gave first.

        Raises:
            ServiceError: the registry refused it or does not answer.
        """
        answer = await self._client.request(
            "POST",
            "/models",
            content=model,
            headers={"content-type": SAFETENSORS, "idempotency-key": key},
            retry=False,
        )
        version = self._json(answer).get("version")
        if type(version) is not int:
            raise ServiceError(self._client.service, None, "its answer names no version")
        return version

    async def put_state(self, version: int, state: bytes) -> None:
        """Keep a version's server state, a safetensors document; the same one again is fine.

        Raises:
            ServiceError: the registry refused it or does not answer.
        """
        path, headers = f"/models/{version}/state", {"content-type": SAFETENSORS}
        await self._client.request("PUT", path, content=state, headers=headers)

    async def set_alias(self, name: str, version: int) -> None:
        """Have a name, such as ``EXPERIMENT/latest``, stand for a version from now on.

        Raises:
            ServiceError: the registry refused it or does not answer.
        """
        await self._client.request("PUT", f"/aliases/{quote(name)}", json={"version": version})

    async def state(self, version: int) -> bytes | None:
        """A version's server state, a safetensors document; ``None`` if it has none.

        Raises:
            ServiceError: the registry does not answer.
        """
        try:
            answer = await self._client.request("GET", f"/models/{version}/state")
        except ServiceError as error:
            if error.kind is NotFoundError:
                return None
            raise
        return answer.content

    async def _model(self, version: int) -> Tensors:
        accept = {"accept": f"{SAFETENSORS}, application/json;q=0.5"}
        try:
            answer = await self._client.request("GET", f"/models/{version}", headers=accept)
        except ServiceError as error:
            raise self._not_found(version, error) from None
        try:
            content_type = answer.headers.get("content-type")
            return (await asyncio.to_thread(decode, content_type, answer.content))[0]
        except ValueError as error:
            raise ServiceError(self._client.service, None, f"version {version}: {error}") from None

    def _not_found(self, version: int | str, error: ServiceError) -> PropellerError:
        if error.temporary:
            return error
        return NotFoundError(
            f"model_ref: the model registry has no version {version} ({error.reason}); GET /models lists those "
            "it has, POST /models adds one"
        )

    def _json(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            return decode_object(answer.content)
        except MalformedMessageError as error:
            raise ServiceError(self._client.service, None, f"its answer cannot be read: {error}") from None


def _read_specs(info: Mapping[str, Any]) -> Specs:
    return {
        name: TensorSpec(str(spec["dtype"]), tuple(spec["shape"])) for name, spec in info["tensors"].items()
    }


class AggregatorClient:
    """Makes one model of many updates."""

    def __init__(self, client: ServiceClient) -> None:
        """Call the aggregator through ``client``."""
        self._client = client

    async def aggregate(self, updates: AsyncIterator[bytes]) -> tuple[bytes, Tensors]:
        """Aggregate a stream of safetensors documents; neither side holds more than one of them.

        Returns:
            The aggregate as a safetensors document, and its tensors (they share its memory).

        Raises:
            ServiceError: the aggregator refused an update or does not answer.
        """
        answer = await self._client.request(
            "POST",
            "/aggregate",
            params={"strategy": "fedavg"},
            content=updates,
            headers={"content-type": SAFETENSORS_SEQ, "accept": SAFETENSORS},
            retry=False,
        )
        try:
            return answer.content, from_safetensors(answer.content)[0]
        except TensorError as error:
            raise ServiceError(self._client.service, None, f"its aggregate cannot be read: {error}") from None
