"""The client for programs without an event loop: the methods of the other one, which block."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from propeller.sdk.addresses import read_stack
from propeller.sdk.client import AsyncPropeller
from propeller.sdk.devices import Devices
from propeller.sdk.experiment import Experiment
from propeller.sdk.handle import AsyncExperimentHandle, Event
from propeller.sdk.kept_login import KeptLogin, require_login
from propeller.sdk.models import Models
from propeller.sdk.transport import Blocking, BlockingTransport, blocking, complete, iterate
from propeller.sdk.users import Users


class _BlockingPropeller(AsyncPropeller):
    _transport = BlockingTransport


class ExperimentHandle(Blocking[AsyncExperimentHandle]):
    """An experiment of a stack.

    ``status``, ``wait``, ``history``, ``model``, ``pause``, ``resume`` and ``stop`` are described at ``AsyncExperimentHandle``.
    """

    status = blocking(AsyncExperimentHandle.status)
    wait = blocking(AsyncExperimentHandle.wait)
    history = blocking(AsyncExperimentHandle.history)
    history_csv = blocking(AsyncExperimentHandle.history_csv)
    model = blocking(AsyncExperimentHandle.model)
    pause = blocking(AsyncExperimentHandle.pause)
    resume = blocking(AsyncExperimentHandle.resume)
    stop = blocking(AsyncExperimentHandle.stop)

    @property
    def id(self) -> str:
        """Its id."""
        return self._inner.id

    def events(self, after: str | None = None) -> Iterator[Event]:
        """What happens, as it happens, from the beginning or behind the event with the id ``after``; ends with the experiment.

        A connection that breaks is made again, and goes on behind the last event: none is left out or comes twice.

        Raises:
            PropellerError: there is no such experiment, or the coordinator cannot be reached for a minute.
        """
        return iterate(self._inner.events(after))


class Propeller(Blocking[AsyncPropeller]):
    """A stack: its manager, coordinator, model registry and data store.

    The methods are described at ``AsyncPropeller``.

    Attributes:
        stack: ``stack.json``, if it was read from there; else empty.
        models: its model versions.
        devices: the devices of its domain.
        users: the people who may use it.
    """

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
        """A client of the stack on a host; the arguments are those of ``AsyncPropeller``.

        Raises:
            InvalidError: these contradict each other, or one is not an address.
            StartError: ``ca_cert`` cannot be read, or is no certificate.
        """
        super().__init__(
            _BlockingPropeller(
                url=url,
                user=user,
                password=password,
                manager=manager,
                coordinator=coordinator,
                model_registry=model_registry,
                data_store=data_store,
                identity=identity,
                aggregator=aggregator,
                proxy=proxy,
                oci_registry=oci_registry,
                auth=auth,
                ca_cert=ca_cert,
                stack=stack,
                login=login,
            )
        )
        self.stack = self._inner.stack
        self.models = Models(self._inner.models)
        self.devices = Devices(self._inner.devices)
        self.users = Users(self._inner.users)

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    close = blocking(AsyncPropeller.aclose)
    audit = blocking(AsyncPropeller.audit)
    audit_lines = blocking(AsyncPropeller.audit_lines)
    logs = blocking(AsyncPropeller.logs)
    log_lines = blocking(AsyncPropeller.log_lines)
    proplets = blocking(AsyncPropeller.proplets)
    device_names = blocking(AsyncPropeller.device_names)
    versions = blocking(AsyncPropeller.versions)
    latest = blocking(AsyncPropeller.latest)
    model = blocking(AsyncPropeller.model)
    put_model = blocking(AsyncPropeller.put_model)
    put_dataset = blocking(AsyncPropeller.put_dataset)
    start_round = blocking(AsyncPropeller.start_round)
    wait_round = blocking(AsyncPropeller.wait_round)
    run_round = blocking(AsyncPropeller.run_round)
    round = blocking(AsyncPropeller.round)
    rounds = blocking(AsyncPropeller.rounds)
    cancel_round = blocking(AsyncPropeller.cancel_round)
    retry_round = blocking(AsyncPropeller.retry_round)
    experiments = blocking(AsyncPropeller.experiments)
    answering = blocking(AsyncPropeller.answering)
    keep_login = blocking(AsyncPropeller.keep_login)
    end_login = blocking(AsyncPropeller.end_login)
    push_program = blocking(AsyncPropeller.push_program)
    prefetch = blocking(AsyncPropeller.prefetch)
    strategies = blocking(AsyncPropeller.strategies)
    strategy = blocking(AsyncPropeller.strategy)

    @property
    def registry(self) -> str:
        """The address of the stack's registry, to which programs are pushed; empty if none is known."""
        return self._inner.registry

    def url(self, service: str) -> str:
        """The address of a service: ``manager``, ``coordinator``, ``model_registry``, ``data_store`` or ``identity``."""
        return self._inner.url(service)

    @property
    def services(self) -> tuple[str, ...]:
        """The services whose addresses are known, by name."""
        return self._inner.services

    def image(self, name: str = "fl-client-wasm") -> str:
        """The reference of a program that the stack put into its own registry.

        Raises:
            PropellerError: there is none of that name.
        """
        return self._inner.image(name)

    def run(self, experiment: Experiment, *, folder: str | Path = ".") -> ExperimentHandle:
        """Submit an experiment; returns at once. It goes on without this program.

        Its data and its first model are stored before, its program pushed if that is a file, whose path is from ``folder``.

        Raises:
            PropellerError: something is wrong with it; the text names the field.
        """
        return ExperimentHandle(complete(self._inner.run(experiment, folder=folder)))

    def experiment(self, experiment: str) -> ExperimentHandle:
        """An experiment that was submitted before, by its id; or the newest one of a name.

        Raises:
            InvalidError: it is neither.
            NotFoundError: there is none with this id or name.
        """
        return ExperimentHandle(complete(self._inner.experiment(experiment)))
