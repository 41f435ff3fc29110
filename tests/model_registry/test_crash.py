"""The model registry as processes: killed while it writes, and two of them on one folder."""

import asyncio
import threading
from pathlib import Path

import httpx

from support.net import free_port
from support.service import start_service


def env(folder: Path, port: int) -> dict[str, str]:
    return {"MODELS_DIR": str(folder), "REGISTRY_PORT": str(port)}


def test_kill_9_loses_no_version_that_was_answered(tmp_path: Path) -> None:
    answered: list[int] = []
    for round_number in range(3):
        port = free_port()
        with start_service(
            "model-registry", env(tmp_path / "models", port), port, tmp_path / "log"
        ) as process:
            killer = threading.Timer(0.15, process.kill)
            killer.start()
            try:
                while True:
                    body = {"model": {"w": [float(round_number), float(len(answered))]}}
                    answered.append(
                        httpx.post(f"http://127.0.0.1:{port}/models", json=body).json()["version"]
                    )
            except httpx.TransportError:
                killer.join()
    port = free_port()
    with start_service("model-registry", env(tmp_path / "models", port), port, tmp_path / "log"):
        versions = httpx.get(f"http://127.0.0.1:{port}/models").json()["versions"]
        assert len(answered) == len(set(answered))
        assert set(answered) <= set(versions)
        for version in versions:
            assert httpx.get(f"http://127.0.0.1:{port}/models/{version}").status_code == 200
    assert not list((tmp_path / "models").glob("*.json"))


async def test_two_registries_on_one_folder_never_give_a_version_twice(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    with (
        start_service("model-registry", env(tmp_path / "models", ports[0]), ports[0], tmp_path / "log"),
        start_service("model-registry", env(tmp_path / "models", ports[1]), ports[1], tmp_path / "log"),
    ):
        async with httpx.AsyncClient() as http:

            async def add(number: int, key: str = "") -> int:
                url = f"http://127.0.0.1:{ports[number % 2]}/models"
                answer = await http.post(
                    url, json={"model": {"w": [number // 2]}}, headers={"idempotency-key": key}
                )
                return int(answer.json()["version"])

            versions = await asyncio.gather(*(add(number) for number in range(40)))
            assert sorted(versions) == list(range(1, 41))
            same = await asyncio.gather(*(add(number, "r-1") for number in range(10)))
            assert len(set(same)) == 1
            lists = [(await http.get(f"http://127.0.0.1:{port}/models")).json()["versions"] for port in ports]
            assert lists[0] == lists[1] == list(range(42))
