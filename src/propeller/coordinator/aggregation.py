"""From the updates of a closed round to a model version: streamed to the aggregator, stored by the registry."""

import contextlib
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from propeller.coordinator.clients import (
    Aggregated,
    AggregatorClient,
    ModelRegistryClient,
    has_tensors,
    read_state_values,
    state_values,
)
from propeller.coordinator.documents import StoredDocument, cut, read_document_header, stream_part
from propeller.coordinator.rounds import AcceptedUpdate, NewVersion, RoundRecord
from propeller.coordinator.updates import UpdateDocument
from propeller.errors import ConflictError, PropellerError, UnprocessableError
from propeller.fl.strategies import PART_BYTES, Contribution, read_strategy
from propeller.fl.tensors import DTYPES, Specs, TensorSpec
from propeller.fl.tensors.safetensors import Header
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.protocol.aggregation import PLAN_FIELD, AggregationPlan, PlannedContribution, StrategyField
from propeller.protocol.models import MAX_LINEAGE_BYTES, Lineage, updates_digest
from propeller.protocol.rounds import RoundStart
from propeller.protocol.wire import MalformedMessageError, format_time, now
from propeller.store.blobs import BlobNotFoundError, BlobStore
from propeller.tensors.safetensors import write_header

log = get_logger("coordinator")

RETRY_DELAYS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between tries to aggregate a round that is by itself; after the last one it fails, and can be retried by hand."""

PATIENT_DELAYS = (*RETRY_DELAYS, 8.0, *[15.0] * 40)
"""Likewise for a round of an experiment, 10 minutes in all: its next try would ask devices to train again, and need the same services."""


class AggregationError(PropellerError):
    """A round's updates could not be aggregated or the aggregate not stored; the text says why."""


@dataclass(frozen=True)
class RoundContribution:
    """An update that goes into a version.

    Attributes:
        proplet_id: its sender.
        slot: the sender's position among the round's participants, from 0.
        digest: of its blob.
        num_samples: its samples.
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
    def of_round(
        cls,
        record: RoundRecord,
        proplet_ids: Iterable[str],
        *,
        strategy: StrategyField = "fedavg",
        state_version: int | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> "AggregationRequest":
        """The aggregation of these participants' updates of a round; of a round that is by itself, their mean."""
        chosen = set(proplet_ids)
        contributions = [
            contribution_of(record.updates[name], slot)
            for slot, name in enumerate(record.round.plan.participants)
            if name in chosen
        ]
        merged = record.request.merged if isinstance(record.request, RoundStart) else None
        if merged:
            contributions = [
                replace(
                    each, base_version=merged[each.slot].base_version, staleness=merged[each.slot].staleness
                )
                for each in contributions
            ]
        # The time tells the round from one of the same id that another coordinator, or a lost database, had.
        key = f"{record.round_id}.{record.created_at:.6f}"
        program = {"program": {"reference": record.request.task_wasm_image}}
        return cls(
            key,
            record.round_id,
            record.round.plan.base_version,
            contributions,
            strategy,
            state_version,
            {**program, **(lineage or {})},
        )

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

    def plan(self, values: Mapping[str, Any], *, parts: int = 1, state: bool) -> AggregationPlan:
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
            bases=len(bases),
            state=state,
            round_id=self.round_id,
        )


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


def update_specs(strategy: StrategyField, base: Specs) -> Specs:
    """What an update of a strategy's round must have: the base model's tensors but for personal ones, and ``@KIND/…`` ones.

    Raises:
        InvalidError: there is no such strategy.
    """
    if isinstance(strategy, dict) and "program" in strategy:
        return base
    # Without memory: the strategy looks at dtypes and shapes alone.
    arrays = {
        name: np.broadcast_to(np.zeros((), DTYPES[spec.dtype]), spec.shape) for name, spec in base.items()
    }
    shapes = read_strategy(strategy).update_shapes(arrays)
    return {
        name: TensorSpec(base[name if name in base else name.partition("/")[2]].dtype, shape)
        for name, shape in shapes.items()
    }


def check_contribution(strategy: StrategyField, contribution: RoundContribution) -> None:
    """Check, when an update comes in, that it has what the strategy needs of it; programs need nothing that is known here.

    Raises:
        InvalidError: naming what is missing, and how a program reports it; or there is no such strategy.
    """
    if isinstance(strategy, dict) and "program" in strategy:
        return
    each = contribution
    read_strategy(strategy).check(
        Contribution(each.slot, each.proplet_id, each.num_samples, each.steps, each.metrics, kind=each.kind)
    )


class Aggregation:
    """Keeps the updates of rounds as blobs, named by their digests, and makes model versions of them."""

    def __init__(
        self,
        blobs: BlobStore,
        registry: ModelRegistryClient,
        aggregator: AggregatorClient,
        *,
        part_bytes: int = PART_BYTES,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        """Models larger than ``part_bytes`` are aggregated in parts of at most that; ``retry_delays`` are in seconds."""
        self._blobs, self._registry, self._aggregator = blobs, registry, aggregator
        self._part_bytes, self._retry_delays = part_bytes, retry_delays

    async def store_update(self, document: UpdateDocument) -> None:
        """Make an update durable."""
        await self._blobs.put(document.digest, document.content)

    async def has_updates(self, record: RoundRecord) -> bool:
        """Whether all updates of a round are still there."""
        for update in record.updates.values():
            if not await self._blobs.has(update.digest):
                return False
        return True

    async def missing_updates(self, digests: Iterable[str]) -> list[str]:
        """Those of these updates that are not there, or are not what their digest says."""
        missing = []
        for digest in digests:
            found = hashlib.sha256()
            try:
                async for piece in self._blobs.stream(digest):
                    found.update(piece)
            except BlobNotFoundError:
                missing.append(digest)
                continue
            if found.hexdigest() != digest:
                missing.append(digest)
        return missing

    async def list_updates(self) -> list[str]:
        """The digests of all updates that are there."""
        return await self._blobs.list()

    async def delete_updates(self, digests: Iterable[str]) -> None:
        """Remove updates; those that are not there are fine."""
        for digest in digests:
            await self._blobs.delete(digest)

    async def make_version(
        self, request: AggregationRequest, *, while_wanted: Callable[[], bool] | None = None
    ) -> NewVersion:
        """Aggregate updates and store the result with its server state; a second call gives the same version.

        Args:
            request: what the version is made of.
            while_wanted: whether it is still wanted; services that are away are waited for so long, for minutes. Without
                it, for some seconds.

        Raises:
            AggregationError: a service refused, or did not answer in all the tries.
        """

        def report(error: BaseException, delay_s: float) -> None:
            log.warning(
                "aggregation failed, trying again",
                round_id=request.round_id,
                reason=_describe(error),
                delay_s=delay_s,
                exc_info=None if isinstance(error, PropellerError) else error,
            )

        try:
            return await retry(
                lambda: self._try_to_make_version(request),
                delays=self._retry_delays if while_wanted is None else PATIENT_DELAYS,
                # What was not foreseen is of the blobs' store, most likely, and may pass.
                on=lambda error: (
                    (not isinstance(error, PropellerError) or error.temporary)
                    and (while_wanted is None or while_wanted())
                ),
                failed=report,
            )
        except Exception as error:
            if not isinstance(
                error, PropellerError
            ):  # a round must not be left open by what was not foreseen
                log.exception("updates cannot be aggregated", round_id=request.round_id)
            raise AggregationError(f"aggregation: {_describe(error)}") from error

    async def _try_to_make_version(self, request: AggregationRequest) -> NewVersion:
        started = time.perf_counter()
        with contextlib.closing(await self.aggregate(request)) as found:
            aggregated = time.perf_counter()
            version = await self._store(request, found)
            stored = time.perf_counter()
            return NewVersion(
                version,
                {
                    "aggregate_ms": round((aggregated - started) * 1e3, 2),
                    "store_ms": round((stored - aggregated) * 1e3, 2),
                },
                found.result.report,
            )

    async def aggregate(self, request: AggregationRequest) -> Aggregated:
        """What the strategy makes of the updates, to be closed; nothing is stored.

        Raises:
            PropellerError: a service refused or does not answer, or an update is not there.
        """
        expected = await self._registry.specs(request.base_version)
        parts = cut(expected, self._part_bytes)
        found = await self._aggregator.aggregate(
            self._stream(request) if len(parts) == 1 else self._stream_parts(request, parts)
        )
        wrong = [
            name
            for name in {**expected, **found.model.specs}
            if found.model.specs.get(name) != expected.get(name)
        ]
        if wrong:
            found.close()
            name = wrong[0]
            raise UnprocessableError(
                f"the aggregate does not fit the base model: {name!r} is {found.model.specs.get(name)}, the base model has "
                f"{expected.get(name)}"
            )
        return found

    async def _store(self, request: AggregationRequest, found: Aggregated) -> int:
        """Store a model and the state beside it."""
        registry, specs = self._registry, await self._registry.specs(request.base_version)
        lineage = {"lineage": _lineage(request, found.result.program)}
        # The same key after a crash: the registry answers with the version that it allocated before.
        if found.model.is_small and found.state.is_small:
            document = await found.model.content(lineage, specs)
            state = await found.state.content(found.state_metadata) if found.has_state else None
            version = await registry.add_version(document, request.key)
            if state is not None:
                await registry.put_state(version, state)
            registry.remember(version, document, specs, state)
            return version
        version = await registry.add_version(found.model.stream(lineage, specs), request.key)
        if found.has_state:
            await registry.put_state(version, found.state.stream(found.state_metadata))
        return version

    async def _stream(self, request: AggregationRequest) -> AsyncIterator[bytes]:
        """The request for a model of one part: documents as they are stored."""
        state = None if request.state_version is None else await self._registry.state(request.state_version)
        values = {} if state is None else read_state_values(state)
        plan = request.plan(values, state=state is not None and has_tensors(state))
        yield _plan_document(plan)
        for version in request.base_versions:
            yield await self._registry.document(version)
        if state is not None and plan.state:
            yield state
        for contribution in request.in_slot_order:
            async for piece in self._blobs.stream(contribution.digest):
                yield piece

    async def _stream_parts(
        self, request: AggregationRequest, parts: Sequence[Sequence[str]]
    ) -> AsyncIterator[bytes]:
        """The request for a model of several parts, of which a few megabytes are in memory."""
        registry = self._registry
        documents: list[StoredDocument] = [registry.document_in_parts(each) for each in request.base_versions]
        state: StoredDocument | None = None
        values: Mapping[str, Any] = {}
        if request.state_version is not None and (await registry.info(request.state_version))["has_state"]:
            state = registry.state_in_parts(request.state_version)
            values = state_values(await read_document_header(state))
            documents.append(state)
        documents += [_Blob(self._blobs, each.digest) for each in request.in_slot_order]
        headers = [await read_document_header(document) for document in documents]
        has_state = state is not None and bool(headers[documents.index(state)].entries)
        yield _plan_document(request.plan(values, parts=len(parts), state=has_state))
        part_of = {name: number for number, names in enumerate(parts) for name in names}
        sent = [
            (document, header, _names_by_part(header, part_of, len(parts), of_state=document is state))
            for document, header in zip(documents, headers, strict=True)
            if document is not state or has_state
        ]
        for number in range(len(parts)):
            for document, header, names in sent:
                async for piece in stream_part(document, header, names[number]):
                    yield piece


def _names_by_part(
    header: Header, part_of: Mapping[str, int], parts: int, *, of_state: bool
) -> list[set[str]]:
    """The names of a document's tensors, part by part: those named ``KIND/TENSOR`` are with the model's tensor."""
    found: list[set[str]] = [set() for _ in range(parts)]
    for name in header.entries:
        tensor = name.partition("/")[2] if of_state or name not in part_of else name
        found[part_of.get(tensor, 0)].add(name)
    return found


class _Blob:
    """An update in the blobs."""

    def __init__(self, blobs: BlobStore, digest: str) -> None:
        self._blobs, self._digest = blobs, digest

    async def read(self, start: int, end: int) -> bytes:
        return await self._blobs.read(self._digest, start, end)


def _plan_document(plan: AggregationPlan) -> bytes:
    return write_header({}, {PLAN_FIELD: json.dumps(plan.model_dump(mode="json", exclude_none=True))})[0]


def _lineage(request: AggregationRequest, program: str | None) -> str:
    """Where the version comes from, as JSON: all that it takes to make it again from the updates."""
    strategy: dict[str, Any] = (
        {"name": request.strategy} if isinstance(request.strategy, str) else dict(request.strategy)
    )
    used = {name: strategy.pop(name) for name in ("name", "program") if name in strategy}
    if program is not None:
        used["program"] = program
    fields: dict[str, Any] = {
        **request.lineage,
        "round": request.round_id,
        "parent": request.base_version,
        "strategy": {**used, "params": strategy},
        "participants": len(request.contributions),
        "num_samples": sum(each.num_samples for each in request.contributions),
        "updates": request.updates,
        "created_at": format_time(now()),
    }
    if request.state_version is not None:
        fields["state"] = request.state_version
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    if len(text.encode()) > MAX_LINEAGE_BYTES:
        fields["updates_digest"] = updates_digest(fields.pop("updates"))
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    return text


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


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, PropellerError) else f"{type(error).__name__}: {error}"
