"""The client of a stack: its services by their addresses, and what can be asked of them."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from propeller.errors import ConflictError, InvalidError, PropellerError, StartError
from propeller.protocol.experiments import ExperimentSpec, ModelChoice
from propeller.protocol.ids import check_id
from propeller.sdk.addresses import (
    OPERATED,
    PORTS,
    REGISTRY,
    Login,
    check_url,
    operator_of_stack,
    read_stack,
    registry_of_host,
    registry_of_stack,
    urls_of_host,
    urls_of_stack,
)
from propeller.sdk.connection import Connection
from propeller.sdk.devices import AsyncDevices
from propeller.sdk.experiment import Experiment, Fleet, assign_data, has_no_samples
from propeller.sdk.handle import AsyncExperimentHandle, find_experiment
from propeller.sdk.kept_login import KeptLogin, require_login
from propeller.sdk.log_lines import LogLines, read_line, read_log
from propeller.sdk.models import AsyncModels
from propeller.sdk.prefetch import Prefetched, prefetch
from propeller.sdk.programs import PushedProgram, is_file_name, program_file, push_file
from propeller.sdk.rounds import WAIT_S, AsyncRounds
from propeller.sdk.transport import AsyncTransport, BlockingTransport
from propeller.sdk.users import AsyncUsers
from propeller.sdk.values import SAFETENSORS, decode_model, encode_model, plain, same_model

if TYPE_CHECKING:
    import numpy as np

_HERE = "http://localhost"


class AsyncPropeller(AsyncRounds):
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
        """Keep the login that this client has no more, and have identity end it.

        Raises:
            InvalidError: the client has none (``from_login``).
            PropellerError: identity did not end it; it is kept no more.
        """
        login = self._connection.login
        if not isinstance(login, KeptLogin):
            raise InvalidError("login: the client has none that is kept")
        try:
            await self._connection.send("POST", "identity", "/users/tokens/revoke")
        finally:
            login.remove()

    async def audit(self, service: str, *, after: int = 0, limit: int = 1000) -> list[dict[str, Any]]:
        """Entries of a service's audit log, oldest first: who did what, from where, with what result. For operators and admins.

        Args:
            service: ``manager``, ``coordinator``, ``model_registry``, ``data_store`` or ``identity``.
            after: the number (``seq``) of an entry: those that follow it are given.
            limit: how many at most; 1 to 10,000.

        Raises:
            InvalidError: there is no such service.
            NotFoundError: it keeps no audit log.
        """
        lines = await self.audit_lines(service, after=after, limit=limit)
        return [json.loads(line) for line in lines]

    async def audit_lines(self, service: str, *, after: int = 0, limit: int = 1000) -> list[bytes]:
        """As ``audit``, but the lines as they were written, whose hashes can be verified (``propeller audit verify``)."""
        self._check_service(service)
        answer = await self._connection.send(
            "GET", service, "/audit", params={"after": after, "limit": limit}
        )
        return answer.content.splitlines(keepends=True)

    async def logs(self, service: str, *, lines: int = 200, level: str = "debug") -> list[dict[str, Any]]:
        """The newest lines of a service's log, oldest first: ``time``, ``level``, ``msg`` and what each has beside. For operators and admins.

        What is no log line, as a part of a traceback, has ``msg`` alone.

        Args:
            service: ``manager``, ``coordinator``, ``model_registry``, ``data_store`` or ``identity``; or ``aggregator``, ``proxy`` or
                ``oci_registry``, where their addresses are known.
            lines: how many; 1 to 2,000, which is all that a service remembers.
            level: ``debug``, ``info``, ``warning`` or ``error``: lines of this level and above.

        Raises:
            InvalidError: there is no such service or level.
        """
        found = await self.log_lines(service, lines=lines, level=level)
        return [read_line(line) for line in found.lines]

    async def log_lines(
        self, service: str, *, lines: int = 200, level: str = "debug", after: str | None = None
    ) -> LogLines:
        """As ``logs``, but as they were written; ``after`` is ``next`` of an answer of before, which the lines then follow."""
        self._check_service(service)
        return await read_log(self._connection, service, lines, level, after)

    def _check_service(self, service: str) -> None:
        if service not in self._connection.urls:
            raise InvalidError(f"service: {service!r} is none of {', '.join(self._connection.urls)}")

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
        return names | {id_: name for name, id_ in self._names().items()}

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
        body = _plain_dataset(dataset)
        fleet = Fleet(await self.proplets(), self._names())
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
        fleet = Fleet(await self.proplets(), self._names())
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

    async def run(self, experiment: Experiment, *, folder: str | Path = ".") -> AsyncExperimentHandle:
        """Submit an experiment; returns at once. It goes on without this program.

        A program that is a ``.py`` or ``.wasm`` file here is pushed to the stack's registry before (``push_program``), that of a strategy too.
        Its data and its first model are stored, once the coordinator has said that it would take the experiment.
        One without an id of its own is another one each time, unless the last run of it ended in an error: then the same one is submitted
        again, as it may have been begun.

        Args:
            experiment: what to do.
            folder: which the paths of program files are from.

        Raises:
            PropellerError: something is wrong with it; the text names the field.
        """
        with experiment.submission() as spec:
            return await self._submit(experiment, await self._push_files(spec, Path(folder)))

    async def _push_files(self, spec: ExperimentSpec, folder: Path) -> ExperimentSpec:
        changes: dict[str, Any] = {}
        if is_file_name(spec.program):
            changes["program"] = (
                await self.push_program(program_file(spec.program, folder), spec.name)
            ).reference
        if spec.strategy.program is not None and is_file_name(spec.strategy.program):
            pushed = await self.push_program(program_file(spec.strategy.program, folder))
            changes["strategy"] = spec.strategy.model_copy(update={"program": pushed.reference})
        return spec.model_copy(update=changes) if changes else spec

    async def _submit(self, experiment: Experiment, spec: ExperimentSpec) -> AsyncExperimentHandle:
        names, data = spec.selection.names, {}
        if names is not None or experiment.data is not None:
            fleet = Fleet(await self.proplets(), self._names())
            if names is not None:
                names = fleet.resolve(names, "selection.names")
                selection = spec.selection.model_copy(update={"names": names})
                spec = spec.model_copy(update={"selection": selection})
            data = {name: _plain_dataset(one) for name, one in assign_data(experiment, names, fleet).items()}
        model = encode_model(experiment.model) if isinstance(experiment.model, Mapping) else None
        if data or model is not None:
            spec = await self._store_inputs(spec, model, data)
        summary = await self._connection.ask("POST", "coordinator", "/experiments", json=spec.to_json())
        return AsyncExperimentHandle(self._connection, summary["id"], summary)

    async def experiment(self, experiment: str) -> AsyncExperimentHandle:
        """An experiment that was submitted before, by its id; or the newest one of a name.

        Raises:
            InvalidError: it is neither.
            NotFoundError: there is none with this id or name.
        """
        return await find_experiment(self._connection, experiment)

    async def experiments(
        self, state: str | None = None, limit: int = 100, *, name: str | None = None
    ) -> list[dict[str, Any]]:
        """The newest experiments, newest first; narrowed to those that are ``running``, ``completed`` …, or to a name."""
        wanted = {"state": state, "name": name}
        params = {"limit": limit} | {field: value for field, value in wanted.items() if value is not None}
        answer = await self._connection.ask("GET", "coordinator", "/experiments", params=params)
        found: list[dict[str, Any]] = answer["experiments"]
        return found

    async def strategies(self) -> list[dict[str, Any]]:
        """The strategies that the coordinator has: ``name``, ``summary``, ``paper``, ``parameters``, ``modes``, ``needs_device_state``.

        One whose package cannot be loaded has ``name`` and ``error``.
        """
        answer = await self._connection.ask("GET", "coordinator", "/strategies")
        found: list[dict[str, Any]] = answer["strategies"]
        return found

    async def strategy(self, name: str) -> dict[str, Any]:
        """One strategy, as ``strategies`` has it; of each parameter ``name``, ``type``, ``default``, ``required``, ``range``, ``description``.

        Raises:
            NotFoundError: there is none of this name; the text has those that there are.
        """
        path = f"/strategies/{quote(name, safe='')}"
        found: dict[str, Any] = await self._connection.ask("GET", "coordinator", path)
        return found

    async def _store_inputs(
        self, spec: ExperimentSpec, model: bytes | None, data: Mapping[str, Any]
    ) -> ExperimentSpec:
        """Store the data and the first model of an experiment; returns it with the model's version.

        The coordinator is asked before whether it would take the experiment: what is stored for one that is refused stays.
        For one that there is already under this id, nothing is stored.
        """
        asked = spec.to_json()
        if model is None:
            asked.setdefault("model", {"version": "latest"})
        central = spec.evaluate.dataset if spec.evaluate is not None else None
        checked = await self._connection.ask(
            "POST",
            "coordinator",
            "/experiments/check",
            json=asked,
            params={"brings_dataset": "true"} if central in data else {},
        )
        if not checked["exists"]:
            for name, dataset in data.items():
                await self._put_dataset(name, dataset)
        if model is None:
            return spec
        version = (
            await self._version_that_began(str(spec.id), model)
            if checked["exists"]
            else await self._put_model(model)
        )
        return spec.model_copy(update={"model": ModelChoice(version=version)})

    async def _version_that_began(self, experiment_id: str, model: bytes) -> int:
        """The version that an experiment was begun from, which must be this model.

        Raises:
            ConflictError: it is another one.
        """
        status = await self._connection.ask("GET", "coordinator", f"/experiments/{experiment_id}")
        version = status["spec"].get("model", {}).get("version")
        if not isinstance(version, int) or not same_model(await self.model(version), decode_model(model)):
            raise ConflictError(
                f"id: experiment {experiment_id} exists and began from another model; choose another id"
            )
        return version

    async def _put_model(self, content: bytes) -> int:
        headers = {"Content-Type": SAFETENSORS}
        answer = await self._connection.ask(
            "POST", "model_registry", "/models", content=content, headers=headers
        )
        return int(answer["version"])

    async def _put_dataset(self, proplet_id: str, body: Mapping[str, Any]) -> None:
        await self._connection.ask("POST", "data_store", f"/datasets/{proplet_id}", json=body)

    def _names(self) -> dict[str, str]:
        """The names that a stack on this machine gives its devices: name → id."""
        clients: dict[str, dict[str, str]] = self.stack.get("clients", {})
        return {name: client["id"] for name, client in clients.items() if name.startswith("proplet-")}


def _registry(url: str | None, stack: Mapping[str, Any], login: KeptLogin | None, *, is_named: bool) -> str:
    """The address of a stack's registry of programs; empty where services are named and it is not: that of this machine would be another stack's."""
    if login is not None:
        return login.registry
    if stack:
        return registry_of_stack(stack)
    return "" if url is None and is_named else registry_of_host(url or _HERE)


def _plain_dataset(dataset: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(dataset, Mapping):
        raise InvalidError(
            f'dataset: {type(dataset).__name__} is no data set; give a mapping, as {{"data": […]}}'
        )
    return {name: plain(one, name) for name, one in dataset.items()}
