"""Our proplet and our proxy as processes, with a manager, a proxy and proplets of absmach/propeller played from files."""

import json
import uuid
from pathlib import Path

from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.protocol.topics import Channel
from support.exchange import as_base64, playing
from support.net import eventually, free_port
from support.programs import echo
from support.registries import embedded, wasm
from support.service import start_service

EXCHANGES = Path(__file__).parent / "exchanges"


def halves(content: bytes) -> list[str]:
    middle = len(content) // 2
    return [as_base64(content[:middle]), as_base64(content[middle:])]


async def play_with_proplet(broker_port: int, folder: Path, name: str) -> None:
    """Our proplet, with everyone else played from a file."""
    me, domain, http = f"proplet-{uuid.uuid4().hex[:8]}", f"d-{uuid.uuid4().hex[:8]}", free_port()
    round_id, url = f"r-{uuid.uuid4().hex[:8]}", f"http://127.0.0.1:{http}"
    env = {
        "PROPLET_DOMAIN_ID": domain,
        "PROPLET_CHANNEL_ID": "c",
        "PROPLET_CLIENT_ID": me,
        "PROPLET_CLIENT_KEY": "key",
        "PROPLET_MQTT_ADDRESS": f"tcp://127.0.0.1:{broker_port}",
        "PROPLET_LIVELINESS_INTERVAL": "1s",
        "PROPLET_METRICS_INTERVAL": "1",
        "PROPLET_STATE": str(folder / "state"),
        "PROPLET_TAGS": "gpu",
        "PROPLET_LOCATION": "lab",
        "PROPLET_COMPAT": "true",
        "MODEL_REGISTRY_URL": url,
        "DATA_STORE_URL": url,
        "COORDINATOR_URL": url,
    }
    update = {
        "base_model_uri": "fl/models/global_model_v0",
        "metrics": {"loss": 0.5},
        "num_samples": 64,
        "proplet_id": me,
        "round_id": round_id,
        "update": {"w": [1, 2, 3], "b": 0.5},
    }
    chunks, others = halves(echo()), halves(echo("other"))
    tasks = {f"t{number}": str(uuid.uuid4()) for number in range(1, 7)}
    async with playing(
        broker_port, {}, http, b=f"m/{domain}/c/c", me=me, round=round_id, reply=json.dumps(update),
        wasm=as_base64(echo()), chunk0=chunks[0], chunk1=chunks[1], other0=others[0], other1=others[1],
        other=str(uuid.uuid4()), **tasks,
    ) as player:  # fmt: skip
        with start_service("proplet", env, broker_port, folder / "proplet.log"):
            await player.play(EXCHANGES / name)


async def test_our_proplet_works_for_an_s_manager_with_an_s_proxy(broker_port: int, tmp_path: Path) -> None:
    await play_with_proplet(broker_port, tmp_path, "proplet-with-an-s-manager-and-proxy.jsonl")


async def test_our_proplet_works_for_an_h_manager(broker_port: int, tmp_path: Path) -> None:
    await play_with_proplet(broker_port, tmp_path, "proplet-with-an-h-manager.jsonl")


async def test_our_proxy_serves_s_proplets(broker_port: int, tmp_path: Path) -> None:
    channel, program = Channel(f"d-{uuid.uuid4().hex[:8]}", "c"), wasm(1_200_000)
    async with embedded(tmp_path / "registry") as registry:
        image = f"{registry}/u/fl-client-wasm:latest"
        async with RegistryClient() as client:
            await client.push(Reference.parse(image), program)
        parts = [as_base64(program[at : at + 512_000]) for at in range(0, len(program), 512_000)]
        variables = {f"part{number}": part for number, part in enumerate(parts)}
        variables |= {"b": channel.prefix, "image": image, "absent-image": f"{registry}/u/none:latest"}
        port, log = free_port(), tmp_path / "proxy.log"
        env = {
            "PROXY_DOMAIN_ID": channel.domain_id,
            "PROXY_CHANNEL_ID": channel.channel_id,
            "PROXY_CLIENT_ID": f"proxy-{channel.domain_id}",
            "PROXY_MQTT_ADDRESS": f"tcp://127.0.0.1:{broker_port}",
            "PROXY_REGISTRY_URL": registry,
            "PROXY_CACHE": str(tmp_path / "cache"),
            "PROXY_HTTP_PORT": str(port),
        }
        async with playing(broker_port, {}, free_port(), **variables) as player:
            with start_service("proxy", env, port, log):
                await eventually(lambda: "subscribed to topic" in log.read_text())
                await player.play(EXCHANGES / "proxy-with-s-proplets.jsonl")
