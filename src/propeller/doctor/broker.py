"""The broker: whom it lets in, and where they may publish and subscribe."""

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator, Sequence

import aiomqtt

from propeller.doctor.checks import CannotAskError, Finding, failed, passed, skipped, waits_for
from propeller.doctor.machine import listener_on
from propeller.doctor.services import HTTP_TIMEOUT_S
from propeller.doctor.target import Client, Observations, Target
from propeller.mqtt.address import BrokerAddress
from propeller.mqtt.connection import Connection
from propeller.process.http import ServiceError
from propeller.process.tls import stack_trust
from propeller.protocol.topics import UPDATES_FILTER, Kind
from propeller.stack.provisioning import IdentityApi
from propeller.stack.services import IDENTITY_LISTENERS

BROKER_TIMEOUT_S = 4.0
"""How long the broker may take to answer, in seconds: longer than it waits for identity's verdict."""


_MAX_CONNECTIONS = 20
_NEAR_LIMIT = 0.8
"""The share of the broker's subscriptions from which on it is time to raise their limit."""


class ClientRefusedError(Exception):
    """The broker answered, and does not let this client in."""


class NoBrokerError(CannotAskError):
    """There is no answer, or not a broker's; the text says which."""


@contextlib.asynccontextmanager
async def connect(address: BrokerAddress, client: Client | None) -> AsyncIterator[Connection]:
    """A connection as a client, or as nobody.

    Its MQTT client identifier begins with the client's id: it is the client's, and not that of its running session, which
    therefore stays.

    Raises:
        ClientRefusedError: the broker refuses the client.
        NoBrokerError: it does not answer.
    """
    connection = Connection(
        address.host,
        address.port,
        identifier=f"{client.id if client else 'anonymous'}-doctor-{secrets.token_hex(4)}",
        username=client.id if client else None,
        password=client.key if client else None,
        clean_session=True,
        timeout=BROKER_TIMEOUT_S,
        tls_context=(stack_trust() or ssl.create_default_context()) if address.tls else None,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(connection.close_socket)
        try:
            await stack.enter_async_context(connection)
        except aiomqtt.MqttCodeError as error:
            raise ClientRefusedError(str(error)) from None
        except aiomqtt.MqttError as error:
            raise NoBrokerError(_explain(error, address)) from None
        yield connection


def _explain(error: aiomqtt.MqttError, address: BrokerAddress) -> str:
    root = error.__cause__ or error.__context__
    if isinstance(root, ConnectionRefusedError):
        return f"nothing listens on {address}"
    if isinstance(root, TimeoutError) or "timed out" in str(error):
        return f"{address} accepts connections but did not answer within {BROKER_TIMEOUT_S:g} s"
    if isinstance(root, OSError):
        return f"{address} cannot be reached: {root}"
    return f"what listens on {address} does not speak MQTT"


class IdentityLookup:
    """What identity knows of clients that are refused: asked as its first user, where the settings have the password."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def explain_refusals(self, clients: Sequence[Client]) -> list[tuple[str, str]]:
        """For each client why the broker does not let it in, and what to do."""
        admin, urls = self._target.admin, self._target.identity
        if admin is None:
            return [self._unknown(client) for client in clients]
        api = IdentityApi(*(urls[name] for name in IDENTITY_LISTENERS), timeout=HTTP_TIMEOUT_S)
        try:
            await api.login(*admin)  # once: identity locks out who fails too often
            return [await self._explain_refusal(api, client) for client in clients]
        except ServiceError:
            return [self._unknown(client) for client in clients]
        finally:
            await api.aclose()

    async def _explain_refusal(self, api: IdentityApi, client: Client) -> tuple[str, str]:
        domain, urls = client.channel.domain_id, self._target.identity
        new_key = self._target.advice.new_key(client.name)
        account = await api.client_by_id(domain, client.id)
        if account is None:
            return "identity has no such client in that domain", new_key
        if account.get("status") == "disabled":
            enable = f"POST {urls['clients']}/{domain}/clients/{client.id}/enable"
            return (
                "it is disabled",
                f"{enable}, with an admin's token (POST {urls['users']}/users/tokens/issue)",
            )
        return "its key is wrong: it was revoked, or another was made since", new_key

    def _unknown(self, client: Client) -> tuple[str, str]:
        new_key = self._target.advice.new_key(client.name)
        return "it is unknown or disabled, or its key is wrong or revoked", new_key


class BrokerChecks:
    """Connects as each client, beside its session."""

    def __init__(self, target: Target, identity: IdentityLookup, observed: Observations) -> None:
        self._target, self._identity, self._observed = target, identity, observed
        self._slots = asyncio.Semaphore(_MAX_CONNECTIONS)

    async def broker(self) -> list[Finding]:
        """Whether a broker answers."""
        address = self._target.broker
        try:
            async with connect(address, None):
                detail = f"{address} accepts anyone: it is not this stack's broker"
                fix = self._target.advice.free_port(listener_on(address.host, address.port))
                return [failed("broker", detail, fix)]
        except ClientRefusedError:
            return [passed("broker", f"{address} answers")]
        except NoBrokerError as error:
            return [failed("broker", str(error), self._target.advice.restart("broker"))]

    async def keys(self) -> list[Finding]:
        """Whether it accepts the key of every client."""
        clients = self._target.clients
        await asyncio.gather(*(self._try_client(client) for client in clients))
        refused = [client for client in clients if client in self._observed.refused]
        if not refused:
            return [passed("keys", f"the broker accepts all {len(clients)} clients")]
        if self._observed.identity_disconnected and len(refused) == len(clients):
            detail = "the broker accepts nobody, as identity is not connected to it"
            return [failed("keys", detail, self._target.advice.look("identity"))]
        reasons = await self._identity.explain_refusals(refused)
        return [
            failed(
                "keys", f"the broker refuses {client.shown}, as {client.id_setting} names it: {reason}", fix
            )
            for client, (reason, fix) in zip(refused, reasons, strict=True)
        ]

    async def channel(self) -> list[Finding]:
        """Whether those that it lets in may use their channel, and whether that is one channel."""
        observed, advice = self._observed, self._target.advice
        admitted = [client for client in self._target.clients if client not in observed.refused]
        channels = {client.channel_settings: client.channel for client in admitted}
        if not observed.in_channel and not observed.outside_channel:
            return [waits_for("channel", "keys")]
        findings = []
        for settings, channel in channels.items():
            names = [
                client.name
                for client in admitted
                if client in observed.outside_channel and client.channel_settings == settings
            ]
            if names:
                detail = f"the broker refuses {channel.prefix} ({settings}) to {', '.join(names)}"
                findings.append(failed("channel", detail, advice.right_ids()))
        if not findings and len(set(channels.values())) > 1:
            shown = "; ".join(f"{settings}: {channel.prefix}" for settings, channel in channels.items())
            findings.append(
                failed("channel", f"the clients do not work in one channel: {shown}", advice.right_ids())
            )
        prefix = next(iter(channels.values())).prefix
        return findings or [passed("channel", f"{len(observed.in_channel)} clients may use {prefix}")]

    async def _try_client(self, client: Client) -> None:
        """Connect as a client and subscribe to what it needs."""
        async with self._slots:
            try:
                async with connect(self._target.broker, client) as connection:
                    allowed = await connection.try_subscribe(_needed(client), 0)
            except ClientRefusedError:
                self._observed.refused.append(client)
                return
            except aiomqtt.MqttError as error:
                raise NoBrokerError(f"the connection as {client.name} was lost: {error}") from None
        (self._observed.in_channel if allowed else self._observed.outside_channel).append(client)


def subscriptions(observed: Observations) -> list[Finding]:
    """Whether the broker has room for more subscriptions, as identity counts them."""
    if observed.subscriptions is None:
        return [skipped("subscriptions", "identity has not counted them yet")]
    count, limit = observed.subscriptions
    detail = f"{count} of the {limit} that the broker may keep"
    if count < _NEAR_LIMIT * limit:
        return [passed("subscriptions", detail)]
    fix = (
        "raise BROKER_MAX_SUBSCRIPTIONS of the broker, or shorten identity's BROKER_SESSION_EXPIRY so that the "
        "sessions of absent clients end sooner; then restart it"
    )
    return [failed("subscriptions", detail, fix)]


def _needed(client: Client) -> str:
    """A topic that a client must be able to hear, by its role."""
    channel = client.channel
    match client.name:
        case "manager":
            return channel.topic(Kind.PROPLET_ALIVE)
        case "fl-coordinator":
            return f"{channel.prefix}/{UPDATES_FILTER}"
        case "proxy":
            return channel.topic(Kind.REGISTRY_REQUEST)
        case _:
            return channel.start(client.id)
