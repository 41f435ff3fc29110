"""The proxy through its ``main``, over a real broker and a real registry, with proplets of both kinds."""

import asyncio
import base64
import contextlib
import hashlib
import json
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from propeller.digests import digest_of
from propeller.errors import StartError
from propeller.functions import with_functions
from propeller.oci.client import RegistryClient
from propeller.oci.layout import Layout
from propeller.oci.reference import Reference
from propeller.oci_registry.api import create_api
from propeller.protocol.programs import ProgramChunk
from propeller.protocol.topics import Channel, Kind
from propeller.proxy.main import main
from propeller.proxy.settings import MAX_CHUNK_BYTES, ProxySettings
from support.fake_proplets import proplet, proplets
from support.net import eventually, free_port
from support.oci_requests import ANYTHING
from support.proxy_process import count, proxy_process
from support.registries import LOGIN, embedded, find_unverified, serving, wasm

PROGRAM = wasm(210_000)
DIGEST = digest_of(PROGRAM)
CHUNKS, CHUNK_SIZE = 5, 50_000


class CountingRegistry:
    """The embedded registry, counting what is asked of it, and slow on request."""

    def __init__(self, folder: Path) -> None:
        self.asked: Counter[str] = Counter()
        self.gate = asyncio.Event()
        self.gate.set()
        self._inner = create_api(Layout(folder))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            kind = "blob" if "/blobs/" in request.url.path else "manifest"
            self.asked[f"{request.method} {kind}"] += 1
            await self.gate.wait()
        await self._inner(scope, receive, send)


@contextlib.asynccontextmanager
async def counting(folder: Path, port: int | None = None) -> AsyncIterator[tuple[str, CountingRegistry]]:
    """A registry that has the program as ``x:latest``."""
    registry = CountingRegistry(folder)
    async with serving(registry, port) as port:
        host = f"127.0.0.1:{port}"
        async with RegistryClient() as client:
            await client.push(Reference.parse(f"{host}/x"), PROGRAM)
        registry.asked.clear()
        yield host, registry


class Running:
    """A proxy that runs in this process."""

    def __init__(self, settings: ProxySettings) -> None:
        self.settings, self._http = settings, f"http://127.0.0.1:{settings.http_port}"

    async def get(self, path: str) -> httpx.Response:
        async with httpx.AsyncClient(trust_env=False) as http:
            return await http.get(f"{self._http}{path}")

    async def count(self, name: str) -> float:
        return await count(f"{self._http}/metrics", name)


@pytest.fixture
def channel() -> Channel:
    return Channel(uuid.uuid4().hex, "c")


@contextlib.asynccontextmanager
async def proxy(
    port: int, channel: Channel, registry: str, cache: Path, **given: Any
) -> AsyncIterator[Running]:
    settings = ProxySettings.load(
        mqtt_address=f"tcp://127.0.0.1:{port}",
        domain_id=channel.domain_id,
        channel_id=channel.channel_id,
        client_id=f"proxy-{channel.domain_id}",
        default_registry=registry,
        cache=cache,
        http_port=free_port(),
        chunk_size=CHUNK_SIZE,
        **given,
    )
    stop, running = asyncio.Event(), Running(settings)
    with structlog.testing.capture_logs() as logs:
        task = asyncio.create_task(main(settings, stop))

        def subscribed() -> bool:
            if task.done():
                task.result()
            return any(line["event"] == "subscribed to topic" for line in logs)

        await eventually(subscribed)
    try:
        yield running
    finally:
        stop.set()
        await task


async def test_fifty_directed_proplets_get_every_chunk_once(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with (
        counting(tmp_path / "oci") as (host, registry),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache") as running,
        proplets(broker_port, channel, 50) as fleet,
    ):
        answers = await asyncio.gather(*(one.resolve("x:latest") for one in fleet))
        assert {(answer.digest, answer.size, answer.total_chunks) for answer in answers} == {
            (DIGEST, len(PROGRAM), CHUNKS)
        }
        assert registry.asked["GET manifest"] == 1
        assert registry.asked["HEAD manifest"] < 10
        assert registry.asked["GET blob"] == 0  # those who have the program cost nothing
        await asyncio.gather(*(one.listen(channel.chunks(DIGEST)) for one in fleet))
        await asyncio.gather(*(one.ask("x:latest", proplet_id=one.name, digest=DIGEST) for one in fleet))
        programs = await asyncio.gather(*(one.program() for one in fleet))
        assert set(programs) == {PROGRAM}
        assert registry.asked["GET blob"] == 1
        # All asked within a moment: at most a few chunks went twice, for those who came after they were sent.
        assert await running.count("chunks") < 3 * CHUNKS
        health = await running.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok", "service": "proxy"})
        counted = (await running.get("/metrics")).text
        assert (
            'propeller_http_requests_total{method="GET",route="/health",service="proxy",status="200"} 1.0'
            in counted
        )


async def test_one_batch_costs_each_byte_once_and_who_joins_while_it_is_fetched_too(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with (
        counting(tmp_path / "oci") as (host, registry),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache") as running,
        proplets(broker_port, channel, 3) as fleet,
    ):
        for one in fleet:
            await one.resolve("x")
            await one.listen(channel.chunks(DIGEST))
        registry.gate.clear()
        for one in fleet:
            await one.ask("x", proplet_id=one.name, digest=DIGEST)
        await eventually(lambda: registry.asked["GET blob"] == 1)
        registry.gate.set()
        assert {await one.program() for one in fleet} == {PROGRAM}
        assert await running.count("chunks") == CHUNKS
        assert await running.count("bytes") == len(PROGRAM)
        assert registry.asked["GET blob"] == 1


async def test_proplets_of_absmach_propeller_get_chunks_on_the_shared_topic(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with (
        counting(tmp_path / "oci") as (host, registry),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache") as running,
        proplets(broker_port, channel, 3) as fleet,
    ):
        registry.gate.clear()
        for one in fleet:
            await one.session.publish(
                channel.topic(Kind.REGISTRY_REQUEST), b'{"app_name":"%s/x:latest"}' % host.encode()
            )
        await eventually(lambda: registry.asked["HEAD manifest"] == 1)
        registry.gate.set()
        for one in fleet:
            assert await one.program() == PROGRAM
            assert {chunk.app_name for chunk in one.chunks} == {f"{host}/x:latest"}
            assert {chunk.digest for chunk in one.chunks} == {DIGEST}
        # Whoever asked before the first chunk went shares it; the broker may hand the last request over later.
        assert await running.count("chunks") <= 2 * CHUNKS


async def test_a_late_joiner_gets_its_missing_chunks_and_the_others_are_not_sent_again(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with (
        counting(tmp_path / "oci") as (host, _),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache") as running,
        proplets(broker_port, channel, 2) as (first, late),
    ):
        assert await first.download("x") == PROGRAM
        assert await running.count("chunks") == CHUNKS
        await late.listen(channel.chunks(DIGEST))
        await late.ask("x", proplet_id=late.name, digest=DIGEST, missing=[1, 4, 77])
        await eventually(lambda: sorted(chunk.chunk_idx for chunk in late.chunks) == [1, 4])
        assert await running.count("chunks") == CHUNKS + 2


@pytest.mark.parametrize(
    ("app_name", "said"),
    [
        ("none:latest", "404 Not Found"),
        ("x:other", "use exactly the name"),
        ("Upper/Case:latest", "case-sensitive"),
        ("127.0.0.1:1/x", "is not a registry that the proxy fetches from"),
    ],
)
async def test_failures_are_answered_at_once_to_both_kinds(
    app_name: str, said: str, broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with (
        counting(tmp_path / "oci") as (host, _),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache"),
        proplets(broker_port, channel, 2) as (directed, other),
    ):
        begun = time.monotonic()
        await directed.ask(app_name, proplet_id=directed.name)
        await directed.ask(app_name, proplet_id=directed.name, digest=digest_of(b"no"))
        await other.ask(app_name)
        await eventually(lambda: len(directed.answers) == 2 and other.chunks)
        assert time.monotonic() - begun < 15  # a timeout would take 30 s
        assert {answer.digest for answer in directed.answers if answer.error} == {None, digest_of(b"no")}
        assert said in next(str(answer.error) for answer in directed.answers if answer.digest is None)
        assert said in str(other.chunks[0].error)
        assert other.chunks[0].app_name == app_name


async def test_a_wrong_password_is_answered_with_the_remedy_and_shown_nowhere(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with embedded(tmp_path / "oci", username=LOGIN[0], password=LOGIN[1]) as host:
        wrong = {"registry_username": LOGIN[0], "registry_password": "hunter2"}
        for given, status in ((wrong, False), (wrong, True), ({}, True)):
            async with (
                proxy(
                    broker_port, channel, f"http://{host}", tmp_path / "cache", authenticate=status, **given
                ),
                proplet(broker_port, channel, "p") as one,
            ):
                with structlog.testing.capture_logs() as logs:
                    answer = await one.resolve("x")
                assert "401 Unauthorized" in str(answer.error)
                assert "PROXY_AUTHENTICATE=true" in str(answer.error)
                assert "hunter2" not in str(answer) + str(logs)
                failed = [line for line in logs if line["event"] == "failed to fetch container"]
                assert failed[0]["log_level"] == "error"
                assert "401" in failed[0]["reason"]
        right = {"registry_username": LOGIN[0], "registry_password": LOGIN[1], "authenticate": True}
        async with (
            proxy(broker_port, channel, f"http://{host}", tmp_path / "cache", **right),
            proplet(broker_port, channel, "p") as one,
        ):
            assert "404" in str((await one.resolve("x")).error)


async def test_a_token_is_sent_as_it_is_and_a_namespace_put_before_names(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    seen = []

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            seen.append((request.url.path, request.headers.get("authorization")))
            header = {"WWW-Authenticate": 'Bearer error="insufficient_scope"'}
            await Response(status_code=401, headers=header)(scope, receive, send)
        else:
            await create_api(Layout(tmp_path / "oci"))(scope, receive, send)

    async with serving(refuse) as port:
        given = {"authenticate": True, "registry_token": "t"}
        home = f"http://127.0.0.1:{port}/user"
        async with (
            proxy(broker_port, channel, home, tmp_path / "cache", **given),
            proplet(broker_port, channel, "p") as one,
        ):
            assert "no permission" in str((await one.resolve("x:v1")).error)
    assert seen == [("/v2/user/x/manifests/v1", "Bearer t")]


GARBAGE = [
    b"",
    b"\xff\xfe",
    b"[]",
    b"{}",
    b'{"app_name":""}',
    b'{"app_name":5}',
    b'{"app_name":"x","digest":"../x"}',
    b'{"app_name":"x","proplet_id":"a/b"}',
    b'{"app_name":"x","missing":[-1]}',
    b'{"app_name":"%s"}' % (b"x" * 600),
]


async def test_one_that_asks_too_much_is_not_heard_and_the_others_are(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    limits = {"client_requests": 1.0, "client_bytes": 1024}  # 30 requests and 61,440 bytes at once
    async with (
        counting(tmp_path / "oci") as (host, registry),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache", **limits) as running,
        proplets(broker_port, channel, 2) as (greedy, other),
    ):
        registry.gate.clear()
        for number in range(100):
            await greedy.ask(f"x:t{number}", proplet_id=greedy.name)
        await eventually(lambda: registry.asked["HEAD manifest"] >= 30)
        await other.ask("x:latest", proplet_id=other.name)
        pending = tmp_path / "cache" / "pending"
        await eventually(lambda: any(other.name in file.read_text() for file in pending.iterdir()))
        assert len(list(pending.iterdir())) < 60  # one a second comes back
        registry.gate.set()
        assert await other.download("x") == PROGRAM  # more than it has: it owes the rest
        await other.ask("x", proplet_id=other.name, digest=DIGEST)
        await other.resolve("x")
        text = (await running.get("/metrics")).text
        refused = next(line for line in text.splitlines() if 'outcome="refused"' in line)
        assert float(refused.rpartition(" ")[2]) > 40
        assert await running.count("chunks") == CHUNKS


async def test_garbage_is_a_warning(broker_port: int, channel: Channel, tmp_path: Path) -> None:
    async with (
        proxy(broker_port, channel, "http://127.0.0.1:1", tmp_path / "cache") as running,
        proplet(broker_port, channel, "p") as one,
    ):
        with structlog.testing.capture_logs() as logs:
            topics = [channel.topic(Kind.REGISTRY_REQUEST), channel.said(Kind.REGISTRY_REQUEST, "p")]
            for topic in topics:
                for payload in GARBAGE:
                    await one.session.publish(topic, payload)
            await one.session.publish(topics[1], b'{"app_name":"x","proplet_id":"q"}')
            wanted = f'outcome="malformed"}} {2 * len(GARBAGE) + 1}.0'

            async def counted() -> bool:
                return wanted in (await running.get("/metrics")).text

            await eventually(counted)
        # One line a sender, however many messages it sends.
        assert sorted((line["event"], line["topic"], line["log_level"]) for line in logs) == [
            ("container request ignored", topic, "warning") for topic in sorted(topics)
        ]
        assert list((tmp_path / "cache" / "pending").iterdir()) == []


REQUESTS = st.fixed_dictionaries(
    {"app_name": st.sampled_from(["x", "x:latest", f"x@{DIGEST}", "[::1]/x", "x:", "a" * 600]) | ANYTHING},
    optional={
        "proplet_id": st.sampled_from(["p", "q", None]) | ANYTHING,
        "digest": st.sampled_from([DIGEST, f"sha256:{'0' * 64}", None]) | ANYTHING,
        "missing": st.lists(st.sampled_from([0, 4, 5, -1, 2**70]), max_size=4) | ANYTHING,
        "signatures": ANYTHING,
    },
)


async def test_whatever_is_asked_is_answered_or_refused(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    asked: list[bytes] = []

    @given(REQUESTS)
    def collect(request: dict[str, Any]) -> None:
        asked.append(json.dumps(request).encode())

    collect()
    async with (
        counting(tmp_path / "oci") as (host, _),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache"),
        proplets(broker_port, channel, 2) as (one, other),
    ):
        with structlog.testing.capture_logs() as logs:
            for payload in asked:
                await one.session.publish(channel.said(Kind.REGISTRY_REQUEST, one.name), payload)
                await one.session.publish(channel.topic(Kind.REGISTRY_REQUEST), payload)
            assert await other.download("x") == PROGRAM
            pending = tmp_path / "cache" / "pending"
            await eventually(lambda: not list(pending.iterdir()), 30)
        assert [line for line in logs if "exc_info" in line] == []


async def test_the_logs_hold_the_guides_phrases(broker_port: int, channel: Channel, tmp_path: Path) -> None:
    async with (
        counting(tmp_path / "oci") as (host, _),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache"),
        proplet(broker_port, channel, "p") as one,
    ):
        with structlog.testing.capture_logs() as logs:
            await one.download("x")
            await eventually(lambda: any("all chunks" in line["event"] for line in logs))
        events = Counter(line["event"] for line in logs)
        assert events["Received container request"] == 2
        assert events["sent container chunk to MQTT stream"] == CHUNKS
        assert events["successfully sent all chunks"] == 1
        assert {line["app_name"] for line in logs if line["event"] == "Received container request"} == {"x"}


async def test_a_restart_keeps_the_cache_and_needs_no_registry_for_a_digest(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with counting(tmp_path / "oci") as (host, _):
        async with (
            proxy(broker_port, channel, f"http://{host}", tmp_path / "cache"),
            proplet(broker_port, channel, "p") as one,
        ):
            await one.download("x")
        async with RegistryClient() as client:
            pinned = f"x@{(await client.resolve(Reference.parse(f'{host}/x'))).digest}"
    async with (
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache") as running,
        proplet(broker_port, channel, "p") as one,
    ):
        assert await one.download(pinned) == PROGRAM
        assert await running.count("fetches") == 0
        assert "cannot be reached" in str((await one.resolve("x:latest")).error)


async def test_a_moved_tag_is_seen(broker_port: int, channel: Channel, tmp_path: Path) -> None:
    other = with_functions(wasm(8), ["train"])
    async with (
        counting(tmp_path / "oci") as (host, _),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache"),
        proplet(broker_port, channel, "p") as one,
    ):
        found = await one.resolve("x")
        assert (found.digest, found.functions) == (DIGEST, None)
        async with RegistryClient() as client:
            await client.push(Reference.parse(f"{host}/x"), other)
        found = await one.resolve("x")
        assert (found.digest, found.functions) == (digest_of(other), ["train"])


async def test_a_cached_program_that_was_changed_on_disk_is_fetched_again(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with (
        counting(tmp_path / "oci") as (host, registry),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache"),
        proplets(broker_port, channel, 2) as (first, second),
    ):
        await first.download("x")
        (tmp_path / "cache" / "blobs" / DIGEST.replace(":", "-")).write_bytes(b"\0asm tampered")
        assert await second.download("x") == PROGRAM
        assert registry.asked["GET blob"] == 2


async def test_a_tampered_blob_in_the_registry_reaches_nobody(
    broker_port: int, channel: Channel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Layout, "find_blob", find_unverified)
    async with (
        counting(tmp_path / "oci") as (host, _),
        proxy(broker_port, channel, f"http://{host}", tmp_path / "cache") as running,
        proplet(broker_port, channel, "p") as one,
    ):
        blob = Layout(tmp_path / "oci").find_blob(DIGEST)
        assert blob is not None
        blob.write_bytes(PROGRAM[:-1] + b"!")
        resolved = await one.resolve("x")
        await one.listen(channel.chunks(DIGEST))
        await one.ask("x", proplet_id="p", digest=resolved.digest)
        await eventually(lambda: len(one.answers) == 2)
        assert "another digest or size" in str(one.answers[1].error)
        assert await running.count("chunks") == 0
        assert list((tmp_path / "cache" / "blobs").glob("*.part")) == []


async def test_a_registry_that_hangs_is_answered_in_time_and_holds_up_nobody(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    async with (
        counting(tmp_path / "hanging") as (hanging, stuck),
        counting(tmp_path / "oci") as (host, _),
        proxy(
            broker_port,
            channel,
            f"http://{host}",
            tmp_path / "cache",
            registry_timeout=1.0,
            allowed_registries=hanging,
        ),
        proplets(broker_port, channel, 2) as (first, second),
    ):
        stuck.gate.clear()
        await first.ask(f"{hanging}/x", proplet_id=first.name)
        assert await second.download("x") == PROGRAM
        assert first.answers == []
        await eventually(lambda: first.answers)
        assert "cannot be reached now" in str(first.answers[0].error)
        stuck.gate.set()


async def test_a_kill_loses_no_request(broker_port: int, channel: Channel, tmp_path: Path) -> None:
    async with (
        counting(tmp_path / "oci") as (host, registry),
        proplets(broker_port, channel, 2) as (directed, other),
    ):
        registry.gate.clear()
        async with proxy_process(broker_port, channel, f"http://{host}", tmp_path / "cache") as (first, _):
            # The session of the broker is made by the first start; what is asked before it is nobody's.
            async def asked() -> bool:
                await directed.ask("x", proplet_id=directed.name)
                return registry.asked["HEAD manifest"] > 0

            await eventually(asked, 20)
            await other.ask(f"{host}/x")
            shared = f'"{host}/x"'.encode()

            def taken() -> bool:
                files = (tmp_path / "cache" / "pending").iterdir()
                return any(shared in file.read_bytes() for file in files if not file.suffix)

            await eventually(taken)
            first.send_signal(signal.SIGKILL)
            await asyncio.to_thread(first.wait)
        registry.gate.set()
        assert directed.answers == []
        async with proxy_process(broker_port, channel, f"http://{host}", tmp_path / "cache") as (second, _):
            await eventually(lambda: directed.answers, 20)
            assert directed.answers[0].digest == DIGEST
            assert hashlib.sha256(await other.program()).hexdigest() == DIGEST.removeprefix("sha256:")
            await eventually(lambda: list((tmp_path / "cache" / "pending").iterdir()) == [])
            second.terminate()
            assert await asyncio.to_thread(second.wait) == 0


async def test_it_says_what_to_do_when_it_cannot_start(
    broker_port: int, channel: Channel, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="set PROXY_CACHE"):
        async with proxy(broker_port, channel, "ghcr.io", tmp_path / "file"):
            pass
    with pytest.raises(StartError, match="without authentication"):
        async with proxy(broker_port, channel, "ghcr.io", tmp_path / "cache", http_host="0.0.0.0"):
            pass


def test_a_chunk_of_the_largest_size_fits_a_message() -> None:
    chunk = ProgramChunk(
        app_name="x" * 512,
        chunk_idx=0,
        total_chunks=1,
        data=base64.b64encode(bytes(MAX_CHUNK_BYTES)).decode(),
        digest=DIGEST,
        size=MAX_CHUNK_BYTES,
    )
    assert len(chunk.encode()) <= 8_000_000
