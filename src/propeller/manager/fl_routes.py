"""``/fl``: experiments start rounds here; the rest goes through to the coordinator in the caller's name."""

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from propeller.errors import InvalidError, UnavailableError, UnsupportedTypeError
from propeller.manager.api_common import Body, PathId, TheManager, check_operator
from propeller.manager.rounds import NO_COORDINATOR
from propeller.manager.service import Manager
from propeller.process.logs import get_logger
from propeller.protocol.ids import Id
from propeller.protocol.rounds import CBOR_TYPES, MAX_WAIT_S, Experiment
from propeller.web.app import CompactJson, Router

log = get_logger("manager")

_REQUIRED = ("round_id", "model_ref", "participants", "task_wasm_image")

router = Router(prefix="/fl", tags=["federated learning"], default_response_class=CompactJson)


@router.post("/experiments", dependencies=[Depends(check_operator)])
async def configure_experiment(manager: TheManager, body: Body) -> dict[str, Any]:
    """Start a round on its participants; fields that experiments do not have are named in the answer."""
    for name in _REQUIRED:
        if not body.get(name):
            raise InvalidError(f"{name}: is required and must not be empty")
    experiment, ignored = Experiment.decode(body), Experiment.unknown_fields(body)
    started = await manager.rounds.start(experiment)
    if not ignored:
        return started.to_json()
    log.warning("unknown fields of an experiment are ignored", round_id=experiment.round_id, fields=ignored)
    return {**started.to_json(), "ignored": ignored}


@router.get("/task")
async def get_fl_task(
    manager: TheManager, request: Request, round_id: Annotated[Id, Query()], proplet_id: str = ""
) -> Response:
    """What a participant is to do in a round."""
    params = {"round_id": round_id, **({"proplet_id": proplet_id} if proplet_id else {})}
    return await _forward(manager, request, "/task", params=params)


@router.post("/update")
async def post_fl_update(manager: TheManager, request: Request) -> Response:
    """An update, as JSON or safetensors."""
    return await _forward(
        manager,
        request,
        "/update",
        content=await request.body(),
        content_type=request.headers.get("content-type", "application/json"),
    )


@router.post("/update_cbor")
async def post_fl_update_cbor(manager: TheManager, request: Request) -> Response:
    """An update as CBOR."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind not in CBOR_TYPES:
        raise UnsupportedTypeError("Content-Type: send application/cbor or application/cbor-seq")
    return await _forward(manager, request, "/update_cbor", content=await request.body(), content_type=kind)


@router.get("/rounds/next")
async def get_next_round(manager: TheManager, request: Request) -> Response:
    """The round that completed last, and the model that the next one starts from."""
    return await _forward(manager, request, "/rounds/next")


@router.get("/rounds/{round_id}/complete")
async def get_round_status(
    manager: TheManager,
    request: Request,
    round_id: PathId,
    wait_s: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0,
    updates: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Whether a round is over; with ``wait_s`` the answer comes when it is, or after so many seconds.

    With ``updates`` also when more than so many are in.
    """
    wait_s = min(wait_s, MAX_WAIT_S)
    params = ({"wait_s": f"{wait_s:g}"} if wait_s else {}) | (
        {} if updates is None else {"updates": str(updates)}
    )
    path = f"/rounds/{round_id}/complete"
    return await _forward(manager, request, path, params=params, timeout_s=wait_s + 30)


async def _forward(manager: Manager, request: Request, path: str, **options: Any) -> Response:
    if manager.coordinator is None:
        raise UnavailableError(NO_COORDINATOR)
    answer = await manager.coordinator.forward(
        request.method, path, authorization=request.headers.get("authorization"), **options
    )
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))
