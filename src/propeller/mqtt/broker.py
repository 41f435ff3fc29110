"""The embedded broker: a nats-server process with its MQTT listener, its state on disk, and the service that keeps it running."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Self

from propeller.errors import StartError
from propeller.mqtt.broker_config import (
    BrokerSettings,
    check_port,
    check_tls,
    find_server,
    lock_folder,
    prepare_folder,
    render,
    shown_certificate,
)
from propeller.mqtt.broker_keys import BrokerKeys
from propeller.process import parent_death
from propeller.process.logs import get_logger
from propeller.process.tls import KeyPair, Versions, keep_current

log = get_logger("broker")

MEMORY_LIMIT = "512MiB"
"""Of the server's memory from which on it collects garbage more often; ``GOMEMLIMIT`` in the environment is another."""

START_S = 60.0
"""How long the server may take until it accepts: it reads what it kept before that."""

STOP_S = 2.0
"""How long the server may take to end before it is killed; nothing is lost then, as every write is synchronous."""

RESTART_DELAY_S = 0.2

NEW_STORE_S = 60.0
"""A new store that is damaged within this time is not replaced: the disk is at fault."""

STREAM_STOPPED = "critical write error"
"""What nats-server's log says of a stream whose write failed: it writes to it again only after a new start."""

DAMAGE = re.compile(
    r"checksums do not match|Error unmarshalling|unable to persist session .* wrong last sequence"
)
"""What nats-server's log says of a store that it goes on without, or cannot use: clients are then served wrongly, or not at all."""

DISK_CHECK_INTERVAL_S = 1.0
_PROBE = bytes(1024 * 1024)

_LIMIT_REACHED = "maximum consumers limit reached"
_REPEAT_S = 60.0
"""The limit is logged again after this long: nats-server logs it for each subscription, in seconds."""

_LINE = re.compile(r"\[\d+\] \S+ \S+ \[(\w+)\] ?(.*)")
_ROUTINE_LINES = (
    "authentication error",
    "Auth callout service returned",
    "Maximum payloads over",
    "TLS handshake error: EOF",
)
"""Refused logins, which identity logs with the reason; a limit that is high on purpose; a port scan or health check."""


class Broker:
    """One run of the server, as a context: inside it MQTT is accepted, unless the server ends by itself."""

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._last_lines: deque[str] = deque(maxlen=5)
        self._stream_stopped = asyncio.Event()
        self._damaged = asyncio.Event()
        self.damage = ""
        """What the server said of a damaged store."""
        self._limit_logged_at = -_REPEAT_S

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._server.pid

    def reload(self) -> None:
        """Have the server read its configuration and certificate again, for connections from now on."""
        self._server.send_signal(signal.SIGHUP)

    async def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return await self._server.wait()

    async def wait_until_restart_needed(self) -> None:
        """Wait until the server has stopped writing a stream and its disk has space again: only a new start helps then."""
        await self._stream_stopped.wait()
        log.error("broker cannot write: free some space", folder=str(self._settings.state))
        await until_writable(self._settings.state)

    async def wait_until_damaged(self) -> None:
        """Wait until the server finds that what it has kept is damaged: only a new store helps then."""
        await self._damaged.wait()

    async def __aenter__(self) -> Self:
        """Start the server and wait until it accepts MQTT connections.

        Raises:
            StartError: it cannot; the text says what to do.
        """
        settings = self._settings
        program = find_server(settings.nats_server)
        check_tls(settings)
        prepare_folder(settings.state)
        lock = await asyncio.to_thread(lock_folder, settings.state)
        try:
            check_port(settings.host, settings.port, "BROKER_PORT")
            check_port(settings.nats_host, settings.nats_port, "BROKER_NATS_PORT")
            config = settings.state / "nats.conf"
            config.write_text(render(settings, BrokerKeys.derived(settings.secret.get_secret_value())))
            self._process = await asyncio.create_subprocess_exec(
                *[
                    sys.executable,
                    "-I",
                    "-S",
                    parent_death.__file__,
                    str(os.getpid()),
                    str(program),
                    "-c",
                    str(config),
                ],
                env={"GOMEMLIMIT": MEMORY_LIMIT, **os.environ},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 20,  # its lines name MQTT client ids, which may be long
                pass_fds=[lock.descriptor],
                start_new_session=True,  # a Ctrl-C is for us: clients say goodbye before the broker goes
            )
        finally:
            lock.release()  # from here the server holds it
        self._reader = asyncio.create_task(self._read_log())
        try:
            await self._wait_until_accepting()
        except BaseException:
            await self._stop()
            raise
        log.info("broker accepts MQTT connections", host=settings.host, port=settings.port, pid=self.pid)
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the server."""
        await self._stop()

    @property
    def _server(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise RuntimeError("the broker has not been started")
        return self._process

    async def _wait_until_accepting(self) -> None:
        settings, end = self._settings, time.monotonic() + START_S
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
        while time.monotonic() < end:
            if self._server.returncode is not None:
                await self._read_to_end()
                reason = " | ".join(self._last_lines) or f"exit code {self._server.returncode}"
                raise StartError(f"the broker ended at its start: {reason} (its folder is {settings.state})")
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(host, settings.port)
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
                return
            await asyncio.sleep(0.01)
        raise StartError(
            f"the broker does not accept connections after {START_S:g} s; its folder is {settings.state}"
        )

    async def _stop(self) -> None:
        server = self._server
        if server.returncode is None:
            server.terminate()
            try:
                await asyncio.wait_for(server.wait(), STOP_S)
            except TimeoutError:
                log.warning("broker did not end in time, killing it", pid=server.pid)
                server.kill()
                await server.wait()
        await self._read_to_end()

    async def _read_to_end(self) -> None:
        if self._reader is not None:
            await asyncio.wait({self._reader}, timeout=1.0)
            self._reader.cancel()

    async def _read_log(self) -> None:
        stream = self._server.stderr
        if stream is None:
            return
        while line := await stream.readline():
            self._relay(line.decode(errors="replace").strip())

    def _relay(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        level, text = (match[1], match[2]) if match else ("ERR", line)
        if STREAM_STOPPED in text.lower():
            self._stream_stopped.set()
        if DAMAGE.search(text) and not self._damaged.is_set():
            self.damage = text.strip()
            self._damaged.set()
        if level in {"ERR", "FTL"}:
            self._last_lines.append(text)
        if _LIMIT_REACHED in text:
            self._log_limit()
        if level == "INF" or any(phrase in text for phrase in _ROUTINE_LINES):
            log.debug("nats-server", line=text)
        elif text:
            log.warning("nats-server", line=text)

    def _log_limit(self) -> None:
        now = time.monotonic()
        if now - self._limit_logged_at >= _REPEAT_S:
            self._limit_logged_at = now
            log.error(
                "broker refuses subscriptions, their limit is reached: raise BROKER_MAX_SUBSCRIPTIONS, "
                "or shorten BROKER_SESSION_EXPIRY",
                limit=self._settings.max_subscriptions,
            )


async def main(settings: BrokerSettings, stop: asyncio.Event) -> None:
    """Keep the broker running until ``stop`` is set.

    Raises:
        StartError: it cannot start, or not again.
    """
    stopping = asyncio.create_task(stop.wait())
    set_aside_at = float("-inf")
    try:
        while not stop.is_set():
            damage = ""
            shown = shown_certificate(settings)
            seen = shown.versions() if shown else []
            async with Broker(settings) as broker, _current_certificate(shown, seen, broker):
                ended = asyncio.create_task(broker.wait())
                restart = asyncio.create_task(broker.wait_until_restart_needed())
                damaged = asyncio.create_task(broker.wait_until_damaged())
                await asyncio.wait({ended, restart, damaged, stopping}, return_when=asyncio.FIRST_COMPLETED)
                damage = broker.damage
                if damage:
                    pass  # said below, where the store is set aside
                elif ended.done() and not stop.is_set():
                    log.error("broker ended, starting it again", code=ended.result())
                elif restart.done():
                    log.warning("broker can write again, starting it anew")
                for task in (ended, restart, damaged):
                    task.cancel()
            if damage:
                if time.monotonic() - set_aside_at < NEW_STORE_S:
                    raise StartError(
                        f"the broker's new store in {settings.state} is damaged again: {damage}; check its disk"
                    )
                set_aside_at = time.monotonic()
                await asyncio.to_thread(set_aside, settings.state / "store", damage)
            await asyncio.wait({stopping}, timeout=RESTART_DELAY_S)
    finally:
        stopping.cancel()


@contextlib.asynccontextmanager
async def _current_certificate(shown: KeyPair | None, seen: Versions, broker: Broker) -> AsyncIterator[None]:
    """Have the broker show the certificate that is in its files, for the length of the block."""
    if shown is None:
        yield
        return
    watch = asyncio.create_task(keep_current(shown, seen, broker.reload))
    try:
        yield
    finally:
        watch.cancel()


def set_aside(store: Path, damage: str) -> None:
    """Give the server a new store; the damaged one stays beside it, for whoever wants to see what is lost."""
    aside = store.with_name(f"{store.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
    store.rename(aside)
    log.error(
        "the broker's store is damaged and begins anew: messages that waited for clients which are away are lost, rounds ask again for what is missing",
        damage=damage,
        kept_as=str(aside),
    )


async def until_writable(folder: Path) -> None:
    """Wait until a folder can be written to: a full disk has space again."""
    while not await asyncio.to_thread(_is_writable, folder):  # noqa: ASYNC110 - a disk tells nobody
        await asyncio.sleep(DISK_CHECK_INTERVAL_S)


def _is_writable(folder: Path) -> bool:
    with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        return file.write(_PROBE) == len(_PROBE)
    return False
