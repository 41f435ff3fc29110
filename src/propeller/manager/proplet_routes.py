"""``/proplets``."""

from typing import Any, Literal

from fastapi import Depends

from propeller.manager.api_common import Limit, Offset, PathId, TheManager, check_operator
from propeller.protocol.wire import format_time
from propeller.web.app import CompactJson, Router

router = Router(prefix="/proplets", tags=["proplets"], default_response_class=CompactJson)


@router.get("")
async def list_proplets(
    manager: TheManager,
    offset: Offset = 0,
    limit: Limit = 100,
    status: Literal["active", "inactive"] | None = None,
) -> dict[str, Any]:
    """A page of the proplets, in the order of their registration."""
    total, proplets = manager.proplets(offset, limit, status)
    loads = await manager.tasks.store.loads()
    page = [manager.proplet_json(proplet, loads) for proplet in proplets]
    return {"offset": offset, "limit": limit, "total": total, "proplets": page}


@router.get("/{proplet_id}")
async def get_proplet(manager: TheManager, proplet_id: PathId) -> dict[str, Any]:
    """A proplet."""
    return manager.proplet_json(manager.proplet(proplet_id), await manager.tasks.store.loads())


@router.delete("/{proplet_id}", dependencies=[Depends(check_operator)], status_code=204)
async def delete_proplet(manager: TheManager, proplet_id: PathId) -> None:
    """Forget a proplet on which nothing runs."""
    await manager.forget_proplet(proplet_id)


@router.get("/{proplet_id}/metrics")
async def get_proplet_metrics(
    manager: TheManager, proplet_id: PathId, offset: Offset = 0, limit: Limit = 100
) -> dict[str, Any]:
    """A page of a proplet's resource samples, the oldest first."""
    total, samples = await manager.samples.of_proplet(proplet_id, offset, limit)
    return {"offset": offset, "limit": limit, "total": total, "metrics": samples}


@router.get("/{proplet_id}/alive-history")
async def get_proplet_alive_history(
    manager: TheManager, proplet_id: PathId, offset: Offset = 0, limit: Limit = 100
) -> dict[str, Any]:
    """A page of a proplet's last ten heartbeats, the oldest first."""
    history = [format_time(beat) for beat in manager.proplet(proplet_id).heartbeats]
    page = history[offset : offset + limit]
    return {"offset": offset, "limit": limit, "total": len(history), "history": page}
