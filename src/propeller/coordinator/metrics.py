"""What the coordinator counts for Prometheus, beside its HTTP requests."""

from prometheus_client import Counter, Histogram

from propeller.web.metrics import HttpMetrics


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
