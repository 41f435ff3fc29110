"""Versions by a program with ``@aggregate``: run in the sandbox, by the aggregator's own code."""

from collections.abc import Mapping
from typing import Any

from propeller.aggregator.aggregation import Answer
from propeller.aggregator.program_aggregation import ProgramAggregation
from propeller.aggregator.spill import SpillSpace
from propeller.fl.strategies import Contribution, ServerState
from propeller.fl.strategies.aggregation import Aggregated
from propeller.fl.tensors import from_safetensors, to_safetensors
from propeller.fl.tensors.safetensors import read_header
from propeller.program_host.programs import PinnedProgram, ProgramHost
from propeller.protocol.aggregation import (
    RESULT_FIELD,
    AggregationPlan,
    AggregationResult,
    PlannedContribution,
)
from propeller.simulation.aggregation import Bases, Received, RoundAggregator
from propeller.simulation.local_program_host import LocalProgramHost

_SPILL_BYTES = 64 * 1024**3


class ProgramAggregator(RoundAggregator):
    """By a program with ``@aggregate``, run by the aggregator's own code."""

    def __init__(self, host: LocalProgramHost, program: PinnedProgram, params: Mapping[str, Any]) -> None:
        """``program`` is one that ``host`` has prepared."""
        self.strategy = {"program": program.reference, **params}
        self._host, self._program = host, program

    def aggregate(self, round_id: str, bases: Bases, received: Received) -> Aggregated:
        """As ``RoundAggregator.aggregate``."""
        return self._host.call(lambda host: self._run(host, round_id, bases, received))

    async def _run(self, host: ProgramHost, round_id: str, bases: Bases, received: Received) -> Aggregated:
        state = bases.state
        plan = AggregationPlan(
            strategy=self.strategy,
            values={} if state is None else dict(state.values),
            contributions=[_planned(contribution) for contribution, _tensors in received],
            bases=1 + len(bases.older),
            state=state is not None and bool(state.tensors),
            round_id=round_id,
        )
        aggregation = ProgramAggregation(plan, self._program, host, SpillSpace(None, _SPILL_BYTES))
        try:
            for model in (bases.model, *bases.older):
                aggregation.add(to_safetensors(model))
            if state is not None and state.tensors:
                aggregation.add(to_safetensors(state.tensors))
            for _contribution, tensors in received:
                aggregation.add(to_safetensors(tensors() if callable(tensors) else tensors))
            answer = await aggregation.finish()
        finally:
            aggregation.close()
        try:
            return _read(answer)
        finally:
            answer.close()


def _planned(contribution: Contribution) -> PlannedContribution:
    return PlannedContribution(
        proplet_id=contribution.proplet_id,
        slot=contribution.slot,
        num_samples=contribution.num_samples,
        steps=contribution.steps,
        metrics=dict(contribution.metrics),
        staleness=contribution.staleness,
        base=contribution.base,
        kind=contribution.kind,
    )


def _read(answer: Answer) -> Aggregated:
    """What an aggregation in one part gave."""
    result = AggregationResult.decode(read_header(answer.result).metadata[RESULT_FIELD])
    model, *state = (
        from_safetensors(bytes(answer.documents.view(number)))[0] for number in range(len(answer.documents))
    )
    tensors = state[0] if state else {}
    return Aggregated(model, ServerState(tensors, result.values), dict(result.report))
