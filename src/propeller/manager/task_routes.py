"""``/tasks``."""

from typing import Annotated, Any

from fastapi import Depends, File, Response, UploadFile

from propeller.errors import InvalidError
from propeller.manager.api_common import Body, Limit, Offset, PathId, TheManager, check_operator
from propeller.web.app import CompactJson, Router

router = Router(prefix="/tasks", tags=["tasks"], default_response_class=CompactJson)
_OPERATOR = [Depends(check_operator)]


@router.post("", dependencies=_OPERATOR, status_code=201)
async def create_task(manager: TheManager, body: Body, response: Response) -> dict[str, Any]:
    """Make a task; it does not run yet."""
    task = await manager.tasks.create(body)
    response.headers["Location"] = f"/tasks/{task.id}"
    return task.to_json()


@router.get("", dependencies=_OPERATOR)
async def list_tasks(manager: TheManager, offset: Offset = 0, limit: Limit = 100) -> dict[str, Any]:
    """A page of the tasks, in the order of their creation."""
    total, page = await manager.tasks.store.page(offset, limit)
    return {"offset": offset, "limit": limit, "total": total, "tasks": [task.to_json() for task in page]}


@router.get("/{task_id}", dependencies=_OPERATOR)
async def get_task(manager: TheManager, task_id: PathId) -> dict[str, Any]:
    """A task."""
    return (await manager.tasks.get(task_id)).to_json()


@router.put("/{task_id}", dependencies=_OPERATOR)
async def update_task(manager: TheManager, task_id: PathId, body: Body) -> dict[str, Any]:
    """Change the fields that are given and not ``null``."""
    return (await manager.tasks.change(task_id, body)).to_json()


@router.put("/{task_id}/upload", dependencies=_OPERATOR)
async def upload_task_file(
    manager: TheManager, task_id: PathId, file: Annotated[UploadFile, File()]
) -> dict[str, Any]:
    """Give a task its program, as a form's file that is named ``*.wasm``."""
    if not (file.filename or "").endswith(".wasm"):
        raise InvalidError("file: the name of the file must end in .wasm")
    return (await manager.tasks.upload(task_id, await file.read())).to_json()


@router.delete("/{task_id}", dependencies=_OPERATOR, status_code=204)
async def delete_task(manager: TheManager, task_id: PathId) -> None:
    """Delete a task that does not run."""
    await manager.tasks.delete(task_id)


@router.post("/{task_id}/start", dependencies=_OPERATOR)
async def start_task(manager: TheManager, task_id: PathId) -> dict[str, Any]:
    """Run a task on a proplet."""
    await manager.runs.start(task_id)
    return {"started": True}


@router.post("/{task_id}/stop", dependencies=_OPERATOR)
async def stop_task(manager: TheManager, task_id: PathId) -> dict[str, Any]:
    """End a running task."""
    await manager.runs.stop(task_id)
    return {"stopped": True}


@router.get("/{task_id}/results", dependencies=_OPERATOR)
async def get_task_results(manager: TheManager, task_id: PathId) -> dict[str, Any]:
    """What a task gave; ``null`` before its end."""
    return {"results": (await manager.tasks.get(task_id)).results}


@router.get("/{task_id}/metrics", dependencies=_OPERATOR)
async def get_task_metrics(
    manager: TheManager, task_id: PathId, offset: Offset = 0, limit: Limit = 100
) -> dict[str, Any]:
    """A page of a task's resource samples, the oldest first."""
    total, samples = await manager.samples.of_task(task_id, offset, limit)
    return {"offset": offset, "limit": limit, "total": total, "metrics": samples}
