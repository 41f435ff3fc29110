"""Fixtures that every test may use."""

from collections.abc import Iterator

import pytest

from support.nats import open_broker


@pytest.fixture(scope="session")
def broker_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The MQTT port of a broker that lets anyone in; use ids of your own, as tests share it."""
    with open_broker(tmp_path_factory.mktemp("broker")) as port:
        yield port
