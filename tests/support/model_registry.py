"""Model registries for tests: in this process, behind a client or a port."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from propeller.fl.tensors import SAFETENSORS, Tensors, to_safetensors
from propeller.model_registry.api import create_api
from propeller.model_registry.service import ModelRegistry
from propeller.web.auth import Admission, Principal
from support.coordinator import serving


def client(
    folder: Path, *, admission: Admission | None = None, max_body: int = 100_000, max_decoded: int = 100_000
) -> httpx.AsyncClient:
    """A client of a registry on a folder, without a port between them."""
    registry = ModelRegistry.open(folder, cache_bytes=1000, max_decoded=max_decoded)
    app = create_api(registry, admission=admission, max_body=max_body)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://registry")


def client_as(folder: Path, role: str) -> httpx.AsyncClient:
    """The same, called by a client of this role."""

    async def verify(_header: str) -> Principal:
        return Principal("client", "c-1", role)

    http = client(folder, admission=Admission(verify))
    http.headers["authorization"] = "Basic eA=="
    return http


@contextlib.asynccontextmanager
async def serving_registry(folder: Path) -> AsyncIterator[str]:
    """A registry on a port of loopback; gives its URL."""
    async with serving(create_api(ModelRegistry.open(folder, cache_bytes=1000))) as url:
        yield url


async def put(
    http: httpx.AsyncClient, path: str, tensors: Tensors, metadata: dict[str, str] | None = None
) -> httpx.Response:
    """``PUT`` a safetensors document."""
    return await http.put(
        path, content=to_safetensors(tensors, metadata), headers={"content-type": SAFETENSORS}
    )


async def post(http: httpx.AsyncClient, tensors: Tensors, metadata: dict[str, str] | None = None) -> int:
    """Store a model as a safetensors document; gives its version."""
    answer = await http.post(
        "/models", content=to_safetensors(tensors, metadata), headers={"content-type": SAFETENSORS}
    )
    assert answer.status_code == 201, answer.text
    stored: dict[str, Any] = answer.json()
    return int(stored["version"])
