"""The data store's HTTP API."""

from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response

from propeller.data_store.service import Datasets
from propeller.errors import RefusedError
from propeller.web.app import MAX_BODY, create_app
from propeller.web.auth import Principal, Verify, caller
from propeller.web.etag import matches

Caller = Annotated[Principal, Depends(caller)]


def create_api(datasets: Datasets, *, verify: Verify | None = None, max_body: int = MAX_BODY) -> FastAPI:
    """The app; ``verify`` checks who calls, ``max_body`` is the largest body in bytes."""
    app = create_app("data-store", verify=verify, max_body=max_body)

    @app.get("/datasets")
    async def list_ids(who: Caller) -> dict[str, Any]:
        ids = [proplet_id for proplet_id in await datasets.ids() if who.may_act_for(proplet_id)]
        return {"clients": ids, "count": len(ids)}

    @app.get("/datasets/{proplet_id}")
    async def get(request: Request, proplet_id: str, who: Caller) -> Response:
        _check_own(who, proplet_id)
        dataset = await datasets.get(proplet_id)
        headers = {"ETag": dataset.etag, "Cache-Control": "no-cache"}
        if matches(request.headers.get("if-none-match", ""), dataset.etag):
            return Response(status_code=304, headers=headers)
        return Response(dataset.content, media_type="application/json", headers=headers)

    @app.post("/datasets/{proplet_id}", status_code=201)
    async def put(proplet_id: str, dataset: dict[str, Any], who: Caller) -> dict[str, Any]:
        _check_own(who, proplet_id)
        return {"proplet_id": proplet_id, "size": await datasets.put(proplet_id, dataset), "status": "stored"}

    return app


def _check_own(who: Principal, proplet_id: str) -> None:
    if not who.may_act_for(proplet_id):
        raise RefusedError(
            f"client {who.id} may read and write its own dataset only, not that of {proplet_id}"
        )
