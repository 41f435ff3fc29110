"""``/docs``: the page on which the routes of a service can be read and tried, with nothing of it from other machines.

FastAPI's own page loads its scripts from a CDN: it is empty where there is no internet, and elsewhere it has somebody else's
script act with the rights of whoever reads it.
"""

from functools import cache
from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, Response

PAGE = "/docs"

_SCRIPT, _STYLE, _ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"
_FILES = {_SCRIPT: "text/javascript", _STYLE: "text/css", _ICON: "image/png"}


def add_api_page(app: FastAPI) -> None:
    """Give an app that describes itself at ``/openapi.json`` the page, for whoever may call it."""

    async def page(request: Request) -> Response:
        root = request.scope.get("root_path", "").rstrip("/")
        return get_swagger_ui_html(
            openapi_url=f"{root}{app.openapi_url}",
            title=app.title,
            swagger_js_url=f"{root}{PAGE}/{_SCRIPT}",
            swagger_css_url=f"{root}{PAGE}/{_STYLE}",
            swagger_favicon_url=f"{root}{PAGE}/{_ICON}",
            swagger_ui_parameters={
                "validatorUrl": None
            },  # a site that would be sent the description's address
        )

    async def part(request: Request) -> Response:
        name = request.url.path.rpartition("/")[2]
        return FileResponse(_folder() / name, media_type=_FILES[name])

    app.add_route(PAGE, page, include_in_schema=False)
    for name in _FILES:
        app.add_route(f"{PAGE}/{name}", part, include_in_schema=False)


@cache
def _folder() -> Path:
    """Where fastapi-offline, of which nothing else is used, has the files of Swagger UI."""
    return Path(str(files("fastapi_offline"))) / "static"
