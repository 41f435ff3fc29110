"""The broker as a service: the server runs until told to stop, and again when it ends by itself or must begin anew."""

import asyncio

from propeller.mqtt.broker import Broker
from propeller.mqtt.broker_settings import Settings
from propeller.process.logs import get_logger

log = get_logger("broker")

RESTART_DELAY_S = 0.2


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Keep the broker running until ``stop`` is set.

    Raises:
        StartError: it cannot start, or not again.
    """
    stopping = asyncio.create_task(stop.wait())
    try:
        while not stop.is_set():
            async with Broker(settings) as broker:
                ended = asyncio.create_task(broker.wait())
                anew = asyncio.create_task(broker.wait_to_begin_anew())
                await asyncio.wait({ended, anew, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if ended.done() and not stop.is_set():
                    log.error("broker ended, starting it again", code=ended.result())
                elif anew.done():
                    log.warning("broker can write again, starting it anew")
                ended.cancel()
                anew.cancel()
            await asyncio.wait({stopping}, timeout=RESTART_DELAY_S)
    finally:
        stopping.cancel()
