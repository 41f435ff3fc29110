"""What identity asks nats-server: its connections, and the JetStream streams in which it keeps MQTT sessions."""

import contextlib
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError

from propeller.mqtt.broker_config import DEVICES, JETSTREAM_API

_TIMEOUT_S = 5.0
_FIRST_REPLY_S, _NEXT_REPLY_S = 1.0, 0.05
_PAGE = 1024
_CLOSED = 1
"""nats-server's number for the state of a connection."""

_NOT_FOUND = 404
"""JetStream's own code for it."""


class JetStreamError(NatsError):
    """JetStream refused a request; the text is its own."""


@dataclass(frozen=True)
class ServerConnection:
    """A connection, as a server lists it.

    Attributes:
        server: the server's id.
        now: the server's time, in seconds since 1970.
        info: its description of the connection (nats-server's ``ConnInfo``).
    """

    server: str
    now: float
    info: dict[str, Any]

    @property
    def start(self) -> float:
        """When the connection was made, by the server's clock, in seconds since 1970."""
        return parse_time(self.info["start"])


async def connections(link: Client, **filters: str | int) -> AsyncGenerator[ServerConnection, None]:
    """The MQTT connections of every server; ``filters`` are those of nats-server (``user``).

    Raises:
        NatsError: no server answers.
    """
    offset, more, answered = 0, True, False
    while more:
        more = False
        request = {"auth": True, "acc": DEVICES, "offset": offset, "limit": _PAGE, **filters}
        asking = _replies(link, "$SYS.REQ.SERVER.PING.CONNZ", request, _TIMEOUT_S)
        async with contextlib.aclosing(asking) as replies:
            async for reply in replies:
                answered = True
                found = reply.get("connections") or []
                more = more or len(found) == _PAGE
                for info in found:
                    yield ServerConnection(str(reply["server_id"]), parse_time(reply["now"]), info)
        if not answered:
            raise nats.errors.TimeoutError
        offset += _PAGE


def closed_connections(link: Client) -> AsyncGenerator[ServerConnection, None]:
    """The MQTT connections that have ended and that the servers remember, of each server the last one first."""
    return connections(link, state=_CLOSED, sort="stop")


async def close_connection(link: Client, connection: ServerConnection) -> None:
    """Have a server close a connection."""
    request = json.dumps({"cid": connection.info["cid"]}).encode()
    await link.request(f"$SYS.REQ.SERVER.{connection.server}.KICK", request, timeout=2)


async def max_consumers(link: Client) -> int | None:
    """How many consumers a stream may have; ``None`` if there is no limit, or no server answers."""
    limits = [reply.get("limits") or {} async for reply in _replies(link, "$SYS.REQ.SERVER.PING.JSZ", {})]
    return min(
        (int(one["default_max_consumers"]) for one in limits if "default_max_consumers" in one), default=None
    )


async def max_storage(link: Client) -> int | None:
    """How many bytes the smallest server may store: what its disk had room for when it started; ``None`` if no server answers."""
    found = [reply.get("config") or {} async for reply in _replies(link, "$SYS.REQ.SERVER.PING.JSZ", {})]
    return min((int(one["max_storage"]) for one in found if one.get("max_storage", 0) > 0), default=None)


async def mqtt_listener(link: Client) -> tuple[str, int]:
    """The host and port at which a server listens for MQTT.

    Raises:
        LookupError: no server has an MQTT listener.
    """
    replies = [reply async for reply in _replies(link, "$SYS.REQ.SERVER.PING.VARZ", {})]
    for listener in (reply.get("mqtt") for reply in replies):
        if listener:
            return str(listener["host"]), int(listener["port"])
    raise LookupError("no server listens for MQTT")


async def jetstream(link: Client, call: str, **request: Any) -> dict[str, Any]:
    """Call JetStream's interface (``STREAM.INFO.NAME`` …).

    Raises:
        LookupError: there is no such stream, consumer or message.
        NatsError: the server does not answer, or refuses.
    """
    message = await link.request(f"{JETSTREAM_API}.{call}", json.dumps(request).encode(), timeout=_TIMEOUT_S)
    answer: dict[str, Any] = json.loads(message.data)
    if error := answer.get("error"):
        text = f"{call}: {error.get('description')}"
        raise LookupError(text) if error.get("code") == _NOT_FOUND else JetStreamError(text)
    return answer


async def _replies(
    link: Client, subject: str, request: dict[str, Any], first_s: float = _FIRST_REPLY_S
) -> AsyncGenerator[dict[str, Any], None]:
    """What each server answers: the first within ``first_s`` seconds, the others right after it."""
    inbox = link.new_inbox()
    subscription = await link.subscribe(inbox)
    try:
        await link.publish(subject, json.dumps(request).encode(), reply=inbox)
        wait = first_s
        while True:
            try:
                message = await subscription.next_msg(timeout=wait)
            except nats.errors.TimeoutError:
                return
            wait = _NEXT_REPLY_S
            yield json.loads(message.data)["data"]
    finally:
        with contextlib.suppress(nats.errors.Error):  # with its connection a subscription is gone too
            await subscription.unsubscribe()


def parse_time(text: str) -> float:
    """A server's RFC 3339 time as seconds since 1970."""
    return datetime.fromisoformat(text).timestamp()


def seconds_ahead(now: float, asked: float, answered: float) -> float:
    """How many seconds a server's clock is ahead of ours at least; 0 if both may be right."""
    return now - min(max(now, asked), answered)
