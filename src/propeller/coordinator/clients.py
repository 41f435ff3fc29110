"""The services that the coordinator calls: the model registry and the aggregator."""

import asyncio
from collections.abc import AsyncIterator

from cachetools import LRUCache

from propeller.errors import NotFoundError
from propeller.fl.tensors import (
    SAFETENSORS,
    SAFETENSORS_SEQ,
    Shapes,
    TensorError,
    Tensors,
    decode,
    from_safetensors,
    shapes_of,
)
from propeller.process.http import ServiceClient, ServiceError

_MAX_KNOWN_VERSIONS = 64


class ModelRegistryClient:
    """Model versions: the shapes of one, and a new one for an aggregate."""

    def __init__(self, client: ServiceClient) -> None:
        """Call the registry through ``client``."""
        self._client = client
        self._shapes: LRUCache[int, Shapes] = LRUCache(_MAX_KNOWN_VERSIONS)

    async def shapes(self, version: int) -> Shapes:
        """The names and shapes of a version's tensors; asked for once, as versions never change.

        Raises:
            NotFoundError: there is no such version.
            ServiceError: the registry does not answer.
        """
        known = self._shapes.get(version)
        if known is not None:
            return known
        try:
            answer = await self._client.request(
                "GET", f"/models/{version}", headers={"accept": f"{SAFETENSORS}, application/json;q=0.5"}
            )
        except ServiceError as error:
            if error.temporary:
                raise
            raise NotFoundError(
                f"model_ref: the model registry has no version {version} ({error.reason}); GET /models lists those "
                "it has, POST /models adds one"
            ) from None
        try:
            content_type = answer.headers.get("content-type")
            tensors, _metadata = await asyncio.to_thread(decode, content_type, answer.content)
        except ValueError as error:
            raise ServiceError(self._client.service, None, f"version {version}: {error}") from None
        return self.remember_shapes(version, tensors)

    def remember_shapes(self, version: int, tensors: Tensors) -> Shapes:
        """Keep the shapes of a version, so that the next round need not ask for them."""
        shapes = self._shapes[version] = shapes_of(tensors)
        return shapes

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
        try:
            version = answer.json()["version"]
        except (ValueError, KeyError, TypeError):
            version = None
        if type(version) is not int:
            raise ServiceError(self._client.service, None, "its answer names no version")
        return version


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
