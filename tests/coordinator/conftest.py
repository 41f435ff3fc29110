"""Fixtures of the coordinator's tests."""

import functools
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from propeller.coordinator.kept_updates import KeptUpdates
from support.coordinator import Peers, assembled, coordinating, environment, serving_peers


@pytest.fixture
async def peers() -> AsyncIterator[tuple[Peers, str]]:
    """The registry and the aggregator, and their URL."""
    async with serving_peers() as both:
        yield both


@pytest.fixture
async def http(peers: tuple[Peers, str], tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a coordinator without MQTT."""
    async with coordinating(environment(tmp_path, peers[1])) as client:
        yield client


@pytest.fixture(params=["database", "files"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where coordinators of this process keep updates; as files they are of any size."""
    if request.param == "files":
        monkeypatch.setattr(
            "propeller.coordinator.main.KeptUpdates", functools.partial(KeptUpdates, small_bytes=0)
        )
    where: str = request.param
    return where


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a coordinator without a server and without peers."""
    async with assembled(tmp_path) as client:
        yield client
