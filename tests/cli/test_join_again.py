"""'propeller join' where the answer is lost on its way: it asks again, and so does the next one."""

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from propeller.identity.settings import IdentitySettings
from propeller.protocol.join_tokens import JoinToken
from support.identity import PASSWORD, Site, served
from support.joined import joined
from support.net import eventually
from support.stack import propeller

JOIN = b"POST /devices/join"


class Relay:
    """Passes requests on to identity; of the next ``lost`` that join, identity's answer does not come through."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.lost = self.asked = 0

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0) as server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(row.split(b":")[1]) for row in head.lower().splitlines() if row.startswith(b"content-length")), 0
            )  # fmt: skip
            body = await reader.readexactly(length)
            upstream, out = await asyncio.open_connection("127.0.0.1", self._port)
            out.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            answer = await upstream.read()
            out.close()
            is_join = head.startswith(JOIN)
            self.asked += is_join
            if is_join and self.lost:
                self.lost -= 1
                return
            writer.write(answer)
            await writer.drain()
        finally:
            writer.close()


def settings_at(folder: Path) -> IdentitySettings:
    told = {
        "join_url": "http://127.0.0.1:1",
        "join_broker": "tcp://127.0.0.1:9",
        "join_coordinator_url": "http://127.0.0.1:9",
        "join_model_registry_url": "http://127.0.0.1:9",
    }
    return Site.at(folder).identity.model_copy(update=told)


async def add(http: httpx.AsyncClient, url: str) -> str:
    """A device's token, which names the relay."""
    body = {"username": "admin", "password": PASSWORD}
    token = (await http.post("/users/tokens/issue", json=body)).json()["access_token"]
    http.headers["Authorization"] = f"Bearer {token}"
    domain = (await http.post("/domains", json={"name": "d", "route": "d"})).json()["id"]
    await http.post(f"/{domain}/channels", json={"name": "fl"})
    added = (await http.post(f"/{domain}/devices", json={"name": "ward-3"})).json()
    return JoinToken(url, JoinToken.decode(added["token"]).secret).encode()


async def test_a_lost_answer_costs_no_token(tmp_path: Path) -> None:
    settings, state = settings_at(tmp_path), tmp_path / "device" / ".propeller-device"
    state.parent.mkdir()
    relay = Relay(settings.users_port)
    async with served(settings) as http, relay.running() as url:
        token = await add(http, url)
        relay.lost = 3
        failed = await asyncio.to_thread(propeller, "join", token, "--state", str(state))
        assert failed.returncode == 1
        assert "cannot be reached from this device" in failed.stderr
        assert relay.asked == 3  # by one command
        nonce = state / "joining"
        assert stat.S_IMODE(nonce.stat().st_mode) == 0o600
        assert token not in nonce.read_text()

        other = await asyncio.to_thread(propeller, "join", token, "--state", str(tmp_path / "thief"))
        assert other.returncode == 1
        assert "the join token was used at" in other.stderr

        relay.lost = 1
        with joined(state.parent, token) as device:
            await eventually((state / "device.json").exists, timeout=20, what=device.output)
            await eventually(lambda: not nonce.exists(), what="it has joined")
        kept = json.loads((state / "device.json").read_text())
        known = await http.get("/devices/self", auth=(kept["id"], kept["key"]))
        assert (known.status_code, known.json()["name"]) == (200, "ward-3")
