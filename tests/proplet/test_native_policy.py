"""Whose native programs a device runs: a proplet with an interpreter and a policy, the project's own proxy and registry."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from propeller.native_program import NativeProgram
from propeller.oci.client import RegistryClient
from propeller.oci.manifest import NATIVE, REQUIREMENTS
from propeller.oci.reference import Reference
from propeller.oci.signing import SigningKey
from propeller.process.settings import SettingsError
from propeller.proplet.policy import Policy, PolicyError, write_native_policy
from propeller.proplet.settings import PropletSettings
from propeller.protocol.topics import Kind
from support.native_programs import training
from support.net import eventually
from support.proplet import World
from support.proxy_process import proxy_process
from support.registries import embedded

KEY = SigningKey.make()
PROGRAM = NativeProgram(
    "fit", {"fit": training("return Update({}, 1, {'ran': 1})")}, ("train",), ">=3.11", ("numpy>=1",)
).encode()


async def run(world: World, me: str, image: str, **fields: Any) -> str:
    """What a task gave, or why it gave nothing."""
    result = await world.peers.result_of(await world.peers.start(me, image_url=image, **fields))
    return str(result.get("error") or result["results"])


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    KEY.write(tmp_path / "acme.key", tmp_path / "acme.pub", b"")
    return tmp_path


async def test_only_what_the_owner_names_runs(world: World, keys: Path) -> None:
    world.peers.silent = True  # the real proxy answers
    file = keys / "policy.toml"
    file.write_text('hours = ["00:00-23:59"]\n')
    async with embedded(keys / "registry") as host, RegistryClient() as registry:
        reference = Reference.parse(f"{host}/fl/x:v1")
        pushed = await registry.push(reference, PROGRAM)
        assert pushed.program.media_type == NATIVE
        assert json.loads(pushed.program.annotations[REQUIREMENTS])["dependencies"] == ["numpy>=1"]
        async with proxy_process(world.port, world.peers.channel, f"http://{host}", keys / "proxy"):
            off = await world.join(state=keys / "off")
            assert "is a native program, and nobody's run here" in await run(world, off, str(reference))
            me = await world.join(policy=file, state=keys / "on", native_python=Path(sys.executable))
            assert "is a native program, and nobody's run here" in await run(world, me, str(reference))
            named = keys / "named.toml"
            write_native_policy(named, [f"{host}/*"], "a test")
            lacking = await world.join(policy=named, state=keys / "lacking")
            assert "native programs are not switched on" in await run(world, lacking, str(reference))

            file.write_text(f'[native]\nrepositories = ["{host}/fl/*"]\n')
            assert json.loads(await run(world, me, str(reference)))["metrics"] == {"ran": 1}
            await registry.push(Reference.parse(f"{host}/other/x:v1"), PROGRAM)
            elsewhere = await run(world, me, f"{host}/other/x:v1")
            assert (
                f"native programs of {host}/other/x do not run here, only those of {host}/fl/*" in elsewhere
            )

            file.write_text('[native]\nsigners = ["acme.pub"]\n')
            by_digest = f"{host}/fl/x@{pushed.digest}"
            for one in (str(reference), by_digest):
                assert "must be signed: it has no signature" in await run(world, me, one)
            await registry.add_signature(reference, pushed.digest, KEY.sign("x", pushed.digest))

            async def runs() -> bool:
                return '"ran"' in await run(world, me, by_digest)

            await eventually(runs)
            file.write_text(f'may = ["clock", "files", "random"]\n[native]\nrepositories = ["{host}/*"]\n')
            assert "native is not in its may" in await run(world, me, by_digest)
            brought = await run(world, me, "", file=base64.b64encode(PROGRAM).decode())
            assert "and not in a task" in brought


async def test_a_device_registers_what_it_has(world: World, tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text("")
    me = await world.join(
        policy=file, state=tmp_path / "on", native_python=Path(sys.executable), liveliness_interval=0.2
    )

    def native() -> Any:
        told = [one for one in world.peers.messages(Kind.PROPLET_CREATE) if one["proplet_id"] == me]
        return told[-1]["metadata"].get("native")

    assert native() is None
    write_native_policy(file, ["127.0.0.1:5000/*"], "a test")
    await eventually(lambda: native() is not None)
    assert native()["version"] == ".".join(map(str, sys.version_info[:3]))
    assert "numpy" in native()["distributions"]
    file.write_text("")
    await eventually(lambda: native() is None)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("native = true", "native: must be a table"),
        ("[native]", "native: must be a table"),
        ("[native]\nrepositories = []", "native.repositories: must be a list"),
        ('[native]\nsigners = ["no.pub"]', "native.signers"),
        ('[native]\nuser = ["x"]', "native: must be a table, [native], with repositories, signers, or both"),
    ],
)
def test_mistakes_in_the_policy(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(PolicyError) as raised:
        Policy.read(tmp_path / "policy.toml")
    assert told in str(raised.value)


def test_not_with_an_external_runtime() -> None:
    with pytest.raises(SettingsError, match="native programs run in the built-in sandbox alone"):
        PropletSettings.load(
            domain_id="d",
            channel_id="c",
            client_id="p",
            client_key="k",
            external_runtime="wasmtime",
            native_python=Path(sys.executable),
        )
