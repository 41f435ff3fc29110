"""A proplet among scripted peers, with the real broker and the real sandbox."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture

from support.proplet import Peers, Services, World


@pytest.fixture
async def world(broker_port: int, tmp_path: Path) -> AsyncIterator[World]:
    """Scripted manager, proxy and services, and no proplet yet."""
    peers, services = Peers(broker_port), Services()
    async with services.running(), peers.running(), AsyncExitStack() as stack:
        yield World(peers, services, broker_port, tmp_path / "state", stack)


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """What was logged since, a mapping each."""
    capture = LogCapture()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.PositionalArgumentsFormatter(),
            capture,
        ],
        cache_logger_on_first_use=False,
    )
    return lambda: list(capture.entries)
