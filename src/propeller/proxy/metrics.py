"""What the proxy counts."""

from prometheus_client import Counter

from propeller.web.metrics import HttpMetrics


class ProxyMetrics(HttpMetrics):
    """The HTTP collectors, and the proxy's own."""

    def __init__(self) -> None:
        super().__init__("proxy")
        registry = self.registry
        self.program_requests = Counter(
            "propeller_proxy_requests",
            "Requests for programs, by how they ended.",
            ["outcome"],
            registry=registry,
        )
        self.chunks = Counter("propeller_proxy_chunks", "Chunks published.", registry=registry)
        self.bytes = Counter("propeller_proxy_bytes", "Bytes of programs published.", registry=registry)
        self.fetched = Counter(
            "propeller_proxy_fetches", "Programs fetched from registries.", registry=registry
        )
        self.fetched_bytes = Counter("propeller_proxy_fetched_bytes", "Bytes fetched.", registry=registry)
