"""What the proxy does with a request: say what a reference stands for, and send its bytes.

A directed proplet asks on its own topic, which tells who it is. It is first told what the reference resolved to; if it
lacks those bytes it asks again with their digest, and takes the chunks from the topic of that digest. A proplet of
absmach/propeller asks on the topic that all share, says only a reference, and takes its chunks from a topic that all share.
"""

import base64
import time
import uuid
from pathlib import Path
from typing import Any

from propeller.errors import PropellerError
from propeller.functions import SECTION, read_functions
from propeller.mqtt.refusals import Refusals
from propeller.mqtt.session import NotConnectedError
from propeller.oci.manifest import NATIVE, REQUIREMENTS, Descriptor
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.process.retry import retry
from propeller.protocol.programs import ProgramChunk, ProgramRequest, ProgramSignature, ResolvedProgram
from propeller.protocol.requirements import Requirements
from propeller.protocol.topics import Channel, Kind, parse_topic
from propeller.protocol.wire import MalformedMessageError, Message
from propeller.proxy.delivery import DeliveryError, Parcel, ProgramGoneError, ProgramSender, Publish
from propeller.proxy.metrics import ProxyMetrics
from propeller.proxy.programs import ProgramSource, Resolution
from propeller.proxy.requesters import Requesters, RequestLimits

log = get_logger("proxy")

MAX_REQUEST_AGE_S = 120.0
"""Older requests are dropped at a start: whoever asked has given up."""

_MAX_DELIVERIES = 3
"""How often a program that goes from the cache while it is sent is fetched again."""


class OpenRequests:
    """A folder with a file for every request that is not answered yet, so that it survives the process.

    It need not survive a power cut, so nothing is synced.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``, made if it is not there."""
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, payload: bytes) -> Path:
        """Keep a request; give the result to ``remove`` when it is answered."""
        path = self._folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        partial = path.with_suffix(".part")
        partial.write_bytes(payload)
        return partial.rename(path)

    def remove(self, path: Path) -> None:
        """Forget an answered request."""
        path.unlink(missing_ok=True)

    def left_over(self) -> list[tuple[Path, bytes]]:
        """What an earlier process left, oldest first."""
        requests = []
        for path in sorted(self._folder.iterdir()):
            if path.suffix or path.stat().st_mtime < time.time() - MAX_REQUEST_AGE_S:
                path.unlink()
            else:
                requests.append((path, path.read_bytes()))
        return requests


class ProxyService:
    """Answers requests for programs; each one in its own task, so that none waits for another's fetch."""

    def __init__(
        self,
        channel: Channel,
        publish: Publish,
        programs: ProgramSource,
        sender: ProgramSender,
        requests: OpenRequests,
        metrics: ProxyMetrics,
        limits: RequestLimits,
    ) -> None:
        self._channel, self._publish = channel, publish
        self._programs, self._sender = programs, sender
        self._requests, self._metrics = requests, metrics
        self._requesters = Requesters(limits)
        self._refusals = Refusals("container request ignored", log)
        self._background = BackgroundTasks("proxy")
        self._closed = False

    def resume(self) -> None:
        """Answer the requests that an earlier process did not answer."""
        for path, payload in self._requests.left_over():
            try:
                request = ProgramRequest.decode(payload)
            except MalformedMessageError as error:
                log.warning("a kept container request is dropped, it cannot be read", reason=str(error))
                self._requests.remove(path)
            else:
                self._requesters.begin(request.proplet_id, repeated=True)
                self._start_answer(path, request)

    async def handle_request(self, topic: str, payload: bytes) -> None:
        """Keep a request and begin to answer it; its message may be acknowledged when this returns."""
        place = parse_topic(topic)
        try:
            request = ProgramRequest.decode(payload)
        except MalformedMessageError as error:
            self._ignore(topic, place.proplet_id if place else None, str(error))
            return
        if place is None or place.proplet_id is None:
            request = ProgramRequest(
                app_name=request.app_name
            )  # whatever else it says: anyone may have sent it
        elif request.proplet_id not in {None, place.proplet_id}:
            self._ignore(topic, place.proplet_id, f"it names another sender, {request.proplet_id}")
            return
        else:
            request = request.model_copy(update={"proplet_id": place.proplet_id})
        if excess := self._requesters.begin(request.proplet_id):
            self._ignore(topic, request.proplet_id, excess, "refused")
            return
        try:
            path = self._requests.add(request.encode())
        except OSError:  # it comes again, and would count for ever
            self._requesters.end(request.proplet_id)
            raise
        if not self._closed:
            self._start_answer(path, request)

    async def close(self) -> None:
        """Stop; open requests are answered after the next start."""
        self._closed = True
        await self._background.close()
        await self._sender.close()
        await self._programs.close()

    def _ignore(self, topic: str, sender: str | None, reason: str, outcome: str = "malformed") -> None:
        self._refusals.log(sender, topic, reason)
        self._metrics.program_requests.labels(outcome).inc()

    def _start_answer(self, path: Path, request: ProgramRequest) -> None:
        log.info(
            "Received container request",
            app_name=request.app_name,
            proplet_id=request.proplet_id,
            digest=request.digest,
        )
        self._background.spawn(self._answer_and_remove(path, request))

    async def _answer_and_remove(self, path: Path, request: ProgramRequest) -> None:
        try:
            if await self._answer(request):
                self._metrics.program_requests.labels("answered").inc()
        except NotConnectedError as error:
            log.warning("could not answer a container request", app_name=request.app_name, reason=str(error))
        except (PropellerError, OSError) as error:
            await self._fail(request, str(error))
        except Exception:
            log.exception("a container request could not be handled", app_name=request.app_name)
            await self._fail(request, "the proxy failed: see its log")
        finally:
            self._requesters.end(request.proplet_id)
        self._requests.remove(path)

    async def _answer(self, request: ProgramRequest) -> bool:
        """Answer a request; whether it was, or was refused as its sender asks for too much."""
        if request.proplet_id is None:
            program = (await self._programs.resolve(request.app_name)).artifact.program
            topic = self._channel.topic(Kind.REGISTRY_CHUNK)
            return await self._send(
                request, Parcel(topic, request.app_name, program.digest, shared=True), None
            )
        if request.digest is None:
            found = await self._programs.resolve(request.app_name, signatures=request.signatures is True)
            program = found.artifact.program
            functions = program.annotations.get(SECTION)
            resolved = ResolvedProgram(
                app_name=request.app_name,
                digest=program.digest,
                reference=str(found.reference),
                size=program.size,
                total_chunks=self._sender.total_chunks(program.size),
                functions=None if functions is None else read_functions(functions),
                requirements=_requirements(program),
                **(_signatures(found) if request.signatures else {}),
            )
            await self._publish(self._channel.answers(request.proplet_id), resolved.encode())
            return True
        parcel = Parcel(self._channel.chunks(request.digest), request.app_name, request.digest, shared=False)
        return await self._send(request, parcel, request.missing)

    async def _send(self, request: ProgramRequest, parcel: Parcel, missing: list[int] | None) -> bool:
        sender, is_kept = request.proplet_id, self._programs.has(parcel.digest)
        excess = self._requesters.take_bytes(sender, 0)
        if excess is None:
            size = await self._programs.ensure(parcel.app_name, parcel.digest)
            wanted = self._sender.wanted_bytes(size, missing)
            excess = self._requesters.take_bytes(sender, wanted if is_kept else size)
        if excess is not None:
            self._ignore(parcel.topic, sender, excess, "refused")
            return False

        async def fetch_and_send() -> None:
            size = await self._programs.ensure(parcel.app_name, parcel.digest)
            await self._sender.send(parcel, size, missing)

        try:
            await retry(
                fetch_and_send,
                delays=(0.0,) * (_MAX_DELIVERIES - 1),
                on=lambda error: isinstance(error, ProgramGoneError),
            )
        except ProgramGoneError as error:
            raise DeliveryError(
                "the proxy's cache loses programs: it is too small, or its disk is broken"
            ) from error
        return True

    async def _fail(self, request: ProgramRequest, reason: str) -> None:
        self._metrics.program_requests.labels("failed").inc()
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


def _requirements(program: Descriptor) -> Requirements | None:
    """What an artifact says that its native program requires: who pushed it says so, and devices look into the program itself."""
    told = program.annotations.get(REQUIREMENTS)
    if program.media_type != NATIVE:
        return None
    try:
        return Requirements.decode(told or "{}")
    except MalformedMessageError as error:
        log.warning("what a native program requires cannot be read", digest=program.digest, reason=str(error))
        return Requirements()


def _signatures(found: Resolution) -> dict[str, Any]:
    """What a proplet verifies a program by."""
    return {
        "manifest": base64.b64encode(found.artifact.manifest).decode(),
        "signatures": [
            ProgramSignature(
                payload=base64.b64encode(one.payload).decode(), value=base64.b64encode(one.value).decode()
            )
            for one in found.signatures or ()
        ],
    }
