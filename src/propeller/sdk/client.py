"""The client of a stack: its services by their addresses, and what can be asked of them."""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import ValidationError

from propeller.errors import PropellerError
from propeller.process.http import error_text, needs_tls
from propeller.protocol.rounds import Experiment, model_uri
from propeller.protocol.wire import explain_validation_error

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
    """

    round_id: str
    model_version: int
    updates: list[dict[str, Any]]
    seconds: float

    def mean(self, metric: str) -> float | None:
        """The mean of a metric over the updates that have it, weighted by their samples."""
        found = [(u["num_samples"], u["metrics"][metric]) for u in self.updates if metric in u["metrics"]]
        total = sum(samples for samples, _ in found)
        return sum(samples * value for samples, value in found) / total if total else None


class Propeller:
    """Talks to the manager, the coordinator, the model registry and the data store."""

    def __init__(
        self,
        *,
        manager: str = "http://localhost:7070",
        coordinator: str = "http://localhost:8086",
        model_registry: str = "http://localhost:8084",
        data_store: str = "http://localhost:8083",
        auth: tuple[str, str] | None = None,
        stack: Mapping[str, Any] | None = None,
    ) -> None:
        """Addresses of the services; ``auth`` is a client's id and key where authentication is on."""
        self._urls = {
            "manager": manager,
            "coordinator": coordinator,
            "model_registry": model_registry,
            "data_store": data_store,
        }
        self._http = httpx.Client(
            timeout=WAIT_S + 10, auth=auth, trust_env=False, verify=needs_tls(*self._urls.values())
        )
        self.stack = dict(stack or {})

    @classmethod
    def from_state(cls, folder: str | Path = ".propeller") -> Self:
        """A client of the stack that runs on a state folder.

        Raises:
            PropellerError: none runs there.
        """
        file = Path(folder) / "stack.json"
        try:
            stack = json.loads(file.read_text())
        except (OSError, ValueError):
            raise PropellerError(
                f"no stack is ready on {folder}: start one with 'propeller up --state {folder}'"
            ) from None
        services = stack["services"]
        return cls(
            manager=services["manager"]["url"],
            coordinator=services["coordinator"]["url"],
            model_registry=services["model_registry"]["url"],
            data_store=services["data_store"]["url"],
            stack=stack,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._http.close()

    def url(self, service: str) -> str:
        """The address of a service: ``manager``, ``coordinator``, ``model_registry`` or ``data_store``."""
        return self._urls[service]

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

    def proplets(self, *, alive: bool | None = None) -> list[dict[str, Any]]:
        """The proplets that the manager knows; ``alive`` narrows to those that are, or are not."""
        found: list[dict[str, Any]] = []
        while True:
            page = self._ask("GET", "manager", "/proplets", params={"limit": 1000, "offset": len(found)})
            found += page["proplets"]
            if not page["proplets"] or len(found) >= page["total"]:
                return [proplet for proplet in found if alive is None or proplet["alive"] is alive]

    def versions(self) -> list[int]:
        """The model versions that there are, in order."""
        versions: list[int] = self._ask("GET", "model_registry", "/models")["versions"]
        return versions

    def latest(self) -> int:
        """The newest model's version.

        Raises:
            PropellerError: there is no model yet.
        """
        versions = self.versions()
        if not versions:
            raise PropellerError(
                "there is no model yet: store one with put_model, or give one in [model] of an experiment file"
            )
        return versions[-1]

    def model(self, version: int | None = None) -> dict[str, Any]:
        """A model as nested lists by tensor name; the latest if no version is given."""
        model: dict[str, Any] = self._ask(
            "GET", "model_registry", f"/models/{'latest' if version is None else version}"
        )
        return model

    def put_model(self, model: Mapping[str, Any]) -> int:
        """Store a model; returns the version it got."""
        return int(self._ask("POST", "model_registry", "/models", json={"model": model})["version"])

    def put_dataset(self, proplet_id: str, dataset: Mapping[str, Any]) -> None:
        """Store the local data of a proplet, as ``{"data": [{"x": [...], "y": 0}, ...]}``."""
        self._ask("POST", "data_store", f"/datasets/{proplet_id}", json=dataset)

    def start_round(
        self,
        image: str,
        *,
        participants: Sequence[str] | None = None,
        hyperparams: Mapping[str, Any] | None = None,
        limits: Mapping[str, float] | None = None,
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
            base_version: the model to start from; the latest if not given.
            k_of_n: how many updates end the round; 0 means all participants.
            timeout_s: when the round ends with what has come, in seconds.
            round_id: an id of your own; the same id again never starts a second round.

        Raises:
            PropellerError: with what to correct.
        """
        chosen = (
            list(participants) if participants is not None else [p["id"] for p in self.proplets(alive=True)]
        )
        version = base_version if base_version is not None else self.latest()
        try:
            experiment = Experiment(
                experiment_id=f"exp-{uuid.uuid4().hex[:12]}",
                round_id=round_id or f"r-{uuid.uuid4().hex[:12]}",
                model_ref=model_uri(version),
                participants=chosen,
                hyperparams=dict(hyperparams or {}),
                k_of_n=k_of_n or len(chosen),
                timeout_s=timeout_s,
                task_wasm_image=image,
                limits=dict(limits) if limits else None,
            )
            body = experiment.model_dump(mode="json")
        except ValueError as error:  # pydantic's errors of either kind are
            reason = explain_validation_error(error) if isinstance(error, ValidationError) else str(error)
            raise PropellerError(reason) from None
        self._ask("POST", "manager", "/fl/experiments", json=body)
        return experiment.round_id

    def wait_round(self, round_id: str, on_update: Callable[[int, int], None] | None = None) -> RoundResult:
        """Wait for the end of a round; ``on_update`` is called with the updates so far and the number that ends it.

        Raises:
            PropellerError: the round failed; the text has the reason.
        """
        seen = -1
        while True:
            question = {"wait_s": WAIT_S, "updates": max(seen, 0)}
            status = self._ask("GET", "coordinator", f"/rounds/{round_id}/complete", params=question)
            if status["num_updates"] != seen:
                seen = status["num_updates"]
                if on_update is not None:
                    on_update(seen, status["k_of_n"])
            if status["completed"]:
                break
            if status.get("state") == "failed":
                raise PropellerError(f"round {round_id} failed: {status.get('reason')}")
        detail = self._ask("GET", "coordinator", f"/rounds/{round_id}")
        return RoundResult(round_id, status["model_version"], detail["received"], _seconds(detail))

    def run_round(
        self, image: str, *, on_update: Callable[[int, int], None] | None = None, **options: Any
    ) -> RoundResult:
        """Start a round and wait for its end; ``options`` are those of ``start_round``."""
        return self.wait_round(self.start_round(image, **options), on_update)

    def rounds(self, limit: int = 100) -> list[dict[str, Any]]:
        """The newest rounds, newest first."""
        found: list[dict[str, Any]] = self._ask("GET", "coordinator", "/rounds", params={"limit": limit})[
            "rounds"
        ]
        return found

    def _ask(self, method: str, service: str, path: str, **options: Any) -> Any:
        url = f"{self._urls[service]}{path}"
        try:
            answer = self._http.request(method, url, **options)
        except httpx.TransportError as error:
            raise PropellerError(
                f"{method} {url}: {str(error) or type(error).__name__}; is the stack running?"
            ) from None
        if not answer.is_success:
            raise PropellerError(f"{method} {url} answered {answer.status_code}: {error_text(answer)}")
        return answer.json()


def _seconds(detail: Mapping[str, Any]) -> float:
    created, ended = (datetime.fromisoformat(detail[name]) for name in ("created_at", "ended_at"))
    return (ended - created).total_seconds()
