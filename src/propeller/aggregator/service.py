"""The aggregator: the updates of a round in, the next model and server state out. It keeps nothing between two calls."""

import asyncio
from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import Field

from propeller.aggregator.aggregation import Aggregation, Answer, StrategyAggregation
from propeller.aggregator.documents import DocumentOrder, read_plan
from propeller.aggregator.spill import SpillSpace
from propeller.errors import InvalidError, TooLargeError, UnprocessableError
from propeller.fl.strategies import (
    Contribution,
    NoUpdatesError,
    Strategy,
    UpdateError,
    aggregate,
    create_strategy,
    read_strategy,
)
from propeller.fl.tensors import DocumentTooLargeError, TensorError, Tensors, from_json, read_documents
from propeller.process.decoding import decode
from propeller.process.logs import get_logger
from propeller.protocol.aggregation import AggregationPlan
from propeller.protocol.updates import MAX_SAMPLES
from propeller.protocol.wire import Message, decode_tensors

if TYPE_CHECKING:
    from propeller.program_host.programs import ProgramHost

T = TypeVar("T")

log = get_logger("aggregator")

_THREAD_FROM_BYTES = 64 * 1024
"""Larger updates are dealt with in a thread; for smaller ones that would take longer."""


class WeightedUpdate(Message):
    """One update of ``POST /aggregate`` in JSON; the fields of an update that aggregation does not use are ignored."""

    proplet_id: str = ""
    num_samples: Annotated[int, Field(ge=1, le=MAX_SAMPLES, strict=True)]
    update: dict[str, Any]


class UpdateList(Message):
    """The body of ``POST /aggregate`` in JSON."""

    updates: list[WeightedUpdate]


class UnfitUpdateError(UnprocessableError):
    """An update cannot be aggregated; the text names its sender, or its number, and the tensor."""

    def __init__(self, sender: str, number: int, reason: object) -> None:
        # As repr: a sender that is not an id may contain anything.
        named = repr(sender[:80]) if sender else "an unnamed proplet"
        super().__init__(f"update {number} of {named}: {reason}")


class Aggregator:
    """Aggregates updates with a strategy."""

    def __init__(
        self,
        space: SpillSpace,
        *,
        max_update_bytes: int,
        open_programs: "Callable[[], ProgramHost]",
    ) -> None:
        """Start nothing yet.

        Args:
            space: where updates wait that a strategy needs all at once.
            max_update_bytes: the longest document of a sequence.
            open_programs: makes what runs strategies that are programs; called when there is one.
        """
        self._space, self._max_update_bytes = space, max_update_bytes
        self._open_programs = open_programs
        self._programs: ProgramHost | None = None

    async def close(self) -> None:
        """End programs that run."""
        if self._programs is not None:
            await self._programs.close()

    async def aggregate_json(self, body: bytes, strategy_name: str) -> Tensors:
        """Aggregate updates in JSON, all of them in memory, without a base model.

        Raises:
            UnknownStrategyError: there is no such strategy.
            InvalidError: the body is not an ``UpdateList``, the list is empty, or the strategy needs a base model.
            UnfitUpdateError: one of them cannot be aggregated.
            UnprocessableError: the aggregate is not finite.
        """
        strategy = create_strategy(strategy_name)
        if strategy.needs_base:
            raise InvalidError(
                f"strategy: {strategy_name} needs the base model, which updates in JSON come without; send a plan with "
                "safetensors documents (docs/reference.md, aggregator)"
            )
        return await decode(lambda text: _aggregate_json(strategy, text), body)

    async def aggregate(self, chunks: AsyncIterable[bytes]) -> Answer:
        """Aggregate a sequence of safetensors documents that begins with a plan.

        Raises:
            InvalidError: the plan is not valid, or the documents are not those that it announces.
            UnprocessableError: an update does not fit, or the result is not finite.
            TooLargeError: a document is over the limit, or there is no room on disk.
            UnavailableError: there is no room on disk now.
            OciError, ProgramError: the strategy is a program that cannot be had.
        """
        aggregation: Aggregation | None = None
        order: DocumentOrder | None = None
        came = size = 0
        try:
            async for document in read_documents(chunks, max_document=self._max_update_bytes):
                if aggregation is None:
                    plan = read_plan(document)
                    order, aggregation = DocumentOrder(plan), await self._begin(plan)
                else:
                    came, size = came + 1, size + len(document)
                    await _run(len(document) + aggregation.waiting_bytes, aggregation.add, document)
            if aggregation is None:
                raise NoUpdatesError("No updates provided: the body is empty")
            answer = await aggregation.finish()
        except DocumentTooLargeError as error:
            raise TooLargeError(f"{error} (AGGREGATOR_MAX_UPDATE_BYTES)") from None
        except TensorError as error:
            which = "the plan" if order is None else order.describe(min(came, order.total - 1))
            raise UnprocessableError(f"{which}: {error}") from None
        finally:
            if aggregation is not None:
                aggregation.close()
        log.info("aggregated", strategy=plan.strategy, updates=len(plan.contributions), bytes=size)
        return answer

    async def resolve_program(self, reference: str) -> str:
        """The reference with the digest of the program that it names now, which is fetched and compiled meanwhile.

        Raises:
            OciError: it cannot be had; with the cause and the remedy.
        """
        return (await self._find_programs().resolve(reference)).reference

    def _find_programs(self) -> "ProgramHost":
        if self._programs is None:
            self._programs = self._open_programs()
        return self._programs

    async def _begin(self, plan: AggregationPlan) -> Aggregation:
        if isinstance(plan.strategy, dict) and "program" in plan.strategy:
            # Here, as the sandbox and the registry's client are of no use to others.
            from propeller.aggregator.program_aggregation import ProgramAggregation

            programs = self._find_programs()
            program = await programs.prepare(plan.strategy["program"])
            return ProgramAggregation(plan, program, programs, self._space)
        return StrategyAggregation(plan, read_strategy(plan.strategy), self._space)


async def _run(size: int, function: Callable[..., T], *arguments: Any) -> T:
    if size <= _THREAD_FROM_BYTES:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


def _aggregate_json(strategy: Strategy, body: bytes) -> Tensors:
    """The updates of a body in JSON have no base model: the first of them gives names and shapes."""
    received: list[tuple[Contribution, Tensors]] = []
    updates = UpdateList.decode(decode_tensors(body, "updates")).updates
    if not updates:
        raise NoUpdatesError("No updates provided")
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
