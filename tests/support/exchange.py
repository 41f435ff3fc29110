"""Plays one side of an exchange that is written down in a file, over a real broker and real HTTP, and checks the other.

A line of a file is a JSON object. ``from`` says who speaks. Of a peer (any name that is not one of ``OURS``) it is what the
player does; of ours it is what must come. Each is one of

- ``topic`` and ``payload``: a message (``retain``: kept by the broker);
- ``http`` (``"POST /update"``) and ``body``: a request, with the ``status`` and ``answer``. A peer's goes ``to`` one of
  ours, and a GET is asked again until the answer is as written; ours goes to the player, which answers as written (``once``: a GET that must be right at once);
- ``never`` (a topic) and ``payload``: no other such message has come from ours.

A text in angle brackets stands for something else: ``<any>``, ``<int>``, ``<text>`` and ``<time>`` (RFC 3339) for such a
value, ``<absent>`` for a key that must not be there, any other name for a variable: what it first met, and the same
from there on. Objects may hold more than is written, as every peer ignores what it does not know.
"""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiomqtt
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from support.net import eventually
from support.registries import serving

OURS = frozenset({"manager", "proplet", "proxy", "coordinator", "aggregator", "model-registry", "data-store"})

_NAME = re.compile(r"<([a-z0-9_-]+)>")
_TIMEOUT_S = 15.0


@dataclass
class ReceivedMessage:
    """A message that came, not checked yet."""

    topic: str
    payload: Any


@dataclass
class ReceivedRequest:
    """A request that came, and its answer once there is one."""

    method: str
    target: str
    body: Any
    answer: "asyncio.Future[Response]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Player:
    """A channel's peers; ``play`` a file with them."""

    def __init__(self, mqtt: aiomqtt.Client, urls: Mapping[str, str], variables: Mapping[str, Any]) -> None:
        self._mqtt, self._urls, self.variables = mqtt, urls, dict(variables)
        self._received: list[ReceivedMessage] = []
        self._published: list[tuple[str, bytes]] = []
        self._requests: list[ReceivedRequest] = []

    async def play(self, file: Path) -> None:
        """Go through a file, line by line; no request of ours may be left over."""
        for number, text in enumerate(file.read_text().splitlines(), 1):
            try:
                await self._step(json.loads(text))
            except AssertionError as error:
                raise AssertionError(f"{file.name}:{number}: {text[:300]}\n{error}") from None
        assert not self._requests, f"{file.name}: nobody answered {self._requests}"

    async def _step(self, line: dict[str, Any]) -> None:
        if "never" in line:
            wanted = ReceivedMessage(self._fill_in(line["never"]), line.get("payload", {}))
            assert not self._find_message(wanted), (
                f"came: {[one for one in self._received if one.topic == wanted.topic]}"
            )
        elif "topic" in line and line["from"] in OURS:
            wanted = ReceivedMessage(self._fill_in(line["topic"]), line["payload"])
            await self._wait_for(
                lambda: self._match_message(wanted), lambda: f"received: {self._received[-12:]}"
            )
        elif "topic" in line:
            payload = json.dumps(self._fill_in(line["payload"])).encode()
            self._published.append((self._fill_in(line["topic"]), payload))
            await self._mqtt.publish(*self._published[-1], qos=1, retain=line.get("retain", False))
        elif line["from"] in OURS:
            await self._wait_for(lambda: self._answer(line), lambda: f"requested: {self._requests}")
        else:
            await self._request(line)

    async def _wait_for(self, check: Any, describe: Any) -> None:
        try:
            await eventually(check, _TIMEOUT_S)
        except AssertionError:
            raise AssertionError(f"did not come; {describe()}") from None

    def _find_message(self, wanted: ReceivedMessage) -> ReceivedMessage | None:
        for one in self._received:
            if (
                one.topic == wanted.topic
                and mismatch(wanted.payload, one.payload, dict(self.variables)) is None
            ):
                return one
        return None

    def _match_message(self, wanted: ReceivedMessage) -> bool:
        found = self._find_message(wanted)
        if found is None:
            return False
        mismatch(wanted.payload, found.payload, self.variables)
        self._received.remove(found)
        return True

    def _answer(self, line: dict[str, Any]) -> bool:
        """Answer a request that is as the line says, if it has come."""
        method, _, target = self._fill_in(line["http"]).partition(" ")
        for one in self._requests:
            fits = (one.method, one.target) == (method, target)
            if fits and mismatch(line.get("body", "<any>"), one.body, self.variables) is None:
                self._requests.remove(one)
                one.answer.set_result(
                    JSONResponse(self._fill_in(line.get("answer")), line.get("status", 200))
                )
                return True
        return False

    async def _request(self, line: dict[str, Any]) -> None:
        method, _, target = self._fill_in(line["http"]).partition(" ")
        body = self._fill_in(line["body"]) if "body" in line else None
        async with httpx.AsyncClient(base_url=self._urls[line["to"]], trust_env=False, timeout=20) as http:

            async def reason() -> str | None:
                answer = await http.request(method, target, json=body)
                if answer.status_code != line.get("status", 200):
                    return f"answered {answer.status_code}: {answer.text}"
                given = answer.json() if answer.content else None
                why = mismatch(line.get("answer", "<any>"), given, dict(self.variables))
                if why is None:
                    mismatch(line.get("answer", "<any>"), given, self.variables)
                return f"{why} in {given}" if why else None

            why: str | None = ""

            async def agrees() -> bool:
                nonlocal why
                why = await reason()
                return why is None

            try:
                await eventually(agrees, _TIMEOUT_S if method == "GET" and not line.get("once") else 0)
            except AssertionError:
                raise AssertionError(why) from None

    def _fill_in(self, value: Any) -> Any:
        """A written value with the variables' values in it."""
        if isinstance(value, dict):
            return {key: self._fill_in(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill_in(item) for item in value]
        if not isinstance(value, str):
            return value
        whole = _NAME.fullmatch(value)
        if whole:
            return self.variables[whole[1]]
        return _NAME.sub(lambda found: str(self.variables[found[1]]), value)

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Receive messages for the length of the block; requests that are not answered by its end are dropped."""
        listening = asyncio.create_task(self._listen())
        try:
            yield
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            for request in self._requests:
                request.answer.cancel()

    async def _listen(self) -> None:
        async for message in self._mqtt.messages:
            heard = (message.topic.value, bytes(message.payload))
            if heard in self._published:
                self._published.remove(heard)
            else:
                with contextlib.suppress(ValueError):
                    self._received.append(ReceivedMessage(heard[0], json.loads(heard[1])))

    async def answer_request(self, request: Request) -> Response:
        """Answer a request of ours when the file comes to it."""
        content = await request.body()
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        one = ReceivedRequest(request.method, target, json.loads(content) if content else None)
        self._requests.append(one)
        return await one.answer


def mismatch(wanted: Any, found: Any, variables: dict[str, Any]) -> str | None:
    """Why a value is not as written, ``None`` if it is; variables that had no value have one then."""
    if isinstance(wanted, str):
        return _text_mismatch(wanted, found, variables)
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return f"{found!r} is no object"
        for key, item in wanted.items():
            if item == "<absent>":
                if key in found:
                    return f"{key} is there"
                continue
            why = mismatch(item, found[key], variables) if key in found else "it is missing"
            if why:
                return f"{key}: {why}"
        return None
    if isinstance(wanted, list):
        if not isinstance(found, list) or len(found) != len(wanted):
            return f"{found!r} is not {len(wanted)} items"
        return next(
            (why for a, b in zip(wanted, found, strict=True) if (why := mismatch(a, b, variables))), None
        )
    same = wanted == found and isinstance(wanted, bool) == isinstance(found, bool)
    return None if same else f"{found!r} is not {wanted!r}"


def _text_mismatch(wanted: str, found: Any, variables: dict[str, Any]) -> str | None:
    whole = _NAME.fullmatch(wanted)
    if whole is None:
        text = _NAME.sub(lambda name: str(variables.get(name[1], name[0])), wanted)
        return None if text == found else f"{found!r} is not {text!r}"
    match whole[1]:
        case "any":
            right = True
        case "int":
            right = isinstance(found, int) and not isinstance(found, bool)
        case "text":
            right = isinstance(found, str) and bool(found)
        case "time":
            right = isinstance(found, str) and found.endswith("Z") and bool(datetime.fromisoformat(found))
        case name:
            right = variables.setdefault(name, found) == found
    return None if right else f"{found!r} is not {wanted}"


@contextlib.asynccontextmanager
async def playing(
    broker_port: int, urls: Mapping[str, str], http_port: int, **variables: Any
) -> AsyncIterator[Player]:
    """A player that hears every channel of ``variables["b"]`` and rounds' topics, and answers HTTP on ``http_port``."""
    async with aiomqtt.Client(
        "127.0.0.1", broker_port, identifier=f"peers-{variables['b'].replace('/', '-')}", clean_session=True
    ) as mqtt:
        player = Player(mqtt, urls, variables)
        app = Starlette(
            routes=[Route("/{path:path}", player.answer_request, methods=["GET", "POST"])],
        )
        async with serving(app, http_port):
            await mqtt.subscribe([(f"{variables['b']}/#", 1), ("fl/#", 1)])
            async with player.listening():
                yield player


def as_base64(content: bytes) -> str:
    """Bytes as messages carry them."""
    return base64.b64encode(content).decode()
