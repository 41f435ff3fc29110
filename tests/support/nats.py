"""A plain NATS server with MQTT and no authentication, for tests of what is not access."""

import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.net import free_port, wait_port

CONFIG = """
server_name: test
host: 127.0.0.1
port: {nats}
max_payload: 64MB
jetstream {{ store_dir: "{store}" }}
mqtt {{ host: 127.0.0.1, port: {mqtt}, ack_wait: "2s" }}
"""


@contextmanager
def open_broker(folder: Path, mqtt: int | None = None) -> Iterator[int]:
    """Run a broker in ``folder``; gives its MQTT port."""
    mqtt = mqtt or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "nats.conf"
    config.write_text(CONFIG.format(nats=free_port(), mqtt=mqtt, store=folder / "js"))
    binary = Path(sysconfig.get_path("scripts")) / "nats-server"
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen([binary, "-c", config], stdout=log, stderr=log)
        try:
            wait_port(mqtt)
            yield mqtt
        finally:
            process.kill()
            process.wait()
