"""The call sequence of absmach/propeller's provisioning script against the identity service, with a real broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiomqtt
import httpx
import pytest

from propeller.mqtt.broker import Broker
from propeller.protocol.topics import Channel, Kind
from propeller.stack.env_file import GUIDE_VARIABLES, EnvFile, id_variable, key_variable
from support.identity import Site, first, served
from support.net import eventually
from support.smq_script import CLIENTS, ScriptError, SmqScript


@asynccontextmanager
async def running(site: Site) -> AsyncIterator[SmqScript]:
    """Broker and identity on four ports, and the script pointed at them."""
    settings = site.identity
    ports = (settings.users_port, settings.domains_port, settings.channels_port, settings.clients_port)
    async with Broker(site.broker), served(settings) as http:

        async def connected() -> bool:
            return bool((await http.get("/health")).json()["broker"] == "connected")

        await eventually(connected)
        yield SmqScript(*(f"http://127.0.0.1:{port}" for port in ports))


async def run(script: SmqScript) -> dict[str, str]:
    script.warnings.clear()
    return await asyncio.to_thread(script.run)


async def test_a_first_run_gives_credentials_that_work_at_the_broker(tmp_path: Path) -> None:
    site = Site.at(tmp_path)
    async with running(site) as script:
        values = await run(script)
        assert script.warnings == []
        assert set(values) == set(GUIDE_VARIABLES)
        assert len({values[id_variable(name)] for name in CLIENTS}) == 6
        channel = Channel(values["MANAGER_DOMAIN_ID"], values["MANAGER_CHANNEL_ID"])
        for name in CLIENTS:
            async with site.client(values[id_variable(name)], values[key_variable(name)], name):
                pass  # the instance's name as MQTT client id, as its programs have it
        manager = site.client(values["MANAGER_CLIENT_ID"], values["MANAGER_CLIENT_KEY"], "manager")
        proplet = site.client(values["PROPLET_2_CLIENT_ID"], values["PROPLET_2_CLIENT_KEY"], "proplet-2")
        async with manager, proplet:
            await manager.subscribe(f"{channel.prefix}/#", qos=1)
            alive = channel.said(Kind.PROPLET_ALIVE, values["PROPLET_2_CLIENT_ID"])
            await proplet.publish(alive, b"{}", qos=1)
            assert await first(manager) == b"{}"
        with pytest.raises(aiomqtt.MqttError):
            async with site.client(values["PROXY_CLIENT_ID"], "not its key", "proxy"):
                pass


async def test_a_second_run_finds_everything_and_leaves_the_keys_in_the_file(tmp_path: Path) -> None:
    site, path = Site.at(tmp_path), tmp_path / ".env"
    async with running(site) as script:
        made = await run(script)
    path.write_text(EnvFile(path, "").updated(made))
    async with running(site) as script:  # started anew
        again = await run(script)
        assert script.warnings == []
        assert set(script.answers) == set(CLIENTS)
        # A key is shown once. What the script reads must be absent: empty or null it would be written down.
        assert all("secret" not in client["credentials"] for client in script.answers.values())
        assert again == {name: value for name, value in made.items() if "CLIENT" not in name}
        assert EnvFile.read(path).updated(again) == path.read_text()
        for name in CLIENTS:
            async with site.client(made[id_variable(name)], made[key_variable(name)], name):
                pass


async def test_a_domain_that_another_user_has_is_a_conflict_with_a_reason(tmp_path: Path) -> None:
    """The list does not show it, and making it is refused: the script ends, and says what it was answered."""
    async with running(Site.at(tmp_path)) as script:
        await run(script)
        async with httpx.AsyncClient(base_url=script.users, trust_env=False) as http:
            body = {"username": "admin", "password": "12345678"}
            token = (await http.post("/users/tokens/issue", json=body)).json()["access_token"]
            user = {"username": "ann", "password": "ann's password"}
            made = await http.post("/users", json=user, headers={"Authorization": f"Bearer {token}"})
            assert made.status_code == 201
        script.username, script.password = "ann", "ann's password"
        with pytest.raises(ScriptError, match=r"409 .*route"):
            await run(script)


async def test_a_wrong_password_ends_it(tmp_path: Path) -> None:
    async with running(Site.at(tmp_path)) as script:
        script.password = "87654321"
        with pytest.raises(ScriptError, match="the user name or the password is wrong"):
            await run(script)
