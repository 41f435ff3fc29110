"""A device with a policy, the project's own proxy and registry: what runs, what does not, and what is said of it."""

import base64
from pathlib import Path
from typing import Any

import pytest

from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.oci.signing import SigningKey
from support.net import eventually
from support.programs import echo
from support.proplet import World
from support.proxy_process import proxy_process
from support.registries import embedded

KEY, OTHER = SigningKey.make(), SigningKey.make()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    KEY.write(tmp_path / "acme.key", tmp_path / "acme.pub", b"")
    return tmp_path


async def run(world: World, me: str, image: str, **fields: Any) -> dict[str, object]:
    task = await world.peers.start(me, image_url=image, env={"REPLY": "ran"}, **fields)
    return dict(await world.peers.result_of(task))


async def test_what_is_signed_runs_and_nothing_else(world: World, keys: Path) -> None:
    world.peers.silent = True  # the real proxy answers
    file = keys / "policy.toml"
    async with embedded(keys / "registry") as host, RegistryClient() as registry:
        file.write_text(f'repositories = ["{host}/fl/*"]\nsigners = ["acme.pub"]\n')
        reference = Reference.parse(f"{host}/fl/x")
        pushed = await registry.push(reference, echo())
        await registry.add_signature(reference, pushed.digest, OTHER.sign("x", pushed.digest))
        async with proxy_process(world.port, world.peers.channel, f"http://{host}", keys / "proxy"):
            careful = await world.join(policy=file, state=keys / "careful")
            free = await world.join(state=keys / "free")
            by_digest = f"{host}/fl/x@{pushed.digest}"
            assert (await run(world, free, by_digest))["results"] == "ran"
            refused = await run(world, careful, by_digest)
            assert "the policy of this device: " in str(refused["error"])
            assert "must be signed: none of its 1 signatures is by one of these keys" in str(refused["error"])
            elsewhere = await run(world, careful, f"{host}/other/x:v1")
            assert "do not run here, only those of" in str(elsewhere["error"])

            await registry.add_signature(reference, pushed.digest, KEY.sign("x", pushed.digest))

            async def runs() -> bool:
                return (await run(world, careful, by_digest)).get("results") == "ran"

            await eventually(runs)
            file.write_text('may = ["clock"]\n')
            assert "read and write files" in str((await run(world, careful, by_digest))["error"])
            content = base64.b64encode(echo()).decode()
            file.write_text('signers = ["acme.pub"]\n')
            brought = await run(world, careful, "", file=content)
            assert "programs come from repositories that it names, or signed" in str(brought["error"])


async def test_a_proxy_that_asks_for_signatures(
    world: World, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.peers.silent = True
    monkeypatch.setenv("PROXY_SIGNERS", str(keys / "acme.pub"))
    async with embedded(keys / "registry") as host, RegistryClient() as registry:
        reference = Reference.parse(f"{host}/fl/x:v1")
        pushed = await registry.push(reference, echo())
        async with proxy_process(world.port, world.peers.channel, f"http://{host}", keys / "proxy"):
            me = await world.join(state=keys / "me")
            error = str((await run(world, me, str(reference)))["error"])
            assert "must be signed: it has no signature (believed: acme)" in error
            assert "propeller signature add" in error
            await registry.add_signature(reference, pushed.digest, KEY.sign("x", pushed.digest))

            async def runs() -> bool:
                return (await run(world, me, str(reference))).get("results") == "ran"

            await eventually(runs)
