"""Debian's mosquitto-clients on a running stack: the guide's option B, and what a device's key does not open."""

import json
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest

from support.net import wait_until
from support.stack import Up, running_stack

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="mosquitto-clients is not installed"),
]

REFUSED = 5
"""The exit code of mosquitto's programs for a login that is refused: the code of the CONNACK."""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running_stack(tmp_path_factory.mktemp("mosquitto") / "state") as running:
        yield running


def mosquitto(
    up: Up, program: str, client: str | None, *arguments: str, key: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run ``mosquitto_pub`` or ``mosquitto_sub`` with a client's id and key (``None``: with neither)."""
    broker = up.stack["broker"]
    command = [f"mosquitto_{program}", "-h", broker["host"], "-p", str(broker["port"])]
    if client is not None:
        known = up.stack["clients"][client]
        command += ["-u", known["id"], "-P", key or known["key"]]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=30, check=False)


def publish(up: Up, client: str, topic: str, message: str, *options: str) -> None:
    """Publish and wait for the acknowledgement, which does not say that the message was let through."""
    done = mosquitto(up, "pub", client, "-q", "1", "-t", topic, "-m", message, *options)
    assert done.returncode == 0, done.stderr


def prefixed(up: Up, topic: str) -> str:
    return f"m/{up.stack['domain_id']}/c/{up.stack['channel_id']}/{topic}"


def start(up: Up, round_id: str, **changes: Any) -> str:
    """The message of the guide's option B."""
    return json.dumps(
        {
            "round_id": round_id,
            "model_uri": "fl/models/global_model_v0",
            "task_wasm_image": up.stack["images"]["fl-client-wasm"],
            "participants": up.ids(),
            "hyperparams": {"epochs": 1, "lr": 0.01, "batch_size": 16},
            "k_of_n": 3,
            "timeout_s": 30,
            **changes,
        }
    )


def outcome(up: Up, round_id: str) -> dict[str, Any]:
    """The round as the coordinator shows it, once it is over; it may take a moment to appear."""
    url = f"{up.url('coordinator')}/rounds/{round_id}"

    def over() -> bool:
        status = httpx.get(f"{url}/complete", params={"wait_s": 5}, timeout=30)
        return status.is_success and (status.json()["completed"] or status.json()["state"] == "failed")

    wait_until(over, 30, f"round {round_id} ends")
    shown: dict[str, Any] = httpx.get(url).json()
    return shown


def wait_received(up: Up, round_id: str, updates: int) -> None:
    """Block until so many updates of a round are in."""
    url = f"{up.url('coordinator')}/rounds/{round_id}/complete"

    def received() -> bool:
        status = httpx.get(url, params={"wait_s": 5, "updates": updates - 1}, timeout=30)
        return status.is_success and int(status.json()["num_updates"]) >= updates

    wait_until(received, 30, f"round {round_id} gets {updates} updates")


def log(up: Up, name: str) -> str:
    return (up.folder / "logs" / f"{name}.log").read_text()


def tasks(up: Up, round_id: str) -> list[dict[str, Any]]:
    found = httpx.get(f"{up.url('manager')}/tasks", params={"limit": 1000}).json()["tasks"]
    return [task for task in found if (task.get("env") or {}).get("ROUND_ID") == round_id]


@pytest.mark.parametrize(
    ("name", "client", "prefix"),
    [
        ("r-plain", "manager", False),
        ("r-prefix", "manager", True),
        ("r-coordinator", "fl-coordinator", False),
    ],
)
def test_option_b_starts_a_round(up: Up, name: str, client: str, prefix: bool) -> None:
    topic = prefixed(up, "fl/rounds/start") if prefix else "fl/rounds/start"
    done = mosquitto(up, "pub", client, "-t", topic, "-m", start(up, name))
    assert (done.returncode, done.stderr) == (0, "")
    round_ = outcome(up, name)
    assert (round_["state"], round_["num_updates"], round_["k_of_n"]) == ("completed", 3, 3)
    assert round_["timeout_s"] == 30
    model = httpx.get(f"{up.url('model_registry')}/models/{round_['model_version']}").json()
    assert all(model["w"])


def test_a_quorum_of_one_closes_the_round_with_one_update(up: Up) -> None:
    publish(up, "manager", "fl/rounds/start", start(up, "r-one", k_of_n=1))
    round_ = outcome(up, "r-one")
    assert (round_["state"], round_["num_updates"], round_["k_of_n"]) == ("completed", 1, 1)
    assert len(round_["participants"]) == 3


def test_the_deadline_closes_the_round_with_what_has_come(up: Up) -> None:
    """One of three devices hangs, and all three are wanted: after ``timeout_s`` the two others make the model."""
    silent = psutil.Process(up.stack["processes"]["proplet-3"])
    silent.send_signal(signal.SIGSTOP)
    try:
        publish(up, "manager", "fl/rounds/start", start(up, "r-deadline", timeout_s=3))
        round_ = outcome(up, "r-deadline")
    finally:
        silent.send_signal(signal.SIGCONT)
    assert (round_["state"], round_["num_updates"], round_["timeout_s"]) == ("completed", 2, 3)
    assert round_["missing"] == [up.ids()[2]]


def test_a_start_that_comes_twice_is_one_round(up: Up) -> None:
    for topic in ("fl/rounds/start", prefixed(up, "fl/rounds/start"), "fl/rounds/start"):
        publish(up, "manager", topic, start(up, "r-twice"))
    assert outcome(up, "r-twice")["state"] == "completed"
    publish(up, "manager", "fl/rounds/start", start(up, "r-twice"))
    publish(up, "manager", "fl/rounds/start", start(up, "r-after-twice"))
    outcome(up, "r-after-twice")
    assert len(tasks(up, "r-twice")) == 3
    assert (
        log(up, "coordinator").count(
            '"Aggregated model stored", "component": "coordinator", "round_id": "r-twice"'
        )
        == 1
    )


@pytest.mark.parametrize("key", ["wrong", ""])
def test_a_wrong_key_is_refused(up: Up, key: str) -> None:
    known = up.stack["clients"]["manager"]["id"]
    arguments = ["-t", "fl/rounds/start", "-m", start(up, "r-wrong-key")]
    if key:
        done = mosquitto(up, "pub", "manager", *arguments, key=key)
    else:
        done = mosquitto(up, "pub", None, "-u", known, *arguments)
    assert done.returncode == REFUSED
    assert "Connection Refused: not authorised" in done.stderr
    assert mosquitto(up, "pub", None, *arguments).returncode == REFUSED, "nobody may come in without a name"
    assert httpx.get(f"{up.url('coordinator')}/rounds/r-wrong-key").status_code == 404


@pytest.mark.parametrize("prefix", [False, True])
def test_a_devices_key_starts_no_round(up: Up, prefix: bool) -> None:
    topic = prefixed(up, "fl/rounds/start") if prefix else "fl/rounds/start"
    forged, marker = f"r-forged-{prefix}", f"r-marker-{prefix}"
    publish(up, "proplet-1", topic, start(up, forged))
    publish(up, "manager", topic, start(up, marker))
    outcome(up, marker)  # what was published before it has been handled, or never will be
    assert httpx.get(f"{up.url('coordinator')}/rounds/{forged}").status_code == 404
    assert tasks(up, forged) == []
    assert forged not in log(up, "manager")


def test_a_devices_key_starts_and_stops_no_task(up: Up) -> None:
    other = up.ids()[1]
    body = {"name": "a-task", "proplet_id": other, "image_url": up.stack["images"]["fl-client-wasm"]}
    forged, real = "11111111-2222-4333-8444-555555555555", "66666666-7777-4888-8999-000000000000"
    for topic in ("control/manager/start", f"control/manager/start/{other}", "control/manager/stop"):
        publish(up, "proplet-1", prefixed(up, topic), json.dumps({**body, "id": forged}))
    publish(up, "manager", prefixed(up, f"control/manager/start/{other}"), json.dumps({**body, "id": real}))
    publish(up, "manager", "fl/rounds/start", start(up, "r-after-task"))
    assert outcome(up, "r-after-task")["num_updates"] == 3
    assert real in log(up, "proplet-2"), "the same message from the manager is obeyed"
    for proplet in ("proplet-1", "proplet-2", "proplet-3"):
        assert forged not in log(up, proplet)


def test_a_device_cannot_speak_as_another(up: Up) -> None:
    """Not on the other's topic, whose update would count in a round; not under its MQTT client id."""
    other = up.ids()[1]
    update = {"round_id": "r-as-another", "proplet_id": other, "update": {"w": [9, 9, 9], "b": 9}}
    update["base_model_uri"] = "fl/models/global_model_v0"
    topic = f"fl/rounds/r-as-another/updates/{other}"
    silent = psutil.Process(up.stack["processes"]["proplet-2"])
    silent.send_signal(signal.SIGSTOP)
    try:
        publish(up, "manager", "fl/rounds/start", start(up, "r-as-another"))
        wait_received(up, "r-as-another", 2)
        for forged in (topic, prefixed(up, topic)):
            publish(up, "proplet-1", forged, json.dumps({**update, "num_samples": 1_000_000}))
        publish(up, "proplet-2", topic, json.dumps({**update, "num_samples": 5}))
        round_ = outcome(up, "r-as-another")
    finally:
        silent.send_signal(signal.SIGCONT)
    assert [got["num_samples"] for got in round_["received"] if got["proplet_id"] == other] == [5]
    taken = mosquitto(up, "pub", "proplet-1", "-i", other, "-t", topic, "-m", "{}")
    assert taken.returncode == REFUSED
    assert "not authorised" in taken.stderr


def test_a_device_hears_what_is_its_own_and_no_others(up: Up) -> None:
    own, other, _ = up.ids()
    granted = mosquitto(up, "sub", "proplet-1", "-E", "-t", prefixed(up, f"control/manager/start/{own}"))
    assert (granted.returncode, granted.stderr) == (0, "")
    for topic in (
        prefixed(up, f"control/manager/start/{other}"),
        prefixed(up, f"control/manager/stop/{other}"),
        prefixed(up, "control/manager/start/+"),
        prefixed(up, "control/proplet/results"),
        prefixed(up, "#"),
        "fl/rounds/+/updates/+",
        "#",
    ):
        denied = mosquitto(up, "sub", "proplet-1", "-E", "-q", "1", "-W", "10", "-t", topic)
        assert "All subscription requests were denied" in denied.stderr, f"{topic}: {denied.stderr}"


GARBAGE = ["", "{", "[1]", '"r"', '{"round_id": "../../etc"}', '{"round_id": "r-bad"}', "\N{PILE OF POO}"]


def test_garbage_does_not_hurt(up: Up) -> None:
    for message in GARBAGE:
        options = ["-n"] if not message else ["-m", message]
        for topic in ("fl/rounds/start", prefixed(up, "fl/rounds/start")):
            done = mosquitto(up, "pub", "manager", "-q", "1", "-t", topic, *options)
            assert done.returncode == 0, done.stderr
    publish(up, "manager", "fl/rounds/start", start(up, "r-garbage"))
    assert outcome(up, "r-garbage")["state"] == "completed"
    assert "Traceback" not in log(up, "manager")
    assert httpx.get(f"{up.url('coordinator')}/rounds/r-bad").status_code == 404
