"""Every service by name: where its settings and its main are. Nothing is imported before it is asked for."""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from propeller.process import logs
from propeller.process.run import StartError, run
from propeller.process.settings import LogSettings, ServiceSettings, SettingsError
from propeller.process.unread import warn_of_unread

_MODULES = {
    "broker": ("propeller.mqtt.broker_settings", "propeller.mqtt.broker_main"),
    "identity": ("propeller.identity.settings", "propeller.identity.main"),
    "manager": ("propeller.manager.settings", "propeller.manager.main"),
    "coordinator": ("propeller.coordinator.settings", "propeller.coordinator.main"),
    "aggregator": ("propeller.aggregator.settings", "propeller.aggregator.main"),
    "model-registry": ("propeller.model_registry.settings", "propeller.model_registry.main"),
    "data-store": ("propeller.data_store.settings", "propeller.data_store.main"),
    "oci-registry": ("propeller.oci.registry_settings", "propeller.oci.registry_main"),
    "proxy": ("propeller.proxy.settings", "propeller.proxy.main"),
    "proplet": ("propeller.proplet.settings", "propeller.proplet.main"),
}

SERVICES = tuple(_MODULES)
"""The names that ``propeller serve`` takes."""

HTTP_SERVICES = (
    "identity",
    "manager",
    "coordinator",
    "aggregator",
    "model-registry",
    "data-store",
    "oci-registry",
    "proxy",
)
"""Those with an HTTP API."""

LISTENERS = ("users", "domains", "channels", "clients")
"""Identity's ports."""

PARENT_FD = "PROPELLER_PARENT_FD"
"""Environment variable: a pipe's end; when it closes, the process that started this one is gone."""


def modules(service: str) -> tuple[str, str]:
    """The settings and main modules of a service.

    Raises:
        StartError: there is no such service; the text lists them.
    """
    try:
        return _MODULES[service]
    except KeyError:
        raise StartError(f"no service is named {service!r}; there are {', '.join(SERVICES)}") from None


def serve(service: str, *, log_file: Path | None = None, insecure: bool = False) -> int:
    """Run one service in this process, configured by its environment, until it is told to stop.

    Returns:
        The exit code of the process.
    """
    own = f"{service.upper().replace('-', '_')}_LOG_LEVEL"
    level = os.environ.get(own) or os.environ.get("PROPELLER_LOG_LEVEL") or "info"
    try:
        logs.configure(service, level=level, file=log_file, max_bytes=LogSettings.load().max_bytes)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a person reads it
        return 1
    if insecure:
        os.environ["PROPELLER_INSECURE"] = "true"

    async def main(stop: asyncio.Event) -> None:
        settings_module, main_module = (import_module(name) for name in modules(service))
        settings: ServiceSettings = settings_module.Settings.load()
        warn_of_unread(service)
        start: Callable[[Any, asyncio.Event], Awaitable[None]] = main_module.main
        _stop_with_parent(stop)
        await start(settings, stop)

    return run(main)


def _stop_with_parent(stop: asyncio.Event) -> None:
    descriptor = os.environ.pop(PARENT_FD, "")
    if not descriptor:
        return
    loop = asyncio.get_running_loop()
    number = int(descriptor)

    def closed() -> None:
        loop.remove_reader(number)
        stop.set()

    loop.add_reader(number, closed)
