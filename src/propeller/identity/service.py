"""The identity service: users, domains, clients, channels, and the broker's questions, over one database."""

import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from propeller.errors import RefusedError, UnauthenticatedError
from propeller.identity.access import AccessChanges, AccessDirectory
from propeller.identity.broker_guard import BrokerGuard
from propeller.identity.broker_link import BrokerLink
from propeller.identity.callout import Callout
from propeller.identity.channels import Channels
from propeller.identity.client_watch import ClientLimits, ClientWatch
from propeller.identity.clients import Clients
from propeller.identity.credentials import Passwords, Tokens
from propeller.identity.devices import Devices
from propeller.identity.domains import Domains
from propeller.identity.kept_keys import KeptKeys
from propeller.identity.login_throttle import LoginThrottle
from propeller.identity.sessions import MqttIds, SessionExpiry
from propeller.identity.settings import IdentitySettings
from propeller.identity.tables import SCHEMA
from propeller.identity.users import Users
from propeller.mqtt.broker_keys import BrokerKeys, derive
from propeller.process.audit import AuditLog
from propeller.protocol.roles import WATCH, Role
from propeller.protocol.topics import Channel
from propeller.store.database import Database
from propeller.store.migrations import migrate
from propeller.web.auth import Principal, open_audit
from propeller.web.sites import Sites


@dataclass(frozen=True)
class Identity:
    """The parts of the service, and the check of credentials."""

    users: Users
    domains: Domains
    clients: Clients
    channels: Channels
    devices: Devices
    directory: AccessDirectory
    link: BrokerLink
    sessions: SessionExpiry
    sites: Sites
    watch: ClientWatch
    audit: AuditLog | None = None

    async def verify(self, authorization: str, domain_id: str | None = None) -> Principal:
        """Who is behind an ``Authorization`` header: a user's token (Bearer) or a client's id and key (Basic).

        Args:
            authorization: the header.
            domain_id: the domain that the caller must belong to, and have its role in.

        Raises:
            UnauthenticatedError: with what is wrong.
            RefusedError: the caller does not belong to the domain.
        """
        scheme, _, rest = authorization.partition(" ")
        match scheme.lower():
            case "bearer":
                user = await self.users.identify(rest.strip())
                return user if domain_id is None else await self.domains.member(domain_id, user)
            case "basic":
                client_id, key = _read_basic(rest)
                access = self.directory.authenticate(client_id, key)
                if access is None:
                    raise UnauthenticatedError("the client is unknown or disabled, or its key is wrong")
                if domain_id is not None and access.domain_id != domain_id:
                    raise RefusedError(f"client {client_id} belongs to another domain")
                return Principal("client", access.client_id, access.role.value, access.domain_id, access.name)
            case _:
                raise UnauthenticatedError("send a user's token as Bearer, or a client's id and key as Basic")

    def compat_proplets(self, channel: Channel, who: Principal) -> list[str]:
        """The ids of a channel's compat proplets, for its manager.

        Raises:
            RefusedError: the caller is not a manager in this channel.
        """
        self._check_manages(channel, who)
        return self.directory.compat_proplets(channel)

    def proplet_names(
        self, channel: Channel, who: Principal, *, known: Callable[[str], bool]
    ) -> tuple[str, dict[str, dict[str, Any]] | None]:
        """Name and tags of a channel's proplets by their ids, for its manager, and of which version of the directory they are.

        Args:
            channel: whose.
            who: asks.
            known: whether the caller has those of a version already; then they are ``None``.

        Raises:
            RefusedError: the caller is not a manager in this channel.
        """
        self._check_manages(channel, who)
        version = self.directory.version
        if known(version):
            return version, None
        proplets = self.directory.proplets(channel)
        return version, {id_: {"name": one.name, "tags": one.tags} for id_, one in proplets.items()}

    def _check_manages(self, channel: Channel, who: Principal) -> None:
        access = self.directory.get(who.id) if who.kind == "client" else None
        if access is None or access.role is not Role.MANAGER or channel not in access.channels:
            raise RefusedError("only a manager of this channel may ask: connect it to the channel")

    async def duplicates(self, domain_id: str, who: Principal) -> list[str]:
        """The ids of a domain's clients as which two processes are connected, for its manager and those who may watch it.

        Raises:
            RefusedError: the caller is none of them.
        """
        if who.kind == "user":
            who = await self.domains.member(domain_id, who)
        if who.domain != domain_id or who.role not in {*WATCH, Role.MANAGER}:
            raise RefusedError("only the manager of this domain, its viewers, operators and admins may ask")
        accesses = map(self.directory.get, self.watch.duplicates())
        return [one.client_id for one in accesses if one is not None and one.domain_id == domain_id]


@contextlib.asynccontextmanager
async def open_identity(settings: IdentitySettings, database: Database) -> AsyncIterator[Identity]:
    """Make the tables and the admin, and answer the broker for the length of the block.

    Raises:
        StartError: the database cannot be opened, or there is no admin and no password for one.
    """
    secret = settings.broker_secret.get_secret_value()
    keys = BrokerKeys.derived(secret)
    signing = settings.jwt_secret.get_secret_value() if settings.jwt_secret else secret
    tokens = Tokens(
        derive(signing, "user tokens"), access_s=settings.access_token_s, refresh_s=settings.refresh_token_s
    )
    directory = AccessDirectory()
    mqtt_ids = MqttIds(database, directory)
    sessions = SessionExpiry(database, settings.session_expiry_s)
    limits = ClientLimits(
        settings.client_messages,
        settings.client_bytes,
        settings.client_connections,
        settings.client_subscriptions,
    )
    audit = open_audit("identity", settings)
    watch = ClientWatch(directory, limits, audit)
    guard = BrokerGuard(
        watch, sessions, mqtt_ids, age_s=settings.session_expiry_s, max_bytes=settings.stored_bytes
    )
    callout = Callout(directory, mqtt_ids, keys, sessions, watch)
    link = BrokerLink(settings.broker_url, keys, callout, directory, sessions, guard)
    changes = AccessChanges(database, directory, link)
    users = Users(database, Passwords(), tokens, LoginThrottle())
    keys_secret = settings.keys_secret if settings.keys_readable else None
    kept = KeptKeys(keys_secret.get_secret_value() if keys_secret else None)
    clients = Clients(database, changes, kept)
    identity = Identity(
        users,
        Domains(database, changes),
        clients,
        Channels(database, changes),
        Devices(database, changes, clients, settings),
        directory,
        link,
        sessions,
        Sites(settings.hosts.split(",")),
        watch,
        audit,
    )
    _make_private(settings.database)
    await migrate(database, SCHEMA)
    await kept.open(database)
    await changes.load()
    await mqtt_ids.load()
    await sessions.load()
    password = settings.admin_password
    await users.ensure_admin(settings.admin_username, password.get_secret_value() if password else None)
    async with link.running():
        yield identity


def _make_private(url: str) -> None:
    """Create the database's file, if it is one, for this user alone: it holds hashes of passwords."""
    file = Path(url.removeprefix("sqlite:///"))
    if "://" not in str(file):
        with contextlib.suppress(OSError):  # the database gives the clearer error
            file.touch(mode=0o600)


def _read_basic(text: str) -> tuple[str, str]:
    try:
        client_id, colon, key = base64.b64decode(text.strip(), validate=True).decode().partition(":")
    except ValueError:
        colon = ""
    if not colon:
        raise UnauthenticatedError("Basic expects base64 of id:key")
    return client_id, key
