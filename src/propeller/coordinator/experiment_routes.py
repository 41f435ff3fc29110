"""The HTTP routes of experiments."""

from typing import Annotated, Any, Literal

from fastapi import Header, Query, Request
from fastapi.responses import StreamingResponse

from propeller.coordinator.event_stream import read_last_event_id, stream_events
from propeller.coordinator.experiments import Experiments
from propeller.coordinator.history import history_csv, history_json
from propeller.coordinator.request_schemas import request_body
from propeller.fl.experiment import ExperimentState
from propeller.protocol.experiments import ExperimentSpec
from propeller.protocol.roles import Role
from propeller.web.app import Router, check_is_json
from propeller.web.auth import Caller

Offset = Annotated[int, Query(ge=0, lt=2**63)]
Limit = Annotated[int, Query(ge=1, le=1000)]


def experiment_routes(service: Experiments) -> Router:
    """What there is to see of experiments, and to do with them once they are submitted."""
    router = Router()
    router.include_router(_control_routes(service))
    router.include_router(_watch_routes(service))
    return router


def _control_routes(service: Experiments) -> Router:
    """What users do with experiments."""
    router = Router(prefix="/experiments")

    @router.post("/check", openapi_extra=request_body(ExperimentSpec))
    async def check(request: Request, *, brings_dataset: bool = False) -> dict[str, Any]:
        check_is_json(request.headers.get("content-type"))
        spec = ExperimentSpec.decode(await request.json())
        exists = await service.check(spec, brings_dataset=brings_dataset)
        return {"exists": exists, "spec": spec.to_json()}

    @router.post("/{experiment_id}/pause", status_code=202)
    async def pause(experiment_id: str) -> dict[str, Any]:
        return (await service.pause(experiment_id)).summary()

    @router.post("/{experiment_id}/resume", status_code=202)
    async def resume(experiment_id: str) -> dict[str, Any]:
        return (await service.resume(experiment_id)).summary()

    @router.post("/{experiment_id}/stop", status_code=202)
    async def stop(experiment_id: str) -> dict[str, Any]:
        return (await service.stop(experiment_id)).summary()

    return router


def _watch_routes(service: Experiments) -> Router:
    """What there is to see of experiments."""
    router = Router(prefix="/experiments")

    @router.get("")
    async def list_experiments(
        state: ExperimentState | None = None,
        name: str | None = None,
        offset: Offset = 0,
        limit: Limit = 100,
    ) -> dict[str, Any]:
        total, experiments = await service.page(offset, limit, state=state, name=name)
        summaries = [record.summary() for record in experiments]
        return {"offset": offset, "limit": limit, "total": total, "experiments": summaries}

    @router.get("/{experiment_id}")
    async def detail(experiment_id: str, who: Caller) -> dict[str, Any]:
        record = (await service.find(experiment_id)).record
        if who.role == Role.PROPLET:  # it removes what programs kept on it once the experiment is over
            return {"id": record.id, "state": record.state.value}
        return {**record.summary(), "spec": record.spec_json, "round": await service.open_round(record)}

    @router.get("/{experiment_id}/history")
    async def history(
        experiment_id: str,
        response_format: Annotated[Literal["json", "csv"], Query(alias="format")] = "json",
    ) -> StreamingResponse:
        await service.find(experiment_id)
        if response_format == "json":
            text = history_json(experiment_id, service.rounds_of(experiment_id))
            return StreamingResponse(text, media_type="application/json")
        lines = history_csv(lambda: service.rounds_of(experiment_id))
        name = f'attachment; filename="{experiment_id}.csv"'
        return StreamingResponse(lines, media_type="text/csv", headers={"content-disposition": name})

    @router.get("/{experiment_id}/events")
    async def events(
        experiment_id: str, last_event_id: Annotated[str | None, Header()] = None
    ) -> StreamingResponse:
        after = read_last_event_id(last_event_id)
        await service.find(experiment_id)
        return stream_events(service, experiment_id, after)

    return router
