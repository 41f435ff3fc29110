"""What a service's own answer says of it."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from propeller.doctor.checks import Status
from propeller.doctor.elsewhere import seen_broker
from propeller.doctor.services import ServiceChecks
from propeller.doctor.target import Observations


class Answers:
    """Gives the same answer to every request."""

    def __init__(self, body: Any) -> None:
        self._body = body

    async def get(self, url: str) -> httpx.Response:
        return httpx.Response(200, json=self._body, request=httpx.Request("GET", url))


async def test_a_service_whose_database_is_damaged() -> None:
    said = "coordinator.db is damaged (row 3 missing from index x); restore it from a backup"
    http: Any = Answers({"status": "ok", "database": said})
    target: Any = SimpleNamespace(
        services={"coordinator": "http://c"}, identity={"users": "http://i"}, advice=None
    )
    checks = ServiceChecks(target, http, SimpleNamespace(clocks={}))  # type: ignore[arg-type]
    for name, findings in (
        ("coordinator", await checks.service("coordinator")),
        ("identity", await checks.identity()),
    ):
        [found] = findings
        assert (found.status, found.what) == (Status.FAIL, name)
        assert found.detail == "coordinator.db is damaged (row 3 missing from index x)"
        assert found.fix == "restore it from a backup"


@pytest.mark.parametrize(
    ("health", "status", "said"),
    [
        ({"broker": "connected"}, Status.PASS, "identity is connected to it"),
        ({"broker": "away"}, Status.FAIL, "identity has no connection to it: nobody can connect"),
        ({}, Status.SKIP, "cannot be seen from here: run 'propeller doctor' on the stack's machine"),
    ],
)
async def test_the_broker_from_elsewhere_is_as_identity_says(
    health: dict[str, str], status: Status, said: str
) -> None:
    observed, target = Observations(), SimpleNamespace(identity={"users": "http://i"})
    await ServiceChecks(target, Answers({"status": "ok", **health}), observed).identity()  # type: ignore[arg-type]
    [found] = await seen_broker(observed)
    assert (found.status, found.detail) == (status, said)
