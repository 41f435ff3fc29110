"""Updates that come over MQTT, from proplets that could not reach the coordinator over HTTP."""

import asyncio
import itertools

from obstore.exceptions import BaseError
from sqlalchemy.exc import DBAPIError

from propeller.coordinator.service import Coordinator
from propeller.coordinator.updates import read_update
from propeller.errors import PropellerError, UnavailableError
from propeller.fl.tensors import JSON, SAFETENSORS
from propeller.mqtt.session import Session
from propeller.process.logs import get_logger
from propeller.protocol.topics import UPDATES_FILTER, Channel, Kind, parse_topic
from propeller.protocol.wire import MalformedMessageError

log = get_logger("coordinator")

DELAYS, LONGEST_DELAY_S = (0.2, 1.0, 5.0), 15.0
"""Seconds between tries to store an update, when the database or the blobs fail."""


_AWAY = (OSError, DBAPIError, UnavailableError, BaseError)
"""What the database and the blobs raise while they cannot be used."""


class Intake:
    """Takes updates from ``fl/rounds/{round}/updates/{proplet}``, with and without the channel prefix.

    The topic says who sent it (the broker lets a proplet publish as itself only), so the payload must say the same.
    A refused update is a warning in the log, as MQTT has no answer. One that cannot be stored is tried again for as long as it
    takes: it is acknowledged after that. If the process ends before, the broker delivers it again.
    """

    def __init__(self, service: Coordinator, *, max_bytes: int, delays: tuple[float, ...] = DELAYS) -> None:
        """Give updates to ``service``."""
        self._service, self._max_bytes, self._delays = service, max_bytes, delays

    async def subscribe(self, session: Session, channel: Channel | None) -> None:
        """Take updates from a session."""
        await session.subscribe(UPDATES_FILTER, self.take)
        if channel is not None:
            await session.subscribe(f"{channel.prefix}/{UPDATES_FILTER}", self.take)

    async def take(self, topic: str, payload: bytes) -> None:
        """Handle one message."""
        delays = itertools.chain(self._delays, itertools.repeat(LONGEST_DELAY_S))
        while True:
            try:
                await self._take(topic, payload)
            except (MalformedMessageError, PropellerError) as error:
                log.warning("update over MQTT refused", topic=topic[:300], reason=str(error)[:500])
                return
            except _AWAY as error:
                # For as long as it takes: an update that the broker is told of as handled would be lost.
                delay = next(delays)
                log.error(  # noqa: TRY400 - the reason says it
                    "update over MQTT could not be stored, trying again",
                    topic=topic[:300],
                    reason=str(error)[:500],
                    delay_s=delay,
                )
                await asyncio.sleep(delay)
            else:
                return

    async def _take(self, topic: str, payload: bytes) -> None:
        place = parse_topic(topic)
        if place is None or place.kind is not Kind.UPDATE:
            raise MalformedMessageError("not the topic of an update: its ids are not valid")
        if len(payload) > self._max_bytes:
            raise MalformedMessageError(
                f"{len(payload)} bytes are over the limit of {self._max_bytes} bytes (COORDINATOR_MAX_BYTES)"
            )
        incoming = await read_update(JSON if payload[:1] == b"{" else SAFETENSORS, payload)
        header = incoming.header
        if (header.round_id, header.proplet_id) != (place.round_id, place.proplet_id):
            raise MalformedMessageError(
                f"the topic is of {place.proplet_id} in round {place.round_id}, the update says "
                f"{header.proplet_id} in round {header.round_id}"
            )
        await self._service.take(incoming)
