"""A manager, without and with a coordinator."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from propeller.manager import tables
from propeller.store.database import Database
from propeller.store.migrations import migrate
from support.databases import database_at
from support.manager import FakeCoordinator, RunningManager, open_manager


@pytest.fixture
async def manager(broker_port: int, tmp_path: Path) -> AsyncIterator[RunningManager]:
    async with open_manager(broker_port, tmp_path) as running:
        yield running


@pytest.fixture
async def coordinator() -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator().running() as running:
        yield running


@pytest.fixture
async def fl_manager(
    broker_port: int, tmp_path: Path, coordinator: FakeCoordinator
) -> AsyncIterator[RunningManager]:
    async with open_manager(broker_port, tmp_path, coordinator_url=coordinator.url) as running:
        yield running


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = Database(database_at(tmp_path / "manager.db"))
    await migrate(opened, tables.SCHEMA)
    yield opened
    await opened.close()
