"""``simulate``: an experiment with a virtual fleet on this machine, from Python."""

import contextlib
import errno
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from propeller.coordinator.history import round_json
from propeller.coordinator.rounds import RoundRecord
from propeller.errors import InvalidError
from propeller.fl.tensors import from_safetensors
from propeller.sdk import Experiment
from propeller.sdk.experiment import new_id
from propeller.sdk.history import History
from propeller.sdk.values import encode_model, plain
from propeller.simulation.aggregation import RoundAggregator
from propeller.simulation.description import SimulationSpec
from propeller.simulation.devices import VirtualDevices
from propeller.simulation.experiment import SimulatedExperiment
from propeller.simulation.fleet import Data, Fleet, fleet_of
from propeller.simulation.model_files import ModelFiles
from propeller.simulation.pictures import history_figure
from propeller.simulation.programs import Program, find_program
from propeller.simulation.ray_cluster import connect
from propeller.simulation.ray_nodes import NodePlan, RayNodes
from propeller.simulation.scratch_folder import no_room, scratch_folder
from propeller.simulation.workers import ClientRunner, SharedFolders, WorkerPool, workers_folder
from propeller.wasm.owners_limits import owners_limits
from propeller.wasm.program_run import Limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from propeller.simulation.local_program_host import LocalProgramHost

Observe = Callable[[SimulatedExperiment, RoundRecord], None]


class Simulation:
    """What became of a simulated experiment.

    Attributes:
        id: the experiment's.
        state: ``completed``, ``stopped`` or ``failed``.
        reason: why it ended so, if it did not complete.
        seconds: what it took here.
        virtual_seconds: what it would have taken on the fleet.
        clients: how many clients' tasks were computed.
        fleet: the virtual fleet: ``fleet.label_counts()`` shows how data was divided.
    """

    def __init__(self, ended: SimulatedExperiment, fleet: Fleet, seconds: float) -> None:
        self._ended, self.fleet = ended, fleet
        record = ended.record
        self.id, self.state, self.reason = record.id, record.state.value, record.experiment.reason
        self.seconds, self.virtual_seconds, self.clients = seconds, ended.now, ended.done

    def __repr__(self) -> str:
        """Shows how it ended."""
        return (
            f"<Simulation {self.id}: {self.state}, {self._ended.record.experiment.done} rounds, {self.clients} tasks in "
            f"{self.seconds:.1f} s>"
        )

    def status(self) -> dict[str, Any]:
        """The experiment as a coordinator tells of it."""
        return self._ended.record.summary()

    def history(self) -> History:
        """Every round with every participant's metrics and every failure, as of an experiment on a fleet."""
        return History(self.id, [round_json(record) for record in self._ended.rounds])

    def figure(self) -> "Figure":
        """The metrics by round, as a matplotlib figure.

        Raises:
            InvalidError: matplotlib is not installed, or nothing was measured.
        """
        return history_figure(self.history())

    def model(self, version: int | str = "latest") -> dict[str, npt.NDArray[Any]]:
        """A version of the model: by number, ``"latest"`` or ``"best"``.

        Raises:
            InvalidError: there is no such version.
        """
        experiment = self._ended.record.experiment
        number: Any = version
        if version == "latest":
            number = experiment.version
        elif version == "best":
            if experiment.best is None:
                raise InvalidError(
                    "version: no version is the best one: the experiment measures nothing to tell it by"
                )
            number = experiment.best.version
        try:
            return dict(self._ended.model(number))
        except KeyError:
            raise InvalidError(f"version: {version!r:.80} is no version of this experiment") from None


def simulate(
    experiment: Experiment,
    *,
    clients: int | None = None,
    data: Data | None = None,
    partition: Any = "iid",
    test: float | None = None,
    devices: str | Mapping[str, Any] | VirtualDevices | None = None,
    program: str | Path | None = None,
    strategy_program: str | Path | None = None,
    workers: int | None = None,
    ray: str | None = None,
    native_python: str | Path | None = None,
    first_version: int = 1,
    observe: Observe | None = None,
    notify: Callable[[str], None] | None = None,
) -> Simulation:
    """Run an experiment with a virtual fleet on this machine's cores.

    The same seeds give the same models, to the last bit, however many workers there are; and those that a fleet whose devices have the
    clients' data makes, if its first version has the same number.

    Args:
        experiment: as for a fleet.
        clients: how many there are.
        data: what they hold: ``"digits"``, ``"mnist-5k"``, a path, or columns by name, which are divided; or a document for each.
            Default: the experiment's own.
        partition: how a data set is divided, as ``"iid"`` or ``{"kind": "dirichlet", "alpha": 0.1}``.
        test: the part of the data set that is held out as its test set, for ``evaluate = {"on": "central", "dataset": "test"}``.
        devices: how long each takes, as ``{"seconds": {"distribution": "lognormal", "median": 10, "sigma": 1}, "drop_out": 0.1}``, or
            a trace, ``"devices.csv"``; and at which hours it is there: ``{"available": {"begins": 22, "hours": 8}}``.
        program: the ``.wasm`` or ``.py`` file that clients run, or a reference, as of an experiment on a fleet. Default: the experiment's.
        strategy_program: likewise of a strategy that is a program.
        workers: processes that run clients; default: one a core.
        ray: ``HOST:PORT`` of the head of a Ray cluster that this machine is part of, on whose nodes the workers are. The result is the same.
        native_python: the interpreter that runs a native program, as on a device. Default: that of ``PROPLET_NATIVE_PYTHON``, else the
            one that runs this.
        first_version: the number of the model to start from, as programs may draw by it.
        observe: called whenever a round has changed its state.
        notify: called with what a person should know, as that a node of the cluster is lost; default: a warning.

    Raises:
        PropellerError: a field is wrong, or something cannot be had; the text names it and the remedy.
    """
    began = time.monotonic()
    spec = experiment.spec
    if not isinstance(experiment.model, Mapping):
        raise InvalidError(
            "model: give the tensors to start from, as read_model('train.py') of propeller.sdk has them: there is no registry in a simulation"
        )
    model = from_safetensors(encode_model(experiment.model))[0]
    if strategy_program is not None and spec.strategy.program is None:
        raise InvalidError(
            f'strategy_program: the strategy is {spec.strategy.name}, which is no program: name one, as {{"program": "mine:v1"}}'
        )
    told = {
        "clients": clients,
        "partition": partition,
        "test": test,
        "devices": {} if devices is None or isinstance(devices, VirtualDevices) else devices,
        "workers": workers,
        "ray": ray,
        "native_python": None if native_python is None else str(native_python),
        "first_version": first_version,
    }
    described = SimulationSpec.decode({name: plain(value, name) for name, value in told.items()})
    fleet = fleet_of(
        experiment,
        clients=described.clients,
        data=data,
        partition=described.partition,
        test=described.test,
        devices=devices if isinstance(devices, VirtualDevices) else described.devices.to_devices(),
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_explain_full_disk())
        folder = stack.enter_context(scratch_folder())

        @functools.cache
        def program_host() -> "LocalProgramHost":
            # Here, as a registry's client and a service's sandbox are of no use to most simulations.
            from propeller.simulation.local_program_host import LocalProgramHost

            return stack.enter_context(LocalProgramHost(folder))

        def find(given: str | Path, field: str) -> Program:
            return find_program(given, folder, lambda reference: program_host().fetch(reference), field)

        found = find(spec.program if program is None else program, "program")
        if found.is_native and described.ray is not None:
            raise InvalidError(
                "ray: a native program is simulated on this machine alone, whose interpreter is known: leave ray out"
            )
        limits = owners_limits(Limits(), native=found.is_native).lowered(spec.limits)
        cluster = None if described.ray is None else stack.enter_context(connect(described.ray))
        aggregator: RoundAggregator | None = None
        if spec.strategy.program is not None:
            from propeller.simulation.program_aggregator import ProgramAggregator

            named = spec.strategy.program
            own = find(named if strategy_program is None else strategy_program, "strategy.program")
            prepared = program_host().prepare(own.pinned(named), own.content)
            aggregator = ProgramAggregator(program_host(), prepared, spec.strategy.params)
        models = ModelFiles()
        runner: ClientRunner
        if cluster is None:
            if found.is_native:
                python = None if described.native_python is None else Path(described.native_python)
                # What a task keeps is moved there: on the same file system.
                compiled, theirs = found.native(python, folder), folder
            else:
                compiled = found.compile(limits)
                theirs = stack.enter_context(workers_folder(folder, limits, described.workers))
            shared = SharedFolders.fill(folder, models.folder, fleet.data, fleet.central)
            runner = stack.enter_context(WorkerPool(compiled, shared, theirs, limits, described.workers))
        else:
            plan = NodePlan(found, fleet.data, fleet.central, limits)
            nodes = RayNodes(cluster, plan, folder, described.workers, notify or _warn)
            runner = stack.enter_context(nodes)
        ended = SimulatedExperiment(
            spec.id or new_id(spec.name),
            spec,
            model,
            fleet.candidates,
            fleet.devices,
            fleet.data.samples,
            runner,
            models,
            program=found.pinned(spec.program),
            first_version=described.first_version,
            has_central=fleet.central is not None,
            aggregator=aggregator,
            observe=observe,
        )
        ended.run()
    return Simulation(ended, fleet, time.monotonic() - began)


@contextlib.contextmanager
def _explain_full_disk() -> Iterator[None]:
    """Say what to do where there is no room for temporary files."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, None}:  # NumPy gives none
            raise
        raise no_room(error) from None


def _warn(notice: str) -> None:
    warnings.warn(notice, stacklevel=2)
