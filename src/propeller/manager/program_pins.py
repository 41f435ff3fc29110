"""What a program's reference stands for: the proxy says, which has the credentials of the registries."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from cachetools import LRUCache

from propeller.errors import UnprocessableError
from propeller.mqtt.session import Session
from propeller.process.logs import get_logger
from propeller.protocol.programs import ProgramRequest, ResolvedProgram
from propeller.protocol.requirements import Requirements
from propeller.protocol.topics import Channel, Kind
from propeller.protocol.wire import MalformedMessageError

log = get_logger("manager")

ASK_AGAIN_S = 2.0
"""Between questions: they and their answers have QoS 0, so that they may be lost."""

MAX_QUESTIONS = 5
"""Unanswered, after which a reference is used as it is: a proxy of absmach/propeller gives no answers."""

_MAX_KNOWN = 1000

SILENT_S = 60.0
"""For so long a proxy that has not answered is not asked again: else each round of an experiment would wait for it anew."""


@dataclass(frozen=True)
class Pin:
    """What a reference names now.

    Attributes:
        reference: by digest, or as it was if the proxy does not answer.
        functions: those that the program's artifact says it has; ``None``: it does not say, or was not asked.
        requirements: what a native program's artifact says it requires; ``None``: it is none, or was not asked.
    """

    reference: str
    functions: list[str] | None = None
    requirements: Requirements | None = None


class ProgramPins:
    """Asks the proxy for references by digest, so that all rounds of an experiment run the same program."""

    def __init__(self, session: Session, channel: Channel, client_id: str) -> None:
        """``client_id`` is the manager's own: the proxy answers on a topic that ends with it."""
        self._known: LRUCache[str, Pin] = LRUCache(_MAX_KNOWN)
        """What is known of references by digest: it cannot change."""
        self._session, self._channel, self._client_id = session, channel, client_id
        self._silent_until = 0.0  # on the event loop's clock
        self._waiting: defaultdict[str, list[asyncio.Future[ResolvedProgram]]] = defaultdict(list)

    async def open(self) -> None:
        """Listen to the proxy's answers."""
        await self._session.subscribe(self._channel.answers(self._client_id), self._handle_answer, qos=0)

    async def pin(self, reference: str) -> Pin:
        """What a reference names now. One by digest is asked for once, for what its artifact says, and used as it is without an answer.

        Raises:
            UnprocessableError: the proxy cannot fetch the program that a tag names; the text says why.
            NotConnectedError: the broker cannot be reached.
        """
        is_pinned = "@sha256:" in reference
        if is_pinned and (known := self._known.get(reference)) is not None:
            return known
        answer = await self._ask(reference, 1 if is_pinned else MAX_QUESTIONS)
        if not is_pinned:
            return Pin(reference) if answer is None else _read(reference, answer)
        if answer is None or answer.error:  # devices may have it, though its registry is away
            return Pin(reference)
        known = self._known[reference] = Pin(reference, answer.functions, answer.requirements)
        return known

    async def _ask(self, reference: str, questions: int) -> ResolvedProgram | None:
        """The proxy's answer; ``None`` if none comes."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._silent_until:
            return None
        question = ProgramRequest(app_name=reference, proplet_id=self._client_id).encode()
        answered: asyncio.Future[ResolvedProgram] = loop.create_future()
        self._waiting[reference].append(answered)
        try:
            for _ in range(questions):
                await self._session.publish(
                    self._channel.said(Kind.REGISTRY_REQUEST, self._client_id),
                    question,
                    qos=0,
                    timeout=ASK_AGAIN_S,
                )
                await asyncio.wait([answered], timeout=ASK_AGAIN_S)
                if answered.done():
                    return answered.result()
        finally:
            self._waiting[reference].remove(answered)
            if not self._waiting[reference]:
                del self._waiting[reference]
        self._silent_until = loop.time() + SILENT_S
        if questions == MAX_QUESTIONS:
            log.warning(
                "program is not pinned: its tag may name another one in later rounds",
                image=reference,
                reason=f"the proxy has not answered for {MAX_QUESTIONS * ASK_AGAIN_S:g} s",
            )
        return None

    async def _handle_answer(self, _topic: str, payload: bytes) -> None:
        try:
            answer = ResolvedProgram.decode(payload)
        except MalformedMessageError as error:
            log.warning("the proxy's answer is dropped", reason=str(error))
            return
        self._silent_until = 0.0
        for waiting in self._waiting.get(answer.app_name, ()):
            if not waiting.done():
                waiting.set_result(answer)


def _read(reference: str, answer: ResolvedProgram) -> Pin:
    if answer.error:
        raise UnprocessableError(f"program {reference} cannot be fetched: {answer.error}")
    return Pin(answer.reference or reference, answer.functions, answer.requirements)
