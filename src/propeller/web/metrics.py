"""Prometheus metrics of an HTTP service: requests by route and status, and how long they took."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class HttpMetrics:
    """The collectors of one service; ``registry`` is for the service's own too."""

    def __init__(self, service: str) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "propeller_http_requests",
            "Requests answered.",
            ["service", "method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "propeller_http_request_seconds",
            "Time from the request's head to the last byte of its answer.",
            ["service", "route"],
            registry=self.registry,
        )
        self.service = service

    def text(self) -> bytes:
        """The exposition text of every collector."""
        return generate_latest(self.registry)


class MetricsMiddleware:
    """ASGI middleware that counts and times each request under its route (never its path: ids would flood it)."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = 500, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requests.labels(self.metrics.service, scope["method"], route, status).inc()
            self.metrics.seconds.labels(self.metrics.service, route).observe(time.perf_counter() - started)
