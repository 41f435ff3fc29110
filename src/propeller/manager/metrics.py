"""The manager's own metrics on ``/metrics``: requests by method, and proplets by whether they are alive."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable

from fastapi import Request
from prometheus_client import Metric
from prometheus_client.registry import Collector

from propeller.manager.fleet import Fleet


class ApiMetrics(Collector):
    """Requests under the names that absmach/propeller's dashboards know; ``method`` as in ``list-tasks``."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._micros: Counter[str] = Counter()

    async def count(self, request: Request) -> AsyncIterator[None]:
        """FastAPI dependency: count and time a request."""
        started = time.perf_counter()
        try:
            yield
        finally:
            method = str(request.scope["route"].name).replace("_", "-")
            self._counts[method] += 1
            self._micros[method] += round((time.perf_counter() - started) * 1e6)

    def collect(self) -> Iterable[Metric]:
        """The current numbers."""
        count = Metric("manager_api_request_count", "Number of requests received.", "unknown")
        latency = Metric(
            "manager_api_request_latency_microseconds",
            "Total duration of requests in microseconds.",
            "summary",
        )
        for method, number in self._counts.items():
            labels = {"method": method}
            count.add_sample(count.name, labels, number)
            latency.add_sample(f"{latency.name}_count", labels, number)
            latency.add_sample(f"{latency.name}_sum", labels, self._micros[method])
        return [count, latency]


class FleetMetrics(Collector):
    """How many proplets there are and how many of them are alive."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def collect(self) -> Iterable[Metric]:
        """The current numbers."""
        metric = Metric("manager_proplets", "Proplets known, by whether they are alive.", "gauge")
        alive = len(self._fleet.alive())
        metric.add_sample("manager_proplets", {"status": "active"}, alive)
        metric.add_sample("manager_proplets", {"status": "inactive"}, len(self._fleet.all()) - alive)
        yield metric
