"""What a model version is made of, from a round on record or from the lineage of a version that there is."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.errors import ConflictError
from propeller.fl.strategies import Contribution
from propeller.protocol.aggregation import AggregationPlan, PlannedContribution, StrategyField
from propeller.protocol.models import MAX_LINEAGE_BYTES, Lineage, updates_digest
from propeller.protocol.rounds import RoundStart
from propeller.protocol.wire import MalformedMessageError, format_time, now


@dataclass(frozen=True)
class RoundContribution:
    """An update that goes into a version.

    Attributes:
        proplet_id: its sender.
        slot: the sender's position among the round's participants, from 0.
        digest: of its blob.
        num_samples: by how many samples it counts.
        steps: local optimizer steps, if the program said how many.
        metrics: finite numbers by name.
        base_version: the version that it started from; ``None``: the round's.
        kind: whether its tensors are weights, or differences to that version.
        staleness: how many versions its experiment made since that version; ``None``: as many as their numbers differ by.
    """

    proplet_id: str
    slot: int
    digest: str
    num_samples: int
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    base_version: int | None = None
    kind: Literal["weights", "delta"] = "weights"
    staleness: int | None = None


@dataclass(frozen=True)
class AggregationRequest:
    """What a version is made of. The same request gives the same model, bit for bit.

    Attributes:
        key: the registry gives one version for it, however often it is asked.
        round_id: the round.
        base_version: the version that the new one replaces, and of which it has names, shapes and dtypes.
        contributions: the updates; their order does not matter, they are aggregated by slots.
        strategy: a name, or an object of ``name`` or ``program`` and parameters.
        state_version: the version whose server state the strategy goes on from; ``None`` in an experiment's first round.
        lineage: further fields of the version's lineage, such as ``experiment``, ``number`` and ``program``.
    """

    key: str
    round_id: str
    base_version: int
    contributions: Sequence[RoundContribution]
    strategy: StrategyField = "fedavg"
    state_version: int | None = None
    lineage: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_round(cls, record: RoundRecord, proplet_ids: Iterable[str]) -> "AggregationRequest":
        """The aggregation of these participants' updates of a round.

        Of a round that is by itself it is their mean; one of an experiment goes on from the server state that the
        experiment's last round left.
        """
        chosen, request = set(proplet_ids), record.request
        counted = record.counted_samples()
        contributions = [
            replace(contribution_of(record.updates[name], slot), num_samples=counted[name])
            for slot, name in enumerate(record.round.plan.participants)
            if name in chosen
        ]
        base_version = record.round.plan.base_version
        # The time tells the round from one of the same id that another coordinator, or a lost database, had.
        key = f"{record.round_id}.{record.created_at:.6f}"
        reference = request.task_wasm_image
        if not isinstance(request, RoundStart):
            lineage: dict[str, Any] = {"program": {"reference": reference}}
            return cls(key, record.round_id, base_version, contributions, lineage=lineage)
        if request.merged:
            sources = [request.merged[each.slot] for each in contributions]
            contributions = [
                replace(each, base_version=source.base_version, staleness=source.staleness)
                for each, source in zip(contributions, sources, strict=True)
            ]
        _repository, _at, digest = reference.partition("@")
        lineage = {
            "program": {"reference": reference, **({"digest": digest} if digest else {})},
            "experiment": request.experiment_id,
            "number": request.number,
            "metrics": record.metrics,
        }
        state_version = None if request.number == 1 else base_version
        return cls(key, record.round_id, base_version, contributions, record.strategy, state_version, lineage)

    @classmethod
    def of_lineage(cls, lineage: Mapping[str, Any]) -> "AggregationRequest":
        """The aggregation that made a version, from what the version's lineage says of it.

        Raises:
            ConflictError: the lineage does not say enough.
        """
        try:
            known = Lineage.decode(lineage)
        except MalformedMessageError as error:
            raise ConflictError(f"its lineage cannot be used: {error}") from None
        used = known.strategy
        missing = [
            name
            for name, there in {
                "round": known.round,
                "parent": known.parent is not None,
                "strategy": used and (used.name or used.program),
                "updates": known.updates,
            }.items()
            if not there
        ]
        if missing or known.round is None or known.parent is None or used is None:
            raise ConflictError(
                f"its lineage lacks {', '.join(missing)}: it was not made by a round of this coordinator"
            )
        contributions = [
            RoundContribution(
                each.proplet_id,
                number if each.slot is None else each.slot,
                each.digest,
                each.num_samples,
                each.steps,
                each.metrics,
                each.base,
                each.kind,
                each.staleness,
            )
            for number, each in enumerate(known.updates or ())
        ]
        named = {"program": used.program} if used.program else {"name": used.name}
        return cls("", known.round, known.parent, contributions, {**used.params, **named}, known.state)

    @property
    def in_slot_order(self) -> list[RoundContribution]:
        """The updates in the order in which they are aggregated: whoever was faster, the sums are the same."""
        return sorted(self.contributions, key=lambda contribution: contribution.slot)

    @property
    def updates(self) -> list[dict[str, Any]]:
        """The updates as a lineage has them, in that order."""
        return [_used(each) for each in self.in_slot_order]

    @property
    def base_versions(self) -> list[int]:
        """The versions that the updates started from; the round's own comes first."""
        older = {each.base_version for each in self.contributions} - {None, self.base_version}
        return [self.base_version, *sorted(version for version in older if version is not None)]

    def plan(
        self, values: Mapping[str, Any], *, parts: int = 1, cut: Sequence[str] = (), state: bool
    ) -> AggregationPlan:
        """What the aggregator is told."""
        bases = self.base_versions
        return AggregationPlan(
            strategy=self.strategy,
            values=dict(values),
            contributions=[
                PlannedContribution(
                    proplet_id=each.proplet_id,
                    slot=each.slot,
                    num_samples=each.num_samples,
                    steps=each.steps,
                    metrics=dict(each.metrics),
                    staleness=self.base_version - base if each.staleness is None else each.staleness,
                    base=bases.index(base),
                    kind=each.kind,
                )
                for each in self.in_slot_order
                for base in [self.base_version if each.base_version is None else each.base_version]
            ],
            parts=parts,
            cut=list(cut),
            bases=len(bases),
            state=state,
            round_id=self.round_id,
        )

    def lineage_text(self, program: str | None) -> str:
        """Where the version comes from, as JSON: all that it takes to make it again from the updates.

        ``program`` is the strategy that ran, by digest, if it is one.
        """
        strategy: dict[str, Any] = (
            {"name": self.strategy} if isinstance(self.strategy, str) else dict(self.strategy)
        )
        used = {name: strategy.pop(name) for name in ("name", "program") if name in strategy}
        if program is not None:
            used["program"] = program
        fields: dict[str, Any] = {
            **self.lineage,
            "round": self.round_id,
            "parent": self.base_version,
            "strategy": {**used, "params": strategy},
            "participants": len(self.contributions),
            "num_samples": sum(each.num_samples for each in self.contributions),
            "updates": self.updates,
            "created_at": format_time(now()),
        }
        if self.state_version is not None:
            fields["state"] = self.state_version
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        if len(text.encode()) > MAX_LINEAGE_BYTES:
            fields["updates_digest"] = updates_digest(fields.pop("updates"))
            text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
        return text


def contribution_of(update: AcceptedUpdate, slot: int) -> RoundContribution:
    """What an update counts as, from the participant in a slot."""
    return RoundContribution(
        update.proplet_id,
        slot,
        update.digest,
        update.num_samples,
        update.steps,
        update.metrics,
        kind=update.kind,
    )


def contribution_for_strategy(each: RoundContribution) -> Contribution:
    """What a strategy checks of an update when it comes."""
    return Contribution(
        each.slot, each.proplet_id, each.num_samples, each.steps, each.metrics, kind=each.kind
    )


def _used(each: RoundContribution) -> dict[str, Any]:
    further = {
        "steps": each.steps,
        "metrics": dict(each.metrics) or None,
        "base": each.base_version,
        "staleness": each.staleness,
        "kind": None if each.kind == "weights" else each.kind,
    }
    return {
        "proplet_id": each.proplet_id,
        "slot": each.slot,
        "digest": each.digest,
        "num_samples": each.num_samples,
        **{name: value for name, value in further.items() if value is not None},
    }


def is_program(strategy: StrategyField) -> bool:
    """Whether a strategy is a program."""
    return isinstance(strategy, dict) and "program" in strategy
