"""An aggregator, over HTTP and without a server."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from propeller.aggregator.api import create_api
from propeller.aggregator.service import Aggregator
from propeller.aggregator.spill import SpillSpace
from propeller.oci.reference import DefaultRegistry
from propeller.oci.signers import Signers
from propeller.program_host.programs import HostSettings, ProgramHost
from propeller.program_host.settings import make_allowed
from propeller.wasm.program_run import Limits
from support.net import free_port
from support.python_programs import COMPILED


@pytest.fixture
def space(tmp_path: Path) -> SpillSpace:
    return SpillSpace(tmp_path / "spill", 200_000_000)


@pytest.fixture
def oci_registry() -> str:
    """Where programs are that name no registry: nobody, unless a test has another one."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def signers() -> Signers:
    """Of programs: nobody need have signed one, unless a test says so."""
    return Signers("aggregator")


@pytest.fixture
async def http(
    space: SpillSpace, tmp_path: Path, oci_registry: str, signers: Signers
) -> AsyncIterator[httpx.AsyncClient]:
    def open_programs() -> ProgramHost:
        registry = DefaultRegistry.parse(oci_registry)
        limits = Limits(wall_time_s=60)
        return ProgramHost(
            HostSettings(
                "aggregator",
                tmp_path / "cache",
                registry,
                None,
                limits,
                1 << 30,
                COMPILED,
                make_allowed("aggregator", oci_registry, "127.0.0.1:1"),
                signers,
            )
        )

    aggregator = Aggregator(space, max_update_bytes=1_000_000, open_programs=open_programs)
    app = create_api(aggregator, max_bytes=50_000_000, max_json_bytes=100_000)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://aggregator") as client:
        yield client
    await aggregator.close()
