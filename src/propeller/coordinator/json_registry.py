"""Model registries that read JSON alone, as absmach/propeller's: they allocate no versions, and replace what they have."""

import asyncio

from cachetools import LRUCache

from propeller.coordinator.json_peers import PeerEncoding
from propeller.errors import NotFoundError, UnprocessableError
from propeller.fl.tensors import JSON, encode, from_safetensors
from propeller.process.http import Answer, ServiceClient, ServiceError, UnreadableAnswerError
from propeller.protocol.wire import MAX_INTEGER, MalformedMessageError, decode_trusted

_MAX_KEYS = 64
"""Of versions that were stored last: one that is stored again has the same number."""


class JsonRegistry:
    """A model registry, as one that reads JSON alone.

    Attributes:
        encoding: whether it has shown that it does.
    """

    def __init__(self, client: ServiceClient) -> None:
        """Call it through ``client``."""
        self._client = client
        self.encoding = PeerEncoding(
            "model registry",
            client.base_url,
            "versions have no lineage, server state, digest or aliases there",
        )
        self._allocating, self._allocated = asyncio.Lock(), LRUCache[str, int](_MAX_KEYS)
        self._newest = 0

    async def add_version(self, model: object, key: str) -> int:
        """Store a safetensors document under a number that is free; the same ``key`` again has the same one, in this process.

        Raises:
            ServiceError: the registry refused it or does not answer.
            UnprocessableError: the document is not in memory.
        """
        if not isinstance(model, bytes):
            raise UnprocessableError(
                f"the model registry at {self._client.base_url} is none of this project's: it reads JSON alone, and this model has more "
                "than 4 MiB; have MODEL_REGISTRY_URL name one of this project"
            )
        try:
            async with self._allocating:
                version = self._allocated.get(key) or await self._free_version()
                self._allocated[key], self._newest = version, max(self._newest, version)
            content = await asyncio.to_thread(_request_body, version, model)
            answer = await self._client.request(
                "POST", "/models", content=content, headers={"content-type": JSON}
            )
        except ServiceError as error:
            self.encoding.note_failure(error)
            raise
        stored = self._read(answer)
        if stored.get("version") != version:
            raise UnreadableAnswerError(
                self._client.service,
                f"it was asked to store version {version}, and answered {stored!r:.200}",
            )
        if stored.get("digest"):
            self.encoding.note_safetensors()
        else:
            self.encoding.note_json()
        return version

    def no_state(self) -> UnprocessableError:
        """What is said of a strategy with a server state."""
        return UnprocessableError(
            f"the strategy keeps a server state, and the model registry at {self._client.base_url}, which is none of this project's, "
            "keeps none: have MODEL_REGISTRY_URL name one of this project, or use a strategy without"
        )

    async def _free_version(self) -> int:
        """A number above all that the registry lists and this process has used, under which nothing is."""
        listed = self._read(await self._client.request("GET", "/models")).get("versions")
        known = [number for number in listed if type(number) is int] if isinstance(listed, list) else []
        taken = max([*known, self._newest])
        # absmach/propeller's lists only those that it has read since its start: in steps that double, then between the last two.
        step, free = 1, taken + 1
        while free <= MAX_INTEGER and await self._has(free):
            taken, free, step = free, free + 2 * step, 2 * step
        if free > MAX_INTEGER:
            raise UnreadableAnswerError(
                self._client.service, f"it has versions up to {taken}, or answers to all: none is free"
            )
        while free - taken > 1:
            middle = (taken + free) // 2
            if await self._has(middle):
                taken = middle
            else:
                free = middle
        return free

    async def _has(self, version: int) -> bool:
        try:
            await self._client.request("GET", f"/models/{version}")
        except ServiceError as error:
            if error.kind is not NotFoundError:
                raise
            return False
        return True

    def _read(self, answer: Answer) -> dict[str, object]:
        try:
            return decode_trusted(answer.content)
        except MalformedMessageError as error:
            raise UnreadableAnswerError(self._client.service, f"its answer cannot be read: {error}") from None


def _request_body(version: int, document: bytes) -> bytes:
    return b'{"version":%d,"model":%b}' % (version, encode(from_safetensors(document)[0], JSON)[1])
