"""Connections to the broker that disturb nobody: as a client, but beside its own session."""

import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator

import aiomqtt

from propeller.doctor.checks import CannotAskError
from propeller.doctor.target import Client
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.connection import Connection

TIMEOUT_S = 4.0
"""How long the broker may take to answer, in seconds: longer than it waits for identity's verdict."""


class RefusedError(Exception):
    """The broker answered, and lets this client not in."""


class NoBrokerError(CannotAskError):
    """There is no answer, or not a broker's; the text says which."""


@contextlib.asynccontextmanager
async def connected(address: BrokerAddress, client: Client | None) -> AsyncIterator[Connection]:
    """A connection as a client, or as nobody.

    Its MQTT client identifier begins with the client's id: it is the client's, and not that of its running session, which
    therefore stays.

    Raises:
        RefusedError: the broker refuses the client.
        NoBrokerError: it does not answer.
    """
    connection = Connection(
        address.host,
        address.port,
        identifier=f"{client.id if client else 'anonymous'}-doctor-{secrets.token_hex(4)}",
        username=client.id if client else None,
        password=client.key if client else None,
        clean_session=True,
        timeout=TIMEOUT_S,
        tls_context=ssl.create_default_context() if address.tls else None,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(connection.close_socket)
        try:
            await stack.enter_async_context(connection)
        except aiomqtt.MqttCodeError as error:
            raise RefusedError(str(error)) from None
        except aiomqtt.MqttError as error:
            raise NoBrokerError(_explain(error, address)) from None
        yield connection


def _explain(error: aiomqtt.MqttError, address: BrokerAddress) -> str:
    root = error.__cause__ or error.__context__
    if isinstance(root, ConnectionRefusedError):
        return f"nothing listens on {address}"
    if isinstance(root, TimeoutError) or "timed out" in str(error):
        return f"{address} takes connections but gave no answer within {TIMEOUT_S:g} s"
    if isinstance(root, OSError):
        return f"{address} cannot be reached: {root}"
    return f"what listens on {address} speaks no MQTT"
