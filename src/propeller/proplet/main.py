"""The proplet's process: opens what it needs, takes tasks until told to stop, closes everything."""

import asyncio
import contextlib
import functools
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from propeller.errors import StartError
from propeller.mqtt.problems import SettingNames
from propeller.mqtt.session import Credentials, Session, Will
from propeller.process.background import BackgroundTasks
from propeller.process.logs import get_logger
from propeller.proplet.compression import UpdateCompressor
from propeller.proplet.device_states import CLEAN_EVERY_S, DeviceStates
from propeller.proplet.inputs import COORDINATOR, DATA_STORE, MODEL_REGISTRY, InputFetcher, ServiceClients
from propeller.proplet.large_files import LargeFiles
from propeller.proplet.local_data import CHECK_S, LocalData
from propeller.proplet.outbox import Outbox, TaskPublisher
from propeller.proplet.policy import PolicyFile
from propeller.proplet.presence import HeartbeatFile, Presence, offline_message
from propeller.proplet.programs import ProgramFetcher
from propeller.proplet.round_results import RoundResults
from propeller.proplet.runner import ProgramRunner
from propeller.proplet.service import TaskExecutor
from propeller.proplet.settings import PropletSettings
from propeller.proplet.task_room import TaskRoom, whole_room
from propeller.proplet.updates import UpdateSender
from propeller.protocol.requirements import NativePython
from propeller.protocol.topics import Channel, Kind, PropletTopics
from propeller.wasm.messages import CONFINING
from propeller.wasm.sandbox import ProgramError, Sandbox
from propeller.wasm.template_client import SandboxError

if TYPE_CHECKING:
    from propeller.native.interpreter import Interpreter
    from propeller.wasm.external import ExternalRuntime

log = get_logger("proplet")


def _find_interpreter(settings: PropletSettings) -> "Interpreter | None":
    if settings.native_python is None:
        return None
    from propeller.native.interpreter import Interpreter  # for the few that run native programs

    threads = max(1, (settings.max_processors or os.cpu_count() or 1) // settings.max_tasks)
    return Interpreter.find(settings.native_python, threads=threads, keep_out=[settings.folder])


async def _check_native(
    sandbox: "Sandbox | ExternalRuntime", native: "Interpreter | None", policy: PolicyFile
) -> NativePython | None:
    """See that native programs can be confined here, if there is an interpreter for them, and say what holds; what it is.

    Raises:
        StartError: they cannot be.
    """
    if native is None or not isinstance(sandbox, Sandbox):
        return None
    if missing := [name for name in CONFINING if name not in await sandbox.protections()]:
        raise StartError(
            f"PROPLET_NATIVE_PYTHON: this kernel does not confine native programs, it lacks {', '.join(missing)}: unset it"
        )
    python = native.python
    held = {"python": python.version, "distributions": len(python.distributions), "threads": native.threads}
    log.info("native programs run here", interpreter=str(native.command), **held)
    if not policy.has_native():
        log.warning(
            "the policy names nobody whose native programs run: none does", setting="PROPLET_POLICY, [native]"
        )
    if not native.own_user and not await sandbox.shared_user():
        log.warning(
            "native programs run as root, without its rights: no other user can read the interpreter",
            interpreter=str(native.command),
        )
    return python


def _new_sandbox(
    settings: PropletSettings, native: "Interpreter | None"
) -> "contextlib.AbstractAsyncContextManager[Sandbox | ExternalRuntime]":
    folder, runtime = settings.folder / "sandbox", settings.external_runtime
    if runtime:
        from propeller.wasm.external import ExternalRuntime  # 0.2 MB that few proplets need

        return ExternalRuntime(
            runtime,
            folder,
            cache=settings.cache,
            cache_bytes=settings.cache_bytes,
            processors=settings.max_processors,
        )
    return Sandbox(
        folder,
        cache=settings.cache,
        cache_bytes=settings.cache_bytes,
        runtimes=settings.runtimes,
        processors=settings.max_processors,
        native=native,
        native_memory=whole_room(settings).memory,
        on_compiled=lambda program, ms: log.info("compiled the program", program=program, ms=round(ms)),
    )


async def _log_confinement(sandbox: "Sandbox | ExternalRuntime") -> None:
    """Say what keeps a task that breaks out of the runtime from the rest of the device, and what does not."""
    if not isinstance(sandbox, Sandbox):
        log.warning(
            "tasks run as the proplet's own user", uid=os.geteuid(), reason="an external runtime runs them"
        )
        return
    protections, reason = await sandbox.protections(), await sandbox.shared_user()
    held = {"confined_by": ", ".join(protections)}
    if not reason:
        log.info("each task runs as a user of its own", **held)
    elif os.geteuid() == 0:
        log.warning("tasks run as root: run the proplet as another user", reason=reason, **held)
    else:
        log.info("tasks run as the proplet's own user", uid=os.geteuid(), reason=reason, **held)
    if "threads" not in protections:
        log.info(
            "the kernel does not bound the threads of each task here: they are counted 20 times a second"
        )
    if missing := [name for name in CONFINING if name not in protections]:
        log.warning("tasks are not confined by all that they could be", missing=", ".join(missing))


def _open_room(settings: PropletSettings) -> TaskRoom:
    whole = whole_room(settings)
    log.info("what all tasks may take together", processors=settings.max_processors, **vars(whole))
    return TaskRoom(whole)


def _setting_names(joined: Path | None) -> SettingNames:
    """What the operator of a device corrects when the broker refuses it: settings, or that it has joined, where it has."""
    names = SettingNames.of_service("PROPLET")
    if joined is None:
        return names
    remedy = (
        "if the device was removed from the stack: 'propeller device add NAME' there, and here 'propeller join TOKEN' with a new "
        f"--state (this one is {joined}); 'propeller device list' there shows whom it has"
    )
    return replace(names, refused=remedy)


def _service_clients(settings: PropletSettings) -> ServiceClients:
    urls = {
        COORDINATOR: settings.coordinator_url,
        MODEL_REGISTRY: settings.model_registry_url,
        DATA_STORE: settings.data_store_url,
    }
    return ServiceClients(urls, (settings.client_id, settings.client_key) if settings.auth == "on" else None)


async def _open_data(settings: PropletSettings) -> LocalData | None:
    if settings.data is None:
        return None
    found = LocalData(settings.data, settings.data_label)
    await found.open()
    return found


def _watch_data(background: BackgroundTasks, local_data: LocalData | None) -> None:
    if local_data is not None:
        background.spawn_periodic("looking at the data", local_data.look, CHECK_S)


async def main(settings: PropletSettings, stop: asyncio.Event) -> None:
    """Be a proplet until ``stop`` is set.

    Raises:
        StartError: the state folder or the sandbox cannot be opened, the policy has a mistake, or the device's own data.
    """
    me, channel = settings.client_id, Channel(settings.domain_id, settings.channel_id)
    topics = PropletTopics(channel, me, compat=settings.compat)
    session = Session(
        settings.broker,
        Credentials(me, me, settings.client_key),
        will=Will(topics.says(Kind.PROPLET_ALIVE), offline_message(me, settings.namespace)),
        keepalive=int(settings.mqtt_keep_alive),
        tls=settings.tls_context(settings.broker),
        names=_setting_names(settings.joined),
    )
    policy = PolicyFile(settings.policy)
    heartbeat_file = HeartbeatFile(settings.folder, settings.liveliness_interval)
    publisher = TaskPublisher(session, topics, qos=settings.mqtt_qos, max_bytes=settings.mqtt_max_packet)
    local_data, native = await _open_data(settings), await asyncio.to_thread(_find_interpreter, settings)
    async with contextlib.AsyncExitStack() as stack:
        services = await stack.enter_async_context(_service_clients(settings))
        updates = UpdateSender(services, publisher.send_update)
        try:
            folder = settings.folder
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            heartbeat_file.clear()
            states = DeviceStates(
                folder / "states",
                settings.state_bytes,
                timedelta(days=settings.state_days).total_seconds(),
                functools.partial(updates.update_counts, me),
            )
            large = LargeFiles(folder / "large")
            outbox = Outbox(folder / "outbox", publisher.send_result, settings.mqtt_max_packet)
            sandbox = await stack.enter_async_context(_new_sandbox(settings, native))
        except OSError as error:
            folders = f"PROPLET_STATE: {settings.folder}" + (
                f", or PROPLET_CACHE: {settings.cache}," if settings.cache else ""
            )
            raise StartError(f"{folders} cannot be used: {error}") from error
        except (SandboxError, ProgramError) as error:
            raise StartError(str(error)) from error
        await _log_confinement(sandbox)
        presence = Presence(
            settings, session, topics, heartbeat_file, policy, await _check_native(sandbox, native, policy)
        )
        programs = ProgramFetcher(session, topics, sandbox, settings.limits, settings.fetch_timeout, policy)
        stack.push_async_callback(programs.close)
        inputs = InputFetcher(services, me, large, local_data)
        compressor = UpdateCompressor(sandbox.call, states)
        runner = ProgramRunner(
            me,
            programs,
            inputs,
            updates,
            sandbox.run,
            settings.limits,
            states,
            large,
            compressor,
            policy,
            _open_room(settings),
            sandbox.memory_bound,
        )
        executor = TaskExecutor(
            me,
            runner,
            outbox,
            publisher.send_metrics,
            publisher.send_stage,
            settings.max_tasks,
            RoundResults(settings.folder / "rounds"),
        )
        await programs.open()
        for topic in topics.starts:
            await session.subscribe(topic, executor.handle_start)
        for topic in topics.stops:
            await session.subscribe(topic, executor.handle_stop)
        await stack.enter_async_context(session.running(on_connect=presence.announce))
        log.info("proplet started", proplet_id=me, broker=str(settings.broker), channel=channel.prefix)
        presence.start()
        background = BackgroundTasks("proplet")
        stack.push_async_callback(background.close)
        background.spawn_periodic(
            "removing device states",
            lambda: states.clean(updates.experiment_has_ended),
            CLEAN_EVERY_S,
            at_once=True,
        )
        _watch_data(background, local_data)
        executor.send_left_over()
        await stop.wait()
        log.info("proplet stopping", proplet_id=me)
        await presence.stop()
        await executor.close()
        await presence.send_goodbye()
