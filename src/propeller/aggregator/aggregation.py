"""One aggregation by a strategy: its documents as they come, a part of the model at a time."""

import asyncio
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from propeller.aggregator.documents import (
    DocumentOrder,
    Place,
    check_same_model,
    check_update,
    contributions_of,
    header_document,
    read_tensors,
    write_result,
)
from propeller.aggregator.spill import SpillSpace, SpillStore
from propeller.errors import InvalidError, UnprocessableError
from propeller.fl.strategies import (
    PART_BYTES,
    Contribution,
    Measure,
    Measured,
    Measurement,
    NoUpdatesError,
    PartAggregation,
    Plan,
    Strategy,
    make_plan,
)
from propeller.fl.tensors import TensorError, Tensors, to_safetensors
from propeller.process.files import Buffer
from propeller.protocol.aggregation import AggregationPlan, AggregationResult

_ANSWER_BYTES = 2 * PART_BYTES
"""Up to this much of an answer is in memory: the model and the server state where there is one part."""

_THREAD_FROM_BYTES = 1024 * 1024
"""Up to this much is dealt with at once: a thread would take longer."""


class Answer:
    """What an aggregation gives: documents, the result first. Close it."""

    def __init__(self, result: bytes, documents: SpillStore) -> None:
        self.result, self.documents = result, documents

    @property
    def size(self) -> int:
        """All of it in bytes."""
        return len(self.result) + self.documents.size

    def close(self) -> None:
        """Let go of what it holds."""
        self.documents.close()


class Aggregation(Protocol):
    """Something that takes the documents of a plan, in their order."""

    @property
    def waiting_bytes(self) -> int:
        """Of the documents that the next one may be dealt with together with."""

    def add(self, document: Buffer) -> None:
        """Take the next document, whose memory must not change any more.

        Raises:
            UnprocessableError: it does not fit.
            InvalidError: it is one too many.
        """

    async def finish(self) -> Answer:
        """The answer, once all documents have come.

        Raises:
            InvalidError: some have not.
            UnprocessableError: an update does not fit, or the result is not a model.
        """

    def close(self) -> None:
        """Let go of what was taken."""


class StrategyAggregation:
    """An aggregation by a strategy of ``fl.strategies``.

    A strategy that sums and measures nothing gets each document as it comes: in memory are the sums of one part, its base
    models, and a few updates of it. One with ``rows`` gets a part once all of it came, and one that measures gets everything
    twice, once all has come; what waits is on disk where it is more than a little. Its methods block: call them in a thread.
    """

    def __init__(self, plan: AggregationPlan, strategy: Strategy, space: SpillSpace) -> None:
        """Begin.

        Raises:
            InvalidError: the strategy cannot work with these contributions.
        """
        self._announced, self._strategy, self._space = plan, strategy, space
        self._contributions = contributions_of(plan)
        if not self._contributions:
            raise NoUpdatesError("No updates provided: the plan has no contributions")
        self._order = DocumentOrder(plan)
        self._measurement = Measurement(strategy, self._contributions)
        self._plan = self._make_plan(Measured()) if strategy.measure is Measure.NONE else None
        self._streams = strategy.measure is Measure.NONE and not strategy.rows
        self._came = 0
        self._names: set[str] = set()
        self._cut = frozenset(plan.cut)
        self._waiting = SpillStore(space)
        self._done = SpillStore(space, memory_bytes=_ANSWER_BYTES)
        self._has_state = False
        self._part = _Part(self._strategy, self._contributions)

    @property
    def waiting_bytes(self) -> int:
        """As ``Aggregation.waiting_bytes``."""
        return self._waiting.size

    def add(self, document: Buffer) -> None:
        """As ``Aggregation.add``."""
        place, what = self._order.place(self._came), self._order.describe(self._came)
        if self._streams:
            self._take(place, self._read(document, place, what), what)
        else:
            self._waiting.append(document)
        self._came += 1
        if self._came % self._announced.documents_a_part == 0 and not self._streams:
            if self._strategy.measure is not Measure.NONE:
                self._measure_part(place.part)
            else:
                self._replay(range(len(self._waiting)), place.part)
                self._waiting.clear()

    async def finish(self) -> Answer:
        """As ``Aggregation.finish``."""
        self._order.check_complete(self._came)
        # A plan from distances takes its time by the number of updates, however small they are.
        if self._plan is not None and self._done.size + self._waiting.size <= _THREAD_FROM_BYTES:
            return self._finish()
        return await asyncio.to_thread(self._finish)

    def _finish(self) -> Answer:
        measured = self._measurement.result()
        if self._plan is None:
            self._plan = self._make_plan(measured)
            size = self._announced.documents_a_part
            for part in range(self._announced.parts):
                self._replay(range(part * size, (part + 1) * size), part)
        result = AggregationResult(
            values=dict(self._plan.values),
            # What JSON has: an infinite norm is one whose square leaves float64.
            measured={}
            if measured.norms is None
            else {"norms": np.minimum(measured.norms, np.finfo(np.float64).max).tolist()},
            report=dict(self._plan.report),
            parts=self._announced.parts,
            state=self._has_state,
        )
        done, self._done = self._done, SpillStore(self._space)
        return Answer(write_result(result), done)

    def close(self) -> None:
        """As ``Aggregation.close``."""
        self._waiting.close()
        self._done.close()

    def _make_plan(self, measured: Measured) -> Plan:
        return make_plan(self._strategy, self._contributions, self._announced.values, measured)

    def _read(self, document: Buffer, place: Place, what: str) -> Tensors:
        return read_tensors(document, what, finite=place.contribution is None)

    def _replay(self, numbers: range, part: int) -> None:
        """Aggregate a part from the store."""
        first = part * self._announced.documents_a_part
        for position, number in enumerate(numbers):
            what = self._order.describe(first + position)
            place = self._order.place(first + position)
            self._take(place, self._read(self._waiting.view(number), place, what), what)

    def _measure_part(self, part: int) -> None:
        first = part * self._announced.documents_a_part
        found = _Part(self._strategy, self._contributions)
        try:
            for number in range(first, self._came):
                place, what = self._order.place(number), self._order.describe(number)
                tensors = self._read(self._waiting.view(number), place, what)
                found.check(place, tensors, what)
                if place.contribution is not None:
                    if place.contribution == 0:
                        self._measurement.begin(found.bases)
                    self._measurement.add(place.contribution, tensors)
            self._measurement.end()
        except TensorError as error:
            raise UnprocessableError(str(error)) from None

    def _take(self, place: Place, tensors: Tensors, what: str) -> None:
        """Aggregate one document; the last of a part finishes it."""
        if place.base == 0:
            again = self._names & tensors.keys()
            if again:
                raise InvalidError(f"{what}: {min(again)!r} was in an earlier part")
            self._names |= tensors.keys() - self._cut
            self._part = _Part(self._strategy, self._contributions)
        self._part.check(place, tensors, what)
        if place.contribution is None:
            return
        if self._plan is None:
            raise AssertionError("a part is aggregated once there is a plan")
        try:
            self._part.add(self._plan, place.contribution, tensors)
            if place.contribution == len(self._contributions) - 1:
                model, state = self._part.finish()
                self._done.append(to_safetensors(model))
                if self._strategy.state_kinds:
                    self._has_state = True
                    self._done.append(to_safetensors(state) if state else header_document({}))
        except TensorError as error:
            raise UnprocessableError(str(error)) from None


class _Part:
    """A part of the model on its way: what came of it."""

    def __init__(self, strategy: Strategy, contributions: Sequence[Contribution]) -> None:
        self._strategy, self._contributions = strategy, contributions
        self.bases: list[Tensors] = []
        self._state: Tensors | None = None
        self._aggregation: PartAggregation | None = None

    def check(self, place: Place, tensors: Tensors, what: str) -> None:
        """Check a document against those before it, and keep what the others need."""
        if place.base is not None:
            self.bases.append(tensors)
            check_same_model(self.bases, what)
        elif place.contribution is None:
            self._state = tensors
        else:
            check_update(tensors, self._strategy.update_shapes(self.bases[0]), what, self._strategy.name)

    def add(self, plan: Plan, number: int, tensors: Tensors) -> None:
        """Add an update that was checked."""
        if self._aggregation is None:
            self._aggregation = PartAggregation(
                self._strategy, plan, self._contributions, self.bases, self._state
            )
        if self._aggregation.counts(number):
            self._aggregation.add(number, tensors)

    def finish(self) -> tuple[Tensors, Tensors]:
        """The part's model and state."""
        if self._aggregation is None:
            raise AssertionError("a part has at least one update")
        found = self._aggregation.finish()
        self._aggregation = None
        return found
