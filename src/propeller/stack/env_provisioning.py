"""The guide's domain, channel and clients for services that take their ids and keys from an ``.env`` file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from propeller.identity.roles import role_of
from propeller.identity.tables import ENABLED
from propeller.process.http import ServiceError
from propeller.process.run import StartError
from propeller.stack.env_file import (
    CHANNEL_VARIABLES,
    DOMAIN_VARIABLES,
    GUIDE_CLIENTS,
    GUIDE_VARIABLES,
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

Pair = Mapping[str, str]
"""A client's ``id`` and ``key``."""


@dataclass(frozen=True)
class Client:
    """A client as it is in the end: its name, its id, and what was done about it."""

    name: str
    id: str
    what: str


@dataclass(frozen=True)
class Outcome:
    """What was provisioned.

    Attributes:
        domain_id: of the domain ``fl-demo``.
        channel_id: of its channel ``fl``.
        clients: the guide's six.
        corrected: what was wrong in the file and is right now, a line each.
        changed: whether the file was changed.
    """

    domain_id: str
    channel_id: str
    clients: list[Client]
    corrected: list[str]
    changed: bool


@dataclass(frozen=True)
class _Found:
    """What there is of a client: identity's record of its name, an id and key that work, or why none do."""

    name: str
    record: Record | None
    pair: Pair | None = None
    problem: str = ""


@dataclass
class EnvProvisioner:
    """Makes what is missing, and writes it down; what is there and works is left alone.

    Attributes:
        api: logged in as a user who may manage the domain.
        path: the ``.env`` file.
        rotate: give every client a new key, also where the one in the file works.
        known: ids and keys that are known from elsewhere, by client.
    """

    api: IdentityApi
    path: Path
    rotate: bool = False
    known: Mapping[str, Pair] = field(default_factory=dict)
    _changed: bool = False

    async def run(self) -> Outcome:
        """Provision.

        Raises:
            StartError: identity refuses or does not answer; the file cannot be written; or something is disabled, or a
                client's key is nowhere, and then nothing was changed.
        """
        file = EnvFile.read(self.path)
        file.check_writable()
        values = file.values
        try:
            domain, channel = await self._place()
            found = await self._look(domain, values)
            self._refuse_problems(domain, channel, found)
            return await self._provision(values, found)
        except ServiceError as error:
            raise StartError(f"provisioning failed: {error}; run it again, what is done is kept") from None

    async def _place(self) -> tuple[Record | None, Record | None]:
        domain = await self.api.domain(DOMAIN)
        return domain, await self.api.channel(domain["id"], CHANNEL) if domain else None

    async def _look(self, domain: Record | None, values: Mapping[str, str]) -> list[_Found]:
        if domain is None:
            return [_Found(name, None) for name in GUIDE_CLIENTS]
        found: list[_Found] = []
        for name in GUIDE_CLIENTS:
            taken = {other.pair["id"] for other in found if other.pair}
            found.append(await self._look_at(name, domain["id"], values, taken))
        return found

    async def _look_at(self, name: str, domain_id: str, values: Mapping[str, str], taken: set[str]) -> _Found:
        record = await self.api.client(domain_id, name)
        written = {
            "id": values.get(id_variable(name), ""),
            "key": values.get(key_variable(name), ""),
        }
        if self.rotate or (record is not None and record["status"] != ENABLED):
            return _Found(name, record)
        for pair in (written, self.known.get(name, {})):
            if await self._works(name, pair, domain_id, record, taken):
                return _Found(name, record, pair)
        return _Found(name, record, problem=self._problem(name, written, record) if record else "")

    async def _works(
        self, name: str, pair: Pair, domain_id: str, record: Record | None, taken: set[str]
    ) -> bool:
        """Whether an id and key can be a client's: its own, or those of another client that may do the same."""
        if not pair.get("id") or not pair.get("key") or not await self.api.accepts(pair["id"], pair["key"]):
            return False
        if record is not None and pair["id"] == record["id"]:
            return True
        other = await self.api.client_by_id(domain_id, pair["id"])
        wanted = role_of(name, None, {}, ())
        if other is None or other["role"] not in {wanted.value, "manager"}:
            return False
        return not (name.startswith("proplet") and pair["id"] in taken)

    def _problem(self, name: str, written: Pair, record: Record) -> str:
        if not written["id"] or not written["key"]:
            return f"it exists, but {key_variable(name) if written['id'] else id_variable(name)} is empty"
        if written["id"] != record["id"]:
            return f"{id_variable(name)} is {shown_id(written['id'])}, but its id is {record['id']}"
        return f"identity refuses {key_variable(name)}: it was revoked or replaced, or is mistyped"

    def _refuse_problems(self, domain: Record | None, channel: Record | None, found: list[_Found]) -> None:
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
                "Identity shows a key only once: put the right ones there, or make new keys for all six:",
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

    async def _provision(self, values: Mapping[str, str], found: list[_Found]) -> Outcome:
        domain_id = (await find_or_make_domain(self.api))["id"]
        channel_id = (await find_or_make_channel(self.api, domain_id))["id"]
        corrected = _differences(values, DOMAIN_VARIABLES, domain_id) + _differences(
            values, CHANNEL_VARIABLES, channel_id
        )
        absent = {name: "" for name in GUIDE_VARIABLES if name not in values}
        self._save(absent | env_values(domain_id, channel_id, {}))
        clients, ids = [], []
        for one in found:
            pair, what = await self._pair(one, domain_id, values)
            # At once: a key that is not written down before something fails is lost.
            self._save(env_values(domain_id, channel_id, {one.name: pair}), of=one.name)
            clients.append(Client(one.name, pair["id"], what))
            ids.append(pair["id"])
        await self.api.connect(domain_id, channel_id, list(dict.fromkeys(ids)))
        return Outcome(domain_id, channel_id, clients, corrected, self._changed)

    async def _pair(self, one: _Found, domain_id: str, values: Mapping[str, str]) -> tuple[Pair, str]:
        if one.pair is not None:
            return one.pair, "kept"
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


def _differences(values: Mapping[str, str], names: tuple[str, ...], right: str) -> list[str]:
    return [
        f"{name} was {shown_id(values[name])}" for name in names if values.get(name) and values[name] != right
    ]
