"""What the manager's routes share: reading pages and JSON bodies, counting requests, who may give orders."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any

from fastapi import Depends, Path, Query, Request
from prometheus_client import Metric
from prometheus_client.registry import Collector

from propeller.manager.service import Manager
from propeller.protocol.ids import Id
from propeller.protocol.wire import decode_object
from propeller.web.auth import Principal, caller
from propeller.web.errors import ApiError

MAX_LIMIT = 1000

Offset = Annotated[int, Query(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT)]
PathId = Annotated[Id, Path()]


def _manager(request: Request) -> Manager:
    manager: Manager = request.app.state.manager
    return manager


TheManager = Annotated[Manager, Depends(_manager)]


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        ApiError: 415, it is announced as something else.
        MalformedMessageError: it is not a JSON object.
    """
    kind = request.headers.get("content-type", "application/json")
    if "json" not in kind.lower():
        raise ApiError(415, f"Content-Type is {kind[:80]!r}: send application/json")
    return decode_object(await request.body())


Body = Annotated[dict[str, Any], Depends(read_object)]


async def check_operator(principal: Annotated[Principal, Depends(caller)]) -> None:
    """Refuse every client but a manager: devices and services have no business with the fleet and its tasks.

    Raises:
        ApiError: 403.
    """
    if principal.kind == "client" and principal.role != "manager":
        raise ApiError(403, f"client {principal.id} is a {principal.role}: a user or a manager must do this")


class ApiMetrics(Collector):
    """Requests under the names that absmach/propeller's dashboards know; ``method`` as in ``list-tasks``."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._micros: Counter[str] = Counter()

    async def count(self, request: Request) -> AsyncIterator[None]:
        """FastAPI dependency: count and time a request."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            method = str(request.scope["route"].name).replace("_", "-")
            self._counts[method] += 1
            self._micros[method] += round((time.perf_counter() - begun) * 1e6)

    def collect(self) -> Iterable[Metric]:
        """Give the numbers of now."""
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
