"""Aggregation of a round's updates, as they arrive."""

import asyncio
from collections.abc import AsyncIterable
from typing import Annotated, Any

from pydantic import Field

from propeller.errors import InvalidError, UnprocessableError
from propeller.fl.strategy import Strategy, create_strategy
from propeller.fl.tensors import (
    DocumentTooLargeError,
    TensorError,
    Tensors,
    from_json,
    from_safetensors,
    read_documents,
)
from propeller.process.logs import get_logger
from propeller.protocol.rounds import MAX_SAMPLES
from propeller.protocol.wire import Message

log = get_logger("aggregator")

_THREAD_FROM_BYTES = 64 * 1024
"""Larger updates are read in a thread; for smaller ones that would take longer."""


class WeightedUpdate(Message):
    """One update of ``POST /aggregate`` in JSON; the fields of an update that aggregation does not use are ignored."""

    proplet_id: str = ""
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)]
    update: dict[str, Any]


class AggregationRequest(Message):
    """The body of ``POST /aggregate`` in JSON."""

    updates: list[WeightedUpdate]


class NoUpdatesError(InvalidError):
    """There is nothing to aggregate."""

    def __init__(self) -> None:
        super().__init__("No updates provided")


class UnfitUpdateError(UnprocessableError):
    """An update cannot be aggregated; the text names its sender, or its number, and the tensor."""

    def __init__(self, sender: str, number: int, reason: object) -> None:
        # As repr: a sender that is not an id may contain anything.
        named = repr(sender[:80]) if sender else "an unnamed proplet"
        super().__init__(f"update {number} of {named}: {reason}")


class Aggregator:
    """Aggregates updates with a strategy. It keeps nothing between two calls."""

    def __init__(self, *, max_update_bytes: int) -> None:
        """``max_update_bytes`` limits one document of a stream."""
        self._max_update_bytes = max_update_bytes

    async def aggregate(self, body: bytes, strategy_name: str) -> Tensors:
        """Aggregate updates in JSON, all of them in memory.

        Raises:
            UnknownStrategyError: there is no such strategy.
            MalformedMessageError: the body is not an ``AggregationRequest``.
            NoUpdatesError: the list is empty.
            UnfitUpdateError: one of them cannot be aggregated.
            UnprocessableError: the aggregate is not finite.
        """
        strategy = create_strategy(strategy_name)
        if len(body) <= _THREAD_FROM_BYTES:
            count = _accumulate_all(strategy, body)
        else:
            count = await asyncio.to_thread(_accumulate_all, strategy, body)
        return await _apply(strategy, strategy_name, count)

    async def aggregate_stream(self, chunks: AsyncIterable[bytes], strategy_name: str) -> Tensors:
        """Aggregate a stream of safetensors documents; memory does not grow with their number.

        Each has ``num_samples``, and should have ``proplet_id``, in its ``__metadata__``.

        Raises:
            UnknownStrategyError, NoUpdatesError, UnprocessableError: as ``aggregate``.
            DocumentTooLargeError: an update is over the limit.
        """
        strategy, count = create_strategy(strategy_name), 0
        try:
            async for document in read_documents(chunks, max_document=self._max_update_bytes):
                count += 1
                if len(document) <= _THREAD_FROM_BYTES:
                    _accumulate_document(strategy, document, count)
                else:
                    await asyncio.to_thread(_accumulate_document, strategy, document, count)
        except DocumentTooLargeError:
            raise
        except TensorError as error:
            raise UnfitUpdateError("", count + 1, error) from None
        return await _apply(strategy, strategy_name, count)


def _accumulate_all(strategy: Strategy, body: bytes) -> int:
    """Accumulate the updates of a body in JSON, and return how many there are."""
    updates = AggregationRequest.decode(body).updates
    for number, update in enumerate(updates, 1):
        try:
            strategy.accumulate(from_json(update.update), update.num_samples)
        except TensorError as error:
            raise UnfitUpdateError(update.proplet_id, number, error) from None
    return len(updates)


def _accumulate_document(strategy: Strategy, document: bytearray, number: int) -> None:
    sender = ""
    try:
        tensors, metadata = from_safetensors(document)
        sender = metadata.get("proplet_id", "")
        strategy.accumulate(tensors, _num_samples(metadata))
    except TensorError as error:
        raise UnfitUpdateError(sender, number, error) from None


async def _apply(strategy: Strategy, strategy_name: str, count: int) -> Tensors:
    if not count:
        raise NoUpdatesError
    try:
        model = await asyncio.to_thread(strategy.apply)
    except TensorError as error:
        raise UnprocessableError(str(error)) from None
    log.info("aggregated", strategy=strategy_name, updates=count)
    return model


def _num_samples(metadata: dict[str, str]) -> int:
    text = metadata.get("num_samples", "")
    samples = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SAMPLES)) else 0
    if not 1 <= samples <= MAX_SAMPLES:
        raise TensorError(
            f"num_samples must be an integer from 1 to {MAX_SAMPLES} in __metadata__, got {text[:40]!r}"
        )
    return samples
