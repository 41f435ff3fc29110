"""The guide's domain, channel and clients for services that take their ids and keys from an ``.env`` file."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from propeller.errors import StartError
from propeller.identity.roles import role_of
from propeller.identity.tables import ENABLED
from propeller.process.http import ServiceError
from propeller.stack.env_file import (
    CHANNEL_VARIABLES,
    DOMAIN_VARIABLES,
    PROVISIONED_CLIENTS,
    PROVISIONED_VARIABLES,
    EnvFile,
    env_values,
    id_variable,
    key_variable,
    shown_id,
)
from propeller.stack.provisioning import (
    CHANNEL,
    DOMAIN,
    IdentityApi,
    Record,
    find_or_make_channel,
    find_or_make_domain,
)

Credentials = Mapping[str, str]
"""A client's ``id`` and ``key``."""


@dataclass(frozen=True)
class ProvisionedClient:
    """A client as it is in the end: its name, its id, and what was done about it."""

    name: str
    id: str
    action: str


@dataclass(frozen=True)
class ProvisioningResult:
    """What was provisioned.

    Attributes:
        domain_id: of the domain ``fl-demo``.
        channel_id: of its channel ``fl``.
        clients: the guide's six, and the operator's.
        corrected: what was wrong in the file and is right now, a line each.
        changed: whether the file was changed.
    """

    domain_id: str
    channel_id: str
    clients: list[ProvisionedClient]
    corrected: list[str]
    changed: bool


@dataclass(frozen=True)
class _ClientState:
    """What there is of a client: identity's record of its name, an id and key that work, or why none do."""

    name: str
    record: Record | None
    credentials: Credentials | None = None
    problem: str = ""


@dataclass
class EnvProvisioner:
    """Makes what is missing, and writes it down; what is there and works is left alone.

    Attributes:
        api: logged in as a user who may manage the domain.
        path: the ``.env`` file.
        rotate: give every client a new key, also where the one in the file works.
        known: ids and keys that are known from elsewhere, by client.
        compat: names of proplets of absmach/propeller, which identity is told; the others stay what they are.
    """

    api: IdentityApi
    path: Path
    rotate: bool = False
    known: Mapping[str, Credentials] = field(default_factory=dict)
    compat: Collection[str] = ()
    _changed: bool = False

    async def run(self) -> ProvisioningResult:
        """Provision.

        Raises:
            StartError: identity refuses or does not answer; the file cannot be written; or something is disabled, or a
                client's key is nowhere, and then nothing was changed.
        """
        file = EnvFile.read(self.path)
        file.check_writable()
        values = file.values
        try:
            domain, channel = await self._find_channel()
            found = await self._examine_clients(domain, values)
            self._refuse_problems(domain, channel, found)
            return await self._provision(values, found)
        except ServiceError as error:
            raise StartError(f"provisioning failed: {error}; run it again, what is done is kept") from None

    async def _find_channel(self) -> tuple[Record | None, Record | None]:
        domain = await self.api.domain(DOMAIN)
        return domain, await self.api.channel(domain["id"], CHANNEL) if domain else None

    async def _examine_clients(self, domain: Record | None, values: Mapping[str, str]) -> list[_ClientState]:
        if domain is None:
            return [_ClientState(name, None) for name in PROVISIONED_CLIENTS]
        found: list[_ClientState] = []
        for name in PROVISIONED_CLIENTS:
            used_ids = {other.credentials["id"] for other in found if other.credentials}
            found.append(await self._examine_client(name, domain["id"], values, used_ids))
        return found

    async def _examine_client(
        self, name: str, domain_id: str, values: Mapping[str, str], used_ids: set[str]
    ) -> _ClientState:
        record = await self.api.client(domain_id, name)
        in_file = {
            "id": values.get(id_variable(name), ""),
            "key": values.get(key_variable(name), ""),
        }
        if self.rotate or (record is not None and record["status"] != ENABLED):
            return _ClientState(name, record)
        of_identity = {} if record is None else _kept_credentials(record)
        for credentials in (in_file, self.known.get(name, {}), of_identity):
            if await self._works(name, credentials, domain_id, record, used_ids):
                return _ClientState(name, record, credentials)
        return _ClientState(name, record, problem=self._problem(name, in_file, record) if record else "")

    async def _works(
        self, name: str, credentials: Credentials, domain_id: str, record: Record | None, used_ids: set[str]
    ) -> bool:
        """Whether an id and key can be a client's: its own, or those of another client that may do the same."""
        if (
            not credentials.get("id")
            or not credentials.get("key")
            or not await self.api.accepts(credentials["id"], credentials["key"])
        ):
            return False
        if record is not None and credentials["id"] == record["id"]:
            return True
        other = await self.api.client_by_id(domain_id, credentials["id"])
        wanted = role_of(name, None, {}, ())
        if other is None or other["role"] not in {wanted.value, "manager"}:
            return False
        return not (name.startswith("proplet") and credentials["id"] in used_ids)

    def _problem(self, name: str, in_file: Credentials, record: Record) -> str:
        if not in_file["id"] or not in_file["key"]:
            return f"it exists, but {key_variable(name) if in_file['id'] else id_variable(name)} is empty"
        if in_file["id"] != record["id"]:
            return f"{id_variable(name)} is {shown_id(in_file['id'])}, but its id is {record['id']}"
        return f"identity refuses {key_variable(name)}: it was revoked or replaced, or is mistyped"

    def _refuse_problems(
        self, domain: Record | None, channel: Record | None, found: list[_ClientState]
    ) -> None:
        within = domain["id"] if domain else ""
        records = [("/domains", domain), (f"/{within}/channels", channel)]
        records += [(f"/{within}/clients", one.record) for one in found]
        lines = [
            f"{record['name']} is disabled; enable it at identity: POST {path}/{record['id']}/enable"
            for path, record in records
            if record and record["status"] != ENABLED
        ]
        lost = [f"{one.name}: {one.problem}" for one in found if one.problem]
        if lost:
            rotate = f"propeller provision --env-file {self.path} --rotate"
            lines += [
                *lost,
                "Identity shows a key only once: put the right ones there, or make new keys for all:",
                f"  {rotate}",
                "(A stack of 'propeller up' has keys of its own: add --state DIR to take those.)",
            ]
        if lines:
            raise StartError(
                "\n  ".join(
                    [
                        f"nothing was changed: there is something to correct in {self.path} or at identity",
                        *lines,
                    ]
                )
            )

    async def _provision(self, values: Mapping[str, str], found: list[_ClientState]) -> ProvisioningResult:
        domain_id = (await find_or_make_domain(self.api))["id"]
        channel_id = (await find_or_make_channel(self.api, domain_id))["id"]
        corrected = _differences(values, DOMAIN_VARIABLES, domain_id) + _differences(
            values, CHANNEL_VARIABLES, channel_id
        )
        absent = {name: "" for name in PROVISIONED_VARIABLES if name not in values}
        self._save(absent | env_values(domain_id, channel_id, {}))
        clients, ids = [], []
        for one in found:
            credentials, action = await self._credentials_of(one, domain_id, values)
            # At once: a key that is not written down before something fails is lost.
            self._save(env_values(domain_id, channel_id, {one.name: credentials}), of=one.name)
            if one.name in self.compat:
                await self.api.set_compat(domain_id, credentials["id"])
                action += ", compat"
            clients.append(ProvisionedClient(one.name, credentials["id"], action))
            ids.append(credentials["id"])
        await self.api.connect(domain_id, channel_id, list(dict.fromkeys(ids)))
        return ProvisioningResult(domain_id, channel_id, clients, corrected, self._changed)

    async def _credentials_of(
        self, one: _ClientState, domain_id: str, values: Mapping[str, str]
    ) -> tuple[Credentials, str]:
        if one.credentials is not None:
            return one.credentials, "kept"
        if one.record is not None:
            return await self.api.new_key(domain_id, one.record["id"]), "new key"
        stale = values.get(id_variable(one.name))
        made = await self.api.make_client(domain_id, one.name)
        return made, "new (identity does not know the id that was there)" if stale else "new"

    def _save(self, values: Mapping[str, str], of: str = "") -> None:
        try:
            file = EnvFile.read(self.path)
            self._changed |= file.write(file.updated(values), backup=not self._changed)
        except StartError as error:
            lost = f"; the key of {of} is lost with it: correct that, and run with --rotate" if of else ""
            raise StartError(f"{error}{lost}") from None


def _kept_credentials(record: Record) -> dict[str, str]:
    """A client's id and key as identity shows them, where it keeps keys readable."""
    key = record["credentials"].get("secret")
    return {"id": record["id"], "key": key} if key else {}


def _differences(values: Mapping[str, str], names: tuple[str, ...], right: str) -> list[str]:
    return [
        f"{name} was {shown_id(values[name])}" for name in names if values.get(name) and values[name] != right
    ]
