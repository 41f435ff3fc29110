"""The broker, and whom it lets in where."""

import asyncio

import aiomqtt

from propeller.doctor.accounts import Accounts
from propeller.doctor.facts import Facts
from propeller.doctor.findings import Finding, failed, passed, skipped, waits_for
from propeller.doctor.link import NoBrokerError, RefusedError, connected
from propeller.doctor.machine import listener_on
from propeller.doctor.target import Client, Target
from propeller.protocol.topics import UPDATES_FILTER, Kind

_AT_ONCE = 20
_NEAR_LIMIT = 0.8
"""The share of the broker's subscriptions from which on it is time to raise their limit."""


class Broker:
    """Connects as each client, beside its session."""

    def __init__(self, target: Target, accounts: Accounts, facts: Facts) -> None:
        self._target, self._accounts, self._facts = target, accounts, facts
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def broker(self) -> list[Finding]:
        """Whether a broker answers."""
        address = self._target.broker
        try:
            async with connected(address, None):
                detail = f"{address} lets anyone in: that is another broker than this stack's"
                fix = self._target.advice.free_port(listener_on(address.host, address.port))
                return [failed("broker", detail, fix)]
        except RefusedError:
            return [passed("broker", f"{address} answers")]
        except NoBrokerError as error:
            return [failed("broker", str(error), self._target.advice.restart("broker"))]

    async def keys(self) -> list[Finding]:
        """Whether it accepts the key of every client."""
        clients = self._target.clients
        await asyncio.gather(*(self._enter(client) for client in clients))
        refused = [client for client in clients if client in self._facts.refused]
        if not refused:
            return [passed("keys", f"the broker accepts all {len(clients)} clients")]
        if self._facts.identity_away and len(refused) == len(clients):
            detail = "the broker lets nobody in, as identity has no connection to it"
            return [failed("keys", detail, self._target.advice.look("identity"))]
        reasons = await self._accounts.why_refused(refused)
        return [
            failed("keys", f"the broker refuses {client.shown}, as {client.setting} names it: {reason}", fix)
            for client, (reason, fix) in zip(refused, reasons, strict=True)
        ]

    async def channel(self) -> list[Finding]:
        """Whether those that it lets in may use their channel, and whether that is one channel."""
        facts, advice = self._facts, self._target.advice
        entered = [client for client in self._target.clients if client not in facts.refused]
        places = {client.place: client.place.channel for client in entered}
        if not facts.placed and not facts.displaced:
            return [waits_for("channel", "keys")]
        findings = []
        for place, channel in places.items():
            names = [client.name for client in entered if client in facts.displaced and client.place == place]
            if names:
                detail = f"the broker refuses {channel.prefix} ({place.settings}) to {', '.join(names)}"
                findings.append(failed("channel", detail, advice.right_ids()))
        if not findings and len(set(places.values())) > 1:
            shown = "; ".join(f"{place.settings}: {channel.prefix}" for place, channel in places.items())
            findings.append(
                failed("channel", f"the clients do not work in one channel: {shown}", advice.right_ids())
            )
        prefix = next(iter(places.values())).prefix
        return findings or [passed("channel", f"{len(facts.placed)} clients may use {prefix}")]

    async def _enter(self, client: Client) -> None:
        """Connect as a client and subscribe to what it needs."""
        async with self._slots:
            try:
                async with connected(self._target.broker, client) as connection:
                    allowed = await connection.ask_for(_needed(client), 0)
            except RefusedError:
                self._facts.refused.append(client)
                return
            except aiomqtt.MqttError as error:
                raise NoBrokerError(f"the connection as {client.name} was lost: {error}") from None
        (self._facts.placed if allowed else self._facts.displaced).append(client)


def subscriptions(facts: Facts) -> list[Finding]:
    """Whether the broker has room for more subscriptions, as identity counts them."""
    if facts.subscriptions is None:
        return [skipped("subscriptions", "identity has not counted them yet")]
    count, limit = facts.subscriptions
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
    channel = client.place.channel
    match client.name:
        case "manager":
            return channel.topic(Kind.PROPLET_ALIVE)
        case "fl-coordinator":
            return f"{channel.prefix}/{UPDATES_FILTER}"
        case "proxy":
            return channel.topic(Kind.REGISTRY_REQUEST)
        case _:
            return channel.start(client.id)
