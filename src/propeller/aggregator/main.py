"""The aggregator's process."""

import asyncio

from propeller.aggregator.api import create_api
from propeller.aggregator.service import Aggregator
from propeller.aggregator.settings import AggregatorSettings
from propeller.web.auth import verifier
from propeller.web.server import Bind, check_exposure, serve


async def main(settings: AggregatorSettings, stop: asyncio.Event) -> None:
    """Serve until ``stop`` is set.

    Raises:
        StartError: the port cannot be had.
    """
    check_exposure(
        "aggregator", settings.host, authenticated=settings.auth == "on", insecure=settings.insecure
    )
    app = create_api(
        Aggregator(max_update_bytes=settings.max_update_bytes),
        verify=verifier(settings),
        max_bytes=settings.max_bytes,
        max_json_bytes=settings.max_json_bytes,
    )
    await serve([(Bind("aggregator", settings.host, settings.port, "AGGREGATOR_PORT"), app)], stop)
