"""Aggregators that read JSON alone, as absmach/propeller's: they make the weighted mean of a vector ``w`` and a number ``b``."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np

from propeller.coordinator.aggregation_requests import AggregationRequest, RoundContribution
from propeller.coordinator.json_peers import PeerEncoding
from propeller.errors import UnprocessableError
from propeller.fl.tensors import (
    DTYPES,
    JSON,
    SAFETENSORS,
    Array,
    Specs,
    Tensors,
    decode,
    encode,
    is_floating,
)
from propeller.process.http import ServiceClient, ServiceError, UnreadableAnswerError
from propeller.protocol.aggregation import StrategyField
from propeller.protocol.rounds import model_uri

ReadUpdate = Callable[[RoundContribution], Awaitable[Tensors]]

THE_MEAN = "fedavg"
"""The one strategy that such an aggregator knows."""


class JsonAggregator:
    """An aggregator, as one that reads JSON alone.

    Attributes:
        encoding: whether it has shown that it does.
    """

    def __init__(self, client: ServiceClient) -> None:
        """Call it through ``client``."""
        self._client = client
        self.encoding = PeerEncoding(
            "aggregator", client.base_url, "it makes weighted means of w and b, and knows no strategies"
        )

    async def mean(self, request: AggregationRequest, read: ReadUpdate, base: Tensors | None) -> Tensors:
        """The weighted mean of updates, of which one at a time is in memory.

        Args:
            request: what it is the mean of.
            read: gives the tensors of an update.
            base: the base model, if some updates are differences to it.

        Raises:
            ServiceError: the aggregator refused an update or does not answer.
        """
        headers = {"content-type": JSON, "accept": f"{SAFETENSORS}, {JSON};q=0.5"}
        try:
            answer = await self._client.request(
                "POST",
                "/aggregate",
                content=_request_body(request, read, base),
                headers=headers,
                retry=False,
            )
            kind = answer.headers.get("content-type")
            found, _metadata = await asyncio.to_thread(decode, kind, answer.content)
        except ServiceError as error:
            self.encoding.note_failure(error)
            raise
        except ValueError as error:
            raise UnreadableAnswerError(self._client.service, f"its mean cannot be read: {error}") from None
        self.encoding.note_json()
        self.encoding.note_answer(answer)
        return found


def check_mean_will_do(request: AggregationRequest, parts: int, url: str) -> None:
    """See that an aggregator that reads JSON alone can make a version.

    Raises:
        UnprocessableError: it needs this project's aggregator; the text says why.
    """
    reason = strategy_refusal(request.strategy)
    if reason is None and len(request.base_versions) > 1:
        reason = "its updates start from several versions"
    if reason is None and parts > 1:
        reason = "its model has more than 4 MiB, for which there is no JSON"
    if reason is not None:
        raise UnprocessableError(f"{reason}, and {strategy_remedy(url)}")


def strategy_refusal(strategy: StrategyField) -> str | None:
    """Why an aggregator that reads JSON alone cannot do a strategy; ``None`` if it can."""
    name = strategy if isinstance(strategy, str) else strategy.get("name")
    if name == THE_MEAN:
        return None
    what = f"strategy {name!r}" if name else "a strategy that is a program"
    return f"{what} is asked for"


def strategy_remedy(url: str) -> str:
    """What is wrong with the aggregator there, and what to do."""
    return (
        f"the aggregator at {url} is none of this project's: it makes means of one version's updates in JSON, as absmach/propeller's; "
        f"have AGGREGATOR_URL name one of this project, or use {THE_MEAN!r}"
    )


async def _request_body(
    request: AggregationRequest, read: ReadUpdate, base: Tensors | None
) -> AsyncIterator[bytes]:
    """The updates in JSON, as weights."""
    uniform = isinstance(request.strategy, dict) and request.strategy.get("weighting") == "uniform"
    before = b'{"updates":['
    for each in request.in_slot_order:
        header = {
            "round_id": request.round_id,
            "proplet_id": each.proplet_id,
            "base_model_uri": model_uri(request.base_version),
            "num_samples": 1 if uniform else each.num_samples,
            "metrics": dict(each.metrics),
        }
        text = json.dumps(header, ensure_ascii=False, allow_nan=False)
        tensors = await read(each)
        if each.kind == "delta":
            if base is None:
                raise AssertionError("differences need their base model")
            tensors = {name: _float64(base[name]) + _float64(array) for name, array in tensors.items()}
        yield before + text[:-1].encode() + b',"update":'
        yield (await asyncio.to_thread(encode, tensors, JSON))[1] + b"}"
        before = b","
    yield b"]}"


def as_in_base(found: Tensors, expected: Specs, url: str) -> Tensors:
    """The tensors of the base model in an answer, in its dtypes; others, as a ``b`` that the model does not have, are left out.

    Raises:
        UnprocessableError: some are missing, or have another shape: absmach/propeller's aggregator knows ``w`` and ``b`` alone.
    """
    tensors: Tensors = {}
    for name, (dtype, shape) in expected.items():
        array = found.get(name)
        if array is None or array.shape != shape:
            came = "nothing" if array is None else list(array.shape)
            raise UnprocessableError(
                f"the aggregator at {url}, which reads JSON alone, gives {came} for {name!r} {list(shape)}: absmach/propeller's knows a "
                "vector w and a number b; for other models have AGGREGATOR_URL name one of this project"
            )
        wanted = DTYPES[dtype]
        tensors[name] = (array if is_floating(wanted) else np.rint(array)).astype(wanted)
    return tensors


def _float64(array: Array) -> Any:
    return np.asarray(array, np.float64)
