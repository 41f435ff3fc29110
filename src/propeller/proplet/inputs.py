"""What a task is given: model, dataset and hyperparameters, as environment and as files in ``/in`` (docs/programs.md)."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from propeller.process.http import ServiceClient, ServiceError
from propeller.process.logs import get_logger
from propeller.proplet.peers import DATA_STORE, MODEL_REGISTRY, Peers
from propeller.proplet.work import TaskError, together
from propeller.protocol.rounds import model_version
from propeller.protocol.wire import MalformedMessageError, decode_object

log = get_logger("inputs")

ENV_BYTES = 1024 * 1024
"""Up to this size model and dataset are also given as environment variables."""

JSON, SAFETENSORS = "application/json", "application/vnd.safetensors"

_KEPT_BYTES = 32 * 1024 * 1024
"""Bytes of answers that are kept, to be revalidated instead of fetched."""


@dataclass(frozen=True)
class Given:
    """A task's inputs: environment variables, and files by their name in ``/in``."""

    env: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class _Body:
    """An answer that was fetched: its entity tag, and for JSON how many samples it holds."""

    etag: str
    media_type: str
    content: bytes
    samples: int = 0


class Inputs:
    """Fetches inputs; what has not changed since is not sent again (entity tags, RFC 9110)."""

    def __init__(self, peers: Peers, proplet_id: str) -> None:
        self._peers, self._proplet_id = peers, proplet_id
        self._kept: OrderedDict[tuple[str, str], _Body] = OrderedDict()

    async def fetch(self, env: Mapping[str, str]) -> Given:
        """What the task with this environment is given; model and dataset are fetched at the same time.

        Raises:
            TaskError: the model or the dataset cannot be had.
        """
        given = Given()
        if "HYPERPARAMS" in env:
            given.files["hyperparams.json"] = env["HYPERPARAMS"].encode()
        wanted = (("MODEL_URI", self._model), ("ROUND_ID", self._dataset))
        await together(*(fetch(env, given) for variable, fetch in wanted if env.get(variable)))
        return given

    async def _model(self, env: Mapping[str, str], given: Given) -> None:
        reference = env["MODEL_URI"]
        path = f"/models/{model_version(reference)}"
        async with self._peers.at(MODEL_REGISTRY, env) as registry:
            if registry is None:
                raise TaskError(f"MODEL_URI is {reference} but MODEL_REGISTRY_URL is not set on this proplet")
            try:
                document, tensors = await together(
                    self._get(registry, path, JSON), self._get(registry, path, SAFETENSORS)
                )
            except (ServiceError, MalformedMessageError) as error:
                log.warning("Failed to fetch model from registry: %s", error, model_uri=reference)
                raise TaskError(f"model {reference} cannot be fetched: {error}") from error
        _give(given, "model.json", "MODEL_DATA", document.content)
        if tensors.media_type == SAFETENSORS:
            given.files["model.safetensors"] = tensors.content

    async def _dataset(self, env: Mapping[str, str], given: Given) -> None:
        async with self._peers.at(DATA_STORE, env) as store:
            if store is None:
                log.info("no dataset is given to the program: DATA_STORE_URL is not set")
                return
            path = f"/datasets/{self._proplet_id}"
            log.info("Fetching dataset from Local Data Store: %s", store.base_url + path)
            try:
                dataset = await self._get(store, path, JSON)
            except (ServiceError, MalformedMessageError) as error:
                reason = str(error)
                if isinstance(error, ServiceError) and error.status == httpx.codes.NOT_FOUND:
                    reason = f"HTTP 404 Not Found (no dataset for {self._proplet_id}; POST one to {path})"
                log.warning("Failed to fetch dataset from Local Data Store: %s", reason)
                raise TaskError(f"dataset cannot be fetched from {store.base_url}{path}: {reason}") from error
        _give(given, "dataset.json", "DATASET_DATA", dataset.content)
        log.info("Successfully fetched dataset with %d samples and passed to client", dataset.samples)

    async def _get(self, service: ServiceClient, path: str, media_type: str) -> _Body:
        key = (service.base_url + path, media_type)
        kept = self._kept.get(key)
        headers = {"Accept": media_type if media_type == JSON else f"{media_type}, {JSON};q=0.1"}
        if kept is not None:
            headers["If-None-Match"] = kept.etag
        response = await service.request("GET", path, headers=headers)
        if kept is not None and response.status_code == httpx.codes.NOT_MODIFIED:
            return kept
        large = len(response.content) > ENV_BYTES
        body = await asyncio.to_thread(_read, response) if large else _read(response)
        self._keep(key, body)
        return body

    def _keep(self, key: tuple[str, str], body: _Body) -> None:
        self._kept.pop(key, None)
        if body.etag:
            self._kept[key] = body
        while sum(len(kept.content) for kept in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)


def _read(response: httpx.Response) -> _Body:
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    samples = 0
    if media_type != SAFETENSORS:
        document = decode_object(response.content)
        data = document.get("data")
        samples = len(data) if isinstance(data, list) else 0
    return _Body(
        etag=response.headers.get("etag", ""),
        media_type=media_type,
        content=response.content,
        samples=samples,
    )


def _give(given: Given, file: str, variable: str, content: bytes) -> None:
    given.files[file] = content
    if len(content) < ENV_BYTES:
        given.env[variable] = content.decode().strip()
