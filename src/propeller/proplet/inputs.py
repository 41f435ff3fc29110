"""What a task is given: model, dataset and hyperparameters, as environment and as files in ``/in`` (docs/programs.md).

Also the clients of the services that these come from, and that updates go to.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from propeller.errors import NotFoundError
from propeller.fl.data_split import split_positions
from propeller.process.background import gather_or_cancel
from propeller.process.byte_lru import ByteLru
from propeller.process.http import Answer, ServiceClient, ServiceError, is_not_modified
from propeller.process.logs import get_logger
from propeller.process.retry import doubling
from propeller.proplet.errors import TaskError
from propeller.proplet.large_files import PIECE_BYTES, LargeFiles
from propeller.proplet.local_data import LocalData
from propeller.protocol.models import LARGE_BYTES, MODEL_DIGEST_HEADER, SentModel
from propeller.protocol.multipart import MULTIPART, unpack
from propeller.protocol.rounds import model_version
from propeller.protocol.task import encode_json
from propeller.protocol.wire import MalformedMessageError, decode_object, decode_trusted, read_count
from propeller.wasm.task_inputs import MAX_ENV_BYTES, TaskInputs

log = get_logger("inputs")

COORDINATOR = "COORDINATOR_URL"
MODEL_REGISTRY = "MODEL_REGISTRY_URL"
DATA_STORE = "DATA_STORE_URL"

_SERVICE_NAMES = {
    COORDINATOR: "coordinator",
    MODEL_REGISTRY: "model registry",
    DATA_STORE: "Local Data Store",
}

JSON, SAFETENSORS = "application/json", "application/vnd.safetensors"

_MODEL_TYPES = f"{MULTIPART}, {JSON};q=0.5, {SAFETENSORS};q=0.1"
"""JSON and safetensors in one answer. Of a large model a registry has no JSON for one who takes safetensors too; others' have JSON only."""

MODEL_FILE, STRATEGY_FILE = "model.safetensors", "strategy.safetensors"

PATIENCE_S = 60.0
"""How long a task waits for a service that its inputs come from, in seconds: a restart of it costs no round."""

_RETRY_DELAYS_S = doubling(0.1, 2.0)

_MAX_CACHE_BYTES = 32 * 1024 * 1024
"""Bytes of answers that are kept, to be revalidated instead of fetched."""


class ServiceClients:
    """Clients of the services, by the variable that holds a service's address. Use with ``async with``.

    An address is the proplet's own, or the one that a task has in its environment.
    """

    def __init__(self, urls: Mapping[str, str | None], credentials: tuple[str, str] | None = None) -> None:
        """``credentials`` (id and key) go to the services of ``urls`` only, never to one that a task names."""
        self._urls = {variable: url.rstrip("/") for variable, url in urls.items() if url}
        self._clients = {
            variable: _client(variable, url, credentials) for variable, url in self._urls.items()
        }

    def url(self, variable: str, env: Mapping[str, str]) -> str | None:
        """The service's address: the task's own, else the proplet's."""
        return env.get(variable, "").rstrip("/") or self._urls.get(variable)

    @contextlib.asynccontextmanager
    async def connect(self, variable: str, env: Mapping[str, str]) -> AsyncIterator[ServiceClient | None]:
        """A client of the service, ``None`` if nobody says where it is."""
        url = self.url(variable, env)
        if url is None or url == self._urls.get(variable):
            yield self._clients.get(variable)
            return
        async with _client(variable, url) as client:
            yield client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        for client in self._clients.values():
            await client.aclose()


def _client(variable: str, url: str, credentials: tuple[str, str] | None = None) -> ServiceClient:
    name = _SERVICE_NAMES[variable]
    if variable == COORDINATOR:  # an update that it does not take has another way
        return ServiceClient(name, url, credentials=credentials)
    return ServiceClient(
        name, url, credentials=credentials, retry_delays=_RETRY_DELAYS_S, patience_s=PATIENCE_S
    )


@dataclass(frozen=True)
class _Document:
    """A model or a dataset that was fetched.

    Attributes:
        etag: its entity tag.
        forms: what it is, by media type: JSON, safetensors, or both.
        samples: how many a dataset in JSON holds.
    """

    etag: str
    forms: Mapping[str, bytes]
    samples: int = 0


@dataclass(frozen=True)
class _Place:
    """Where a document goes if it is large: under a name into a task's folder."""

    folder: Path
    name: str


class InputFetcher:
    """Fetches inputs; what has not changed since is not sent again (entity tags, RFC 9110)."""

    def __init__(
        self,
        services: ServiceClients,
        proplet_id: str,
        large: LargeFiles,
        local_data: LocalData | None = None,
    ) -> None:
        """``large`` has what is too large for memory; ``local_data`` is the device's own, and then no data store is asked."""
        self._services, self._proplet_id, self._large = services, proplet_id, large
        self._local_data = local_data
        self._cache: ByteLru[tuple[str, str], _Document] = ByteLru(
            _MAX_CACHE_BYTES, lambda document: sum(map(len, document.forms.values()))
        )

    async def fetch(self, env: Mapping[str, str], folder: Path, model: SentModel | None = None) -> TaskInputs:
        """What the task with this environment is given; model and dataset are fetched at the same time.

        Args:
            env: the task's environment.
            folder: the task's, for large files.
            model: the base model, if it came with the start of the task.

        Raises:
            TaskError: something cannot be fetched, or the dataset cannot be split.
        """
        inputs = TaskInputs()
        for variable in (COORDINATOR, MODEL_REGISTRY):
            if (url := self._services.url(variable, env)) is not None:
                inputs.env[variable] = url
        if "HYPERPARAMS" in env:
            inputs.files["hyperparams.json"] = env["HYPERPARAMS"].encode()
        if model is not None:
            inputs.add_document("model.json", "MODEL_DATA", model.text.encode())
            inputs.files[MODEL_FILE] = model.tensors
        fetches = (
            ("" if model else "MODEL_URI", self._fetch_model),
            ("ROUND_ID", self._fetch_dataset),
            ("FL_STRATEGY", self._fetch_strategy_tensors),
        )
        await gather_or_cancel(
            *(fetch(env, inputs, folder) for variable, fetch in fetches if env.get(variable))
        )
        return inputs

    async def _fetch_model(self, env: Mapping[str, str], inputs: TaskInputs, folder: Path) -> None:
        reference = env["MODEL_URI"]
        path = f"/models/{model_version(reference)}"
        async with self._services.connect(MODEL_REGISTRY, env) as registry:
            if registry is None:
                raise TaskError(f"MODEL_URI is {reference} but MODEL_REGISTRY_URL is not set on this proplet")
            try:
                place = _Place(folder, MODEL_FILE)
                model = await self._get(registry, path, _MODEL_TYPES, place, headers=_reader(env))
            except (ServiceError, MalformedMessageError) as error:
                log.warning("Failed to fetch model from registry: %s", error, model_uri=reference)
                raise TaskError(f"model {reference} cannot be fetched: {error}") from error
        if isinstance(model, Path):
            inputs.files[MODEL_FILE] = model
            return
        if (text := model.forms.get(JSON)) is not None:
            inputs.add_document("model.json", "MODEL_DATA", text)
        if (tensors := model.forms.get(SAFETENSORS)) is not None:
            inputs.files[MODEL_FILE] = tensors

    async def _fetch_dataset(self, env: Mapping[str, str], inputs: TaskInputs, _folder: Path) -> None:
        if self._local_data is not None:
            own = await self._local_data.dataset()
            dataset = _Document(own.version, {JSON: own.content}, own.samples)
        else:
            stored = await self._stored_dataset(env)
            if stored is None:
                log.info("no dataset is given to the program: DATA_STORE_URL is not set")
                return
            dataset = stored
        if env.get("FL_SPLIT"):
            dataset = await self._split(dataset, env)
        inputs.add_document("dataset.json", "DATASET_DATA", dataset.forms[JSON])
        said = (
            "Successfully fetched dataset with %d samples and passed to client"
            if self._local_data is None
            else "The device's own data, %d samples, is given to the program"
        )
        log.info(said, dataset.samples)

    async def _stored_dataset(self, env: Mapping[str, str]) -> _Document | None:
        """What the data store has for this device; ``None`` if nobody says where one is."""
        async with self._services.connect(DATA_STORE, env) as store:
            if store is None:
                return None
            path = f"/datasets/{self._proplet_id}"
            log.info("Fetching dataset from Local Data Store: %s", store.base_url + path)
            try:
                dataset = await self._get(store, path, JSON)
            except (ServiceError, MalformedMessageError) as error:
                reason = str(error)
                if isinstance(error, ServiceError) and error.kind is NotFoundError:
                    reason = f"HTTP 404 Not Found (no dataset for {self._proplet_id}; POST one to {path})"
                log.warning("Failed to fetch dataset from Local Data Store: %s", reason)
                raise TaskError(f"dataset cannot be fetched from {store.base_url}{path}: {reason}") from error
        if not isinstance(dataset, _Document) or JSON not in dataset.forms:
            raise TaskError(f"dataset cannot be fetched from {store.base_url}{path}: it is not JSON")
        return dataset

    async def _split(self, dataset: _Document, env: Mapping[str, str]) -> _Document:
        """The part of a dataset that the task is for: of training, or held out for evaluation."""
        evaluates = env.get("FL_MODE") == "evaluate"
        key = (f"{env['FL_SPLIT']} {evaluates}", dataset.etag)
        known = self._cache.get(key)
        if known is not None and dataset.etag:
            return known
        try:
            content, samples = await asyncio.to_thread(
                split_dataset, dataset.forms[JSON], env["FL_SPLIT"], evaluates=evaluates
            )
        except MalformedMessageError as error:
            raise TaskError(f"FL_SPLIT: {error}") from None
        except ValueError as error:
            raise TaskError(
                f"data.split: the dataset of {self._proplet_id}: {error}: give this device more data, leave it out of the "
                "experiment (selection.names), or take data.split out"
            ) from None
        part = self._cache[key] = _Document(dataset.etag, {JSON: content}, samples)
        return part

    async def _fetch_strategy_tensors(self, env: Mapping[str, str], inputs: TaskInputs, folder: Path) -> None:
        """Fetch what the strategy has for devices of the base model's server state, if it says that there is something."""
        try:
            strategy = decode_object(env["FL_STRATEGY"])
        except MalformedMessageError as error:
            raise TaskError(f"FL_STRATEGY: {error}") from None
        if not strategy.get("tensors"):
            return
        path = f"/models/{model_version(env.get('MODEL_URI', ''))}/state"
        async with self._services.connect(MODEL_REGISTRY, env) as registry:
            if registry is None:
                raise TaskError("FL_STRATEGY has tensors but MODEL_REGISTRY_URL is not set on this proplet")
            try:
                place = _Place(folder, STRATEGY_FILE)
                document = await self._get(registry, path, SAFETENSORS, place, headers=_reader(env))
            except (ServiceError, MalformedMessageError) as error:
                if isinstance(error, ServiceError) and error.kind is NotFoundError:
                    log.info("the base model has no server state yet: the strategy begins", path=path)
                    return
                raise TaskError(
                    f"the strategy's tensors cannot be fetched from {registry.base_url}{path}: {error}"
                ) from error
        if not isinstance(document, Path) and SAFETENSORS not in document.forms:
            raise TaskError(f"the strategy's tensors at {registry.base_url}{path} are not {SAFETENSORS}")
        inputs.files[STRATEGY_FILE] = document if isinstance(document, Path) else document.forms[SAFETENSORS]

    async def _get(
        self,
        service: ServiceClient,
        path: str,
        accept: str,
        place: _Place | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Document | Path:
        """What is at a path, as the service likes best of what ``accept`` says; a large one as a file in its place, if it has one."""
        source, large = service.base_url + path, self._large
        key = (source, accept)
        cached = self._cache.get(key)
        kept_etag = None
        if cached is None and place is not None:
            kept_etag = large.place_kept(place.name, place.folder, source)
        etag = kept_etag if cached is None else cached.etag

        async def read(response: Answer) -> _Document | Path:
            if is_not_modified(response):
                if cached is not None:
                    return cached
                if place is not None:
                    return place.folder / place.name
            if place is None or not _is_large(response):
                return await self._read(key, response)
            self._cache.pop(key, None)
            new_etag = response.headers.get("etag", "")
            pieces = response.aiter_bytes(PIECE_BYTES)
            return await large.receive(place.name, place.folder, pieces, source=source, etag=new_etag)

        sent = {"Accept": accept, **(headers or {}), **({"If-None-Match": etag} if etag else {})}
        return await service.get(path, read, headers=sent)

    async def _read(self, key: tuple[str, str], response: Answer) -> _Document:
        """Read an answer into memory, and keep it for the next task."""
        await response.aread()
        in_thread = len(response.content) > MAX_ENV_BYTES
        document = await asyncio.to_thread(_parse, response) if in_thread else _parse(response)
        self._cache.pop(key, None)
        if document.etag:
            self._cache[key] = document
        return document


def _reader(env: Mapping[str, str]) -> dict[str, str]:
    """What shows the model registry that a task names the model: the digest that came with the task."""
    digest = env.get("MODEL_DIGEST", "")
    return {MODEL_DIGEST_HEADER: digest} if digest.isascii() and digest.isalnum() else {}


def split_dataset(content: bytes, split: str, *, evaluates: bool) -> tuple[bytes, int]:
    """The part of a dataset that is trained on, or held out: the document with these samples, and how many they are.

    Args:
        content: the dataset, ``{"data": [samples], …}``.
        split: ``{"holdout": 0.2, "seed": 0}``.
        evaluates: whether it is the held-out part that is wanted.

    Raises:
        MalformedMessageError: the split is not valid.
        ValueError: there are fewer than 2 samples, or none can be told apart.
    """
    from propeller.protocol.experiments import DataSplit  # 1 MB that proplets without a split do not need

    wanted = DataSplit.decode(split)
    fields = decode_trusted(content)
    samples = fields.get("data")
    if not isinstance(samples, list):
        raise ValueError("it has no list 'data' of samples")  # noqa: TRY004 - of the document
    train, held_out = split_positions(len(samples), wanted.holdout, wanted.seed)
    part = [samples[at] for at in (held_out if evaluates else train)]
    return encode_json({**fields, "data": part, "size": len(part)}), len(part)


def _media_type(response: Answer) -> str:
    return str(response.headers.get("content-type", "").partition(";")[0].strip().lower())


def _is_large(response: Answer) -> bool:
    length = read_count(response.headers.get("content-length", "")) or 0
    return _media_type(response) == SAFETENSORS and length > LARGE_BYTES


def _parse(response: Answer) -> _Document:
    etag, media_type, content = response.headers.get("etag", ""), _media_type(response), response.content
    if media_type == MULTIPART:
        return _Document(etag, unpack(response.headers["content-type"], content))
    if media_type == SAFETENSORS:
        return _Document(etag, {SAFETENSORS: content})
    data = decode_trusted(content).get("data")
    return _Document(etag, {JSON: content}, len(data) if isinstance(data, list) else 0)
