"""What of a service's requests goes into its audit log."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from propeller.errors import UnauthenticatedError
from propeller.process.audit import AuditLog, note, read_log, verify
from propeller.protocol.roles import Role
from propeller.web.app import Router, create_app
from propeller.web.audit import HEAD_HEADER, REFUSED_BURST
from propeller.web.auth import Admission, Principal
from propeller.web.limits import MAX_BODY

CALLERS = {
    "ann": Principal("user", "ann", Role.OPERATOR),
    "vic": Principal("user", "vic", Role.VIEWER),
    "device": Principal("client", "p-1", Role.PROPLET),
}
ACCESS = {
    "POST /things/{thing}": frozenset({Role.OPERATOR, Role.PROPLET}),
    "GET /things/{thing}": frozenset(Role),
}


async def verify_header(header: str) -> Principal:
    try:
        return CALLERS[header]
    except KeyError:
        raise UnauthenticatedError("unknown") from None


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    return AuditLog(tmp_path / "audit.jsonl", "things")


@pytest.fixture
async def http(log: AuditLog) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app("things", admission=Admission(verify_header, audit=log), access=ACCESS)
    router = Router()

    @router.post("/things/{thing}")
    async def change(thing: str) -> dict[str, str]:
        note(made=f"{thing}-1")
        if thing == "broken":
            raise RuntimeError("unforeseen")
        return {"thing": thing}

    @router.get("/things/{thing}")
    async def look(thing: str) -> dict[str, str]:
        if thing == "key":
            note(shown=thing)
        return {"thing": thing}

    app.include_router(router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("10.0.0.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://things") as client:
        yield client
    log.close()


def entries(log: AuditLog) -> list[dict[str, object]]:
    lines = read_log(log.file)
    assert verify(iter(lines)) == log.head
    return [json.loads(line) for line in lines]


async def ask(http: httpx.AsyncClient, method: str, path: str, who: str) -> int:
    return (await http.request(method, path, headers={"Authorization": who})).status_code


async def test_changes_by_people_and_refusals_are_written_down(
    http: httpx.AsyncClient, log: AuditLog
) -> None:
    assert await ask(http, "POST", "/things/a", "ann") == 200
    assert await ask(http, "GET", "/things/a", "ann") == 200  # changes nothing
    assert await ask(http, "POST", "/things/b", "device") == 200  # what machines may do is in the rounds
    assert (
        await ask(http, "GET", "/things/key", "vic") == 200
    )  # its handler says that reading it is worth an entry
    assert await ask(http, "POST", "/things/c", "vic") == 403
    assert await ask(http, "GET", "/things/d", "nobody") == 401
    assert await ask(http, "POST", "/things/broken", "ann") == 500
    assert [(one["action"], one["status"], one["who"], one.get("about")) for one in entries(log)] == [
        ("POST /things/a", 200, {"kind": "user", "id": "ann", "role": "operator"}, {"made": "a-1"}),
        ("GET /things/key", 200, {"kind": "user", "id": "vic", "role": "viewer"}, {"shown": "key"}),
        ("POST /things/c", 403, {"kind": "user", "id": "vic", "role": "viewer"}, None),
        ("GET /things/d", 401, {"kind": "unknown"}, None),
        ("POST /things/broken", 500, {"kind": "user", "id": "ann", "role": "operator"}, {"made": "broken-1"}),
    ]
    assert {one["from"] for one in entries(log)} == {"10.0.0.7"}


async def test_a_flood_of_refused_requests_does_not_fill_the_disk(
    http: httpx.AsyncClient, log: AuditLog
) -> None:
    for _ in range(5 * REFUSED_BURST):
        assert await ask(http, "GET", "/things/a", "nobody") == 401
    assert REFUSED_BURST <= len(entries(log)) < 2 * REFUSED_BURST
    told = len(entries(log))
    await ask(http, "POST", "/things/a", "ann")
    assert entries(log)[-1]["about"] == {"made": "a-1", "refused_and_not_told_of": 5 * REFUSED_BURST - told}


async def test_addresses_of_one_ipv6_network_are_one_caller(log: AuditLog) -> None:
    app = create_app("things", admission=Admission(verify_header, audit=log), access=ACCESS)
    for number in range(2 * REFUSED_BURST):
        transport = httpx.ASGITransport(app, client=(f"2001:db8::{number:x}", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://things") as client:
            assert await ask(client, "GET", "/things/a", "nobody") == 401
    assert REFUSED_BURST <= len(entries(log)) < 2 * REFUSED_BURST
    log.close()


async def test_a_flood_of_failed_requests_of_whom_nobody_knows_does_not_either(
    http: httpx.AsyncClient, log: AuditLog
) -> None:
    too_long = {"Content-Length": str(MAX_BODY + 1)}  # refused before it is asked who sends it
    for _ in range(2 * REFUSED_BURST):
        assert (await http.post("/things/a", headers=too_long)).status_code == 413
        assert (await http.delete("/health")).status_code == 405  # open to anyone
    assert REFUSED_BURST <= len(entries(log)) < 2 * REFUSED_BURST


async def test_operators_read_it_and_nobody_else(http: httpx.AsyncClient, log: AuditLog) -> None:
    for name in "abc":
        await ask(http, "POST", f"/things/{name}", "ann")
    for who, status in (("vic", 403), ("device", 403), ("nobody", 401)):
        assert await ask(http, "GET", "/audit", who) == status
    answer = await http.get("/audit?after=1&limit=2", headers={"Authorization": "ann"})
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["seq"] for line in answer.text.splitlines()] == [2, 3]
    assert answer.headers[HEAD_HEADER] == str(log.head)
    for wrong in ("after=-1", "limit=0", "limit=10001", "after=x"):
        assert (await http.get(f"/audit?{wrong}", headers={"Authorization": "ann"})).status_code == 400


async def test_without_a_log_that_is_said() -> None:
    app = create_app("things", admission=Admission(verify_header), access=ACCESS)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://things") as client:
        answer = await client.get("/audit", headers={"Authorization": "ann"})
    assert (answer.status_code, "set PROPELLER_AUDIT_LOG" in answer.text) == (404, True)
