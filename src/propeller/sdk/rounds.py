"""Rounds that a person starts one by one: begun, waited for, cancelled, aggregated after all."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from propeller.errors import NotFoundError, PropellerError
from propeller.metrics import metric_fault
from propeller.protocol import rounds as wire
from propeller.protocol.bounds import UpdateBounds
from propeller.protocol.strict import nearest_names
from propeller.protocol.wire import explain_validation_error
from propeller.sdk.connection import Connection
from propeller.sdk.values import plain

WAIT_S = 20.0
"""How long one question for news of a round is held open, in seconds."""


@dataclass(frozen=True)
class RoundResult:
    """A round that completed.

    Attributes:
        round_id: its id.
        model_version: the version that its aggregated model got.
        updates: for each update that counts, ``proplet_id``, ``num_samples`` and ``metrics``.
        seconds: from its configuration to its end.
        failures: participants that failed, or were late at the deadline: id → why.
        missing: participants of which neither an update nor a failure came before the round was closed.
        skipped: participants that were not asked, as they were not alive when it started: id → why.
    """

    round_id: str
    model_version: int
    updates: list[dict[str, Any]]
    seconds: float
    failures: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Shows how it ended, and who failed, not each update."""
        of = {"failed": self.failures, "missing": self.missing, "skipped": self.skipped}
        who = {what: ", ".join(names) for what, names in of.items()}
        said = "".join(f"; {what}: {names}" for what, names in who.items() if names)
        return f"<RoundResult {self.round_id}: v{self.model_version} of {len(self.updates)} updates, {self.seconds:.1f} s{said}>"

    def mean(self, metric: str) -> float | None:
        """The mean of a metric over the updates that have it, weighted by their samples."""
        found = [
            (update["num_samples"], update["metrics"][metric])
            for update in self.updates
            # Rounds from before metrics had to be numbers may have others.
            if metric_fault(metric, update["metrics"].get(metric)) is None
        ]
        total = sum(samples for samples, _ in found)
        return sum(samples * value for samples, value in found) / total if total else None


class AsyncRounds(ABC):
    """The rounds of a stack: what ``AsyncPropeller`` can do with them. Experiments start theirs themselves."""

    _connection: Connection

    @abstractmethod
    async def proplets(self, *, alive: bool | None = None) -> list[dict[str, Any]]:
        """The proplets that the manager knows; ``alive`` narrows to those that are, or are not."""

    @abstractmethod
    async def latest(self) -> int:
        """The newest model's version."""

    async def start_round(
        self,
        image: str,
        *,
        participants: Sequence[str] | None = None,
        hyperparams: Mapping[str, Any] | None = None,
        limits: Mapping[str, float] | None = None,
        update: Mapping[str, Any] | None = None,
        base_version: int | None = None,
        k_of_n: int = 0,
        timeout_s: float = 60.0,
        round_id: str | None = None,
    ) -> str:
        """Start a round; returns its id.

        Args:
            image: the program, as an OCI reference.
            participants: client ids of the proplets that take part; all that are alive if not given.
            hyperparams: handed to the program as they are.
            limits: what each participant's task may use at most, as ``{"wall_time_s": 60}``; a proplet's own lower
                ones stay.
            update: how large each participant's numbers may be, as ``{"max_share": 0.2, "max_norm": 5.0}``.
            base_version: the model to start from; the latest if not given.
            k_of_n: how many updates end the round; 0 means all participants.
            timeout_s: when the round ends with what has come, in seconds.
            round_id: an id of your own; the same id again never starts a second round.

        Raises:
            PropellerError: with what to correct.
        """
        chosen = (
            list(participants)
            if participants is not None
            else [p["id"] for p in await self.proplets(alive=True)]
        )
        version = base_version if base_version is not None else await self.latest()
        try:
            experiment = wire.Experiment(
                experiment_id=f"exp-{uuid.uuid4().hex[:12]}",
                round_id=round_id or f"r-{uuid.uuid4().hex[:12]}",
                model_ref=wire.model_uri(plain(version, "base_version")),
                participants=chosen,
                hyperparams=plain(hyperparams or {}, "hyperparams"),
                k_of_n=plain(k_of_n, "k_of_n") or len(chosen),
                timeout_s=plain(timeout_s, "timeout_s"),
                task_wasm_image=image,
                limits=plain(limits, "limits") if limits else None,
                update=UpdateBounds.decode(plain(update, "update")) if update else None,
            )
            body = experiment.model_dump(mode="json")
        except ValidationError as error:
            raise PropellerError(explain_validation_error(error)) from None
        await self._connection.ask("POST", "manager", "/fl/experiments", json=body)
        return experiment.round_id

    async def wait_round(
        self, round_id: str, on_update: Callable[[int, int], None] | None = None
    ) -> RoundResult:
        """Wait for the end of a round; ``on_update`` is called with the updates so far and the number that ends it.

        Raises:
            PropellerError: the round failed; the text has the reason.
        """
        seen = -1
        while True:
            question = {"wait_s": WAIT_S, "updates": max(seen, 0)}
            status = await self._connection.ask(
                "GET", "coordinator", f"/rounds/{round_id}/complete", params=question
            )
            if status["num_updates"] != seen:
                seen = status["num_updates"]
                if on_update is not None:
                    on_update(seen, status["k_of_n"])
            if status["completed"]:
                break
            if status.get("state") == "failed":
                raise PropellerError(f"round {round_id} failed: {status.get('reason')}")
        detail = await self._connection.ask("GET", "coordinator", f"/rounds/{round_id}")
        reasons = {one["proplet_id"]: one["reason"] for one in detail["failures"]}
        skipped = {
            name: reason.removeprefix(wire.SKIPPED)
            for name, reason in reasons.items()
            if reason.startswith(wire.SKIPPED)
        }
        return RoundResult(
            round_id,
            status["model_version"],
            detail["received"],
            _seconds(detail),
            {name: reason for name, reason in reasons.items() if name not in skipped},
            [name for name in detail["missing"] if name not in reasons],
            skipped,
        )

    async def run_round(
        self,
        image: str,
        *,
        on_update: Callable[[int, int], None] | None = None,
        participants: Sequence[str] | None = None,
        hyperparams: Mapping[str, Any] | None = None,
        limits: Mapping[str, float] | None = None,
        update: Mapping[str, Any] | None = None,
        base_version: int | None = None,
        k_of_n: int = 0,
        timeout_s: float = 60.0,
        round_id: str | None = None,
    ) -> RoundResult:
        """Start a round and wait for its end: ``start_round`` and ``wait_round``, whose arguments these are."""
        started = await self.start_round(
            image,
            participants=participants,
            hyperparams=hyperparams,
            limits=limits,
            update=update,
            base_version=base_version,
            k_of_n=k_of_n,
            timeout_s=timeout_s,
            round_id=round_id,
        )
        return await self.wait_round(started, on_update)

    async def round(self, round_id: str) -> dict[str, Any]:
        """Everything that the coordinator says of a round: ``state``, ``failures``, ``stages`` of participants that it waits for, …

        Raises:
            NotFoundError: there is none of this id.
        """
        found: dict[str, Any] = await self._ask_of("GET", round_id)
        return found

    async def rounds(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest rounds, newest first."""
        answer = await self._connection.ask("GET", "coordinator", "/rounds", params={"limit": limit})
        found: list[dict[str, Any]] = answer["rounds"]
        return found

    async def cancel_round(self, round_id: str) -> None:
        """End a round that is of no experiment of many rounds; the updates that it has are kept for ``retry_round``.

        Raises:
            PropellerError: there is none, it is over, or it is an experiment's.
        """
        await self._ask_of("POST", round_id, "/cancel")

    async def retry_round(self, round_id: str) -> None:
        """Aggregate the updates of a failed or cancelled round after all.

        Raises:
            PropellerError: it has not failed, has too few updates, they were removed, or it is an experiment's.
        """
        await self._ask_of("POST", round_id, "/retry")

    async def _ask_of(self, method: str, round_id: str, what: str = "") -> Any:
        """The coordinator's answer about a round; if there is none of this id, the error says which may be meant."""
        try:
            return await self._connection.ask(method, "coordinator", f"/rounds/{round_id}{what}")
        except NotFoundError:
            newest = [one["round_id"] for one in await self.rounds()]
        near = nearest_names(round_id, newest)
        meant = f"; did you mean {near[0]}?" if near else ":" if newest else "; there is none yet"
        where = " 'propeller status' lists the newest" if newest else ""
        raise NotFoundError(f"there is no round {round_id}{meant}{where}")


def _seconds(detail: Mapping[str, Any]) -> float:
    created, ended = (datetime.fromisoformat(detail[name]) for name in ("created_at", "ended_at"))
    return (ended - created).total_seconds()
