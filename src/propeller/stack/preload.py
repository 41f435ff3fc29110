"""Imported once by the process that services are forked from: their imports are then paid for all of them.

Beside the services these are what their libraries import at first use, and the command line, which ``multiprocessing`` has each
child import again.
"""

# ruff: noqa: F401

import anyio._backends._asyncio
import httpcore
import httptools
import sqlalchemy.dialects.sqlite.aiosqlite
import uvicorn.lifespan.on
import uvicorn.protocols.http.httptools_impl
import uvloop

import propeller.aggregator.main
import propeller.aggregator.settings
import propeller.cli
import propeller.coordinator.main
import propeller.coordinator.settings
import propeller.data_store.main
import propeller.data_store.settings
import propeller.identity.main
import propeller.identity.settings
import propeller.manager.main
import propeller.manager.settings
import propeller.model_registry.main
import propeller.model_registry.settings
import propeller.mqtt.broker_main
import propeller.mqtt.broker_settings
import propeller.oci.registry_main
import propeller.oci.registry_settings
import propeller.proxy.main
import propeller.proxy.settings
