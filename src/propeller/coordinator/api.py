"""The coordinator's HTTP API (the routes of absmach/propeller, and those that this project adds)."""

from collections.abc import AsyncGenerator, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request

from propeller.coordinator.content_coding import LongContentError, coding_of
from propeller.coordinator.experiment_routes import experiment_routes
from propeller.coordinator.experiments import Experiments
from propeller.coordinator.large_updates import LargeUpdates
from propeller.coordinator.request_schemas import request_body
from propeller.coordinator.service import Coordinator
from propeller.coordinator.settings import GIB
from propeller.coordinator.telemetry import CoordinatorMetrics
from propeller.coordinator.updates import ReceivedUpdate, decode_update
from propeller.coordinator.verification import Verification
from propeller.errors import InvalidError, NotFoundError, RefusedError, TooLargeError
from propeller.fl.strategies import StrategyLoadError, UnknownStrategyError, describe_strategy, strategy_names
from propeller.fl.tensors import SAFETENSORS, media_type
from propeller.process.audit import note
from propeller.process.logs import get_logger
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.roles import CONTROL, WATCH, Role
from propeller.protocol.rounds import (
    MAX_WAIT_S,
    ChosenParticipants,
    Experiment,
    ParticipantFailure,
    ParticipantStage,
    model_uri,
)
from propeller.protocol.updates import CBOR
from propeller.protocol.wire import read_count
from propeller.web.access import AccessTable
from propeller.web.app import Router, check_is_json, create_app
from propeller.web.auth import Admission, Caller, Principal
from propeller.web.body import BodyLimit, read_body
from propeller.web.limits import MAX_BODY

log = get_logger("coordinator")

_ROUND_FIELDS = {"round_id", "experiment_id", "model_ref", "participants", "task_wasm_image"}
"""Of an experiment of a single round, as absmach/propeller has them, and not of one of many rounds."""

WaitSeconds = Annotated[float, Query(ge=0, allow_inf_nan=False)]

ACCESS: AccessTable = {
    "POST /experiments": CONTROL | {Role.MANAGER},
    "POST /experiments/check": CONTROL,
    "POST /experiments/{experiment_id}/pause": CONTROL,
    "POST /experiments/{experiment_id}/resume": CONTROL,
    "POST /experiments/{experiment_id}/stop": CONTROL,
    "GET /experiments": WATCH,
    "GET /experiments/{experiment_id}": WATCH | {Role.PROPLET},
    "GET /experiments/{experiment_id}/history": WATCH,
    "GET /experiments/{experiment_id}/events": WATCH,
    "GET /strategies": WATCH,
    "GET /strategies/{name}": WATCH,
    "POST /rounds/{round_id}/retry": CONTROL,
    "POST /rounds/{round_id}/cancel": CONTROL,
    "POST /rounds/{round_id}/participants": CONTROL | {Role.MANAGER},
    "POST /rounds/{round_id}/failures": CONTROL | {Role.MANAGER},
    "POST /rounds/{round_id}/stages": CONTROL | {Role.MANAGER},
    "GET /task": WATCH | {Role.MANAGER, Role.PROPLET},
    "POST /update": CONTROL | {Role.MANAGER, Role.PROPLET},
    "POST /update_cbor": CONTROL | {Role.MANAGER, Role.PROPLET},
    "GET /rounds": WATCH,
    "GET /rounds/next": WATCH | {Role.MANAGER, Role.PROPLET},
    "GET /rounds/{round_id}": WATCH | {Role.PROPLET},
    "GET /rounds/{round_id}/complete": WATCH | {Role.MANAGER, Role.PROPLET},
    "POST /models/{version}/verify": CONTROL,
}
"""A device sends its update, and is told what its task is and whether its update counts."""


def create_api(
    service: Coordinator,
    experiments: Experiments,
    metrics: CoordinatorMetrics,
    *,
    verification: Verification,
    large: LargeUpdates,
    admission: Admission | None = None,
    max_body: int = MAX_BODY,
    max_update: int = 4 * GIB,
    database_health: Callable[[], dict[str, str]] = dict,
) -> FastAPI:
    """The app.

    Args:
        service: the rounds.
        experiments: the experiments.
        metrics: the collectors.
        verification: makes versions again.
        large: takes updates that are too large for memory.
        admission: finds out who calls.
        max_body: the largest body that is in memory as a whole, in bytes.
        max_update: the largest update in safetensors, in bytes.
        database_health: what is wrong with the database, for ``/health``.
    """
    app = create_app(
        "coordinator",
        admission=admission,
        access=ACCESS,
        max_body=max_body,
        max_body_setting="COORDINATOR_MAX_BYTES",
        larger_bodies={"/update": BodyLimit(max_update, "COORDINATOR_MAX_UPDATE_BYTES")},
        metrics=metrics,
        health=lambda: {"status": "ok", **database_health()},
    )
    app.include_router(
        _update_routes(service, large, max_body, max_update)
    )  # first, as routes are tried in turn
    app.include_router(_control_routes(service, experiments))
    app.include_router(experiment_routes(experiments))
    app.include_router(_strategy_routes())
    app.include_router(_round_routes(service))
    app.include_router(_verification_routes(verification))
    return app


def _control_routes(service: Coordinator, experiments: Experiments) -> Router:
    """What the manager and users do with rounds."""
    router = Router()

    @router.post("/experiments", status_code=201, openapi_extra=request_body(ExperimentSpec, Experiment))
    async def submit(request: Request) -> dict[str, Any]:
        check_is_json(request.headers.get("content-type"))
        fields = await request.json()
        if fields and not fields.keys() & _ROUND_FIELDS:
            record = await experiments.submit(ExperimentSpec.decode(fields))
            note(experiment=record.id, program=record.spec.program)
            return {**record.summary(), "spec": record.spec_json}
        return await configure(Experiment.decode(fields), Experiment.unknown_fields(fields))

    async def configure(experiment: Experiment, ignored: list[str]) -> dict[str, Any]:
        record = await service.configure(experiment)
        note(experiment=experiment.experiment_id, round=experiment.round_id)
        digest = await service.model_digest(record)
        if ignored:
            log.warning(
                "unknown fields of an experiment are ignored", round_id=experiment.round_id, fields=ignored
            )
        return {
            "experiment_id": experiment.experiment_id,
            "round_id": experiment.round_id,
            "status": "configured",
            "model_version": record.round.plan.base_version,
            **({} if digest is None else {"model_digest": digest}),
            **({"ignored": ignored} if ignored else {}),
        }

    @router.post("/rounds/{round_id}/retry", status_code=202)
    async def retry(round_id: str) -> dict[str, Any]:
        return (await service.retry_round(round_id)).status()

    @router.post("/rounds/{round_id}/cancel")
    async def cancel(round_id: str, who: Caller) -> dict[str, Any]:
        return (await service.cancel_single_round(round_id, f"cancelled by {who}")).status()

    @router.post("/rounds/{round_id}/participants")
    async def choose_participants(round_id: str, chosen: ChosenParticipants) -> dict[str, Any]:
        return (await service.choose_participants(round_id, chosen)).model_dump(mode="json")

    @router.post("/rounds/{round_id}/failures")
    async def record_failure(round_id: str, failure: ParticipantFailure) -> dict[str, Any]:
        return {"status": "recorded" if await service.record_failure(round_id, failure) else "over"}

    @router.post("/rounds/{round_id}/stages")
    async def note_stage(round_id: str, stage: ParticipantStage) -> dict[str, Any]:
        return {"status": "noted" if await service.note_stage(round_id, stage) else "over"}

    return router


def _update_routes(service: Coordinator, large: LargeUpdates, max_body: int, max_update: int) -> Router:
    """What participants get and send."""
    router = Router()

    @router.get("/task")
    async def task(who: Caller, round_id: str = "", proplet_id: str = "") -> dict[str, Any]:
        if not round_id:
            raise InvalidError("round_id is required")
        record = await service.get_round(round_id)
        asked, hyperparams = record.request, record.request.hyperparams
        takes_part = who.role != Role.PROPLET or who.id in record.round.plan.participants
        digest = await service.model_digest(record) if takes_part else None
        return {
            "task": {
                "round_id": round_id,
                "model_ref": asked.model_ref,
                **({} if digest is None else {"model_digest": digest}),
                "config": {"proplet_id": proplet_id},
                **({} if hyperparams is None else {"hyperparams": hyperparams}),
            }
        }

    @router.post("/update")
    async def update(request: Request, who: Caller) -> dict[str, Any]:
        content_type = request.headers.get("content-type")
        coding = coding_of(request.headers.get("content-encoding"))
        if media_type(content_type) != SAFETENSORS:
            return await accept(request, content_type, who)
        pieces = request.stream()
        if not _is_large(request):
            body = await _read_body(request, max_body)
            try:
                return await accept_body(body, SAFETENSORS, coding, LARGE_BYTES, who)
            except LongContentError:
                pieces = _one_piece(body)

        async def admit(update: ReceivedUpdate) -> None:
            check_sender(update, who)
            await service.check_admission(update)

        async with large.receive(pieces, admit, coding=coding, max_bytes=max_update) as received:
            await service.accept_update(received)
        return {"status": "accepted"}

    @router.post("/update_cbor")
    async def update_cbor(request: Request, who: Caller) -> dict[str, Any]:
        return await accept(request, CBOR, who)

    async def accept(request: Request, content_type: str | None, who: Principal) -> dict[str, Any]:
        coding = coding_of(request.headers.get("content-encoding"))
        return await accept_body(await _read_body(request, max_body), content_type, coding, max_body, who)

    async def accept_body(
        body: bytes, content_type: str | None, coding: str | None, max_bytes: int, who: Principal
    ) -> dict[str, Any]:
        update = await decode_update(content_type, body, coding=coding, max_bytes=max_bytes)
        check_sender(update, who)
        await service.accept_update(update)
        return {"status": "accepted"}

    def check_sender(update: ReceivedUpdate, who: Principal) -> None:
        proplet_id = update.header.proplet_id
        # The manager checks who calls its own /fl/update, and passes the update on.
        if who.role != Role.MANAGER and not who.may_act_for(proplet_id):
            raise RefusedError(f"{who} may not send an update as {proplet_id}")

    return router


def _is_large(request: Request) -> bool:
    """Whether a body is not to be in memory; one of unknown length is not, either."""
    length = read_count(request.headers.get("content-length", ""))
    return length is None or length > LARGE_BYTES


async def _one_piece(body: bytes) -> AsyncGenerator[bytes]:
    yield body


async def _read_body(request: Request, max_bytes: int) -> bytes:
    try:
        return await read_body(request, max_bytes, "COORDINATOR_MAX_BYTES")
    except TooLargeError as error:
        raise TooLargeError(f"{error}: send a large update as {SAFETENSORS}") from None


def _strategy_routes() -> Router:
    """What experiments can name."""
    router = Router(prefix="/strategies")

    @router.get("")
    async def list_strategies() -> dict[str, Any]:
        return {"strategies": [_describe_strategy(name) for name in strategy_names()]}

    @router.get("/{name}")
    async def detail(name: str) -> dict[str, Any]:
        try:
            return describe_strategy(name).to_json()
        except UnknownStrategyError as error:
            raise NotFoundError(str(error)) from None

    return router


def _describe_strategy(name: str) -> dict[str, Any]:
    """A strategy; of one whose package cannot be loaded why."""
    try:
        return describe_strategy(name).to_json()
    except StrategyLoadError as error:
        return {"name": name, "error": str(error)}


def _round_routes(service: Coordinator) -> Router:
    """What rounds there are, and how they stand."""
    router = Router()

    @router.get("/rounds")
    async def list_rounds(
        offset: Annotated[int, Query(ge=0, lt=2**63)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        total, rounds = await service.list_rounds(offset, limit)
        return {"offset": offset, "limit": limit, "total": total, "rounds": rounds}

    @router.get("/rounds/next")
    async def next_round() -> dict[str, Any]:
        last = await service.last_completed()
        if last is None:
            return {"next_round_available": False, "message": "No completed rounds found"}
        round_id, version = last
        return {
            "next_round_available": True,
            "last_completed_round": round_id,
            "new_model_version": version,
            "model_uri": model_uri(version),
            "status": "ready",
        }

    @router.get("/rounds/{round_id}")
    async def detail(round_id: str, who: Caller) -> dict[str, Any]:
        record = await service.get_round(round_id)
        if who.role == Role.PROPLET:
            return record.detail_for(who.id)
        return service.detail(record)

    @router.get("/rounds/{round_id}/complete")
    async def complete(
        round_id: str, wait_s: WaitSeconds = 0.0, updates: Annotated[int | None, Query(ge=0)] = None
    ) -> dict[str, Any]:
        record = await service.wait_for_round(round_id, min(wait_s, MAX_WAIT_S), updates)
        return record.status()

    return router


def _verification_routes(verification: Verification) -> Router:
    """Whether model versions are what their updates make."""
    router = Router()

    @router.post("/models/{version:path}/verify")
    async def verify_version(version: str) -> dict[str, Any]:
        return (await verification.verify(version)).to_json()

    return router
