"""An aggregator and a model registry that behave as absmach/propeller's: JSON alone, errors as plain text, versions that are replaced."""

import json
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route


class JsonAggregator:
    """Weighted means of a vector ``w`` and a number ``b``."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        """The content types of the requests."""
        self.app = Starlette(
            routes=[Route("/aggregate", self._aggregate, methods=["GET", "POST"])],
            exception_handlers={404: _not_found},
        )

    async def _aggregate(self, request: Request) -> Response:
        self.asked.append(request.headers.get("content-type", ""))
        body = await _object(request)
        if isinstance(body, Response):
            return body
        updates = body.get("updates")
        if not updates:
            return PlainTextResponse("No updates provided\n", 400)
        if any(type(one["num_samples"]) is not int for one in updates):
            return PlainTextResponse("Invalid JSON: json: cannot unmarshal number\n", 400)
        total = sum(one["num_samples"] for one in updates)
        first = updates[0]["update"].get("w")
        w = [0.0] * len(first) if isinstance(first, list) else None
        b = 0.0
        for one in updates:
            mine = one["update"].get("w")
            for place, number in enumerate(mine if isinstance(mine, list) else []):
                if w is not None and place < len(w) and isinstance(number, int | float):
                    w[place] += number * one["num_samples"]
            if isinstance(one["update"].get("b"), int | float):
                b += one["update"]["b"] * one["num_samples"]
        return JSONResponse(
            {"w": [number / total for number in w] if w is not None else None, "b": b / total}
        )


class JsonRegistry:
    """Versions in files; those that it has read or written since its start are listed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._known = folder, dict[int, Any]()
        self.replaced: list[int] = []
        """Versions that were stored and had been there."""
        self.lost_answers = 0
        """So many of the next versions are stored without an answer that arrives."""
        folder.mkdir(exist_ok=True)
        if not self._file(0).exists():
            self.put(0, {"w": [0, 0, 0], "b": 0, "version": 0})
        self.app = Starlette(
            routes=[
                Route("/models", self._store, methods=["POST"]),
                Route("/models", self._list),
                Route("/models/{version}", self._get),
            ],
            exception_handlers={404: _not_found, 405: _not_found},
        )

    def put(self, version: int, model: Any) -> None:
        """Have a version in a file, which is not listed."""
        self._file(version).write_text(json.dumps(model))

    def model(self, version: int) -> Any:
        """A version as it is in its file."""
        return json.loads(self._file(version).read_text())

    def _file(self, version: int) -> Path:
        return self._folder / f"global_model_v{version}.json"

    async def _store(self, request: Request) -> Response:
        body = await _object(request)
        if isinstance(body, Response):
            return body
        version = body.get("version", 0)
        if self._file(version).exists():
            self.replaced.append(version)
        self._known[version] = body.get("model")
        self.put(version, body.get("model"))
        if self.lost_answers:
            self.lost_answers -= 1
            return PlainTextResponse("the way back is cut\n", 502)
        return JSONResponse({"version": version, "status": "stored"}, 201)

    async def _get(self, request: Request) -> Response:
        try:
            version = int(request.path_params["version"])
        except ValueError:
            return PlainTextResponse("Invalid version\n", 400)
        if version not in self._known:
            if not self._file(version).exists():
                return PlainTextResponse("Model not found\n", 404)
            self._known[version] = self.model(version)
        return JSONResponse(self._known[version])

    async def _list(self, _request: Request) -> Response:
        return JSONResponse({"versions": list(self._known)})


async def _object(request: Request) -> Any:
    try:
        found = json.loads(await request.body())
    except ValueError as error:
        return PlainTextResponse(f"Invalid JSON: {error}\n", 400)
    if not isinstance(found, dict):
        return PlainTextResponse("Invalid JSON: json: cannot unmarshal\n", 400)
    return found


async def _not_found(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("404 page not found\n", 404)
