"""Identity's connection to the broker: answers its questions, and cuts connections that are no longer allowed."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Collection, Coroutine
from datetime import datetime
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from propeller.identity.callout import Callout
from propeller.identity.directory import Directory
from propeller.mqtt.broker_config import DEVICES
from propeller.mqtt.broker_keys import BrokerKeys
from propeller.process.logs import get_logger

log = get_logger("broker_link")

QUESTIONS = "$SYS.REQ.USER.AUTH"
RETRY_S = 0.2
AGAIN_S = (1.0, 4.0)
"""After a revocation the connections are looked at again: one that was just being accepted was not listed yet."""

_FIRST_REPLY_S, _NEXT_REPLY_S = 1.0, 0.05
_PAGE = 1024
_ONE_BY_ONE = 16


class BrokerLink:
    """Connects again for ever; use ``async with link.running()``."""

    def __init__(self, url: str, keys: BrokerKeys, callout: Callout, directory: Directory) -> None:
        self._url, self._keys, self._callout, self._directory = url, keys, callout, directory
        self._nats: Client | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def connected(self) -> bool:
        """Whether the broker's questions reach us now."""
        return self._nats is not None and self._nats.is_connected

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer and cut for the length of the block."""
        connecting = asyncio.create_task(self._keep_connected(), name="broker link")
        try:
            yield
        finally:
            connecting.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(connecting, *self._tasks, return_exceptions=True)

    async def cut(self, client_ids: Collection[str]) -> None:
        """End the connections that these clients opened before their access changed, now and once more a little later.

        While the broker cannot be reached nothing is done; everyone's connections are looked at after each reconnect.
        """
        await self._cut(client_ids)
        self._spawn(self._cut_again(client_ids))

    def cut_soon(self, client_ids: Collection[str]) -> None:
        """The same in the background: for who may do more than before, and must connect again to do it."""
        self._spawn(self.cut(client_ids))

    async def _keep_connected(self) -> None:
        last_reason = ""
        while True:
            client, closed = Client(), asyncio.Event()
            try:
                await self._connect(client, closed)
                log.info("connected to the broker", url=self._url)
                last_reason = ""
                await closed.wait()
                log.warning("the connection to the broker is lost", url=self._url)
            except Exception as error:  # noqa: BLE001 - whatever it was, without this link nobody can connect
                if repr(error) != last_reason:  # not at each try
                    log.warning(
                        "no connection to the broker, trying again", url=self._url, reason=repr(error)
                    )
                last_reason = repr(error)
            finally:
                self._nats = None
                await client.close()
            await asyncio.sleep(RETRY_S)

    async def _connect(self, client: Client, closed: asyncio.Event) -> None:
        async def ended() -> None:
            closed.set()

        # Each connection has its own client: nats-py's reconnecting ends when it is refused.
        await client.connect(
            self._url,
            nkeys_seed_str=self._keys.service_seed,
            name="identity",
            allow_reconnect=False,
            connect_timeout=5,
            ping_interval=10,
            error_cb=_ignore,
            closed_cb=ended,
        )
        self._nats = client
        await client.subscribe(QUESTIONS, queue="identity", cb=self._asked)
        self._spawn(self._cut(None))

    async def _asked(self, message: Msg) -> None:
        # A task each: one that waits for the database must not hold up the others.
        self._spawn(self._answer(message))

    async def _answer(self, message: Msg) -> None:
        try:
            answer = await self._callout.answer(message.data)
            if answer is not None:
                await message.respond(answer)
        except NatsError as error:
            log.warning("the broker's question could not be answered", reason=repr(error))

    async def _cut_again(self, client_ids: Collection[str]) -> None:
        waited = 0.0
        for after in AGAIN_S:
            await asyncio.sleep(after - waited)
            waited = after
            await self._cut(client_ids)

    async def _cut(self, client_ids: Collection[str] | None) -> None:
        if self._nats is None or not self._nats.is_connected:
            return
        few = client_ids is not None and len(client_ids) <= _ONE_BY_ONE
        filters = [{"user": client_id} for client_id in client_ids or ()] if few else [{}]
        try:
            for chosen in filters:
                for server, connection in await self._outdated(self._nats, chosen):
                    await self._kick(self._nats, server, connection)
        except NatsError as error:
            log.warning("connections could not be cut", reason=repr(error))
        except Exception:  # the change that asked for it is made, and stays
            log.exception("connections could not be cut")

    async def _kick(self, link: Client, server: str, connection: dict[str, Any]) -> None:
        log.info(
            "cutting connection",
            client_id=connection.get("authorized_user"),
            mqtt_id=connection.get("mqtt_client"),
        )
        order = json.dumps({"cid": connection["cid"]}).encode()
        await link.request(f"$SYS.REQ.SERVER.{server}.KICK", order, timeout=2)

    async def _outdated(self, link: Client, chosen: dict[str, str]) -> list[tuple[str, dict[str, Any]]]:
        """The connections that are older than their client's access, each with its server's id."""
        outdated, offset, more = [], 0, True
        while more:
            more, asked = False, time.time()
            order = {"auth": True, "acc": DEVICES, "offset": offset, "limit": _PAGE, **chosen}
            async for reply in _replies(link, "$SYS.REQ.SERVER.PING.CONNZ", order):
                found = reply.get("connections") or []
                more = more or len(found) == _PAGE
                ahead = _ahead(_seconds(reply["now"]), asked, time.time())
                outdated += [(str(reply["server_id"]), one) for one in found if self._stale(one, ahead)]
            offset += _PAGE
        return outdated

    def _stale(self, connection: dict[str, Any], ahead: float) -> bool:
        access = self._directory.get(str(connection.get("authorized_user", "")))
        if access is None or not access.enabled:
            return True
        return _seconds(connection["start"]) < access.changed_at + ahead

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _replies(link: Client, subject: str, order: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """What each server answers: the first soon, the others right after it."""
    inbox = link.new_inbox()
    subscription = await link.subscribe(inbox)
    try:
        await link.publish(subject, json.dumps(order).encode(), reply=inbox)
        wait = _FIRST_REPLY_S
        while True:
            try:
                message = await subscription.next_msg(timeout=wait)
            except nats.errors.TimeoutError:
                return
            wait = _NEXT_REPLY_S
            yield json.loads(message.data)["data"]
    finally:
        await subscription.unsubscribe()


async def _ignore(_error: Exception) -> None:
    """What nats-py would log; it is raised as well."""


def _ahead(now: float, asked: float, answered: float) -> float:
    """How many seconds the server's clock is ahead of ours at least; 0 if both may be right."""
    return now - min(max(now, asked), answered)


def _seconds(text: str) -> float:
    """A server's RFC 3339 time as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()
