"""Fixtures of the model registry's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from support.model_registry import client


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a registry on a new folder."""
    async with client(tmp_path) as opened:
        yield opened
