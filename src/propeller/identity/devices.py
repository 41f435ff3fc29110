"""Devices: clients that are proplets, each let in by a join token that is good once and for a time."""

import hashlib
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Row, select, update
from sqlalchemy.exc import IntegrityError

from propeller.errors import ConflictError, InvalidError, NotFoundError, RefusedError, UnauthenticatedError
from propeller.identity.access import AccessChanges, Change
from propeller.identity.channels import PUBLISH, SUBSCRIBE
from propeller.identity.clients import Clients, NewClient, new_row
from propeller.identity.credentials import hash_key, key_matches, key_of_join, new_key
from propeller.identity.login_throttle import LoginThrottle
from propeller.identity.settings import IdentitySettings
from propeller.identity.tables import (
    DELETED,
    ENABLED,
    channels,
    clients,
    connections,
    domains,
    fetch_row,
    format_seconds,
    join_tokens,
    new_id,
)
from propeller.mqtt.address import BrokerAddress
from propeller.process.logs import get_logger
from propeller.protocol.join_tokens import JoinToken, hash_secret, new_secret
from propeller.protocol.roles import Role
from propeller.store.database import Database, DatabaseConnection

log = get_logger("devices")

_STACKS_OWN = re.compile(r"proplet-[0-9]+")
"""The names of the devices that a stack runs itself, whose keys it makes anew when it does not know them."""

ANOTHER = "ask for a new one: 'propeller device remove NAME', then 'propeller device add NAME'"
"""Of a token."""


@dataclass(frozen=True)
class Addresses:
    """Where a device finds the services, as it is told when it joins.

    Attributes:
        identity: of this service.
        broker: with its scheme.
        services: ``coordinator_url``, ``model_registry_url`` and, where there is one, ``data_store_url``.
        ca_cert: the authority that signed their certificates, if they have one of their own.
    """

    identity: str
    broker: BrokerAddress
    services: dict[str, str]
    ca_cert: Path | None

    @classmethod
    def of(cls, settings: IdentitySettings) -> "Addresses":
        """Those of the settings.

        Raises:
            RefusedError: some are not set; the text names them.
        """
        needed = {
            "IDENTITY_JOIN_URL": settings.join_url,
            "IDENTITY_JOIN_BROKER": settings.join_broker,
            "IDENTITY_JOIN_COORDINATOR_URL": settings.join_coordinator_url,
            "IDENTITY_JOIN_MODEL_REGISTRY_URL": settings.join_model_registry_url,
        }
        missing = [name for name, value in needed.items() if not value]
        if missing:
            raise RefusedError(
                f"identity does not know what to tell a device that joins: set {', '.join(missing)} to the addresses by which devices "
                "reach the services (propeller up does)"
            )
        services = {
            "coordinator_url": settings.join_coordinator_url,
            "model_registry_url": settings.join_model_registry_url,
            "data_store_url": settings.join_data_store_url,
        }
        return cls(
            settings.join_url or "",
            BrokerAddress.parse(settings.join_broker or ""),
            {name: url for name, url in services.items() if url},
            settings.join_ca_cert,
        )

    def authority(self) -> bytes | None:
        """The authority's certificate (DER), read anew each time; ``None`` where there is none of its own.

        Raises:
            RefusedError: the file cannot be read, or has no certificate.
        """
        if self.ca_cert is None:
            return None
        try:
            text = self.ca_cert.read_text()
            begin, end = text.index(ssl.PEM_HEADER), text.index(ssl.PEM_FOOTER) + len(ssl.PEM_FOOTER)
            return ssl.PEM_cert_to_DER_cert(text[begin:end])
        except (OSError, ValueError) as error:
            raise RefusedError(
                f"IDENTITY_JOIN_CA_CERT: {self.ca_cert.name} holds no PEM certificate that can be read: {error}"
            ) from None

    def told(self) -> dict[str, Any]:
        """As a device is told."""
        broker = {"host": self.broker.host, "port": self.broker.port, "tls": self.broker.tls}
        return {"broker": broker, **self.services}


class Devices:
    """The devices of every domain."""

    def __init__(
        self, database: Database, changes: AccessChanges, clients: Clients, settings: IdentitySettings
    ) -> None:
        """``settings`` have the addresses that devices are told."""
        self._database, self._changes, self._clients, self._settings = database, changes, clients, settings
        self._throttle = LoginThrottle(what="join tokens")

    async def add(
        self, domain_id: str, name: str, tags: Sequence[str], lifetime_s: float, channel: str | None = None
    ) -> dict[str, Any]:
        """A new device, connected to a channel: the domain's only one, or that of this name or id. Its token is shown once.

        Args:
            domain_id: of the domain.
            name: what it is called, for people and in experiments.
            tags: by which experiments choose it.
            lifetime_s: how long the token is good, in seconds.
            channel: name or id of the channel.

        Raises:
            NotFoundError: there is no such domain or channel.
            ConflictError: the name is taken.
            InvalidError: it is one of the stack's own devices, or it is not clear which channel is meant.
            RefusedError: identity does not know the addresses that devices are told.
        """
        if _STACKS_OWN.fullmatch(name):
            raise InvalidError(
                f"name: {name} is kept for the devices that a stack runs itself (propeller up --proplets): choose another"
            )
        addresses = Addresses.of(self._settings)
        authority, secret = addresses.authority(), new_secret()
        fingerprint = None if authority is None else hashlib.sha256(authority).digest()
        new = NewClient(name, Role.PROPLET, tags, compat=False)
        row = new_row(domain_id, new, client_id=new_id(), key_hash="")  # it has no key until it joins
        expires_at = time.time() + lifetime_s
        try:
            async with self._changes.change() as change:
                await fetch_row(change.connection, domains, "domain", domains.c.id == domain_id)
                channel_id = await _find_channel(change.connection, domain_id, channel)
                await change.connection.execute(clients.insert().values(row))
                await change.connection.execute(
                    connections.insert(),
                    [
                        {"client_id": row["id"], "channel_id": channel_id, "type": kind}
                        for kind in (PUBLISH, SUBSCRIBE)
                    ],
                )
                await change.connection.execute(
                    join_tokens.insert().values(
                        client_id=row["id"],
                        channel_id=channel_id,
                        secret_hash=hash_secret(secret),
                        expires_at=expires_at,
                    )
                )
                change.added.add(str(row["id"]))
        except IntegrityError:
            raise _name_is_taken(name) from None
        token = JoinToken(addresses.identity, secret, fingerprint).encode()
        return {
            "id": row["id"],
            "name": name,
            "tags": row["tags"],
            "token": token,
            "expires_at": format_seconds(expires_at),
        }

    async def join(self, secret: bytes, nonce: bytes | None, address: str) -> dict[str, Any]:
        """Redeem a token, once: the device's id, its key, and where everything is. Whoever asks again with its nonce is told the same.

        Args:
            secret: the token's.
            nonce: what the device made for this; ``None`` from devices of before, which cannot ask again.
            address: the caller's.

        Raises:
            UnauthenticatedError: there is no such token.
            RefusedError: it has expired, or identity does not know the addresses that devices are told.
            ConflictError: it was used, by somebody else as far as the nonce tells.
            ThrottledError: too many tries from there.
        """
        hashed, key = hash_secret(secret), new_key() if nonce is None else key_of_join(nonce, secret)
        guess = (hashed, address)
        with self._throttle.trying(guess):
            async with self._changes.change() as change:
                found = await change.connection.execute(
                    select(join_tokens).where(join_tokens.c.secret_hash == hashed)
                )
                token = found.one_or_none()
                addresses = None if token is None else await self._redeem(change, token, key)
        if token is None or addresses is None:
            self._throttle.note_failure(guess)
            log.warning("join refused: there is no such token", peer=address)
            raise UnauthenticatedError(
                "the join token is not one of this identity, or its device was removed: ask for another one"
            )
        async with self._database.read() as connection:
            row = await fetch_row(connection, clients, "client", clients.c.id == token.client_id)
        log.info("device joined", device=row.name, client_id=row.id, peer=address)
        return {**_told(row, token.channel_id), "key": key, **addresses.told()}

    async def _redeem(self, change: Change, token: Row[Any], key: str) -> Addresses:
        """Give the device of a token its key, unless it has got this one already and asks again."""
        if token.used_at is not None:
            device = await fetch_row(change.connection, clients, "device", clients.c.id == token.client_id)
            if key_matches(key, device.key_hash) and time.time() <= token.expires_at:
                return Addresses.of(self._settings)
            raise ConflictError(
                f"the join token was used at {format_seconds(token.used_at)}, and is good once: a device that has joined goes on with "
                f"'propeller join --state DIR'; for another device {ANOTHER}"
            )
        if token.expires_at < time.time():
            raise RefusedError(
                f"the join token expired at {format_seconds(token.expires_at)}: {ANOTHER} (--lifetime for more time)"
            )
        addresses = Addresses.of(self._settings)
        await change.connection.execute(
            update(join_tokens).where(join_tokens.c.client_id == token.client_id).values(used_at=time.time())
        )
        await change.connection.execute(
            update(clients).where(clients.c.id == token.client_id).values(key_hash=hash_key(key))
        )
        change.revoked.add(token.client_id)
        return addresses

    async def describe_self(self, client_id: str) -> dict[str, Any]:
        """What a device that has joined is told again: its name and tags, which may have changed, and where everything is.

        Raises:
            RefusedError: the client has not joined by a token, or identity does not know the addresses.
        """
        async with self._database.read() as connection:
            found = await connection.execute(select(join_tokens).where(join_tokens.c.client_id == client_id))
            token = found.one_or_none()
            if token is None:
                raise RefusedError("only a device that has joined with a token may ask")
            row = await fetch_row(connection, clients, "client", clients.c.id == client_id)
        return {**_told(row, token.channel_id), **Addresses.of(self._settings).told()}

    def authority(self) -> str:
        """The authority's certificate, in PEM.

        Raises:
            NotFoundError: there is none of its own.
            RefusedError: it cannot be read.
        """
        ca_cert = self._settings.join_ca_cert
        authority = None if ca_cert is None else Addresses.of(self._settings).authority()
        if authority is None:
            raise NotFoundError("this stack has no certificate authority of its own (IDENTITY_JOIN_CA_CERT)")
        return ssl.DER_cert_to_PEM_cert(authority)

    async def list(self, domain_id: str) -> list[dict[str, Any]]:
        """Every device of a domain, the oldest first."""
        async with self._database.read() as connection:
            rows = await connection.execute(
                select(clients, join_tokens.c.expires_at, join_tokens.c.used_at)
                .outerjoin(join_tokens, join_tokens.c.client_id == clients.c.id)
                .where(*_is_device(domain_id))
                .order_by(clients.c.created_at, clients.c.id)
            )
            return [_listed(row) for row in rows]

    async def change(
        self, domain_id: str, client_id: str, *, name: str | None = None, tags: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Give a device another name, other tags, or both.

        The manager asks for both, and so does the device when it starts again: it goes on as it is.

        Args:
            domain_id: of its domain.
            client_id: the device's.
            name: the new name; ``None`` to keep the one that it has.
            tags: all that it has from now on; ``None`` to keep them.

        Raises:
            NotFoundError: there is no such device.
            ConflictError: the name is taken.
            InvalidError: it is one of the stack's own devices, or would be called so.
        """
        known = await self._get(domain_id, client_id)
        for one in (known.name, name) if name is not None else ():
            if _STACKS_OWN.fullmatch(one):
                raise InvalidError(f"name: {one} is kept for the devices that a stack runs itself")
        given: dict[str, Any] = {} if name is None else {"name": name}
        given |= {} if tags is None else {"tags": list(tags)}
        try:
            async with self._changes.change() as change:
                here = clients.c.id == client_id
                await change.connection.execute(update(clients).where(here).values(given))
                changed = await fetch_row(change.connection, clients, "device", here)
                change.added.add(client_id)  # nothing has changed of what it may do
        except IntegrityError:
            raise _name_is_taken(name or known.name) from None
        return {"id": client_id, "name": changed.name, "tags": changed.tags}

    async def remove(self, domain_id: str, client_id: str) -> str:
        """Take a device's key away, and cut it from the broker; gives its name, which may be used again.

        Raises:
            NotFoundError: there is no such device.
        """
        name: str = (await self._get(domain_id, client_id)).name
        await self._clients.delete(domain_id, client_id)
        return name

    async def _get(self, domain_id: str, client_id: str) -> Row[Any]:
        async with self._database.read() as connection:
            return await fetch_row(
                connection, clients, "device", clients.c.id == client_id, *_is_device(domain_id)
            )


def _is_device(domain_id: str) -> tuple[Any, ...]:
    return clients.c.domain_id == domain_id, clients.c.role == Role.PROPLET, clients.c.status != DELETED


async def _find_channel(connection: DatabaseConnection, domain_id: str, wanted: str | None) -> str:
    rows = await connection.execute(
        select(channels.c.id, channels.c.name)
        .where(channels.c.domain_id == domain_id, channels.c.status == ENABLED)
        .order_by(channels.c.created_at)
    )
    every = {row.id: row.name for row in rows}
    found = [one for one, name in every.items() if wanted in {None, one, name}]
    if not found:
        named = f"named {wanted!r}" if wanted is not None else "that devices can be connected to"
        raise NotFoundError(f"channel: the domain has none {named}; there are: {_names(every.values())}")
    if len(found) > 1:
        raise InvalidError(f"channel: the domain has several; name one of {_names(every.values())}")
    return str(found[0])


def _names(names: Any) -> str:
    return ", ".join(names) or "none"


def _name_is_taken(name: str) -> ConflictError:
    return ConflictError(
        f"a client named {name!r} exists in this domain: choose another name, or remove it first (propeller device remove {name})"
    )


def _told(row: Row[Any], channel_id: str) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name,
        "tags": row.tags,
        "domain_id": row.domain_id,
        "channel_id": channel_id,
    }


def _listed(row: Row[Any]) -> dict[str, Any]:
    """A device, and how far it is: ``waiting`` for its token to be used, which may have ``expired``; ``joined``, or ``disabled``."""
    state = "joined"
    if row.status != ENABLED:
        state = row.status
    elif row.expires_at is not None and row.used_at is None:
        state = "expired" if row.expires_at < time.time() else "waiting"
    joined_at = row.used_at if row.expires_at is not None else row.created_at
    return {
        "id": row.id,
        "name": row.name,
        "tags": row.tags,
        "state": state,
        "joined_at": None if joined_at is None else format_seconds(joined_at),
        "token_expires_at": format_seconds(row.expires_at) if state in {"waiting", "expired"} else None,
    }
