"""Whether the proxy can have a program: asked over MQTT, as proplets ask."""

import asyncio

from propeller.doctor.broker import connect
from propeller.doctor.checks import Finding, failed, passed, skipped, waits_for
from propeller.doctor.target import Client, Observations, Target
from propeller.mqtt.connection import Connection
from propeller.oci.errors import InvalidReferenceError
from propeller.oci.reference import Reference
from propeller.protocol.programs import ProgramRequest, ResolvedProgram
from propeller.protocol.topics import Kind
from propeller.protocol.wire import MalformedMessageError

LIMIT_S = 7.0
"""How long it may take in all, in seconds."""

_REGISTRY_S, _PROXY_S = 4.5, 1.0
_UNRESOLVABLE = "propeller-doctor/Is-The-Proxy-Here"
"""No reference can be written so: a proxy that hears of it answers at once, without a registry."""


class ImageCheck:
    """Asks for a program as a proplet whose key is accepted, else as the manager."""

    def __init__(self, target: Target, observed: Observations, image: str | None) -> None:
        """``image`` is what to ask for; else the newest round's, else the stack's own."""
        self._target, self._observed, self._chosen = target, observed, image

    async def image(self) -> list[Finding]:
        """Whether the proxy resolves a reference."""
        image = (
            self._chosen or (self._observed.newest_round or {}).get("task_wasm_image") or self._target.image
        )
        if not image:
            return [skipped("image", "there is none to ask for: name one with --image REF")]
        try:
            Reference.parse(image)
        except InvalidReferenceError as error:
            return [failed("image", error.cause, error.remedy)]
        # The manager first: a compat proplet has no topic of its own to ask on.
        askers = sorted(
            (one for one in self._observed.in_channel if one.is_proplet or one.name == "manager"),
            key=lambda one: one.is_proplet,
        )
        asker = askers[0] if askers else None
        if asker is None or self._observed.is_shut_out(self._target.client("proxy")):
            return [waits_for("image", "keys", "channel")]
        async with connect(self._target.broker, asker) as connection:
            await connection.try_subscribe(asker.channel.answers(asker.id), 0)
            answer = await self._resolve(connection, asker, image, _REGISTRY_S)
            if answer is None:
                there = await self._resolve(connection, asker, _UNRESOLVABLE, _PROXY_S) is not None
                return [self._silent(image, there=there)]
        return [self._read(image, answer)]

    async def _resolve(
        self, connection: Connection, asker: Client, image: str, wait_s: float
    ) -> ResolvedProgram | None:
        """The proxy's answer; ``None`` if there is none in time."""
        request = ProgramRequest(app_name=image, proplet_id=asker.id)
        topic = asker.channel.said(Kind.REGISTRY_REQUEST, asker.id)
        try:
            async with asyncio.timeout(wait_s):
                await connection.send(topic, request.encode(), 1)
                async for message in connection.messages:
                    try:
                        answer = ResolvedProgram.decode(bytes(message.payload))
                    except MalformedMessageError:
                        continue
                    if answer.app_name == image:
                        return answer
        except TimeoutError:
            pass
        return None

    def _read(self, image: str, answer: ResolvedProgram) -> Finding:
        if answer.error is None:
            return passed("image", f"the proxy resolves {image} to {answer.digest}")
        cause, _, remedy = answer.error.partition("; ")
        remedy = remedy or self._target.advice.look("proxy")
        other = "" if self._chosen else "; if your program is another: propeller doctor --image REF"
        return failed("image", cause, remedy + other)

    def _silent(self, image: str, *, there: bool) -> Finding:
        if there:
            detail = f"the proxy runs, but its registry gave no answer about {image} within {_REGISTRY_S:g} s"
            fix = f"check PROXY_REGISTRY_URL and that the proxy can reach it: {self._target.advice.look('proxy')}"
            return failed("image", detail, fix)
        detail = "no proxy answers in this channel: tasks would fail with updates=0"
        return failed("image", detail, self._target.advice.restart("proxy"))
