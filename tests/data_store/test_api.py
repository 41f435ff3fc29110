"""The data store: the guide's seeds, and datasets over HTTP."""

import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.data_store.api import create_api
from propeller.data_store.service import DataStore, demo_dataset, write_dataset
from propeller.data_store.settings import DataStoreSettings
from propeller.errors import InvalidError, StartError
from propeller.web.auth import Admission, Principal

P1, P2 = "3fe95a65-74f1-4ede-bf20-ef565f04cecb", "1f074cd1-4e22-4e21-92ca-e35a21d3ce29"


JSON = {"content-type": "application/json"}


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_api(DataStore(tmp_path), max_body=50_000)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://data", headers=JSON
    ) as client:
        yield client


def test_the_seeds_are_those_of_absmach_propeller() -> None:
    assert demo_dataset(P1)["data"][0] == {"x": [0.4, 0.8, 0.2], "y": 0}
    assert demo_dataset(P2)["data"][0]["x"] == [0.1, 0.2, 0.3]
    assert demo_dataset(P2)["data"][0]["y"] == 1
    assert demo_dataset(P1)["size"] == len(demo_dataset(P1)["data"]) == 64


@given(st.text(min_size=1, max_size=60))
def test_seeds_are_in_range_for_every_id(proplet_id: str) -> None:
    for sample in demo_dataset(proplet_id)["data"]:
        assert sample["y"] in {0, 1}
        assert all(0 <= value < 1 for value in sample["x"])


async def test_seeding_keeps_what_is_there(tmp_path: Path) -> None:
    store = DataStore(tmp_path)
    await store.put(P1, b'{"data": [{"x": [1], "y": 1}]}')
    await store.seed([P1, P2])
    assert json.loads((await store.get(P1)).content)["size"] == 1
    assert json.loads((await store.get(P2)).content)["size"] == 64
    assert await store.ids() == sorted([P1, P2])


async def test_store_and_read(http: httpx.AsyncClient) -> None:
    body = {"data": [{"x": [0.5, 1], "y": 1}], "size": 99, "proplet_id": "someone-else", "note": "kept"}
    answer = await http.post(f"/datasets/{P1}", json=body)
    assert answer.status_code == 201
    assert answer.json() == {"proplet_id": P1, "size": 1, "status": "stored"}
    read = await http.get(f"/datasets/{P1}")
    assert read.json() == {
        "data": [{"x": [0.5, 1], "y": 1}],
        "size": 1,
        "proplet_id": P1,
        "client_id": P1,
        "note": "kept",
        "schema": "fl-demo-dataset-v1",
    }
    assert (await http.get("/datasets")).json() == {"clients": [P1], "count": 1}
    again = await http.get(f"/datasets/{P1}", headers={"if-none-match": read.headers["etag"]})
    assert again.status_code == 304
    other = await http.get(f"/datasets/{P1}", headers={"if-none-match": f"x{read.headers['etag']}"})
    assert other.status_code == 200
    await http.post(f"/datasets/{P1}", json={"schema": "text-v1", "data": ["any", {"thing": 1}]})
    changed = await http.get(f"/datasets/{P1}", headers={"if-none-match": read.headers["etag"]})
    assert changed.status_code == 200
    assert changed.json()["size"] == 2


async def test_files_that_others_write_are_served(http: httpx.AsyncClient, tmp_path: Path) -> None:
    await http.post(f"/datasets/{P1}", json={"data": []})
    await http.get(f"/datasets/{P1}")
    (tmp_path / f"{P1}.json").write_text('{"data":[{"x":[1.0],"y":0}],"size":1}')
    assert (await http.get(f"/datasets/{P1}")).json()["size"] == 1
    (tmp_path / f"{P1}.json").write_text('{"data":[NaN')
    answer = await http.get(f"/datasets/{P1}")
    assert answer.status_code == 500
    assert "Invalid dataset file" in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "data"),
        ({"data": {}}, "data"),
        ({"data": [1]}, "data[0].x"),
        ({"data": [{"x": [], "y": 0}]}, "data[0].x"),
        ({"data": [{"x": [1], "y": 0}, {"x": [1, 2], "y": 0}]}, "data[1].x"),
        ({"data": [{"x": ["1"], "y": 0}]}, "data[0].x"),
        ({"data": [{"x": [1], "y": None}]}, "data[0].y"),
        ({"schema": 5, "data": []}, "schema"),
        ({"schema": "x", "data": ["\ud800"]}, "Invalid JSON"),
    ],
)
async def test_bad_datasets_name_the_sample(
    http: httpx.AsyncClient, body: dict[str, Any], named: str
) -> None:
    answer = await http.post(f"/datasets/{P1}", content=json.dumps(body))
    assert answer.status_code == 400, answer.text
    assert named in answer.json()["error"]
    assert (await http.get(f"/datasets/{P1}")).status_code == 404


async def test_true_and_false_are_numbers(http: httpx.AsyncClient) -> None:
    data = [{"x": [True, 0.5], "y": False, "w": True}, {"x": [False, 1], "y": True}]
    numbers = [{"x": [1, 0.5], "y": 0, "w": 1}, {"x": [0, 1], "y": 1}]
    assert (await http.post(f"/datasets/{P1}", json={"data": data})).status_code == 201
    stored = await http.get(f"/datasets/{P1}")
    assert stored.json()["data"] == numbers
    assert not {"true", "false"} & set(re.findall("[a-z]+", stored.text))
    target = io.BytesIO()  # of long ones some samples are in memory at a time
    assert write_dataset(P1, json.dumps({"data": data * 5000}).encode(), target) == 10_000
    assert json.loads(target.getvalue())["data"] == numbers * 5000
    own = {"schema": "mine", "data": [{"flag": True}]}
    assert (await http.post(f"/datasets/{P1}", json=own)).status_code == 201
    assert (await http.get(f"/datasets/{P1}")).json()["data"] == own["data"]


async def test_other_faults_have_their_own_status(http: httpx.AsyncClient, tmp_path: Path) -> None:
    assert (
        await http.post(f"/datasets/{P1}", content=b'{"data": [{"x": [NaN], "y": 0}]}')
    ).status_code == 400
    assert (await http.post(f"/datasets/{P1}", content=b"[]")).status_code == 400
    infinite = await http.post(f"/datasets/{P1}", content=b'{"schema": "x", "data": [1e999]}')
    assert infinite.status_code == 400
    deep = b'{"schema": "x", "data": ' + b"[" * 900 + b"]" * 900 + b"}"
    assert (await http.post(f"/datasets/{P1}", content=deep)).status_code in {201, 400}
    (tmp_path / f"{P1}.json").unlink(missing_ok=True)
    assert (await http.post(f"/datasets/{P1}", content=b" " * 60_000)).status_code == 413
    for bad in ("..%2f..%2fetc%2fpasswd", "%2e%2e", ".hidden", "a b", "x" * 200):
        assert (await http.get(f"/datasets/{bad}")).status_code in {400, 404}
        assert (await http.post(f"/datasets/{bad}", json={"data": []})).status_code in {400, 404}
    assert list(tmp_path.iterdir()) == []


async def test_a_client_reaches_its_own_dataset_only(tmp_path: Path) -> None:
    async def verify(_header: str) -> Principal:
        return Principal("client", P1, "proplet")

    app = create_api(DataStore(tmp_path), admission=Admission(verify))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://data", headers={"authorization": "Basic eA=="}
    ) as client:
        await DataStore(tmp_path).seed([P1, P2])
        for own in (P1, P2):  # the data of others trains its program, and its own is what others count on
            assert (await client.post(f"/datasets/{own}", json={"data": []})).status_code == 403
        assert (await client.get(f"/datasets/{P1}")).status_code == 200
        assert (await client.get(f"/datasets/{P2}")).status_code == 403
        assert (await client.get("/datasets")).status_code == 403


async def test_the_coordinator_reads_every_dataset_and_writes_none(tmp_path: Path) -> None:
    async def verify(_header: str) -> Principal:
        return Principal("client", "fl-coordinator", "coordinator")

    await DataStore(tmp_path).seed([P1])
    app = create_api(DataStore(tmp_path), admission=Admission(verify))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://data", headers={"authorization": "Basic eA=="}
    ) as client:
        assert (await client.get(f"/datasets/{P1}")).json()["size"] == 64
        assert (await client.post(f"/datasets/{P1}", json={"data": []})).status_code == 403


def test_ids_to_seed_come_from_either_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROPLET_CLIENT_ID", "one")
    monkeypatch.setenv("PROPLET_3_CLIENT_ID", "three")
    monkeypatch.setenv("PROPLET_2_CLIENT_ID", "")
    assert DataStoreSettings.load().ids_to_seed() == ["one", "three"]
    monkeypatch.setenv("PROPLET_4_ENTITY_ID", "four")
    monkeypatch.setenv("PROPLET_3_ENTITY_ID", "three")
    assert DataStoreSettings.load().ids_to_seed() == ["one", "three", "four"]
    monkeypatch.setenv("FL_DATASET_PARTICIPANTS", " a , b,,a")
    assert DataStoreSettings.load().ids_to_seed() == ["a", "b"]
    monkeypatch.setenv("FL_DATASET_PARTICIPANTS", "../x")
    with pytest.raises(StartError, match="FL_DATASET_PARTICIPANTS"):
        DataStoreSettings.load().ids_to_seed()


async def test_a_long_dataset_is_stored_as_a_short_one(http: httpx.AsyncClient, tmp_path: Path) -> None:
    store = DataStore(tmp_path)
    rows = [{"x": [one / 7, one], "y": one % 2} for one in range(5000)]
    text = json.dumps({"note": "a", "data": rows, "b": [1]}).encode()
    assert await store.put(P1, text) == 5000
    assert json.loads((await store.get(P1)).content) == {
        "note": "a",
        "b": [1],
        "data": rows,
        "size": 5000,
        "proplet_id": P1,
        "client_id": P1,
        "schema": "fl-demo-dataset-v1",
    }
    for wrong, reason in (
        ({"x": [1], "y": 1}, r"data\[5000\]\.x: has 1 numbers, data\[0\]\.x has 2"),
        ({"x": [1, 2], "y": float("nan")}, "NaN is not a finite number"),
        ({"x": "a", "y": 1}, r"data\[5000\]\.x: must be a list of finite numbers"),
    ):
        with pytest.raises(InvalidError, match=reason):
            await store.put(P1, json.dumps({"data": [*rows, wrong]}).encode())
    for sample, reason in (
        (
            {"x": [1, 2]},
            r"data\[5000\]\.y: it is missing, and must be .* a schema of your own, as \{\"schema\": \"mine\"",
        ),
        ({"x": [1, 2], "Y": 1}, r"data\[5000\]\.y: it is missing \(there is 'Y'\), and"),
        ({"X": [1, 2], "y": 1}, r"data\[5000\]\.x: it is missing \(there is 'X'\), and"),
        (1, r"data\[5000\]\.x: must be a list of finite numbers; .* schema"),
    ):
        with pytest.raises(InvalidError, match=reason):
            await store.put(P1, json.dumps({"data": [*rows, sample]}).encode())
    with pytest.raises(
        InvalidError, match=r"data: it is missing \(did you mean it by 'Dat'\?\), and must be a list"
    ):
        await store.put(P1, b'{"Dat": []}')
    with pytest.raises(InvalidError, match="Invalid JSON"):
        await store.put(P1, text[:-1])
    assert json.loads((await store.get(P1)).content)["size"] == 5000
    other = {"schema": "text-v1", "data": ["any, ]" * 3] * 20_000}
    assert await store.put(P1, json.dumps(other).encode()) == 20_000
    assert json.loads((await store.get(P1)).content)["data"] == other["data"]
