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

_QUICK = 64 * 1024
"""Up to this many bytes an update is folded at once; handing it to a thread would take longer."""


class WeightedUpdate(Message):
    """One update of ``POST /aggregate`` in JSON; the fields of an update that aggregation does not use are ignored."""

    proplet_id: str = ""
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)]
    update: dict[str, Any]


class Updates(Message):
    """The body of ``POST /aggregate`` in JSON."""

    updates: list[WeightedUpdate]


class NoUpdatesError(InvalidError):
    """There is nothing to aggregate."""

    def __init__(self) -> None:
        super().__init__("No updates provided")


class UpdateRefusedError(UnprocessableError):
    """An update cannot take part; the text names its sender, or its place, and the tensor."""

    def __init__(self, sender: str, number: int, reason: object) -> None:
        # As repr: a sender that is not an id may hold anything.
        named = repr(sender[:80]) if sender else "an unnamed proplet"
        super().__init__(f"update {number} of {named}: {reason}")


class Aggregator:
    """Folds updates with a strategy. It keeps nothing between two calls."""

    def __init__(self, *, max_update_bytes: int) -> None:
        """``max_update_bytes`` limits one document of a stream."""
        self._max_update_bytes = max_update_bytes

    async def aggregate(self, body: bytes, strategy: str) -> Tensors:
        """Aggregate updates in JSON, all of them in memory.

        Raises:
            UnknownStrategyError: there is no such strategy.
            MalformedMessageError: the body is not ``Updates``.
            NoUpdatesError: the list is empty.
            UpdateRefusedError: one of them cannot take part.
            UnprocessableError: the aggregate is not finite.
        """
        folding = create_strategy(strategy)
        if len(body) <= _QUICK:
            return _fold_all(folding, strategy, body)
        return await asyncio.to_thread(_fold_all, folding, strategy, body)

    async def aggregate_stream(self, chunks: AsyncIterable[bytes], strategy: str) -> Tensors:
        """Aggregate a stream of safetensors documents; memory does not grow with their number.

        Each has ``num_samples``, and should have ``proplet_id``, in its ``__metadata__``.

        Raises:
            UnknownStrategyError, NoUpdatesError, UnprocessableError: as ``aggregate``.
            DocumentTooLargeError: an update is over the limit.
        """
        folding, number = create_strategy(strategy), 0
        try:
            async for document in read_documents(chunks, max_document=self._max_update_bytes):
                number += 1
                if len(document) <= _QUICK:
                    _fold_document(folding, document, number)
                else:
                    await asyncio.to_thread(_fold_document, folding, document, number)
        except DocumentTooLargeError:
            raise
        except TensorError as error:
            raise UpdateRefusedError("", number + 1, error) from None
        if not number:
            raise NoUpdatesError
        aggregate = await asyncio.to_thread(_finish, folding)
        log.info("aggregated", strategy=strategy, updates=number)
        return aggregate


def _fold_all(folding: Strategy, strategy: str, body: bytes) -> Tensors:
    updates = Updates.decode(body).updates
    if not updates:
        raise NoUpdatesError
    for number, update in enumerate(updates, 1):
        try:
            folding.accumulate(from_json(update.update), update.num_samples)
        except TensorError as error:
            raise UpdateRefusedError(update.proplet_id, number, error) from None
    aggregate = _finish(folding)
    log.info("aggregated", strategy=strategy, updates=len(updates))
    return aggregate


def _fold_document(folding: Strategy, document: bytearray, number: int) -> None:
    sender = ""
    try:
        tensors, metadata = from_safetensors(document)
        sender = metadata.get("proplet_id", "")
        folding.accumulate(tensors, _samples(metadata))
    except TensorError as error:
        raise UpdateRefusedError(sender, number, error) from None


def _finish(folding: Strategy) -> Tensors:
    try:
        return folding.apply()
    except TensorError as error:
        raise UnprocessableError(str(error)) from None


def _samples(metadata: dict[str, str]) -> int:
    text = metadata.get("num_samples", "")
    samples = int(text) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SAMPLES)) else 0
    if not 1 <= samples <= MAX_SAMPLES:
        raise TensorError(
            f"num_samples must be an integer from 1 to {MAX_SAMPLES} in __metadata__, got {text[:40]!r}"
        )
    return samples
