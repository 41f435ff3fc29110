"""A proxy in a process of its own."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from propeller.protocol.topics import Channel
from support.net import free_port, wait_port

_CODE = """
from propeller.process.run import run
from propeller.proxy.main import main
from propeller.proxy.settings import ProxySettings
raise SystemExit(run(lambda stop: main(ProxySettings.load(), stop)))
"""


@contextlib.asynccontextmanager
async def proxy_process(
    broker: int, channel: Channel, registry: str, cache: Path
) -> AsyncIterator[tuple[subprocess.Popen[bytes], str]]:
    """Run a proxy, with the environment of absmach/propeller's later version; gives the address of its metrics."""
    port = free_port()
    environment = {
        **os.environ,
        "PROXY_MQTT_ADDRESS": f"tcp://127.0.0.1:{broker}",
        "PROXY_TENANT_ID": channel.domain_id,
        "PROXY_CHANNEL_ID": channel.channel_id,
        "PROXY_ENTITY_ID": f"proxy-{channel.domain_id}",
        "PROXY_REGISTRY_URL": registry,
        "PROXY_CACHE": str(cache),
        "PROXY_HTTP_PORT": str(port),
    }
    running = subprocess.Popen([sys.executable, "-c", _CODE], env=environment, stdout=subprocess.DEVNULL)
    try:
        await asyncio.to_thread(wait_port, port)
        yield running, f"http://127.0.0.1:{port}/metrics"
    finally:
        running.kill()
        await asyncio.to_thread(running.wait)


async def count(metrics: str, name: str) -> float:
    """One of the proxy's counters."""
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(metrics)).text
    for line in text.splitlines():
        if line.startswith(f"propeller_proxy_{name}_total"):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"the proxy does not count {name}")
