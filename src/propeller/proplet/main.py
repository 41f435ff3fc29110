"""The proplet's process: opens what it needs, takes tasks until told to stop, closes everything."""

import asyncio
import contextlib

from propeller.mqtt.session import Credentials, Session, Will
from propeller.mqtt.trouble import Names
from propeller.process.logs import get_logger
from propeller.process.run import StartError
from propeller.proplet.heartbeat import Heartbeat
from propeller.proplet.inputs import Inputs
from propeller.proplet.outbox import Outbox
from propeller.proplet.peers import COORDINATOR, DATA_STORE, MODEL_REGISTRY, Peers
from propeller.proplet.presence import Presence, offline
from propeller.proplet.programs import Programs
from propeller.proplet.reports import Reports
from propeller.proplet.runner import Runner
from propeller.proplet.service import Proplet
from propeller.proplet.settings import Settings
from propeller.proplet.updates import Updates
from propeller.protocol.topics import Channel, Kind
from propeller.wasm.external import External
from propeller.wasm.link import LinkError
from propeller.wasm.sandbox import ProgramError, Sandbox

log = get_logger("proplet")


def _sandbox(settings: Settings) -> contextlib.AbstractAsyncContextManager[Sandbox | External]:
    folder, runtime = settings.folder / "sandbox", settings.external_runtime
    if runtime:
        return External(runtime, folder, cache=settings.cache, cache_bytes=settings.cache_bytes)
    return Sandbox(folder, cache=settings.cache, cache_bytes=settings.cache_bytes)


async def main(settings: Settings, stop: asyncio.Event) -> None:
    """Be a proplet until ``stop`` is set.

    Raises:
        StartError: the state folder or the sandbox cannot be opened.
    """
    me, channel = settings.client_id, Channel(settings.domain_id, settings.channel_id)
    session = Session(
        settings.broker,
        Credentials(me, me, settings.client_key),
        will=Will(channel.topic(Kind.PROPLET_ALIVE), offline(me, settings.namespace)),
        keepalive=int(settings.mqtt_keep_alive),
        tls=settings.tls_context(settings.broker),
        names=Names.of("PROPLET"),
    )
    heartbeat = Heartbeat(settings.folder, settings.liveliness_interval)
    presence = Presence(settings, session, channel, heartbeat)
    reports = Reports(session, channel, me, qos=settings.mqtt_qos, max_bytes=settings.mqtt_max_packet)
    urls = {
        COORDINATOR: settings.coordinator_url,
        MODEL_REGISTRY: settings.model_registry_url,
        DATA_STORE: settings.data_store_url,
    }
    credentials = (me, settings.client_key) if settings.auth == "on" else None
    async with contextlib.AsyncExitStack() as stack:
        peers = await stack.enter_async_context(Peers(urls, credentials))
        try:
            folder = settings.folder
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            heartbeat.clear()
            outbox = Outbox(folder / "outbox", reports.send_result, settings.mqtt_max_packet)
            sandbox = await stack.enter_async_context(_sandbox(settings))
        except OSError as error:
            place = f"PROPLET_STATE: {settings.folder}" + (
                f", or PROPLET_CACHE: {settings.cache}," if settings.cache else ""
            )
            raise StartError(f"{place} cannot be used: {error}") from error
        except (LinkError, ProgramError) as error:
            raise StartError(str(error)) from error
        programs = Programs(session, channel, me, sandbox, settings.limits, settings.fetch_timeout)
        stack.push_async_callback(programs.close)
        updates = Updates(peers, reports.send_update)
        runner = Runner(me, peers, programs, Inputs(peers, me), updates, sandbox.run, settings.limits)
        proplet = Proplet(me, runner, outbox, reports.send_metrics, settings.max_tasks)
        await programs.open()
        for topic in (channel.topic(Kind.START), channel.start(me)):
            await session.subscribe(topic, proplet.take_start)
        for topic in (channel.topic(Kind.STOP), channel.stop(me)):
            await session.subscribe(topic, proplet.take_stop)
        await stack.enter_async_context(session.running(on_connect=presence.announce))
        log.info("proplet started", proplet_id=me, broker=str(settings.broker), channel=channel.prefix)
        beats = asyncio.create_task(presence.run())
        proplet.send_left()
        await stop.wait()
        log.info("proplet stopping", proplet_id=me)
        beats.cancel()
        await proplet.close()
        await presence.leave()
