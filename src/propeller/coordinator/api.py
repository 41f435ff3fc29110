"""The coordinator's HTTP API (the routes of absmach/propeller, and those that this project adds)."""

from typing import Annotated, Any

from fastapi import FastAPI, Query, Request

from propeller.coordinator.access import check_may_control
from propeller.coordinator.experiment_routes import experiment_routes
from propeller.coordinator.experiments import Experiments
from propeller.coordinator.service import Coordinator
from propeller.coordinator.telemetry import CoordinatorMetrics
from propeller.coordinator.updates import decode_update
from propeller.coordinator.verification import Verification
from propeller.errors import InvalidError, RefusedError
from propeller.process.logs import get_logger
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.rounds import (
    CBOR,
    MAX_WAIT_S,
    ChosenParticipants,
    Experiment,
    ParticipantFailure,
    model_uri,
)
from propeller.web.app import MAX_BODY, Router, create_app
from propeller.web.auth import Caller, Principal, Verify

log = get_logger("coordinator")

_ROUND_FIELDS = {"round_id", "experiment_id", "model_ref", "participants", "task_wasm_image"}
"""Of an experiment of a single round, as absmach/propeller has them, and not of one of many rounds."""

WaitSeconds = Annotated[float, Query(ge=0, allow_inf_nan=False)]


def create_api(
    service: Coordinator,
    experiments: Experiments,
    metrics: CoordinatorMetrics,
    *,
    verification: Verification,
    verify: Verify | None = None,
    max_body: int = MAX_BODY,
) -> FastAPI:
    """The app; ``verify`` checks who calls, ``max_body`` is the largest body in bytes."""
    app = create_app("coordinator", verify=verify, max_body=max_body, metrics=metrics)
    app.include_router(_control_routes(service, experiments))
    app.include_router(experiment_routes(experiments))
    app.include_router(_update_routes(service))
    app.include_router(_round_routes(service))
    app.include_router(_verification_routes(verification))
    return app


def _control_routes(service: Coordinator, experiments: Experiments) -> Router:
    """What the manager and users do with rounds."""
    router = Router()

    @router.post("/experiments", status_code=201)
    async def submit(request: Request, who: Caller) -> dict[str, Any]:
        check_may_control(who)
        fields = await request.json()
        if fields and not fields.keys() & _ROUND_FIELDS:
            record = await experiments.submit(ExperimentSpec.decode(fields))
            return {**record.summary(), "spec": record.spec.to_json()}
        return await configure(Experiment.decode(fields), Experiment.unknown_fields(fields))

    async def configure(experiment: Experiment, ignored: list[str]) -> dict[str, Any]:
        record = await service.configure(experiment)
        if ignored:
            log.warning(
                "unknown fields of an experiment are ignored", round_id=experiment.round_id, fields=ignored
            )
        return {
            "experiment_id": experiment.experiment_id,
            "round_id": experiment.round_id,
            "status": "configured",
            "model_version": record.round.plan.base_version,
            **({"ignored": ignored} if ignored else {}),
        }

    @router.post("/rounds/{round_id}/retry", status_code=202)
    async def retry(round_id: str, who: Caller) -> dict[str, Any]:
        check_may_control(who)
        return (await service.retry_round(round_id)).status()

    @router.post("/rounds/{round_id}/participants")
    async def choose_participants(round_id: str, chosen: ChosenParticipants, who: Caller) -> dict[str, Any]:
        check_may_control(who)
        return (await service.choose_participants(round_id, chosen)).model_dump(mode="json")

    @router.post("/rounds/{round_id}/failures")
    async def record_failure(round_id: str, failure: ParticipantFailure, who: Caller) -> dict[str, Any]:
        check_may_control(who)
        return {"status": "recorded" if await service.record_failure(round_id, failure) else "over"}

    return router


def _update_routes(service: Coordinator) -> Router:
    """What participants get and send."""
    router = Router()

    @router.get("/task")
    async def task(round_id: str = "", proplet_id: str = "") -> dict[str, Any]:
        if not round_id:
            raise InvalidError("round_id is required")
        asked = (await service.get_round(round_id)).request
        hyperparams = asked.hyperparams
        return {
            "task": {
                "round_id": round_id,
                "model_ref": asked.model_ref,
                "config": {"proplet_id": proplet_id},
                **({} if hyperparams is None else {"hyperparams": hyperparams}),
            }
        }

    @router.post("/update")
    async def update(request: Request, who: Caller) -> dict[str, Any]:
        return await accept(request.headers.get("content-type"), await request.body(), who)

    @router.post("/update_cbor")
    async def update_cbor(request: Request, who: Caller) -> dict[str, Any]:
        return await accept(CBOR, await request.body(), who)

    async def accept(content_type: str | None, body: bytes, who: Principal) -> dict[str, Any]:
        update = await decode_update(content_type, body)
        proplet_id = update.header.proplet_id
        # The manager checks who calls its own /fl/update, and passes the update on.
        if not who.may_act_for(proplet_id) and who.role != "manager":
            raise RefusedError(f"client {who.id} may not send an update as {proplet_id}")
        await service.accept_update(update)
        return {"status": "accepted"}

    return router


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
    async def detail(round_id: str) -> dict[str, Any]:
        return (await service.get_round(round_id)).detail()

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
    async def verify_version(version: str, who: Caller) -> dict[str, Any]:
        check_may_control(who)
        return (await verification.verify(version)).to_json()

    return router
