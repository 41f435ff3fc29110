"""What the proxy does with a request: say what a reference stands for, and send its bytes.

A directed proplet says who it is. It is first told what the reference resolved to; if it lacks those bytes it asks
again with their digest, and takes the chunks from the topic of that digest. A proplet of absmach/propeller says
only a reference, and takes its chunks from the topic that all share.
"""

import asyncio
from pathlib import Path

from propeller.mqtt.session import NotConnectedError
from propeller.oci.errors import OciError
from propeller.process.logs import get_logger
from propeller.protocol.programs import ProgramChunk, ProgramRequest, ResolvedProgram
from propeller.protocol.topics import Channel, Kind
from propeller.protocol.wire import MalformedMessageError, Message
from propeller.proxy.delivery import Deliveries, DeliveryError, Parcel, ProgramGoneError, Publish
from propeller.proxy.metrics import ProxyMetrics
from propeller.proxy.pending import Pending
from propeller.proxy.programs import Programs

log = get_logger("proxy")

_MOST_TRIES = 3


class ProxyService:
    """Answers requests for programs; each one in its own task, so that none waits for another's fetch."""

    def __init__(
        self,
        channel: Channel,
        publish: Publish,
        programs: Programs,
        deliveries: Deliveries,
        pending: Pending,
        metrics: ProxyMetrics,
    ) -> None:
        self._channel, self._publish = channel, publish
        self._programs, self._deliveries = programs, deliveries
        self._pending, self._metrics = pending, metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def resume(self) -> None:
        """Take up the requests that an earlier process did not answer."""
        for path, payload in self._pending.left():
            self._begin(path, payload)

    async def take(self, _topic: str, payload: bytes) -> None:
        """Take a request from MQTT; it may be acknowledged when this returns."""
        path = self._pending.add(payload)
        if not self._closed:
            self._begin(path, payload)

    async def aclose(self) -> None:
        """Stop; open requests are taken up at the next start."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._deliveries.aclose()
        await self._programs.aclose()

    def _begin(self, path: Path, payload: bytes) -> None:
        try:
            request = ProgramRequest.decode(payload)
        except MalformedMessageError as error:
            log.warning("ignored a container request that cannot be read", reason=str(error))
            self._metrics.asked.labels("malformed").inc()
            self._pending.done(path)
            return
        log.info(
            "Received container request",
            app_name=request.app_name,
            proplet_id=request.proplet_id,
            digest=request.digest,
        )
        task = asyncio.create_task(self._finish(path, request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self, path: Path, request: ProgramRequest) -> None:
        try:
            await self._answer(request)
            self._metrics.asked.labels("answered").inc()
        except NotConnectedError as error:
            log.warning("could not answer a container request", app_name=request.app_name, reason=str(error))
        except (OciError, DeliveryError, OSError) as error:
            await self._fail(request, str(error))
        except Exception:
            log.exception("a container request could not be handled", app_name=request.app_name)
            await self._fail(request, "the proxy failed: see its log")
        self._pending.done(path)

    async def _answer(self, request: ProgramRequest) -> None:
        if request.proplet_id is None:
            digest, _size = await self._programs.resolve(request.app_name)
            topic = self._channel.topic(Kind.REGISTRY_CHUNK)
            await self._send(Parcel(topic, request.app_name, digest, shared=True), None)
        elif request.digest is None:
            digest, size = await self._programs.resolve(request.app_name)
            total = self._deliveries.total_chunks(size)
            resolved = ResolvedProgram(
                app_name=request.app_name, digest=digest, size=size, total_chunks=total
            )
            await self._publish(self._channel.answers(request.proplet_id), resolved.encode())
        else:
            topic = self._channel.chunks(request.digest)
            await self._send(Parcel(topic, request.app_name, request.digest, shared=False), request.missing)

    async def _send(self, parcel: Parcel, missing: list[int] | None) -> None:
        for _ in range(_MOST_TRIES):
            size = await self._programs.ensure(parcel.app_name, parcel.digest)
            try:
                await self._deliveries.send(parcel, size, missing)
            except ProgramGoneError:
                continue
            return
        raise DeliveryError("the proxy's cache loses programs: it is too small, or its disk is broken")

    async def _fail(self, request: ProgramRequest, reason: str) -> None:
        self._metrics.asked.labels("failed").inc()
        log.error(
            "failed to fetch container",
            app_name=request.app_name,
            proplet_id=request.proplet_id,
            reason=reason,
        )
        answer: Message
        if request.proplet_id is None:
            topic = self._channel.topic(Kind.REGISTRY_CHUNK)
            answer = ProgramChunk(app_name=request.app_name, error=reason)
        else:
            topic = self._channel.answers(request.proplet_id)
            answer = ResolvedProgram(app_name=request.app_name, digest=request.digest, error=reason)
        try:
            await self._publish(topic, answer.encode())
        except NotConnectedError as error:
            log.warning("could not answer a failure", app_name=request.app_name, reason=str(error))
