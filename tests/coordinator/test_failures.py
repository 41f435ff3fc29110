"""Participants of whom no update is to be expected: the round ends at once when no update can come any more."""

import asyncio
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa

from propeller.coordinator.tables import SCHEMA, update_documents
from support.coordinator import (
    PARTICIPANTS,
    Peers,
    Process,
    client,
    configure,
    coordinating,
    ended,
    environment,
    fail,
    kept_updates,
    process,
    send,
)
from support.databases import change
from support.net import eventually

RECORDED, OVER = {"status": "recorded"}, {"status": "over"}


async def failures(http: httpx.AsyncClient) -> list[dict[str, Any]]:
    return list((await http.get("/rounds/r-1")).json()["failures"])


async def test_a_round_whose_participants_have_all_failed_ends_at_once_with_the_reason(
    http: httpx.AsyncClient,
) -> None:
    await configure(http, timeout_s=3600)
    waiting = asyncio.create_task(ended(http))
    for name in ("p-3", "p-1"):
        assert await fail(http, name) == RECORDED
        assert await fail(http, name) == RECORDED
    assert (await http.get("/rounds/r-1")).json()["state"] == "collecting"
    assert await fail(http, "p-2", "lost") == RECORDED
    status = await waiting
    assert (status["state"], status["completed"]) == ("failed", False)
    assert status["reason"] == (
        "no update can come any more: 3 of 3 participants failed: no such image (and 1 more reason)"
    )
    assert await failures(http) == [
        {"proplet_id": "p-1", "reason": "no such image"},
        {"proplet_id": "p-2", "reason": "lost"},
        {"proplet_id": "p-3", "reason": "no such image"},
    ]
    assert await fail(http, "p-1", "something else") == OVER
    assert (await failures(http))[0]["reason"] == "no such image"
    assert (await http.post("/rounds/r-1/retry")).status_code == 409


async def test_at_the_deadline_it_says_what_each_missing_participant_did(http: httpx.AsyncClient) -> None:
    await configure(http, timeout_s=1.5, min_updates=2)
    await send(http, "p-2")
    for stage in ("waiting", "preparing: compiling"):
        told = {"proplet_id": "p-1", "stage": stage}
        assert (await http.post("/rounds/r-1/stages", json=told)).json() == {"status": "noted"}
    open_round = (await http.get("/rounds/r-1")).json()
    assert open_round["stages"] == [{"proplet_id": "p-1", "stage": "preparing: compiling"}]
    assert (await ended(http))["reason"] == (
        "deadline: 1 of 3 updates came in time, at least 2 needed: "
        "1 of 3 was still compiling the program, 1 of 3 was not heard of"
    )
    assert await failures(http) == [
        {
            "proplet_id": "p-1",
            "reason": "no update by the deadline: it was still compiling the program",
        },
        {"proplet_id": "p-3", "reason": "no update by the deadline: nothing was heard of it"},
    ]
    over = await http.post("/rounds/r-1/stages", json={"proplet_id": "p-1", "stage": "running"})
    assert (over.status_code, over.json()) == (200, {"status": "over"})
    assert "stages" not in (await http.get("/rounds/r-1")).json()


@pytest.mark.parametrize(
    ("round_id", "fields", "status", "text"),
    [
        ("r-9", {"proplet_id": "p-1", "stage": "running"}, 404, "Round not found"),
        ("r-1", {"proplet_id": "p-9", "stage": "running"}, 403, "p-9 is not a participant"),
        ("r-1", {"proplet_id": "p-1", "stage": "dreaming"}, 400, "stage"),
        ("r-1", {"stage": "running"}, 400, "proplet_id"),
    ],
)
async def test_a_stage_that_is_refused(
    http: httpx.AsyncClient, round_id: str, fields: dict[str, str], status: int, text: str
) -> None:
    await configure(http)
    answer = await http.post(f"/rounds/{round_id}/stages", json=fields)
    assert answer.status_code == status, answer.text
    assert text in answer.json()["error"]


async def test_what_has_come_is_aggregated_once_no_more_can_come(
    http: httpx.AsyncClient, peers: tuple[Peers, str]
) -> None:
    await configure(http, timeout_s=3600)
    await fail(http, "p-1")
    await fail(http, "p-2", "lost")
    await fail(http, "p-2", "lost for good")
    await send(http, "p-1")  # it counts all the same
    assert await failures(http) == [{"proplet_id": "p-2", "reason": "lost for good"}]
    assert await fail(http, "p-1") == RECORDED  # which changes nothing: its update counts
    await send(http, "p-3")
    status = await ended(http)
    assert (status["completed"], status["num_updates"], "reason" in status) == (True, 2, False)
    assert peers[0].aggregations == [["p-1", "p-3"]]
    assert await fail(http, "p-1") == OVER


async def test_too_few_updates_fail_the_round_when_no_more_can_come(http: httpx.AsyncClient) -> None:
    await configure(http, timeout_s=3600, min_updates=2)
    await fail(http, "p-1")
    await fail(http, "p-2")
    await send(http, "p-3")
    status = await ended(http)
    assert (status["state"], status["num_updates"]) == ("failed", 1)
    assert "1 of 3 came and at least 2 needed: 2 of 3 participants failed: no such image" in status["reason"]


@pytest.mark.parametrize(
    ("round_id", "body", "status", "word"),
    [
        ("r-2", {"proplet_id": "p-1", "reason": "x"}, 404, "Round not found"),
        ("r-1", {"proplet_id": "p-9", "reason": "x"}, 403, "not a participant"),
        ("r-1", {"proplet_id": "p-1"}, 400, "reason"),
        ("r-1", {"proplet_id": "p-1", "reason": ""}, 400, "reason"),
        ("r-1", {"proplet_id": "p-1", "reason": 7}, 400, "reason"),
        ("r-1", {"proplet_id": "a b", "reason": "x"}, 400, "proplet_id"),
        ("r-1", [], 400, "object"),
    ],
)
async def test_what_is_not_a_failure_of_the_round_is_refused(
    api: httpx.AsyncClient, round_id: str, body: Any, status: int, word: str
) -> None:
    await configure(api)
    answer = await api.post(f"/rounds/{round_id}/failures", json=body)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]
    assert await failures(api) == []


async def test_long_reasons_are_cut_and_nul_is_no_text(api: httpx.AsyncClient) -> None:
    await configure(api)
    await fail(api, "p-1", "\0" + 3000 * "ü")
    assert (await failures(api))[0]["reason"] == "\ufffd" + 1999 * "ü"


@pytest.fixture
def killable(peers: tuple[Peers, str], tmp_path: Path) -> Iterator[Process]:
    with process(environment(tmp_path / "state", peers[1]), tmp_path / "log") as one:
        yield one


async def test_failures_survive_kill_9(killable: Process, peers: tuple[Peers, str]) -> None:
    async with client(killable.env) as http:
        await configure(http, timeout_s=3600)
        await configure(http, "r-over", timeout_s=3600)
        for name in PARTICIPANTS:
            await fail(http, name, round_id="r-over")
        await fail(http, "p-1")
        await fail(http, "p-1", "lost")
        await fail(http, "p-2")
        await send(http, "p-2")
        killable.kill()
        await asyncio.to_thread(killable.start)
        assert await failures(http) == [{"proplet_id": "p-1", "reason": "lost"}]
        over = (await http.get("/rounds/r-over")).json()
        assert (over["state"], len(over["failures"])) == ("failed", 3)
        await fail(http, "p-3")
        assert (await ended(http))["num_updates"] == 1
    assert peers[0].aggregations == [["p-2"]]
    said = [one["msg"] for one in killable.lines() if one.get("round_id") == "r-1"]
    assert said.count("participant failed") == 4
    assert "no update can come any more" in said
    assert "Round timeout exceeded" not in said


def _make_old(file: Path) -> None:
    """Make the tables those of the first revision, without a revision and without failures; updates are files beside it."""
    first: sa.MetaData = import_module("propeller.coordinator.migrations.0001_first").tables
    tables = [first.tables["rounds"], first.tables["updates"]]

    def run(connection: sa.Connection) -> None:
        rows = [connection.execute(sa.select(table)).mappings().all() for table in tables]
        for digest, content in connection.execute(sa.select(update_documents)):
            (file.parent / "updates" / digest).write_bytes(content)
        SCHEMA.version_table.drop(connection)
        SCHEMA.tables.drop_all(connection)
        first.create_all(connection, tables)
        for table, found in zip(tables, rows, strict=True):
            connection.execute(table.insert(), [dict(row) for row in found])

    change(file, run)


async def test_a_database_from_before_there_were_failures_is_read(
    peers: tuple[Peers, str], tmp_path: Path
) -> None:
    env = environment(tmp_path, peers[1])
    async with coordinating(env) as http:
        await configure(http)
        await send(http, "p-1")
    _make_old(tmp_path / "coordinator.db")
    async with coordinating(env) as http:
        assert await failures(http) == []
        await fail(http, "p-2")
        await fail(http, "p-3")
        status = await ended(http)
        assert (status["num_updates"], status["state"]) == (1, "completed")
        await eventually(lambda: not kept_updates(tmp_path))
