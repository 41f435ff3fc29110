"""The manager's HTTP API, put together."""

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from propeller import __version__
from propeller.manager import fl_routes, proplet_routes, task_routes
from propeller.manager.metrics import ApiMetrics, FleetMetrics
from propeller.manager.service import Manager
from propeller.web.app import create_app
from propeller.web.auth import Verify
from propeller.web.metrics import HttpMetrics


class _TrailingSlash:
    """ASGI middleware: ``/tasks/`` is ``/tasks``."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on under the path without its last slash."""
        if scope["type"] == "http" and len(scope["path"]) > 1 and scope["path"].endswith("/"):
            scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        await self.app(scope, receive, send)


def create_api(manager: Manager, *, instance_id: str = "", verify: Verify | None = None) -> FastAPI:
    """The app of a running manager.

    Args:
        manager: what answers.
        instance_id: named in ``/health``.
        verify: checks who calls; ``None`` lets anyone in.
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
        }

    http = HttpMetrics("manager")
    requests = ApiMetrics()
    http.registry.register(requests)
    http.registry.register(FleetMetrics(manager.fleet))
    app = create_app("manager", verify=verify, health=health, metrics=http, redirect_slashes=False)
    app.state.manager = manager
    for routes in (proplet_routes, task_routes, fl_routes):
        app.include_router(routes.router, dependencies=[Depends(requests.count)])
    app.add_middleware(_TrailingSlash)
    return app
