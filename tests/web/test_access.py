"""Who may send what to each service: every route is in its table, and the tables give away nothing."""

import re
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from structlog.testing import capture_logs

from propeller import aggregator, coordinator, data_store, manager, model_registry
from propeller.aggregator import api as aggregator_api
from propeller.coordinator import api as coordinator_api
from propeller.data_store import api as data_store_api
from propeller.manager import api as manager_api
from propeller.model_registry import api as model_registry_api
from propeller.protocol.roles import CONTROL, WATCH, Role
from propeller.web.access import COMMON, AccessTable
from propeller.web.app import Router
from propeller.web.auth import Admission, Principal

APIS: dict[str, tuple[AccessTable, Any]] = {
    aggregator.__name__: (
        aggregator_api.ACCESS,
        lambda admission: aggregator_api.create_api(
            MagicMock(), admission=admission, max_bytes=1, max_json_bytes=1
        ),
    ),
    coordinator.__name__: (
        coordinator_api.ACCESS,
        lambda admission: coordinator_api.create_api(
            MagicMock(),
            MagicMock(),
            MagicMock(),
            verification=MagicMock(),
            large=MagicMock(),
            admission=admission,
        ),
    ),
    data_store.__name__: (
        data_store_api.ACCESS,
        lambda admission: data_store_api.create_api(MagicMock(), admission=admission),
    ),
    manager.__name__: (
        manager_api.ACCESS,
        lambda admission: manager_api.create_api(MagicMock(), admission=admission),
    ),
    model_registry.__name__: (
        model_registry_api.ACCESS,
        lambda admission: model_registry_api.create_api(MagicMock(), admission=admission),
    ),
}
DEVICES_MAY = {
    "POST /fl/update",
    "POST /fl/update_cbor",
    "GET /fl/task",
    "GET /fl/rounds/next",
    "GET /fl/rounds/{round_id}/complete",
    "POST /update",
    "POST /update_cbor",
    "GET /task",
    "GET /rounds/next",
    "GET /rounds/{round_id}",
    "GET /rounds/{round_id}/complete",
    "GET /experiments/{experiment_id}",
    "GET /models/{version}",
    "GET /models/{version}/state",
    "GET /datasets/{proplet_id}",
}


def routes(app: FastAPI) -> set[str]:
    """The routes of an app, as tables have them."""
    found = [route for route in app.routes if isinstance(route, APIRoute)]
    return {f"{method} {route.path_format}" for route in found for method in route.methods or ()}


@pytest.mark.parametrize("service", APIS)
def test_every_route_is_in_the_table_and_nothing_else(service: str) -> None:
    table, create = APIS[service]
    assert routes(create(None)) == {*table, *COMMON, "GET /health"}


def test_the_page_has_the_tables() -> None:
    page = Path(__file__, "../../../docs/security.md").resolve().read_text()
    for service, (table, _create) in APIS.items():
        name = service.rpartition(".")[2].replace("_", "-")
        rows = re.findall(rf"^\| {name} \| `(.*)` \| (.*) \| (.*) \|$", page, re.MULTILINE)
        told = {
            route: {*people.split(", "), *machines.split(", ")} - {"\N{EN DASH}"}
            for route, people, machines in rows
        }
        assert told == {route: set(roles) for route, roles in table.items()}, name


def test_viewers_change_nothing_and_operators_are_let_in_everywhere() -> None:
    for table, _create in APIS.values():
        for route, roles in table.items():
            assert roles >= CONTROL, route
            assert Role.VIEWER not in roles or route.startswith("GET "), route
            assert not roles & {Role.DEVICE, Role.PROXY}, route


def test_devices_may_do_what_is_written_here_and_no_more() -> None:
    found = {
        route for table, _create in APIS.values() for route, roles in table.items() if Role.PROPLET in roles
    }
    assert found == DEVICES_MAY
    assert Role.PROPLET not in WATCH


@pytest.mark.parametrize("service", APIS)
@pytest.mark.parametrize("role", [*Role, ""])
async def test_every_cell_of_the_table_is_kept(service: str, role: str) -> None:
    """Whoever is not in the table is refused before anything is read; whoever is gets past it."""
    table, create = APIS[service]

    async def verify(_header: str) -> Principal:
        return Principal("client", "c-1", role)

    app = create(Admission(verify))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    credentials = {"authorization": "Basic eA=="}
    async with httpx.AsyncClient(transport=transport, base_url="http://x", headers=credentials) as http:
        with capture_logs():  # to write a traceback with mocks in it takes seconds
            for route, roles in {**table, **COMMON}.items():
                method, path = route.split()
                try:
                    answer = await http.request(method, path.replace("{", "").replace("}", ""))
                    refused = answer.status_code == 403 and "may not" in answer.text
                except TypeError:  # what is behind the table is a mock, and so is its answer
                    refused = False
                assert refused == (role not in roles), (route, role)


async def test_a_route_that_nobody_thought_of_is_for_operators() -> None:
    _table, create = APIS[data_store.__name__]

    async def verify(header: str) -> Principal:
        return Principal("client", "c-1", header)

    app = create(Admission(verify))

    router = Router()

    @router.get("/new")
    async def new() -> dict[str, str]:
        return {}

    app.include_router(router)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        found = {
            str(role): (await http.get("/new", headers={"authorization": role})).status_code for role in Role
        }
    assert {role for role, status in found.items() if status == 200} == {"admin", "operator"}
