"""Names that stand for a version."""

import asyncio
from pathlib import Path

import httpx
import pytest

from support.model_registry import client, client_as


async def add(http: httpx.AsyncClient, number: float) -> int:
    return int((await http.post("/models", json={"model": {"w": [number]}})).json()["version"])


async def name(http: httpx.AsyncClient, alias: str, version: int) -> httpx.Response:
    return await http.put(f"/aliases/{alias}", json={"version": version})


async def test_an_alias_is_read_like_a_version_and_moves(tmp_path: Path) -> None:
    async with client(tmp_path) as http:
        for number in range(3):
            await add(http, number + 0.5)
        for alias in ("production", "digits-1/latest", "digits-1/best", "7/latest"):
            answer = await name(http, alias, 1)
            assert answer.json() == {"name": alias, "version": 1}
        await name(http, "production", 0)
        await name(http, "production", 2)
    async with client(tmp_path) as http:
        assert (await http.get("/aliases")).json() == {
            "aliases": {"7/latest": 1, "digits-1/best": 1, "digits-1/latest": 1, "production": 2}
        }
        assert (await http.get("/aliases/digits-1%2Fbest")).json() == {"name": "digits-1/best", "version": 1}
        for path in ("digits-1/latest", "digits-1%2Flatest"):
            answer = await http.get(f"/models/{path}")
            assert answer.json() == {"w": [1.5]}
            assert answer.headers["x-model-version"] == "1"
            assert (await http.get(f"/models/{path}/info")).json()["aliases"] == [
                "7/latest",
                "digits-1/best",
                "digits-1/latest",
            ]
        assert (await http.get("/models/production")).json() == {"w": [2.5]}
        assert (await http.get("/models/latest")).json() == {"w": [2.5]}
        assert (await http.get("/models/production/state")).status_code == 404
        assert (await http.delete("/aliases/production")).status_code == 204
        assert (await http.delete("/aliases/production")).status_code == 404
        assert (await http.get("/models/production")).status_code == 404
        assert len((await http.get("/aliases")).json()["aliases"]) == 3


@pytest.mark.parametrize(
    "alias",
    ["7", "latest", "info", "state", "a/diff", "a/b/c", "-a", "a//b", "a%20b", "%C3%A9", "x" * 129, "a/"],
)
async def test_what_cannot_be_an_alias(http: httpx.AsyncClient, alias: str) -> None:
    await add(http, 1)
    answer = await name(http, alias, 0)
    assert answer.status_code == 400, answer.text
    assert (await http.get("/aliases")).json() == {"aliases": {}}


async def test_unknown_names_and_versions(http: httpx.AsyncClient, tmp_path: Path) -> None:
    await add(http, 1)
    assert (await name(http, "best", 7)).status_code == 404
    for wrong in (-1, "0", None, 0.5, True):
        answer = await http.put("/aliases/best", json={"version": wrong})
        assert answer.status_code == 400
        assert "version" in answer.json()["error"]
    await name(http, "digits-1/best", 0)
    answer = await http.get("/models/digits-1/bset")
    assert answer.status_code == 404
    assert "did you mean 'digits-1/best'?" in answer.json()["error"]
    (tmp_path / "global_model_v0.safetensors").unlink()
    answer = await http.get("/models/digits-1/best")
    assert answer.status_code == 404
    assert "no version 0" in answer.json()["error"]


async def test_the_entity_tag_of_an_alias_changes_with_its_version(http: httpx.AsyncClient) -> None:
    for _number in range(2):
        await add(http, 1)
    await name(http, "best", 0)
    first = await http.get("/models/best")
    await name(http, "best", 1)
    answer = await http.get("/models/best", headers={"if-none-match": first.headers["etag"]})
    assert answer.status_code == 200
    assert answer.headers["x-model-version"] == "1"


@pytest.mark.parametrize(("role", "status"), [("proplet", 403), ("device", 403), ("operator", 200)])
async def test_devices_neither_list_nor_set_aliases(tmp_path: Path, role: str, status: int) -> None:
    async with client(tmp_path) as http:
        await add(http, 1)
        await name(http, "kept", 0)
    async with client_as(tmp_path, role) as http:
        assert (await name(http, "best", 0)).status_code == status
        assert (await http.delete("/aliases/kept")).status_code == (204 if status == 200 else status)
        assert (await http.get("/aliases")).status_code == status


async def test_two_registries_on_one_folder_lose_no_alias(tmp_path: Path) -> None:
    async with client(tmp_path) as one, client(tmp_path) as other:
        await add(one, 1)
        both = one, other
        await asyncio.gather(*(name(both[number % 2], f"e-{number}/latest", 0) for number in range(40)))
        wanted = {f"e-{number}/latest": 0 for number in range(40)}
        for http in both:
            assert (await http.get("/aliases")).json()["aliases"] == wanted


async def test_a_damaged_file_of_aliases_is_named(http: httpx.AsyncClient, tmp_path: Path) -> None:
    await add(http, 1)
    (tmp_path / "aliases.json").write_text("[")
    answer = await http.get("/models/best")
    assert answer.status_code == 500
    assert "aliases.json" in answer.json()["error"]
    assert (await http.get("/models/0")).status_code == 200
    assert (await name(http, "best", 0)).status_code == 500
    assert (tmp_path / "aliases.json").read_text() == "["


async def test_a_number_beyond_all_versions_is_not_there(http: httpx.AsyncClient) -> None:
    for number in (2**53, 10**16, 10**40):
        answer = await http.get(f"/models/{number}")
        assert answer.status_code == 404, answer.text
        assert "Model not found" in answer.json()["error"]
