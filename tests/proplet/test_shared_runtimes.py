"""Programs over a shared runtime on a device, by the project's own proxy and registry: fetched once, compiled once, signed and allowed with it."""

import base64
from pathlib import Path

import pytest

from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.oci.signing import SigningKey
from propeller.wasm.layers import Layer
from support.net import eventually
from support.programs import digest, echo
from support.proplet import World
from support.proxy_process import proxy_process
from support.registries import embedded

RUNTIME = echo()
"""Any program can be one: this one does not look at its layer."""

KEY = SigningKey.make()


def program(code: bytes) -> bytes:
    return Layer(digest(RUNTIME), code).to_wasm()


async def run(world: World, me: str, image: str) -> dict[str, object]:
    task = await world.peers.start(me, image_url=image, env={"REPLY": "ran"})
    return dict(await world.peers.result_of(task))


async def test_a_runtime_is_fetched_and_compiled_once_for_all_programs(world: World, tmp_path: Path) -> None:
    world.peers.silent = True  # the real proxy answers

    async with embedded(tmp_path / "registry") as host, RegistryClient() as registry:
        for name in ("a", "b"):
            await registry.push(
                Reference.parse(f"{host}/fl/{name}:v1"), program(name.encode()), runtime=RUNTIME
            )
        async with proxy_process(world.port, world.peers.channel, f"http://{host}", tmp_path / "proxy"):
            me = await world.join(state=tmp_path / "me")
            assert (await run(world, me, f"{host}/fl/a:v1"))["results"] == "ran"
            made = sorted(tmp_path.rglob("*.native"))
            assert [file.name.partition(".")[0] for file in made] == [digest(RUNTIME).removeprefix("sha256:")]
            before = made[0].stat().st_ino
            assert (await run(world, me, f"{host}/fl/b:v1"))["results"] == "ran"
            assert sorted(tmp_path.rglob("*.native")) == made
            assert made[0].stat().st_ino == before

            for file in tmp_path.glob("me/**/*.wasm"):  # it is needed again, and comes again
                if file.stem == digest(RUNTIME).removeprefix("sha256:"):
                    file.unlink()
            assert (await run(world, me, f"{host}/fl/a:v1"))["results"] == "ran"


async def test_an_artifact_without_its_runtime_fails_by_name(world: World, tmp_path: Path) -> None:
    """As ``oras push`` makes one."""
    world.peers.silent = True
    async with embedded(tmp_path / "registry") as host, RegistryClient() as registry:
        await registry.push(Reference.parse(f"{host}/fl/a:v1"), program(b"a"))
        async with proxy_process(world.port, world.peers.channel, f"http://{host}", tmp_path / "proxy"):
            me = await world.join(state=tmp_path / "me")
            error = str((await run(world, me, f"{host}/fl/a:v1"))["error"])
    assert digest(RUNTIME) in error
    assert "cannot be fetched" in error


async def test_the_runtime_is_signed_and_allowed_with_its_program(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.peers.silent = True
    KEY.write(tmp_path / "acme.key", tmp_path / "acme.pub", b"")
    monkeypatch.setenv("PROXY_SIGNERS", str(tmp_path / "acme.pub"))
    policy = tmp_path / "policy.toml"
    policy.write_text('signers = ["acme.pub"]\n')
    async with embedded(tmp_path / "registry") as host, RegistryClient() as registry:
        reference = Reference.parse(f"{host}/fl/a:v1")
        pushed = await registry.push(reference, program(b"a"), runtime=RUNTIME)
        async with proxy_process(world.port, world.peers.channel, f"http://{host}", tmp_path / "proxy"):
            me = await world.join(state=tmp_path / "me", policy=policy)
            assert "must be signed" in str((await run(world, me, str(reference)))["error"])
            await registry.add_signature(reference, pushed.digest, KEY.sign("a", pushed.digest))

            async def runs() -> bool:
                return (await run(world, me, str(reference))).get("results") == "ran"

            await eventually(runs)
            policy.write_text('may = ["clock"]\n')
            assert "read and write files" in str((await run(world, me, str(reference)))["error"])


async def test_a_program_in_a_task_brings_no_runtime(world: World) -> None:
    me = await world.join()
    task = await world.peers.start(me, image_url="", file=base64.b64encode(program(b"a")).decode())
    assert "build it with --standalone" in str((await world.peers.result_of(task))["error"])


async def test_a_compat_proplet_is_told_that_it_cannot_have_one(world: World) -> None:
    world.peers.programs["fl/a:v1"] = program(b"a")
    me = await world.join(compat=True)
    task = await world.peers.start(me, image_url="fl/a:v1")
    assert "which a compat proplet cannot ask for" in str((await world.peers.result_of(task))["error"])
