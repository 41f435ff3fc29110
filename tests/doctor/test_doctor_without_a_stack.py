"""What the doctor says where there is nothing to examine, or something else than a stack."""

import json
import os
import re
import socket
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from propeller.doctor.broker import subscriptions
from propeller.doctor.checks import Status
from propeller.doctor.diagnosis import CHECKS_OF_A_RUNNING_STACK
from propeller.doctor.machine import MIN_FREE_BYTES, clocks, disk, free_ports
from propeller.doctor.target import Observations
from propeller.stack.env_file import GUIDE_VARIABLES
from propeller.stack.services import HTTP_SERVICES, PORTS
from support.doctor import answering, examine, published
from support.net import free_port
from support.stack import propeller

STACK_CHECKS = set(CHECKS_OF_A_RUNNING_STACK)


def env_file(folder: Path, **changes: str) -> Path:
    """A complete file of a stack of containers that does not run."""
    values = {name: f"id-{number}" for number, name in enumerate(GUIDE_VARIABLES)}
    for kind in ("DOMAIN", "CHANNEL"):
        values |= {f"{service}_{kind}_ID": kind.lower() for service in ("MANAGER", "PROPLET", "PROXY")}
    values |= {port.host_variable: str(free_port()) for port in PORTS.values() if port.published}
    file = folder / ".env"
    file.write_text("".join(f"{name}={value}\n" for name, value in {**values, **changes}.items()))
    return file


def nobody(port: int, **urls: str) -> dict[str, Any]:
    """A stack of which nothing listens, but what is given."""
    nowhere = f"http://127.0.0.1:{port}"
    names = [name.replace("-", "_") for name in HTTP_SERVICES]
    services: dict[str, Any] = {name: {"url": urls.get(name, nowhere)} for name in names}
    services["identity"] |= dict.fromkeys(
        ("users", "domains", "channels", "clients"), services["identity"]["url"]
    )
    return {
        "services": services,
        "broker": {"host": "127.0.0.1", "port": port},
        "domain_id": "d",
        "channel_id": "c",
        "clients": {name: {"id": f"{name}-id", "key": "k"} for name in ("manager", "proxy", "proplet-1")},
        "admin": {"username": "admin", "password": "p"},
        "images": {},
        "processes": {"up": os.getpid()},
    }


def test_no_stack(tmp_path: Path) -> None:
    found = examine("--state", str(tmp_path / "none"))
    assert found.code == 1
    assert found.line("stack").startswith("FAIL no stack runs on")
    assert f"propeller up --state {tmp_path / 'none'}" in found.line("stack")
    assert set(found.skipped) == STACK_CHECKS
    assert not (tmp_path / "none").exists()


def test_a_stack_file_that_a_dead_stack_left(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text(json.dumps({**nobody(1), "processes": {"up": 4194304}}))
    found = examine("--state", str(tmp_path))
    assert "stack" in found.failed - {"ports"}
    assert "stack.json was left by a stack that is gone (process 4194304)" in found.line("stack")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"clients": {"manager": {"id": "m"}}}, "it lacks 'key'"),
        ({"services": None}, "it is not what a stack writes"),
        ({"channel_id": "a/b"}, "'a/b' is not a valid id"),
    ],
)
def test_a_stack_file_that_is_damaged(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with published(tmp_path, {**nobody(1), **change}):
        found = examine("--state", str(tmp_path))
    assert found.failed == {"settings"}
    assert text in found.line("settings")
    assert set(found.skipped.values()) == {"waits for settings"}


def test_an_env_file_that_is_not_there(tmp_path: Path) -> None:
    found = examine("--env-file", str(tmp_path / ".env"))
    assert found.failed == {"settings"}
    assert f"there is no file {tmp_path / '.env'}" in found.line("settings")
    assert f"propeller provision --env-file {tmp_path / '.env'}" in found.line("settings")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"PROPLET_2_CLIENT_KEY": "", "PROXY_CHANNEL_ID": ""},
            "PROXY_CHANNEL_ID, PROPLET_2_CLIENT_KEY not set",
        ),
        ({"MANAGER_DOMAIN_ID": "a/b"}, "MANAGER_DOMAIN_ID: 'a/b' is not an id"),
        ({"PORT_MANAGER": "many"}, "PORT_MANAGER: 'many' is not a port"),
    ],
)
def test_an_env_file_that_is_broken(tmp_path: Path, changes: dict[str, str], text: str) -> None:
    found = examine("--env-file", str(env_file(tmp_path, **changes)))
    assert found.failed == {"settings"}
    for part in text.split(", "):
        assert part.removesuffix(" not set") in found.line("settings")
    assert set(found.skipped) == STACK_CHECKS


def test_an_env_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"A=1\nB=\xff\n")
    found = examine("--env-file", str(tmp_path / ".env"))
    assert found.failed == {"settings"}
    assert "line 2: not UTF-8" in found.line("settings")


def test_a_key_in_the_place_of_an_id_is_not_shown(tmp_path: Path) -> None:
    key = "0123456789abcdef" * 4
    for value in (key, f"/{key}"):
        done = propeller("doctor", "--env-file", str(env_file(tmp_path, PROPLET_2_CLIENT_ID=value)))
        assert done.returncode == 1
        assert key not in done.stdout + done.stderr


def test_containers_that_do_not_run(tmp_path: Path) -> None:
    found = examine("--env-file", str(env_file(tmp_path)))
    assert found.failed == {"stack"}
    assert f"docker compose -f deploy/compose.yaml --env-file {tmp_path / '.env'} up -d" in found.line(
        "stack"
    )
    assert set(found.skipped) == STACK_CHECKS


def test_another_program_on_the_managers_port(tmp_path: Path) -> None:
    with (
        answering(b"<html>It works!</html>", {"Content-Type": "text/html"}) as other,
        published(tmp_path, nobody(free_port(), manager=other)),
    ):
        found = examine("--state", str(tmp_path))
    assert f"{other} is answered by something other than manager" in found.line("manager")
    assert f"(process {os.getpid()})" in found.line("manager")
    assert "clocks" not in found.failed
    assert found.skipped["manager mqtt"] == "waits for manager, broker"


def test_a_program_that_speaks_no_http_and_no_mqtt(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        begun = time.monotonic()
        with published(tmp_path, nobody(port)):
            found = examine("--state", str(tmp_path))
    assert time.monotonic() - begun < 15
    for what in ("broker", "identity", "manager"):
        assert "accepts connections but did not answer" in found.line(what)


def test_another_broker(tmp_path: Path, broker_port: int) -> None:
    stack = {**nobody(free_port()), "broker": {"host": "127.0.0.1", "port": broker_port}}
    with published(tmp_path, stack):
        found = examine("--state", str(tmp_path))
    assert f"tcp://127.0.0.1:{broker_port} accepts anyone" in found.line("broker")
    assert "nats-server (process" in found.line("broker")
    assert found.skipped["keys"] == "waits for broker, identity"


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (
            "deadline: 0 of 3 updates came in time, at least 1 needed",
            "see 'image' and 'proplets', or give the round more",
        ),
        ("deadline: 1 of 3 updates came in time, at least 2 needed", "see 'proplets', lower k_of_n, or give"),
        ("aggregation: aggregator cannot be reached", "/rounds/r-1/retry"),
        ("3 of 3 participants failed: wall_time_s: over 300 s", "PROPLET_TASK_WALL_TIME"),
        ("something \x1b[31m else", "propeller logs --state"),
    ],
)
def test_why_a_round_failed(tmp_path: Path, reason: str, remedy: str) -> None:
    said = {
        "status": "ok",
        "rounds": [{"round_id": "r-1"}],
        "round_id": "r-1",
        "state": "failed",
        "reason": reason,
        "participants": ["proplet-1"],
        "task_wasm_image": "ghcr.io/u/x:latest",
    }
    with (
        answering(json.dumps(said).encode(), {}) as coordinator,
        published(tmp_path, nobody(free_port(), coordinator=coordinator)),
    ):
        found = examine("--state", str(tmp_path))
        shown = propeller("doctor", "--state", str(tmp_path)).stdout if "\x1b" in reason else ""
    assert f"the newest, r-1, failed: {reason}" in found.line("rounds")
    assert remedy in found.line("rounds")
    assert "round r-1: proplet-1 is an instance name" in found.line("participants")
    assert "use proplet-1-id" in found.line("participants")
    assert "\x1b" not in shown


def test_what_a_round_waits_for(tmp_path: Path) -> None:
    said = {
        "status": "ok",
        "rounds": [{"round_id": "r-1"}],
        "round_id": "r-1",
        "state": "aggregating",
        "waiting": "aggregator cannot be reached",
        "participants": [],
        "task_wasm_image": "ghcr.io/u/x:latest",
    }
    with (
        answering(json.dumps(said).encode(), {}) as coordinator,
        published(tmp_path, nobody(free_port(), coordinator=coordinator)),
    ):
        found = examine("--state", str(tmp_path))
    assert "the newest, r-1, has its updates and waits: aggregator cannot be reached" in found.line("rounds")
    assert "it goes on by itself" in found.line("rounds")


def test_a_failed_round_of_an_experiment_is_not_retried_by_hand(tmp_path: Path) -> None:
    said = {
        "status": "ok",
        "rounds": [{"round_id": "mine-1.3"}],
        "round_id": "mine-1.3",
        "experiment_id": "mine-1",
        "number": 3,
        "attempt": 1,
        "state": "failed",
        "reason": "aggregation: aggregator cannot be reached",
        "participants": [],
        "task_wasm_image": "ghcr.io/u/x:latest",
    }
    with (
        answering(json.dumps(said).encode(), {}) as coordinator,
        published(tmp_path, nobody(free_port(), coordinator=coordinator)),
    ):
        found = examine("--state", str(tmp_path))
    assert "propeller experiment show mine-1" in found.line("rounds")
    assert "/retry" not in found.line("rounds")


def test_a_clock_that_is_off(tmp_path: Path) -> None:
    with (
        answering(b'{"status":"ok"}', {"Date": formatdate(time.time() + 3590, usegmt=True)}) as ahead,
        answering(b'{"status":"ok"}', {"Date": formatdate(time.time() - 60, usegmt=True)}) as behind,
        answering(b'{"status":"ok"}', {"Date": formatdate(usegmt=True)}) as right,
        published(
            tmp_path, nobody(free_port(), aggregator=ahead, proxy=behind, identity=right, coordinator=right)
        ),
    ):
        found = examine("--state", str(tmp_path))
    assert not {"aggregator", "proxy", "identity"} & found.failed
    lines = found.line("clocks").splitlines()
    assert len(lines) == 2
    assert re.search(r"FAIL aggregator is 35[0-9][0-9] s ahead of this machine", lines[0])
    assert re.search(r"FAIL proxy is [0-9]+ s behind this machine", lines[1])
    assert "timedatectl" in lines[0]


def test_a_service_that_has_just_hung_is_asked_for_its_time_again(tmp_path: Path) -> None:
    times = iter([time.time() - 60])

    def headers() -> dict[str, str]:
        return {"Date": formatdate(next(times, time.time()), usegmt=True)}

    with (
        answering(b'{"status":"ok"}', headers) as service,
        published(tmp_path, nobody(free_port(), aggregator=service)),
    ):
        found = examine("--state", str(tmp_path))
    assert found.line("clocks").startswith("PASS the clocks of 1")


def test_heartbeats_of_the_future() -> None:
    observed = Observations(
        clocks={"manager": 0.0}, proplets={"p": {"last_alive_at": "2999-01-01T00:00:00Z"}, "q": {}}
    )
    [finding] = clocks(observed)
    assert finding.status is Status.FAIL
    assert "the last heartbeat of p" in finding.detail
    observed.proplets = {"q": {}}
    assert [one.status for one in clocks(observed)] == [Status.PASS]
    assert [one.status for one in clocks(Observations())] == [Status.SKIP]


def test_ports_that_a_stack_would_need() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port, free = taken.getsockname()[1], free_port()
        [finding] = free_ports({"manager": port, "proxy": free}, "end it")
    assert finding.status is Status.FAIL
    assert finding.detail.startswith(f"{port} (manager) is not free")
    assert f"(process {os.getpid()})" in finding.detail
    assert [one.status for one in free_ports({"proxy": free}, "end it")] == [Status.PASS]


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [one.status for one in disk(tmp_path / "not" / "yet")] == [Status.PASS]

    class Full:
        free = MIN_FREE_BYTES - 1

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Full)
    [finding] = disk(tmp_path)
    assert finding.status is Status.FAIL
    assert "511 MiB left" in finding.detail


def test_two_places_are_too_many(tmp_path: Path) -> None:
    done = propeller("doctor", "--state", str(tmp_path), "--env-file", str(tmp_path / ".env"))
    assert done.returncode == 2
    assert "cannot be used with" in done.stderr


def test_subscriptions_near_their_limit() -> None:
    limit = "raise BROKER_MAX_SUBSCRIPTIONS"
    for count, status in ((0, Status.PASS), (799, Status.PASS), (800, Status.FAIL), (1000, Status.FAIL)):
        (found,) = subscriptions(Observations(subscriptions=(count, 1000)))
        assert (found.status, found.detail) == (status, f"{count} of the 1000 that the broker may keep")
        assert found.fix.startswith(limit) is (status is Status.FAIL)
    assert [one.status for one in subscriptions(Observations())] == [Status.SKIP]
