"""The client of a stack: its services by their addresses, and what can be asked of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from propeller.errors import InvalidError, PropellerError, StartError
from propeller.protocol.ids import check_id
from propeller.sdk.addresses import (
    OPERATED,
    PORTS,
    REGISTRY,
    Login,
    check_url,
    devices_of_stack,
    operator_of_stack,
    read_stack,
    registry_of_host,
    registry_of_stack,
    urls_of_host,
    urls_of_stack,
)
from propeller.sdk.connection import Connection
from propeller.sdk.devices import AsyncDevices
from propeller.sdk.experiment import has_no_samples
from propeller.sdk.experiments import AsyncExperiments
from propeller.sdk.kept_login import KeptLogin, require_login
from propeller.sdk.logs import AsyncLogs
from propeller.sdk.models import AsyncModels
from propeller.sdk.prefetch import Prefetched, prefetch
from propeller.sdk.programs import PushedProgram, push_file
from propeller.sdk.rounds import WAIT_S, AsyncRounds
from propeller.sdk.transport import AsyncTransport, BlockingTransport
from propeller.sdk.users import AsyncUsers
from propeller.sdk.values import plain_dataset

if TYPE_CHECKING:
    import numpy as np

_HERE = "http://localhost"


class AsyncPropeller(AsyncRounds, AsyncExperiments, AsyncLogs):
    """A stack, for programs with an event loop; ``Propeller`` is the same for programs without one.

    Attributes:
        stack: ``stack.json``, if it was read from there; else empty.
        models: its model versions.
        devices: the devices of its domain.
        users: the people who may use it.
    """

    _transport: type[AsyncTransport | BlockingTransport] = AsyncTransport

    def __init__(
        self,
        *,
        url: str | None = None,
        user: str | None = None,
        password: str | None = None,
        manager: str | None = None,
        coordinator: str | None = None,
        model_registry: str | None = None,
        data_store: str | None = None,
        identity: str | None = None,
        aggregator: str | None = None,
        proxy: str | None = None,
        oci_registry: str | None = None,
        auth: tuple[str, str] | None = None,
        ca_cert: str | Path | None = None,
        stack: Mapping[str, Any] | None = None,
        login: KeptLogin | None = None,
    ) -> None:
        """A client of the stack on a host.

        Args:
            url: the host; its services are on the guide's ports. This machine, if it is not given.
            user: who calls, where authentication is on; with ``password``.
            password: the user's.
            manager: the address of that service, instead of the one on ``url``; the next four likewise.
            coordinator: see ``manager``.
            model_registry: see ``manager``.
            data_store: see ``manager``.
            identity: see ``manager``; it is asked for the user's tokens.
            aggregator: see ``manager``; asked only for its log, as the next one.
            proxy: see ``aggregator``.
            oci_registry: the address of the stack's registry, to which programs are pushed; needed for that where services are
                named without ``url``.
            auth: a client's id and key, instead of a user.
            ca_cert: a file with the authority's certificate, for ``https`` addresses of a stack with one of its own
                (``propeller up --host``); else that of ``PROPELLER_CA_CERT``, else those that the system trusts.
            stack: what ``stack.json`` of a state folder says: its addresses, and its operator as the user.
            login: one that ``propeller login`` left, with its addresses and authority, instead of a user (``from_login``).

        Raises:
            InvalidError: these contradict each other, or one is not an address.
            StartError: ``ca_cert`` cannot be read, or is no certificate.
        """
        given = {
            "manager": manager,
            "coordinator": coordinator,
            "model_registry": model_registry,
            "data_store": data_store,
            "identity": identity,
            "aggregator": aggregator,
            "proxy": proxy,
        }
        on_host = urls_of_host(url or _HERE)
        if url is None and (stack or login is not None or any(given.values())):
            # Those of this machine would be another stack's.
            on_host = {name: one for name, one in on_host.items() if name not in OPERATED}
        urls = (
            on_host
            | urls_of_stack(stack or {})
            | (login.urls if login is not None else {})
            | {name: check_url(name, one) for name, one in given.items() if one is not None}
        )
        if (user is None) != (password is None):
            missing = "password" if password is None else "user"
            raise InvalidError(f"{missing}: is missing; user and password belong together")
        if sum(one is not None for one in (user, auth, login)) > 1:
            raise InvalidError(
                "auth: give it, a client's id and key, or user and password, or a login; one of them alone"
            )
        caller: Login | None = login
        if user is not None and password is not None:
            caller = Login(urls["identity"], user, password)
        elif auth is None and stack:
            auth = operator_of_stack(stack)
        if ca_cert is None:
            ca_cert = (stack or {}).get("ca") if login is None else login.ca_cert
        self._ca_cert = None if ca_cert is None else Path(ca_cert)
        transport = self._transport(*urls.values(), auth=auth, timeout=WAIT_S + 10, ca_cert=self._ca_cert)
        self._connection = Connection(urls, transport, caller, stack or {})
        self._registry = (
            _registry(url, stack or {}, login, is_named=any(given.values()))
            if oci_registry is None
            else check_url(REGISTRY, oci_registry)
        )
        if self._registry:
            self._connection.urls[REGISTRY] = self._registry
        self._registry_login = auth if user is None or password is None else (user, password)
        self.stack = self._connection.stack
        self.models = AsyncModels(self._connection)
        self.devices = AsyncDevices(self._connection)
        self.users = AsyncUsers(self._connection)

    @classmethod
    def from_state(cls, folder: str | Path = ".propeller") -> Self:
        """A client of the stack that runs on a state folder, as its operator.

        Raises:
            PropellerError: none runs there.
        """
        return cls(stack=read_stack(folder))

    @classmethod
    def from_login(cls) -> Self:
        """A client of the stack elsewhere that ``propeller login`` has logged in to, as that user.

        Raises:
            StartError: nobody has, on this machine.
        """
        return cls(login=require_login())

    async def keep_login(self) -> None:
        """Keep a login of this client's user on this machine, for ``from_login`` and for commands; as ``propeller login`` does.

        Raises:
            InvalidError: the client has no user and password.
            UnauthenticatedError: identity refuses them.
            StartError: it cannot be kept.
        """
        login = self._connection.login
        if login is None or not login.password:
            raise InvalidError("user: only a client with a user and password can log in")
        asked = {"username": login.user, "password": login.password}
        tokens = await self._connection.ask("POST", "identity", "/users/tokens/issue", json=asked)
        urls = {name: one for name, one in self._connection.urls.items() if name != REGISTRY}
        KeptLogin.keep(urls, self._registry, login.user, tokens, self._ca_cert)

    async def end_login(self) -> None:
        """Forget the login that this client was made with (``from_login``), and have identity end it.

        Raises:
            InvalidError: it was made without one.
            PropellerError: identity did not end it; here it is forgotten all the same.
        """
        login = self._connection.login
        if not isinstance(login, KeptLogin):
            raise InvalidError("login: the client has none that is kept")
        try:
            await self._connection.send("POST", "identity", "/users/tokens/revoke")
        finally:
            login.remove()

    def __repr__(self) -> str:
        """Shows where it is."""
        return f"<{type(self).__name__} of {self.url('coordinator')}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._connection.transport.aclose()

    @property
    def ca_cert(self) -> Path | None:
        """The file with the certificate of the stack's own authority, where one is named."""
        return self._ca_cert

    @property
    def registry(self) -> str:
        """The address of the stack's registry, to which programs are pushed; empty if none is known."""
        return self._registry

    @property
    def connection(self) -> Connection:
        """How its services are asked, for requests that no method here has."""
        return self._connection

    def url(self, service: str) -> str:
        """The address of a service: ``manager``, ``coordinator``, ``model_registry``, ``data_store`` or ``identity``."""
        return self._connection.urls[service]

    @property
    def services(self) -> tuple[str, ...]:
        """The services whose addresses are known, by name: those of ``url``, and of ``aggregator``, ``proxy`` and ``oci_registry`` what is."""
        return tuple(self._connection.urls)

    async def answering(self) -> dict[str, bool]:
        """Whether each service answers that clients call, by name."""
        found = {}
        for name in filter(self._connection.urls.__contains__, PORTS):
            try:
                await self._connection.send("GET", name, "/health")
                found[name] = True
            except PropellerError:
                found[name] = False
        return found

    def image(self, name: str = "fl-client-wasm") -> str:
        """The reference of a program that the stack put into its own registry.

        Raises:
            PropellerError: there is none of that name.
        """
        images: dict[str, str] = self.stack.get("images", {})
        if name not in images:
            raise PropellerError(
                f"the stack has no program {name!r}; push one with 'propeller push FILE REF'"
            )
        return images[name]

    async def proplets(self, *, alive: bool | None = None) -> list[dict[str, Any]]:
        """The proplets that the manager knows; ``alive`` narrows to those that are, or are not."""
        found: list[dict[str, Any]] = []
        while True:
            page = await self._connection.ask(
                "GET", "manager", "/proplets", params={"limit": 1000, "offset": len(found)}
            )
            found += page["proplets"]
            if not page["proplets"] or len(found) >= page["total"]:
                return [proplet for proplet in found if alive is None or proplet["alive"] is alive]

    async def device_names(self) -> dict[str, str]:
        """The names of the proplets by their ids: those of a stack on this machine, else the manager's."""
        names = {one["id"]: one["name"] for one in await self.proplets()}
        return names | {id_: name for name, id_ in devices_of_stack(self.stack).items()}

    async def versions(self) -> list[int]:
        """The model versions that there are, in order."""
        versions: list[int] = (await self._connection.ask("GET", "model_registry", "/models"))["versions"]
        return versions

    async def latest(self) -> int:
        """The newest model's version.

        Raises:
            PropellerError: there is no model yet.
        """
        versions = await self.versions()
        if not versions:
            raise PropellerError(
                "there is no model yet: store one with put_model, or give one in [model] of an experiment file"
            )
        return versions[-1]

    async def model(self, version: int | str | None = None) -> "dict[str, np.ndarray[Any, Any]]":
        """A model as NumPy arrays by tensor name, in the dtypes that it has.

        Args:
            version: its number, or an alias, as ``production`` or ``EXPERIMENT/best`` with an experiment's id or name; the latest if it is
                not given.

        Raises:
            NotFoundError: there is none.
        """
        return await self.models.arrays("latest" if version is None else version)

    async def put_model(
        self,
        model: Mapping[str, Any],
        *,
        version: int | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> int:
        """Store a model; returns the version it got. As ``models.put``."""
        return await self.models.put(model, version=version, lineage=lineage)

    async def put_dataset(self, name: str, dataset: Mapping[str, Any], *, central: bool = False) -> str:
        """Store the local data of a device, or a data set for central evaluations; returns the id under which it is stored.

        Args:
            name: the device, by its name or id; any other name is the id of a data set.
            dataset: as ``{"data": [{"x": [...], "y": 0}, ...]}``; NumPy's arrays and scalars are fine.
            central: it is the id of a data set, though it is or is like the name of a device.

        Raises:
            InvalidError: something cannot be sent, and the text names it, as ``data[3].x``; there are no samples; there are several devices
                of this name, or none but one of nearly this name; or it has data of its own.
        """
        body = plain_dataset(dataset)
        fleet = await self._fleet()
        if central or fleet.id_of(name) is None:
            id_ = check_id(name)
            if not central and (meant := fleet.nearest(name)) is not None:
                raise InvalidError(
                    f"name: there is no device {name!r}; did you mean {meant!r}? For a data set of no device give central=True"
                )
        else:
            id_ = fleet.resolve([name], "name")[0]
            fleet.require_no_own_data(id_, "name")
        if has_no_samples(body):
            raise InvalidError("data: it has no samples; give one at least")
        await self._put_dataset(id_, body)
        return id_

    async def push_program(self, file: str | Path, name: str | None = None) -> PushedProgram:
        """Push a program to the stack's registry, where it is called by the file's name, or by ``name``; a ``.py`` is built.

        Raises:
            PropellerError: it cannot be built or pushed; the text has the cause and the remedy.
        """
        if not self._registry:
            raise StartError(
                "oci_registry: no address of the stack's registry is known: give it (--url oci_registry=URL, also at "
                "'propeller login'; in Python oci_registry=)"
            )
        from propeller.oci.credentials import Credential, Token
        from propeller.oci.credentials import Login as RegistryLogin

        login: Credential | None

        login = None if self._registry_login is None else RegistryLogin(*self._registry_login)
        if isinstance(self._connection.login, KeptLogin):
            await self.versions()  # a token that has expired is renewed
            login = Token(self._connection.login.token)
        work = functools.partial(push_file, Path(file), self._registry, name, login)
        return await self._connection.transport.call(work)

    async def prefetch(
        self,
        reference: str,
        *,
        devices: Sequence[str] | None = None,
        limits: Mapping[str, float] | None = None,
        timeout_s: float = 600.0,
        on_change: Callable[[Mapping[str, str]], None] | None = None,
    ) -> Prefetched:
        """Send a program ahead: have devices fetch and compile it, and wait until they have, so that no round waits for that.

        Args:
            reference: the program, as an OCI reference.
            devices: names or ids; all that are alive if not given.
            limits: those of the rounds that will run it; with ``fuel`` it is compiled to count instructions.
            timeout_s: how long to wait, in seconds; what is not done then goes on.
            on_change: is told what each device does, by name, whenever that is another thing.

        Raises:
            InvalidError: there is no such device, or none is alive.
        """
        fleet = await self._fleet()
        ids = fleet.alive() if devices is None else fleet.resolve(devices, "devices")
        names = await self.device_names()
        return await prefetch(
            self._connection,
            reference,
            {id_: names[id_] for id_ in ids},
            limits=limits,
            timeout_s=timeout_s,
            on_change=on_change,
        )


def _registry(url: str | None, stack: Mapping[str, Any], login: KeptLogin | None, *, is_named: bool) -> str:
    """The address of a stack's registry of programs; empty where services are named and it is not: that of this machine would be another stack's."""
    if login is not None:
        return login.registry
    if stack:
        return registry_of_stack(stack)
    return "" if url is None and is_named else registry_of_host(url or _HERE)
