"""What the coordinator tells its operators about rounds: log lines (in the guide's own phrases) and metrics for Prometheus."""

from typing import Any

from prometheus_client import Counter, Histogram

from propeller.coordinator.rounds import RoundChange, RoundRecord
from propeller.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    PropellerError,
    RefusedError,
    UnprocessableError,
)
from propeller.fl.round import RoundState, Verdict
from propeller.process.logs import get_logger
from propeller.protocol.updates import UpdateHeader
from propeller.web.metrics import HttpMetrics

log = get_logger("coordinator")

_OUTCOMES: dict[type[PropellerError], str] = {
    UnprocessableError: "misfit",
    InvalidError: "malformed",
    RefusedError: "foreign",
    NotFoundError: "unknown_round",
    ConflictError: "conflict",
}
"""The label of a refused update in the metrics, by the kind of the error; the first that fits."""


class CoordinatorMetrics(HttpMetrics):
    """Rounds by the state they came to, updates by what became of them, and how long aggregation took."""

    def __init__(self) -> None:
        super().__init__("coordinator")
        self.rounds = Counter(
            "propeller_rounds", "Rounds that came to a state.", ["state"], registry=self.registry
        )
        self.updates = Counter(
            "propeller_updates", "Updates by what became of them.", ["outcome"], registry=self.registry
        )
        self.aggregation = Histogram(
            "propeller_aggregation_seconds",
            "Time from a round's last update to its model being stored.",
            registry=self.registry,
        )


class RoundTelemetry:
    """Logs and counts what happens to rounds and updates, once it is durable."""

    def __init__(self, metrics: CoordinatorMetrics) -> None:
        """Count in ``metrics``."""
        self._metrics = metrics

    def round_configured(self, record: RoundRecord) -> None:
        """A round was set up."""
        self._metrics.rounds.labels(record.state.value).inc()
        plan, request = record.round.plan, record.request
        log.info(
            "Received experiment configuration",
            round_id=record.round_id,
            experiment_id=request.experiment_id,
            participants=len(plan.participants),
            k_of_n=plan.k_of_n,
            timeout_s=request.timeout_s,
            base_version=plan.base_version,
        )

    def update_accepted(self, verdict: Verdict) -> None:
        """An update counts now, or did already."""
        self._metrics.updates.labels(verdict.value).inc()

    def update_refused(self, header: UpdateHeader, error: PropellerError) -> None:
        """An update does not count."""
        self._metrics.updates.labels(_outcome(error)).inc()
        log.warning(
            "update refused",
            round_id=header.round_id,
            proplet_id=header.proplet_id,
            reason=str(error),
        )

    def round_changed(self, change: RoundChange) -> None:
        """A round changed, perhaps by an accepted update or by the failure of a participant."""
        before, after, update = change.before, change.after, change.update
        round_log = log.bind(round_id=after.round_id, updates=len(after.updates))
        for proplet_id, reason in after.round.failures.items():
            if before.round.failures.get(proplet_id) != reason:
                round_log.warning("participant failed", proplet_id=proplet_id, reason=reason)
        if update is not None:
            round_log.info(
                "Received update",
                proplet_id=update.proplet_id,
                num_samples=update.num_samples,
                k_of_n=after.round.plan.k_of_n,
            )
        if after.state is before.state:
            return
        self._metrics.rounds.labels(after.state.value).inc()
        if before.state is RoundState.COLLECTING:
            _log_close(round_log, after)
        if after.state is RoundState.COMPLETED:
            round_log.info(
                "Aggregated model stored", model_version=after.round.model_version, **after.timings
            )
            if after.closed_at is not None and after.ended_at is not None:
                self._metrics.aggregation.observe(after.ended_at - after.closed_at)
        elif after.state is RoundState.FAILED:
            round_log.error("Round failed", reason=after.round.reason)


def _outcome(error: PropellerError) -> str:
    return next((label for kind, label in _OUTCOMES.items() if isinstance(error, kind)), "refused")


def _log_close(round_log: Any, record: RoundRecord) -> None:
    """Say why a round collects no more."""
    k_of_n = record.round.plan.k_of_n
    if k_of_n is not None and len(record.updates) >= k_of_n:
        round_log.info("Round complete: received k_of_n updates", k_of_n=k_of_n)
    elif record.round.late:
        round_log.warning("Round timeout exceeded", timeout_s=record.request.timeout_s)
    else:
        round_log.warning("no update can come any more", failures=len(record.round.failures))
