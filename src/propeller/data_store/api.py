"""The data store's HTTP API, and its process."""

import asyncio
from typing import Any

from fastapi import FastAPI, Request, Response

from propeller.data_store.service import DataStore
from propeller.data_store.settings import DataStoreSettings
from propeller.errors import RefusedError, StartError
from propeller.protocol.roles import CONTROL, WATCH, Role
from propeller.web.access import AccessTable
from propeller.web.app import Router, check_is_json, create_app, etag_matches
from propeller.web.auth import Admission, Caller, admission
from propeller.web.limits import MAX_BODY
from propeller.web.server import bind_api, serve

ACCESS: AccessTable = {
    "GET /datasets": WATCH | {Role.COORDINATOR},
    "GET /datasets/{proplet_id}": CONTROL
    | {Role.COORDINATOR, Role.PROPLET},  # which evaluates by itself; its own
    "POST /datasets/{proplet_id}": CONTROL,
}


def create_api(store: DataStore, *, admission: Admission | None = None, max_body: int = MAX_BODY) -> FastAPI:
    """The app; ``admission`` finds out who calls, ``max_body`` is the largest body in bytes."""
    app = create_app(
        "data-store",
        admission=admission,
        access=ACCESS,
        max_body=max_body,
        max_body_setting="DATA_STORE_MAX_BYTES",
    )
    app.include_router(_dataset_routes(store))
    return app


def _dataset_routes(store: DataStore) -> Router:
    router = Router()

    @router.get("/datasets")
    async def list_ids() -> dict[str, Any]:
        ids = await store.ids()
        return {"clients": ids, "count": len(ids)}

    @router.get("/datasets/{proplet_id}")
    async def get(request: Request, proplet_id: str, who: Caller) -> Response:
        if who.role == Role.PROPLET and not who.may_act_for(proplet_id):
            raise RefusedError(f"{who} may read its own dataset only, not that of {proplet_id}")
        dataset = await store.get(proplet_id)
        headers = {"ETag": dataset.etag, "Cache-Control": "no-cache"}
        if etag_matches(request.headers.get("if-none-match", ""), dataset.etag):
            return Response(status_code=304, headers=headers)
        return Response(dataset.content, media_type="application/json", headers=headers)

    @router.post("/datasets/{proplet_id}", status_code=201)
    async def put(request: Request, proplet_id: str) -> dict[str, Any]:
        check_is_json(request.headers.get("content-type"))
        size = await store.put(proplet_id, await request.body())
        return {"proplet_id": proplet_id, "size": size, "status": "stored"}

    return router


async def main(settings: DataStoreSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StartError: the port or the folder cannot be had, or an id to seed is not one.
    """
    bind = bind_api("data-store", settings, settings.host, settings.port, "DATA_STORE_PORT")
    try:
        store = DataStore(settings.folder)
        await store.seed(settings.ids_to_seed())
    except OSError as error:
        raise StartError(f"DATA_DIR {settings.folder} cannot be used: {error.strerror}") from None
    app = create_api(store, admission=admission("data-store", settings), max_body=settings.max_bytes)
    await serve([(bind, app)], stop)
