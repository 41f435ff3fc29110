"""What a service's own answer says of it."""

from types import SimpleNamespace
from typing import Any

import httpx

from propeller.doctor.checks import Status
from propeller.doctor.services import ServiceChecks


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
