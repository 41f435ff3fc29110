"""Imported once by the process that services are forked from: their imports are then paid for all of them.

Beside the services these are what their libraries import at first use, and the command line, which ``multiprocessing`` has each
child import again.
"""

# ruff: noqa: F401

import gc

import anyio._backends._asyncio
import httpcore
import httptools
import sqlalchemy.dialects.sqlite.pysqlite
import uvicorn.lifespan.on
import uvicorn.protocols.http.httptools_impl
import uvloop

import propeller.cli
from propeller.stack.services import SERVICES

for spec in SERVICES:
    if spec.forked:
        spec.load_settings_class()
        spec.load_main()

gc.collect()
gc.freeze()  # a collection in a child would look at all of it, and copy the pages that are shared
