"""A device whose key works, and which says that it is another: it gets neither its data nor its place."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.protocol.join_tokens import JoinToken
from propeller.sdk import Experiment, Propeller
from support.command_server import Command
from support.net import wait_until
from support.python_programs import COMPILED
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(180)

SERVICES = ("manager", "coordinator", "model_registry", "data_store", "identity")
MODEL = {"w": np.zeros(3), "b": np.float64(0)}
DATA = {"data": [{"x": [0.5, 1.0, -1.0], "y": 1}, {"x": [-0.5, -1.0, 1.0], "y": 0}] * 8}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("names") / "state"
    with running_stack(folder, "--proplets", "1", "--tag", "hospital=proplet-1") as running:
        yield running


@pytest.fixture(scope="module")
def fl(up: Up) -> Iterator[Propeller]:
    """A client elsewhere: it knows the devices by what the manager says alone."""
    operator = up.stack["clients"]["operator"]
    urls = {name: up.url(name) for name in SERVICES}
    with Propeller(**urls, auth=(operator["id"], operator["key"])) as client:  # type: ignore[arg-type]
        yield client


@dataclass(frozen=True)
class Mallory:
    """The attacker: its id and key."""

    id: str
    key: str


@pytest.fixture(scope="module")
def mallory(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mallory]:
    """A device that joined as ``mallory`` and calls itself ``proplet-1``, of the hospital."""
    folder = tmp_path_factory.mktemp("mallory")
    added = propeller("device", "add", "mallory", "--json", "--state", str(up.folder))
    token = JoinToken.decode(json.loads(added.stdout)["token"])
    body = {"secret": token.secret.hex(), "nonce": os.urandom(32).hex()}
    joined = httpx.post(f"{token.identity_url}/devices/join", json=body, trust_env=False).json()
    env = {
        "PATH": os.environ["PATH"],
        "PROPLET_DOMAIN_ID": joined["domain_id"],
        "PROPLET_CHANNEL_ID": joined["channel_id"],
        "PROPLET_CLIENT_ID": joined["id"],
        "PROPLET_CLIENT_KEY": joined["key"],
        "PROPLET_MQTT_ADDRESS": f"tcp://{joined['broker']['host']}:{joined['broker']['port']}",
        "COORDINATOR_URL": joined["coordinator_url"],
        "MODEL_REGISTRY_URL": joined["model_registry_url"],
        "DATA_STORE_URL": joined["data_store_url"],
        "PROPLET_STATE": str(folder / "state"),
        "PROPLET_CACHE": str(COMPILED),
        "PROPLET_INSTANCE_ID": "proplet-1",
        "PROPLET_TAGS": "hospital,mine",
    }
    with (folder / "mallory.log").open("wb") as output:
        process = Command(["serve", "proplet"], env, stdout=output, stderr=output)
    try:
        yield Mallory(joined["id"], joined["key"])
    finally:
        process.terminate()
        process.wait()


def known(fl: Propeller, id_: str) -> dict[str, Any] | None:
    return next((one for one in fl.proplets(alive=True) if one["id"] == id_), None)


def has_registered(fl: Propeller, id_: str) -> bool:
    """Whether the manager knows more of it than that it lives: the two messages may come in any order."""
    return "tags" in (known(fl, id_) or {"metadata": {}})["metadata"]


def run(fl: Propeller, up: Up, **fields: Any) -> list[str]:
    """Run one round; the ids of its participants."""
    handle = fl.run(Experiment(program=up.stack["images"]["fl-client-wasm"], rounds=1, model=MODEL, **fields))
    assert handle.wait().state == "completed"
    return sorted(handle.history()[0]["participants"])


def test_neither_by_name_nor_by_tag_nor_with_its_data(up: Up, fl: Propeller, mallory: Mallory) -> None:
    real = up.stack["clients"]["proplet-1"]["id"]
    wait_until(lambda: has_registered(fl, mallory.id), what="the attacker is alive")
    shown = known(fl, mallory.id)
    assert shown is not None
    assert (shown["name"], shown["metadata"]["tags"]) == ("mallory", ["mine"])
    status = propeller("status", "--state", str(up.folder)).stdout
    assert "mallory" in status
    told = propeller("logs", "--state", str(up.folder), "--service", "manager").stdout
    assert told.count("what a proplet calls itself is not taken") == 1
    assert f"'proplet-1' is {real}" in told
    # Its data by its name, in an experiment and on its own.
    assert run(fl, up, data={"proplet-1": DATA}, selection={"names": ["proplet-1"]}) == [real]
    assert fl.put_dataset("proplet-1", DATA) == real
    store = up.url("data_store")
    for id_, status_code in ((real, 403), (mallory.id, 404)):
        answer = httpx.get(f"{store}/datasets/{id_}", auth=(mallory.id, mallory.key), trust_env=False)
        assert answer.status_code == status_code, answer.text
    assert run(fl, up, selection={"tags": ["hospital"]}) == [real]
    operator = up.stack["clients"]["operator"]
    tasks = httpx.get(
        f"{up.url('manager')}/tasks", auth=(operator["id"], operator["key"]), trust_env=False
    ).json()["tasks"]
    assert {task["proplet_id"] for task in tasks} == {real}


def test_tags_are_given_and_a_name_by_identitys_api_alone_is_known_soon(
    up: Up, fl: Propeller, mallory: Mallory
) -> None:
    wait_until(lambda: known(fl, mallory.id), what="the device is alive")
    tagged = propeller("device", "tag", "mallory", "hospital", "gpu", "--state", str(up.folder))
    assert tagged.stdout == "mallory has hospital, gpu from now on.\n", tagged.stderr
    shown = known(fl, mallory.id)
    assert shown is not None
    assert shown["metadata"]["tags"] == ["hospital", "gpu", "mine"]  # at once
    admin = up.stack["admin"]
    with httpx.Client(base_url=up.url("identity"), trust_env=False) as http:
        login = http.post("/users/tokens/issue", json=admin).json()
        http.headers["authorization"] = f"Bearer {login['access_token']}"
        path = f"/{up.stack['domain_id']}/devices/{mallory.id}"
        assert http.patch(path, json={"name": "trent", "tags": []}).status_code == 200

    def follows() -> bool:
        found = known(fl, mallory.id)
        return found is not None and (found["name"], found["metadata"]["tags"]) == ("trent", ["mine"])

    wait_until(follows, timeout=20, what="the manager has asked identity")
    back = propeller("device", "rename", "trent", "mallory", "--state", str(up.folder))
    assert back.stdout == "trent is mallory from now on.\n", back.stderr
    shown = known(fl, mallory.id)
    assert shown is not None
    assert shown["name"] == "mallory"
    none = propeller("device", "tag", "mallory", "--state", str(up.folder))
    assert none.stdout == "mallory has no tags from now on.\n"
    wrong = propeller("device", "tag", "nobody", "x", "--state", str(up.folder))
    assert wrong.returncode == 1
    assert "there is no device 'nobody'" in wrong.stderr
    bad = propeller("device", "tag", "mallory", "a,b", "--state", str(up.folder))
    assert (bad.returncode, "comma" in bad.stderr) == (1, True)
