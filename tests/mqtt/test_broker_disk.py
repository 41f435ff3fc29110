"""A broker whose disk was full is started anew when there is space again."""

import asyncio
import sys
from pathlib import Path

from structlog.testing import capture_logs

from propeller.mqtt import broker_disk
from propeller.mqtt.broker_disk import until_writable
from propeller.mqtt.broker_main import main
from propeller.mqtt.broker_settings import Settings
from support.net import eventually, free_port

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
    settings = Settings.load(
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


async def test_a_folder_is_waited_for_until_it_takes_data(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    waiting = asyncio.create_task(until_writable(folder))
    done, _ = await asyncio.wait({waiting}, timeout=0.2)
    assert not done
    folder.mkdir()
    await asyncio.wait_for(waiting, broker_disk.LOOK_EVERY_S + 5)
    assert list(folder.iterdir()) == []
