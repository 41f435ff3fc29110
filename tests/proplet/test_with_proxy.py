"""Proplets with the project's own proxy and registry: a program reaches all of them, and is sent to nobody who has it."""

import asyncio
from pathlib import Path

import pytest

from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.proplet import programs
from propeller.protocol.topics import Kind, parse_topic
from support.programs import echo
from support.proplet import World
from support.proxy_process import count, proxy_process
from support.registries import embedded


async def test_a_pushed_program_runs_everywhere_and_a_moved_tag_is_followed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.peers.silent = True  # the real proxy answers
    for name in ("RESOLVE_WAIT_S", "CHUNK_WAIT_S"):  # who waits longer on a busy machine does not ask again
        monkeypatch.setattr(programs, name, 60.0)
    chunks: list[str] = []

    async def see(topic: str, _payload: bytes) -> None:
        parsed = parse_topic(topic)
        if parsed and parsed.kind is Kind.REGISTRY_CHUNK and parsed.target and "sha256:" in parsed.target:
            chunks.append(parsed.target)

    await world.peers.session.subscribe(f"{world.peers.channel.prefix}/registry/server/+", see)
    async with embedded(tmp_path / "registry") as host, RegistryClient() as registry:
        reference = Reference.parse(f"{host}/fl/echo:latest")
        proxy = proxy_process(world.port, world.peers.channel, f"http://{host}", tmp_path / "proxy")
        async with proxy as (_, metrics):
            everyone = [await world.join(state=tmp_path / str(number)) for number in range(3)]
            for version in ("one", "two"):
                program = echo(version)
                await registry.push(reference, program)
                before = len(chunks)
                for turn in range(2):
                    tasks = [
                        await world.peers.start(me, image_url=str(reference), env={"REPLY": me})
                        for me in everyone
                    ]
                    results = await asyncio.gather(*map(world.peers.result_of, tasks))
                    assert [one["results"] for one in results] == everyone
                    if (
                        turn == 0
                    ):  # who asks while a chunk is on its way shares it; on a busy machine some ask after that
                        sent = len(chunks)
                        assert before < sent <= before + len(everyone)
                    assert len(chunks) == sent
            assert len(set(chunks)) == 2
            assert await count(metrics, "chunks") == len(chunks)

            none = await world.peers.start(everyone[0], image_url=f"{host}/fl/none:latest")
            assert "none" in (await world.peers.result_of(none))["error"]
