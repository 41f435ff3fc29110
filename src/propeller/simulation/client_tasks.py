"""What the devices of a simulation do with the tasks of a round: when something is heard of each, and what."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from propeller.coordinator.aggregation_requests import contribution_of
from propeller.coordinator.rounds import AcceptedUpdate, RoundRecord
from propeller.coordinator.transfer import Transfer
from propeller.coordinator.update_checks import check_contribution
from propeller.errors import InvalidError, PropellerError
from propeller.fl.bounds import check_norm, check_numbers
from propeller.fl.round import ParticipantFailed
from propeller.fl.selection import Candidate, slot_seed
from propeller.fl.tensors import Tensors, from_safetensors
from propeller.protocol.rounds import RoundStart
from propeller.protocol.updates import UpdateHeader
from propeller.protocol.wire import MalformedMessageError
from propeller.simulation.devices import VirtualDevices
from propeller.simulation.messages import ClientReport, ClientTask, RoundTask
from propeller.simulation.update_spool import UpdateSpool
from propeller.simulation.workers import ClientRunner
from propeller.wasm import folder_contents

CENTRAL = "coordinator"
"""The one participant of a central evaluation, as on a fleet."""


_COMPUTED_BYTES = 256 * 1024 * 1024
"""Of updates that are computed together, which are kept in memory until they are heard."""

_LEAST_COMPUTED, _MOST_COMPUTED = 16, 1024


@dataclass(frozen=True, slots=True)
class Coming:
    """When something is heard of a participant: its update, or that it is gone."""

    moment: float
    drops_out: bool
    slot: int
    name: str

    @property
    def order(self) -> tuple[float, bool, int]:
        """The soonest first; of the same moment, those that are gone, and then by slots."""
        return self.moment, not self.drops_out, self.slot


@dataclass
class OpenRound:
    """A round, and what its participants have sent or will send.

    Attributes:
        record: as a coordinator has it.
        updates: the tensors of updates, by participant.
        task: what its participants have in common; ``None`` until they are chosen.
        coming: what is still to be heard of participants, the soonest last.
        number: the place of what is heard first among the events of its moment; each after it has the next one.
        results: what was computed and is not heard yet.
        model_bytes: of the base model.
    """

    record: RoundRecord
    updates: UpdateSpool
    task: RoundTask | None = None
    coming: list[Coming] = field(default_factory=list)
    number: int = 0
    results: dict[str, tuple[ClientReport, bytes]] = field(default_factory=dict)
    model_bytes: int = 0

    def let_go(self) -> None:
        """Keep nothing that is not wanted any more once it is over; updates apart, which may be merged later."""
        self.task = None
        self.coming, self.results = [], {}


class ClientTasks:
    """The tasks of all clients of an experiment.

    Attributes:
        done: how many were computed.
    """

    def __init__(
        self,
        clients: Sequence[Candidate],
        devices: VirtualDevices,
        samples: Callable[[int], int],
        runner: ClientRunner,
        model: Callable[[int], Tensors],
    ) -> None:
        """No task yet; ``model`` gives a version, the other arguments are as of ``SimulatedExperiment``."""
        self.done = 0
        self._clients = {one.id: number for number, one in enumerate(clients)}
        self._devices, self._samples, self._runner, self._model = devices, samples, runner, model
        self._counts = Counter[int]()
        self._ids = itertools.count()
        self._kept_states: dict[str, str] = {}
        self._residuals: dict[str, str] = {}

    def begin(self, one: OpenRound, now: float) -> None:
        """Draw when something is heard of each participant of a round that begins."""
        for slot, name in enumerate(one.record.round.plan.participants):
            if name == CENTRAL:
                one.coming.append(Coming(now, drops_out=False, slot=slot, name=name))
                continue
            client = self._clients[name]
            drawn = self._devices.draw(client, self._counts[client], 2 * one.model_bytes, self._samples, now)
            self._counts[client] += 1
            one.coming.append(Coming(now + drawn.seconds, drawn.drops_out, slot, name))
        one.coming.sort(key=lambda each: each.order, reverse=True)

    def report(self, one: OpenRound, coming: Coming, missing: int) -> AcceptedUpdate | ParticipantFailed:
        """A device's update, or why it has none; ``missing`` updates close the round."""
        name = coming.name
        if coming.drops_out:
            return ParticipantFailed(name, "the device dropped out")
        if name not in one.results:
            self._compute(one, missing)
        report, content = one.results.pop(name)
        if report.error is not None:
            return ParticipantFailed(name, report.error)
        try:
            update = self._check(one, coming, report, content)
        except PropellerError as error:
            return ParticipantFailed(name, str(error))
        _replace(self._kept_states, name, report.kept)
        _replace(self._residuals, name, report.residual)
        if content:
            one.updates.add(name, content)
        return update

    def _compute(self, one: OpenRound, missing: int) -> None:
        """Compute what the next participants send: as many as the round still needs, so that all workers have something to do.

        But not more at once than are kept in memory until they are heard.
        """
        record = one.record
        if one.task is None or not isinstance(record.request, RoundStart):
            raise AssertionError("a round of an experiment begins before anything is heard")
        most = min(max(_COMPUTED_BYTES // max(1, one.model_bytes), _LEAST_COMPUTED), _MOST_COMPUTED)
        coming = (each for each in reversed(one.coming) if not each.drops_out)
        if not record.round.plan.is_wave:
            most = min(most, missing)
        tasks = [
            ClientTask(
                next(self._ids),
                one.task.number,
                self._clients.get(each.name),
                each.name,
                slot_seed(record.request.seed, record.request.number, each.slot),
                self._kept_states.get(each.name),
                self._residuals.get(each.name),
            )
            for each in itertools.islice(coming, most)
        ]
        names = {task.id: task.proplet_id for task in tasks}
        for report, content in self._runner.run(one.task, tasks):
            one.results[names[report.id]] = report, content
            self.done += 1

    def _check(self, one: OpenRound, coming: Coming, report: ClientReport, content: bytes) -> AcceptedUpdate:
        """What counts of a report, as a coordinator checks it.

        Raises:
            PropellerError: nothing.
        """
        try:
            header = UpdateHeader.decode(dict(report.header))
        except MalformedMessageError as error:
            raise InvalidError(str(error)) from None
        record = one.record
        check_numbers(record.bounds, coming.name, header.num_samples, header.steps, header.metrics)
        if record.kind == "evaluate":
            digest = hashlib.sha256(header.model_dump_json().encode()).hexdigest()
            return AcceptedUpdate.of(header, digest, 0, coming.moment)
        digest = hashlib.sha256(content).hexdigest()
        try:
            transfer = Transfer(**report.transfer)
        except TypeError:
            raise InvalidError("transfer: a worker said what is none") from None
        accepted = AcceptedUpdate.of(header, digest, len(content), coming.moment, transfer)
        check_contribution(record.strategy, contribution_of(accepted, coming.slot))
        if record.bounds.max_norm is not None:
            base = self._model(record.round.plan.base_version)
            check_norm(record.bounds, coming.name, from_safetensors(content)[0], base, header.kind)
        return accepted


def _replace(kept: dict[str, str], name: str, path: str | None) -> None:
    """Take over what a client keeps now, in the place of what it kept before."""
    if path is None:
        return
    before, kept[name] = kept.get(name), path
    if before is None:
        return
    if Path(before).is_dir():
        folder_contents.remove(Path(before))
    else:
        Path(before).unlink()
