"""Aggregation of a round's updates, as they arrive."""

import asyncio
from collections.abc import AsyncIterable
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from propeller.errors import InvalidError, UnprocessableError
from propeller.fl.strategies import (
    Contribution,
    Strategy,
    UpdateError,
    WeightedSums,
    aggregate,
    create_strategy,
)
from propeller.fl.tensors import (
    DocumentTooLargeError,
    TensorError,
    Tensors,
    check_shapes,
    from_json,
    from_safetensors,
    read_documents,
    shapes_of,
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
        if not strategy.needs_base:
            if len(body) <= _THREAD_FROM_BYTES:
                return _aggregate_all(strategy, body)
            return await asyncio.to_thread(_aggregate_all, strategy, body)
        raise UnprocessableError(
            f"{strategy_name} needs the base model, which this form of the request does not carry"
        )

    async def aggregate_stream(self, chunks: AsyncIterable[bytes], strategy_name: str) -> Tensors:
        """Aggregate a stream of safetensors documents; memory does not grow with their number.

        Each has ``num_samples``, and should have ``proplet_id``, in its ``__metadata__``.

        Raises:
            UnknownStrategyError, NoUpdatesError, UnprocessableError: as ``aggregate``.
            DocumentTooLargeError: an update is over the limit.
        """
        if create_strategy(strategy_name).name != "fedavg":
            raise UnprocessableError(f"{strategy_name} needs what this form of the request does not carry")
        mean, count = _StreamedMean(), 0
        try:
            async for document in read_documents(chunks, max_document=self._max_update_bytes):
                count += 1
                if len(document) <= _THREAD_FROM_BYTES:
                    mean.add(document, count)
                else:
                    await asyncio.to_thread(mean.add, document, count)
        except DocumentTooLargeError:
            raise
        except TensorError as error:
            raise UnfitUpdateError("", count + 1, error) from None
        model = await asyncio.to_thread(mean.finish)
        log.info("aggregated", strategy=strategy_name, updates=count)
        return model


class _StreamedMean:
    """FedAvg of updates whose number and samples are not known before they have come."""

    def __init__(self) -> None:
        self._sums: WeightedSums | None = None
        self._first: Tensors = {}
        self._samples = 0

    def add(self, document: bytearray, number: int) -> None:
        sender = ""
        try:
            tensors, metadata = from_safetensors(document)
            sender = metadata.get("proplet_id", "")
            samples = _num_samples(metadata)
            if self._sums is None:
                self._first = tensors
                self._sums = WeightedSums(shapes_of(tensors), lambda _number, error: error)
            check_shapes(tensors, shapes_of(self._first), "the first update")
            self._samples += samples
            self._sums.add(number, tensors, samples)
        except TensorError as error:
            raise UnfitUpdateError(sender, number, error) from None

    def finish(self) -> Tensors:
        if self._sums is None:
            raise NoUpdatesError
        try:
            sums = self._sums.sums()
        except TensorError as error:
            raise UnprocessableError(str(error)) from None
        return {
            name: (sums[name] / self._samples)
            .astype(array.dtype if array.dtype.kind == "f" else np.float64)
            .reshape(array.shape)
            for name, array in self._first.items()
        }


def _aggregate_all(strategy: Strategy, body: bytes) -> Tensors:
    """Aggregate the updates of a body in JSON, which has no base model: the first update has its shapes."""
    received: list[tuple[Contribution, Tensors]] = []
    updates = AggregationRequest.decode(body).updates
    if not updates:
        raise NoUpdatesError
    for number, update in enumerate(updates):
        try:
            contribution = Contribution(number, update.proplet_id, update.num_samples)
            received.append((contribution, from_json(update.update)))
        except TensorError as error:
            raise UnfitUpdateError(update.proplet_id, number + 1, error) from None
    try:
        model, _state = aggregate(strategy, received[0][1], None, received)
    except UpdateError as error:
        raise UnfitUpdateError(updates[error.number].proplet_id, error.number + 1, error.reason) from None
    except TensorError as error:
        raise UnprocessableError(str(error)) from None
    log.info("aggregated", strategy=strategy.name, updates=len(updates))
    return model


def _num_samples(metadata: dict[str, str]) -> int:
    text = metadata.get("num_samples", "")
    samples = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SAMPLES)) else 0
    if not 1 <= samples <= MAX_SAMPLES:
        raise TensorError(
            f"num_samples must be an integer from 1 to {MAX_SAMPLES} in __metadata__, got {text[:40]!r}"
        )
    return samples
