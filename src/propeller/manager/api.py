"""The manager's HTTP API: proplets, tasks, and what of federated learning starts here or goes through to the coordinator."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, File, Path, Query, Request, Response, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from propeller import __version__
from propeller.errors import InvalidError, UnavailableError, UnsupportedTypeError
from propeller.manager.metrics import ApiMetrics, FleetMetrics
from propeller.manager.names import MAX_NAME_CHARACTERS
from propeller.manager.round_starter import NO_COORDINATOR
from propeller.manager.service import Manager
from propeller.manager.task import Task, TaskSpec, decode_metadata, describe_parts, results_of_parts
from propeller.process.audit import note
from propeller.process.decoding import decode
from propeller.process.logs import get_logger
from propeller.protocol.ids import Id
from propeller.protocol.roles import CONTROL, WATCH, Role
from propeller.protocol.rounds import MAX_WAIT_S, Experiment
from propeller.protocol.updates import CBOR_TYPES
from propeller.protocol.wire import decode_object, format_time
from propeller.web.access import AccessTable
from propeller.web.app import Router, check_is_json, create_app
from propeller.web.auth import Admission, Caller, Principal
from propeller.web.metrics import HttpMetrics

log = get_logger("manager")

MAX_LIMIT = 1000

HIDDEN = "(hidden)"

Offset = Annotated[int, Query(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
PathId = Annotated[Id, Path()]


class NewName(BaseModel):
    """What a device is called from now on."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Id, Field(max_length=MAX_NAME_CHARACTERS)]


ACCESS: AccessTable = {
    "GET /proplets": WATCH,
    "GET /proplets/{proplet_id}": WATCH,
    "PATCH /proplets/{proplet_id}": CONTROL,
    "DELETE /proplets/{proplet_id}": CONTROL,
    "GET /proplets/{proplet_id}/metrics": WATCH,
    "GET /proplets/{proplet_id}/alive-history": WATCH,
    "POST /tasks": CONTROL,
    "GET /tasks": WATCH,
    "GET /tasks/{task_id}": WATCH,
    "PUT /tasks/{task_id}": CONTROL,
    "PUT /tasks/{task_id}/upload": CONTROL,
    "DELETE /tasks/{task_id}": CONTROL,
    "POST /tasks/{task_id}/start": CONTROL,
    "POST /tasks/{task_id}/stop": CONTROL,
    "GET /tasks/{task_id}/results": WATCH,
    "GET /tasks/{task_id}/metrics": WATCH,
    "POST /fl/experiments": CONTROL,
    "GET /fl/task": WATCH | {Role.PROPLET},
    "POST /fl/update": CONTROL | {Role.PROPLET},
    "POST /fl/update_cbor": CONTROL | {Role.PROPLET},
    "GET /fl/rounds/next": WATCH | {Role.PROPLET},
    "GET /fl/rounds/{round_id}/complete": WATCH | {Role.PROPLET},
}
"""Devices get and send here what is theirs of a round."""


def create_api(
    manager: Manager,
    *,
    instance_id: str = "",
    admission: Admission | None = None,
    database_health: Callable[[], dict[str, str]] = dict,
) -> FastAPI:
    """The app of a running manager.

    Args:
        manager: what answers.
        instance_id: named in ``/health``.
        admission: finds out who calls; ``None`` lets anyone in.
        database_health: what is wrong with the database, for ``/health``.
    """

    def health() -> dict[str, object]:
        return {
            "status": "pass",
            "version": __version__,
            "commit": "",
            "description": "manager service",
            "build_time": "",
            "instance_id": instance_id,
            "mqtt_connected": manager.session.connected,
            **database_health(),
        }

    metrics, requests = HttpMetrics("manager"), ApiMetrics()
    metrics.registry.register(requests)
    metrics.registry.register(FleetMetrics(manager.fleet))
    app = create_app(
        "manager", admission=admission, access=ACCESS, health=health, metrics=metrics, redirect_slashes=False
    )
    for routes in (_proplet_routes, _task_routes, _fl_routes):
        app.include_router(routes(manager, [Depends(requests.count)]))
    app.add_middleware(_TrailingSlash)
    return app


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        UnsupportedTypeError: it is announced as something else.
        MalformedMessageError: it is not a JSON object.
    """
    check_is_json(request.headers.get("content-type"))
    return await decode(decode_object, await request.body())


Body = Annotated[dict[str, Any], Depends(read_object)]


def _proplet_routes(manager: Manager, dependencies: Sequence[Any]) -> Router:
    router = Router(prefix="/proplets", tags=["proplets"], dependencies=dependencies)

    @router.get("")
    async def list_proplets(
        offset: Offset = 0, limit: Limit = 100, status: Literal["active", "inactive"] | None = None
    ) -> dict[str, Any]:
        """A page of the proplets, in the order of their registration."""
        total, page = await manager.list_proplets(offset, limit, status)
        return {"offset": offset, "limit": limit, "total": total, "proplets": page}

    @router.get("/{proplet_id}")
    async def get_proplet(proplet_id: PathId) -> dict[str, Any]:
        """A proplet."""
        return await manager.describe_proplet(proplet_id)

    @router.patch("/{proplet_id}")
    async def rename_proplet(proplet_id: PathId, body: NewName) -> dict[str, Any]:
        """Call a proplet by the name that identity has for it now."""
        note(name=body.name)
        return await manager.rename_proplet(proplet_id, body.name)

    @router.delete("/{proplet_id}", status_code=204)
    async def delete_proplet(proplet_id: PathId) -> None:
        """Delete a proplet on which nothing runs."""
        await manager.delete_proplet(proplet_id)

    @router.get("/{proplet_id}/metrics")
    async def get_proplet_metrics(
        proplet_id: PathId, offset: Offset = 0, limit: Limit = 100
    ) -> dict[str, Any]:
        """A page of a proplet's resource metrics, the oldest first."""
        total, page = await manager.metrics.of_proplet(proplet_id, offset, limit)
        return {"offset": offset, "limit": limit, "total": total, "metrics": page}

    @router.get("/{proplet_id}/alive-history")
    async def get_proplet_alive_history(
        proplet_id: PathId, offset: Offset = 0, limit: Limit = 100
    ) -> dict[str, Any]:
        """A page of a proplet's last ten heartbeats, the oldest first."""
        history = [format_time(beat) for beat in manager.proplet(proplet_id).heartbeats]
        page = history[offset : offset + limit]
        return {"offset": offset, "limit": limit, "total": len(history), "history": page}

    return router


def _task_routes(manager: Manager, dependencies: Sequence[Any]) -> Router:
    router = Router(prefix="/tasks", tags=["tasks"], dependencies=dependencies)

    def told(task: Task, who: Principal, parts: Sequence[Task] | None) -> dict[str, Any]:
        stage = manager.runner.stage(task)
        return {
            **shown(task.to_json(), who),
            **({} if stage is None else {"stage": stage.value}),
            **({} if parts is None else {"parts": describe_parts(parts)}),
        }

    @router.post("", status_code=201)
    async def create_task(body: Body, response: Response) -> dict[str, Any]:
        """Create a task; it does not run yet."""
        task = await manager.tasks.create(body)
        note(task=task.id)
        response.headers["Location"] = f"/tasks/{task.id}"
        ignored = TaskSpec.ignored_fields(body)
        if not ignored:
            return task.to_json()
        log.warning("unknown fields of a task are ignored", task_id=task.id, fields=ignored)
        return {**task.to_json(), "ignored": ignored}

    @router.get("")
    async def list_tasks(
        who: Caller, offset: Offset = 0, limit: Limit = 100, metadata: str | None = None
    ) -> dict[str, Any]:
        """A page of the tasks, in the order of their creation; with ``metadata``, a JSON object, of those that have these fields in theirs."""
        wanted = None if metadata is None else decode_metadata(metadata)
        total, page = await manager.tasks.page(offset, limit, wanted)
        parts = await manager.tasks.parts(page)
        tasks = [told(task, who, parts.get(task.id)) for task in page]
        return {"offset": offset, "limit": limit, "total": total, "tasks": tasks}

    @router.get("/{task_id}")
    async def get_task(task_id: PathId, who: Caller) -> dict[str, Any]:
        """A task."""
        task = await manager.tasks.get(task_id)
        parts = (await manager.tasks.parts([task], with_results=True)).get(task_id)
        results = {"results": results_of_parts(parts)} if parts else {}
        return {**told(task, who, parts), **results}

    @router.put("/{task_id}")
    async def update_task(task_id: PathId, body: Body) -> dict[str, Any]:
        """Change the fields that are given and not ``null``."""
        return (await manager.tasks.change(task_id, body)).to_json()

    @router.put("/{task_id}/upload")
    async def upload_task_file(task_id: PathId, file: Annotated[UploadFile, File()]) -> dict[str, Any]:
        """Upload a task's program, as a form's file that is named ``*.wasm``."""
        if not (file.filename or "").endswith(".wasm"):
            raise InvalidError("file: the name of the file must end in .wasm")
        return (await manager.tasks.upload(task_id, await file.read())).to_json()

    @router.delete("/{task_id}", status_code=204)
    async def delete_task(task_id: PathId) -> None:
        """Delete a task; one that runs is stopped first."""
        task = await manager.tasks.get(task_id)
        if task.active or (task.ended and task.spec.broadcast):  # a part may run again
            await manager.broadcasts.stop(task_id, "deleted by request")
        await manager.tasks.delete(task_id)

    @router.post("/{task_id}/start")
    async def start_task(task_id: PathId) -> dict[str, Any]:
        """Run a task on a proplet, or on every one."""
        await manager.broadcasts.start(task_id)
        return {"started": True}

    @router.post("/{task_id}/stop")
    async def stop_task(task_id: PathId) -> dict[str, Any]:
        """End a running task; one that has ended stays as it is."""
        await manager.broadcasts.stop(task_id)
        return {"stopped": True}

    @router.get("/{task_id}/results")
    async def get_task_results(task_id: PathId) -> dict[str, Any]:
        """The results of a task; ``null`` before its end. Of one for every proplet: those of its parts, by proplet."""
        task = await manager.tasks.get(task_id)
        parts = (await manager.tasks.parts([task], with_results=True)).get(task_id)
        return {"results": results_of_parts(parts) if parts else task.results}

    @router.get("/{task_id}/metrics")
    async def get_task_metrics(task_id: PathId, offset: Offset = 0, limit: Limit = 100) -> dict[str, Any]:
        """A page of a task's resource metrics, the oldest first."""
        total, page = await manager.metrics.of_task(task_id, offset, limit)
        return {"offset": offset, "limit": limit, "total": total, "metrics": page}

    return router


def shown(task: dict[str, Any], who: Principal) -> dict[str, Any]:
    """A task as a caller may see it: values of the environment can be secrets, which are not for those who only watch."""
    if who.role == Role.VIEWER and task.get("env"):
        return {**task, "env": dict.fromkeys(task["env"], HIDDEN)}
    return task


def _fl_routes(manager: Manager, dependencies: Sequence[Any]) -> Router:
    """Experiments start rounds here; all else goes through to the coordinator with the caller's credentials."""
    router = Router(prefix="/fl", tags=["federated learning"], dependencies=dependencies)

    async def forward(request: Request, path: str, **options: Any) -> Response:
        if manager.coordinator is None:
            raise UnavailableError(NO_COORDINATOR)
        answer = await manager.coordinator.forward(
            request.method,
            path,
            authorization=request.headers.get("authorization"),
            content_encoding=request.headers.get("content-encoding"),
            **options,
        )
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    @router.post("/experiments")
    async def configure_experiment(body: Body) -> dict[str, Any]:
        """Start a round on its participants; fields that experiments do not have are named in the answer."""
        for name in ("round_id", "model_ref", "participants", "task_wasm_image"):
            if not body.get(name):
                raise InvalidError(f"{name}: is required and must not be empty")
        experiment, ignored = Experiment.decode(body), Experiment.unknown_fields(body)
        started = await manager.rounds.start(experiment)
        note(round=experiment.round_id, program=experiment.task_wasm_image)
        if not ignored:
            return started.to_json()
        log.warning(
            "unknown fields of an experiment are ignored", round_id=experiment.round_id, fields=ignored
        )
        return {**started.to_json(), "ignored": ignored}

    @router.get("/task")
    async def get_fl_task(
        request: Request, round_id: Annotated[Id, Query()], proplet_id: str = ""
    ) -> Response:
        """What a participant does in a round."""
        params = {"round_id": round_id, **({"proplet_id": proplet_id} if proplet_id else {})}
        return await forward(request, "/task", params=params)

    @router.post("/update")
    async def post_fl_update(request: Request) -> Response:
        """An update, as JSON or safetensors."""
        media_type = request.headers.get("content-type", "application/json")
        return await forward(request, "/update", content=await request.body(), content_type=media_type)

    @router.post("/update_cbor")
    async def post_fl_update_cbor(request: Request) -> Response:
        """An update as CBOR."""
        media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if media_type not in CBOR_TYPES:
            raise UnsupportedTypeError("Content-Type: send application/cbor or application/cbor-seq")
        return await forward(request, "/update_cbor", content=await request.body(), content_type=media_type)

    @router.get("/rounds/next")
    async def get_next_round(request: Request) -> Response:
        """The round that completed last, and the model that the next one starts from."""
        return await forward(request, "/rounds/next")

    @router.get("/rounds/{round_id}/complete")
    async def get_round_status(
        request: Request,
        round_id: PathId,
        wait_s: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0,
        updates: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        """Whether a round is over; with ``wait_s`` the answer comes when it is, or after so many seconds.

        With ``updates`` the answer also comes when more than that many updates are in.
        """
        wait_s = min(wait_s, MAX_WAIT_S)
        params = {"wait_s": f"{wait_s:g}"} if wait_s else {}
        if updates is not None:
            params["updates"] = str(updates)
        return await forward(request, f"/rounds/{round_id}/complete", params=params, wait_s=wait_s)

    return router


class _TrailingSlash:
    """ASGI middleware: ``/tasks/`` is ``/tasks``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under the path without its last slash."""
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self.app(scope, receive, send)
