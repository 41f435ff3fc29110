"""The embedded broker's server without authentication, for tests of what is not access."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from propeller.mqtt.broker_config import BrokerSettings, find_server, render_server
from support.net import free_port, wait_port

ACK_WAIT_S = 2
"""Shorter than the embedded broker's, as tests wait for messages that are delivered again."""


@contextmanager
def open_broker(folder: Path, mqtt: int | None = None) -> Iterator[int]:
    """Run a broker in ``folder``; gives its MQTT port."""
    mqtt = mqtt or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    settings = BrokerSettings.load(
        port=mqtt, nats_port=free_port(), state=folder, secret="not used, anyone may connect"
    )
    config = folder / "nats.conf"
    config.write_text(render_server(settings, ACK_WAIT_S))
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen([find_server(None), "-c", config], stdout=log, stderr=log)
        try:
            wait_port(mqtt)
            yield mqtt
        finally:
            process.kill()
            process.wait()
