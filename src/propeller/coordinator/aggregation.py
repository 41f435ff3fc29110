"""From the updates of a closed round to a model version: streamed to the aggregator, stored by the registry."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping, Sequence
from typing import Any

from propeller.coordinator.aggregation_requests import (
    AggregationRequest,
    RoundContribution,
    contribution_for_strategy,
    is_program,
)
from propeller.coordinator.aggregator_client import Aggregated, AggregatorClient
from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.documents import (
    AssembledDocument,
    ModelCut,
    StoredDocument,
    read_document_header,
    stream_part,
)
from propeller.coordinator.json_aggregator import as_in_base, check_mean_will_do
from propeller.coordinator.kept_updates import DamagedUpdateError, KeptUpdates
from propeller.coordinator.registry_client import (
    ModelRegistryClient,
    has_tensors,
    read_state_values,
    state_values,
)
from propeller.coordinator.rounds import NewVersion
from propeller.errors import (
    InvalidError,
    NotFoundError,
    PropellerError,
    UnavailableError,
    UnprocessableError,
)
from propeller.fl.bounds import difference_norms
from propeller.fl.outliers import find_outliers
from propeller.fl.strategies import PART_BYTES, read_strategy
from propeller.fl.tensors import FREE, Specs, Tensors, TensorSpec, to_safetensors
from propeller.process.http import ServiceError, UnreadableAnswerError
from propeller.process.logs import get_logger
from propeller.process.retry import doubling, retry
from propeller.protocol.aggregation import PLAN_FIELD, AggregationPlan, AggregationResult
from propeller.store.blobs import BlobNotFoundError
from propeller.tensors.safetensors import write_header

log = get_logger("coordinator")

RETRY_DELAYS = doubling(0.2, 5.0)
"""Seconds between tries to aggregate, at most; the last one over and over, for as long as a service is away."""

UNFORESEEN_TRIES = 8
"""Tries, a quarter of a minute in all, after an error that nobody foresaw, or an answer that cannot be read: either may pass."""


UPDATE_IS_GONE = "is not among the kept ones any more"
"""In the reason of a round that failed because an update is not where it was kept."""


class AggregationError(PropellerError):
    """A round's updates could not be aggregated or the aggregate not stored; the text says why."""


class ModelAwayError(UnavailableError):
    """The model registry does not have the version that a round started from; it is back once its folder is."""


class OutliersError(AggregationError):
    """Nothing can be made of the updates as long as some are among them.

    Attributes:
        reasons: why the update of each of these proplets is to be left out.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
        self.reasons = reasons


class Aggregation:
    """Makes model versions of updates."""

    def __init__(
        self,
        updates: KeptUpdates,
        registry: ModelRegistryClient,
        aggregator: AggregatorClient,
        bases: BaseModels,
        *,
        part_bytes: int = PART_BYTES,
        retry_delays: tuple[float, ...] = RETRY_DELAYS,
    ) -> None:
        """Models larger than ``part_bytes`` are aggregated in parts of at most that; ``retry_delays`` are in seconds, none for one try."""
        self._updates, self._registry, self._aggregator = updates, registry, aggregator
        self._bases = bases
        self._part_bytes, self._retry_delays = part_bytes, retry_delays

    async def make_version(
        self,
        request: AggregationRequest,
        *,
        while_wanted: Callable[[], bool] = lambda: True,
        waits: Callable[[str], None] = lambda _reason: None,
    ) -> NewVersion:
        """Aggregate updates and store the result with its server state; a second call gives the same version.

        Args:
            request: what the version is made of.
            while_wanted: whether it is still wanted; services that are away are waited for as long as it is.
            waits: is told, before each further try, what it waits for.

        Raises:
            OutliersError: nothing can be made of all the updates, but perhaps of the others.
            AggregationError: a service refused, or the version is not wanted any more.
        """
        unforeseen = 0

        def may_pass(error: BaseException) -> bool:
            nonlocal unforeseen
            if isinstance(error, PropellerError) and not isinstance(error, UnreadableAnswerError):
                return error.temporary and while_wanted()
            unforeseen += 1
            return unforeseen < UNFORESEEN_TRIES and while_wanted()

        def report(error: BaseException, delay_s: float) -> None:
            log.warning(
                "aggregation failed, trying again",
                round_id=request.round_id,
                reason=_describe(error),
                delay_s=delay_s,
                exc_info=None if isinstance(error, PropellerError) else error,
            )
            waits(_describe(error))

        try:
            return await retry(
                lambda: self._try_to_make_version(request),
                delays=self._retry_delays,
                on=may_pass,
                forever=bool(self._retry_delays),
                failed=report,
                spread=True,
            )
        except OutliersError:
            raise
        except Exception as error:
            if not isinstance(
                error, PropellerError
            ):  # a round must not be left open by what was not foreseen
                log.exception("updates cannot be aggregated", round_id=request.round_id)
            raise AggregationError(f"aggregation: {_describe(error)}") from error

    async def _try_to_make_version(self, request: AggregationRequest) -> NewVersion:
        started = time.perf_counter()
        try:
            made = await self.aggregate(request)
        except ServiceError as error:
            if issubclass(error.kind, InvalidError):
                await self._blame(request, error)
            raise
        with contextlib.closing(made) as found:
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
            NotFoundError: an update is not there; the text names its sender.
            OutliersError: some are damaged.
            ModelAwayError: a base model is not there now.
            PropellerError: a service refused or does not answer.
        """
        try:
            expected = await self._registry.specs(request.base_version)
        except NotFoundError as error:  # versions are not deleted
            raise ModelAwayError(
                f"the model registry does not have version {request.base_version}, which the round started from: {error}; "
                "give it its folder back (MODELS_DIR)"
            ) from None
        await self._check_whole(request)
        free = _free(request, expected)
        # A program is given whole tensors.
        whole = expected if is_program(request.strategy) else free
        cut = ModelCut(expected, self._part_bytes, whole=whole)
        try:
            found = await self._aggregate(request, cut, expected)
        except BlobNotFoundError as error:
            raise _gone(request, error) from error
        except DamagedUpdateError as error:
            raise _damaged(request, [error.digest]) from error
        wrong = [
            name
            for name in {**expected, **found.model.specs}
            if _spec(found.model.specs, name, free) != _spec(expected, name, free)
        ]
        if wrong:
            found.close()
            name = wrong[0]
            raise UnprocessableError(
                f"the aggregate does not fit the base model: {name!r} is {found.model.specs.get(name)}, the base model has "
                f"{expected.get(name)}"
            )
        return found

    async def _aggregate(self, request: AggregationRequest, cut: ModelCut, expected: Specs) -> Aggregated:
        if self._aggregator.as_json.encoding.is_json:
            return await self._aggregate_json(request, cut, expected)
        documents = self._stream(request) if cut.parts == 1 else self._stream_parts(request, cut)
        try:
            return await self._aggregator.aggregate(documents, cut.tensors)
        except ServiceError as error:
            if not self._aggregator.as_json.encoding.may_be_json(error):
                raise
            return await self._aggregate_json(request, cut, expected)

    async def _aggregate_json(
        self, request: AggregationRequest, cut: ModelCut, expected: Specs
    ) -> Aggregated:
        """The mean of an aggregator that reads JSON alone."""
        url = self._aggregator.url
        check_mean_will_do(request, cut.parts, url)
        has_deltas = any(each.kind == "delta" for each in request.contributions)
        base = await self._bases.tensors(request.base_version) if has_deltas else None

        def read(each: RoundContribution) -> Awaitable[Tensors]:
            return self._bases.read(self._updates.stream(each.digest))

        found = as_in_base(await self._aggregator.as_json.mean(request, read, base), expected, url)
        made = Aggregated(AggregationResult(), AssembledDocument(), AssembledDocument())
        await made.model.add(to_safetensors(found))
        return made

    async def _check_whole(self, request: AggregationRequest) -> None:
        """See that large updates are those that came; small ones are looked at when they are read.

        Raises:
            OutliersError: some are damaged: they are left out.
            NotFoundError: one is not there; the text names its sender.
        """
        try:
            damaged = await self._updates.damaged(each.digest for each in request.contributions)
        except BlobNotFoundError as error:
            raise _gone(request, error) from error
        if damaged:
            raise _damaged(request, damaged)

    async def _blame(self, request: AggregationRequest, refusal: ServiceError) -> None:
        """Look for updates that are to blame for a refusal.

        Raises:
            OutliersError: there are some.
            PropellerError: a service does not answer now, or an update is not there.
        """
        if is_program(request.strategy):
            return
        strategy = read_strategy(request.strategy)
        norms = []
        for each in request.in_slot_order:
            base_version = request.base_version if each.base_version is None else each.base_version
            base = await self._bases.tensors(base_version)
            update = await self._bases.read(self._updates.stream(each.digest))
            norms.append(await asyncio.to_thread(difference_norms, update, base, each.kind))
        contributions = [contribution_for_strategy(each) for each in request.in_slot_order]
        reasons = find_outliers(strategy, contributions, norms, refusal.reason)
        if reasons:
            raise OutliersError(reasons) from refusal

    async def _store(self, request: AggregationRequest, found: Aggregated) -> int:
        """Store a model and the state beside it."""
        registry = self._registry
        specs = {name: found.model.specs[name] for name in await registry.specs(request.base_version)}
        if found.has_state:
            registry.require_state()
        lineage = {"lineage": request.lineage_text(found.result.program)}
        is_small = found.model.is_small and found.state.is_small
        document = await found.model.content(lineage, specs) if is_small else None
        state = await found.state.content(found.state_metadata) if is_small and found.has_state else None
        key, tries = request.key, 1
        while True:
            # The same key after a crash: the registry answers with the version that it allocated before.
            model = found.model.stream(lineage, specs) if document is None else document
            version = await registry.add_version(model, key)
            stored = await self._another_stored(request, found, version)
            if stored is None:
                break
            log.warning(
                "the program gave another model than when it was tried before: it depends on more than what it is given",
                round_id=request.round_id,
                version=version,
            )
            if stored["has_state"] or not found.has_state:
                return version
            # The model of the earlier try has no state, and that of this one does not belong to it.
            tries += 1
            key = f"{request.key}.{tries}"
        if found.has_state:
            await registry.put_state(
                version, found.state.stream(found.state_metadata) if state is None else state
            )
        if document is not None:
            registry.remember(version, document, specs, state)
        return version

    async def _another_stored(
        self, request: AggregationRequest, found: Aggregated, version: int
    ) -> Mapping[str, Any] | None:
        """What the registry has as a version, if that is not this model: only a program can give two of one request."""
        if not is_program(request.strategy):
            return None
        try:
            info = await self._registry.info(version)
        except NotFoundError:  # a registry of absmach/propeller knows models, and nothing about them
            return None
        return None if info["digest"] == await found.model.digest() else info

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
            async for piece in self._updates.stream(contribution.digest):
                yield piece

    async def _stream_parts(self, request: AggregationRequest, cut: ModelCut) -> AsyncIterator[bytes]:
        """The request for a model of several parts, of which a few megabytes are in memory."""
        registry = self._registry
        documents: list[StoredDocument] = [registry.document_in_parts(each) for each in request.base_versions]
        state: StoredDocument | None = None
        values: Mapping[str, Any] = {}
        if request.state_version is not None and await registry.has_state(request.state_version):
            state = registry.state_in_parts(request.state_version)
            values = state_values(await read_document_header(state))
            documents.append(state)
        documents += [_KeptUpdate(self._updates, each.digest) for each in request.in_slot_order]
        headers = [await read_document_header(document) for document in documents]
        has_state = state is not None and bool(headers[documents.index(state)].entries)
        yield _plan_document(request.plan(values, parts=cut.parts, cut=list(cut.tensors), state=has_state))
        sent = [
            (document, header, cut.pieces(header, of_state=document is state))
            for document, header in zip(documents, headers, strict=True)
            if document is not state or has_state
        ]
        for number in range(cut.parts):
            for document, header, pieces in sent:
                async for some in stream_part(document, header, pieces[number]):
                    yield some


class _KeptUpdate:
    """An update's document, which is read as it is needed."""

    def __init__(self, updates: KeptUpdates, digest: str) -> None:
        self._updates, self._digest = updates, digest

    async def read(self, start: int, end: int) -> bytes:
        return await self._updates.read(self._digest, start, end)


def _gone(request: AggregationRequest, error: BlobNotFoundError) -> NotFoundError:
    lost = " and ".join(each.proplet_id for each in request.in_slot_order if each.digest == error.key)
    return NotFoundError(f"the update of {lost} {UPDATE_IS_GONE}: {error}")


def _damaged(request: AggregationRequest, digests: Sequence[str]) -> OutliersError:
    reason = "its update is damaged where the coordinator keeps it: look at the disk of COORDINATOR_STATE"
    return OutliersError(
        {each.proplet_id: reason for each in request.in_slot_order if each.digest in digests}
    )


def _free(request: AggregationRequest, specs: Specs) -> set[str]:
    """The tensors that have any length."""
    if is_program(request.strategy):
        return set()
    strategy = read_strategy(request.strategy)
    return {name for name in specs if strategy.is_free(name)}


def _spec(specs: Specs, name: str, free: Container[str]) -> TensorSpec | None:
    """What is known of a tensor, but for the length of one that is free."""
    spec = specs.get(name)
    return (
        TensorSpec(spec.dtype, FREE) if spec is not None and name in free and len(spec.shape) == 1 else spec
    )


def _plan_document(plan: AggregationPlan) -> bytes:
    return write_header({}, {PLAN_FIELD: json.dumps(plan.model_dump(mode="json", exclude_none=True))})[0]


def _describe(error: BaseException) -> str:
    return str(error) if isinstance(error, PropellerError) else f"{type(error).__name__}: {error}"
