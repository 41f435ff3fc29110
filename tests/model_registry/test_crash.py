"""The model registry as processes: killed while it writes, and two of them on one folder."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from propeller.fl.tensors import SAFETENSORS, to_safetensors
from support.net import free_port, wait_until
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


def test_kill_9_in_the_middle_of_an_upload_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    content = to_safetensors({"w": np.zeros(1_000_000)}, {})
    headers = {"content-type": SAFETENSORS}
    port = free_port()

    def pieces() -> Iterator[bytes]:
        yield content[: len(content) // 2]
        wait_until(lambda: any(file.stat().st_size > 2**20 for file in folder.glob(".*.tmp")))
        process.kill()
        process.wait()
        yield content[len(content) // 2 :]

    with (
        start_service("model-registry", env(folder, port), port, tmp_path / "log") as process,
        pytest.raises(httpx.TransportError),
    ):
        httpx.post(f"http://127.0.0.1:{port}/models", content=pieces(), headers=headers)
    assert list(folder.glob(".*.tmp"))
    port = free_port()
    with start_service("model-registry", env(folder, port), port, tmp_path / "log"):
        assert not list(folder.glob(".*.tmp"))
        url = f"http://127.0.0.1:{port}/models"
        assert httpx.post(url, content=content, headers=headers).json()["version"] == 1


async def test_two_registries_on_one_folder_share_states_and_aliases(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    with (
        start_service("model-registry", env(tmp_path / "models", ports[0]), ports[0], tmp_path / "log"),
        start_service("model-registry", env(tmp_path / "models", ports[1]), ports[1], tmp_path / "log"),
    ):
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        states = [to_safetensors({"m": np.full(10_000, float(number))}, {}) for number in range(2)]
        async with httpx.AsyncClient() as http:

            async def keep(number: int) -> int:
                headers = {"content-type": SAFETENSORS}
                path = f"{urls[number % 2]}/models/0/state"
                answer = await http.put(path, content=states[number // 2 % 2], headers=headers)
                return answer.status_code

            # Four senders of one state, four of another: the first who is through decides.
            statuses = await asyncio.gather(*(keep(number) for number in range(8)))
            assert sorted(statuses) == [200] * 4 + [409] * 4
            kept = [(await http.get(f"{url}/models/0/state")).content for url in urls]
            assert kept[0] == kept[1]

            async def name(number: int) -> None:
                await http.put(f"{urls[number % 2]}/aliases/e-{number}/latest", json={"version": 0})

            await asyncio.gather(*(name(number) for number in range(20)))
            for url in urls:
                assert len((await http.get(f"{url}/aliases")).json()["aliases"]) == 20


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
