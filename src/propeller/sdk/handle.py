"""An experiment that was submitted: following, steering and reading it."""

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from propeller.errors import InvalidError, NotFoundError, PropellerError, UnavailableError
from propeller.protocol.ids import check_id
from propeller.protocol.strict import nearest_names
from propeller.protocol.wire import decode_trusted
from propeller.sdk.connection import Connection
from propeller.sdk.history import History
from propeller.sdk.values import SAFETENSORS, decode_model

if TYPE_CHECKING:
    import numpy as np

OVER = frozenset({"completed", "stopped", "failed"})
"""The states in which nothing more happens."""

EVENT_S = 60.0
"""How long a stream may be silent before it is opened again, in seconds."""

PATIENCE_S = 60.0
"""How long a coordinator may be unreachable, as while it is started again, before that is an error; in seconds."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_LONGEST_WAIT_S = 0.5
_LOOKED_THROUGH = 1000
"""Of how many experiments, the newest, one may be meant by a name that there is not."""


class ExperimentFailedError(PropellerError):
    """The experiment failed; the text has the reason.

    Attributes:
        result: how far it came.
    """

    def __init__(self, result: "ExperimentResult") -> None:
        self.result = result
        super().__init__(
            f"experiment {result.id} failed after {result.rounds} of {result.asked} rounds: {result.reason}"
        )


class WaitTimeoutError(PropellerError, TimeoutError):
    """The experiment is not over after the time that was to be waited; it goes on."""


@dataclass(frozen=True)
class Event:
    """Something that happened in an experiment.

    Attributes:
        id: its number in the experiment's stream; ``events(after=id)`` goes on behind it.
        kind: ``state``, ``round_started``, ``update``, ``failure``, ``round_ended``, ``metrics``, ``best`` or ``waiting``.
        data: what is said about it; ``at`` is when it happened.
    """

    id: str
    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def at(self) -> datetime | None:
        """When it happened."""
        return datetime.fromisoformat(self.data["at"]) if self.data.get("at") else None

    @property
    def ends_experiment(self) -> bool:
        """Whether no round is started after it."""
        return self.kind == "state" and self.data.get("state") in OVER


@dataclass(frozen=True)
class ExperimentResult:
    """How an experiment ended.

    Attributes:
        id: the experiment's.
        state: ``completed``, ``stopped`` or ``failed``.
        reason: why it stopped or failed, if it did.
        rounds: training rounds that completed.
        asked: training rounds that were asked for.
        model_version: of the last model; ``None`` if there is none.
        best: ``version``, ``metric`` and ``value`` of the best model, if there is one.
        seconds: from its start to its end; ``None`` if it never started.
    """

    id: str
    state: str
    reason: str | None
    rounds: int
    asked: int
    model_version: int | None
    best: Mapping[str, Any] | None
    seconds: float | None

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "ExperimentResult":
        """From what the coordinator says of the experiment."""
        started, ended = summary.get("started_at"), summary.get("ended_at")
        seconds = (
            (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()
            if started and ended
            else None
        )
        return cls(
            summary["id"],
            summary["state"],
            summary.get("reason") or None,
            summary.get("done", 0),
            summary.get("rounds", 0),
            summary.get("model_version"),
            summary.get("best"),
            seconds,
        )


class AsyncExperimentHandle:
    """An experiment of a stack.

    Attributes:
        id: its id.
    """

    def __init__(
        self, connection: Connection, experiment_id: str, known: Mapping[str, Any] | None = None
    ) -> None:
        """``known`` is what the coordinator last said of it, for ``repr`` alone."""
        self.id = experiment_id
        self._connection, self._known = connection, dict(known or {})

    def __repr__(self) -> str:
        """Shows the state as it was when last heard of."""
        state, rounds = self._known.get("state"), self._known.get("rounds")
        said = f": {state}, {self._known.get('done', 0)} of {rounds} rounds" if state else ""
        return f"<{type(self).__name__} {self.id}{said}>"

    async def status(self) -> dict[str, Any]:
        """What the coordinator says of it now.

        ``id``, ``name``, ``state`` (``queued``, ``running``, ``paused``, ``completed``, ``stopped``, ``failed``), ``reason``, ``rounds``, ``done`` (training
        rounds that completed), ``model_version``, ``best``, the times, ``spec``, and the current ``round`` with updates and failures.
        """
        return self._heard(await self._connection.ask("GET", "coordinator", f"/experiments/{self.id}"))

    async def wait(self, timeout: float | None = None) -> ExperimentResult:
        """Wait for the end; ``timeout`` is in seconds.

        Raises:
            ExperimentFailedError: it failed; the text has the reason.
            WaitTimeoutError: it is not over after ``timeout``; it goes on.
        """
        begun = time.monotonic()
        patience = _Patience()
        while True:
            try:
                status = await self.status()
                patience.renew()
            except UnavailableError as error:
                status = None
                patience.check(error)
            waited = time.monotonic() - begun
            if status is not None and status["state"] in OVER:
                result = ExperimentResult.from_summary(status)
                if result.state == "failed":
                    raise ExperimentFailedError(result)
                return result
            if timeout is not None and waited >= timeout:
                raise WaitTimeoutError(
                    f"experiment {self.id} is not over after {timeout:g} s ({self._known.get('state', 'unknown')}, "
                    f"{self._known.get('done', 0)} of {self._known.get('rounds')} rounds): wait again, or call stop()"
                )
            # Short experiments are noticed at once, long ones cost two questions a second.
            pause = min(max(waited / 20, 0.02), _LONGEST_WAIT_S)
            await self._connection.transport.sleep(
                pause if timeout is None else min(pause, max(timeout - waited, 0.0))
            )

    async def events(self, after: str | None = None) -> AsyncGenerator[Event, None]:
        """What happens, as it happens, from the beginning or behind the event with the id ``after``; ends with the experiment.

        A connection that breaks is made again, and goes on behind the last event: none is left out or comes twice.

        Raises:
            PropellerError: there is no such experiment, or the coordinator cannot be reached for a minute.
        """
        patience, over = _Patience(), False
        while True:
            try:
                before = after
                headers = {} if after is None else {"Last-Event-ID": after}
                path = f"/experiments/{self.id}/events"
                async with self._connection.stream(
                    "coordinator", path, headers=headers, timeout=EVENT_S
                ) as stream:
                    patience.renew()
                    async for sent in stream.events:
                        event = Event(sent.id, sent.event, decode_trusted(sent.data or "{}"))
                        after = event.id or after
                        over = (
                            over or event.ends_experiment
                        )  # the end of a round that is cancelled comes behind it
                        yield event
                if over:
                    return
                if after == before and (await self.status())["state"] in OVER:  # all of it was read before
                    return
            except UnavailableError as error:
                if over:
                    return
                patience.check(error)
            await self._connection.transport.sleep(patience.next_pause())

    async def history(self) -> History:
        """Every round so far, with the metrics of every participant."""
        answer = await self._connection.ask("GET", "coordinator", f"/experiments/{self.id}/history")
        return History(self.id, answer["rounds"])

    async def history_csv(self) -> str:
        """The history as CSV (RFC 4180): the rows of ``History.rows``, a column for each metric."""
        answer = await self._connection.send(
            "GET", "coordinator", f"/experiments/{self.id}/history", params={"format": "csv"}
        )
        return answer.text

    async def model(self, which: int | str = "latest") -> "dict[str, np.ndarray[Any, Any]]":
        """A model as NumPy arrays by tensor name: ``latest``, ``best``, or a version.

        Raises:
            NotFoundError: the experiment has no such model yet.
            InvalidError: ``which`` is none of these.
        """
        version = which if isinstance(which, int) else await self._version(which)
        answer = await self._connection.send(
            "GET", "model_registry", f"/models/{version}", headers={"Accept": SAFETENSORS}
        )
        return decode_model(answer.content)

    async def pause(self) -> None:
        """Let the open round end, and start no other until ``resume``."""
        await self._steer("pause")

    async def resume(self) -> None:
        """Go on after ``pause``."""
        await self._steer("resume")

    async def stop(self) -> None:
        """End it; the open round is cancelled, and versions that there are stay."""
        await self._steer("stop")

    async def _steer(self, verb: str) -> None:
        self._heard(await self._connection.ask("POST", "coordinator", f"/experiments/{self.id}/{verb}"))

    async def _version(self, which: str) -> int:
        status = await self.status()
        match which:
            case "latest":
                version = status.get("model_version")
            case "best":
                version = (status.get("best") or {}).get("version")
            case _:
                raise InvalidError(f"which: {which!r} is no model; give 'latest', 'best' or a version")
        if version is None:
            why = (
                "no round has completed"
                if which == "latest"
                else "it is known after an evaluation that reports loss or accuracy, or by stop.metric"
            )
            raise NotFoundError(f"experiment {self.id} has no {which} model yet: {why}")
        return int(version)

    def _heard(self, summary: dict[str, Any]) -> dict[str, Any]:
        self._known = summary
        return summary


async def find_experiment(connection: Connection, experiment: str) -> AsyncExperimentHandle:
    """An experiment by its id; or the newest one of a name.

    Raises:
        InvalidError: it is neither.
        NotFoundError: there is none with this id or name.
    """
    handle = AsyncExperimentHandle(connection, check_id(experiment))
    try:
        await handle.status()
    except NotFoundError:
        params: dict[str, Any] = {"name": experiment, "limit": 1}
        answer = await connection.ask("GET", "coordinator", "/experiments", params=params)
        if not answer["experiments"]:
            raise NotFoundError(await _explain_unknown(connection, experiment)) from None
        newest = answer["experiments"][0]
        return AsyncExperimentHandle(connection, newest["id"], newest)
    return handle


async def _explain_unknown(connection: Connection, experiment: str) -> str:
    """That there is no such experiment, and which may be meant: by its name, else by its id."""
    params = {"limit": _LOOKED_THROUGH}
    newest = (await connection.ask("GET", "coordinator", "/experiments", params=params))["experiments"]
    names = dict.fromkeys(one["name"] for one in newest)
    near = nearest_names(experiment, names) or nearest_names(experiment, [one["id"] for one in newest])
    meant = f"; did you mean {near[0]}?" if near else ":" if newest else "; there is none yet"
    return f"there is no experiment {experiment}{meant}" + (
        " 'propeller experiments' lists those there are" if newest else ""
    )


class _Patience:
    """For how long a coordinator may be unreachable."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """It answered."""
        self._since, self._pause = time.monotonic(), _FIRST_PAUSE_S

    def next_pause(self) -> float:
        """How long to wait before it is asked again, in seconds."""
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE_S)
        return pause

    def check(self, error: UnavailableError) -> None:
        """Raise the error if it has lasted too long."""
        if time.monotonic() - self._since > PATIENCE_S:
            raise error
