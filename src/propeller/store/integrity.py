"""Whether a large SQLite file is whole: looked at beside the service that uses it, in a process of its own with the lowest priority."""

import asyncio
import os
import sys
import time
from pathlib import Path

from propeller.process import parent_death
from propeller.process.logs import get_logger

log = get_logger("store")

BEGIN_AFTER_S = 10.0
"""The service is to be ready before."""

MAX_CHECK_S = 1800.0
"""Then it is given up: as long as it reads, what is written stays in the log of the database."""

_LOOK = """
import os, sqlite3, sys
os.nice(19)
try:
    print(sqlite3.connect(sys.argv[1], uri=True).execute("PRAGMA quick_check(1)").fetchone()[0])
except sqlite3.DatabaseError as error:
    print(error)
    sys.exit(1)
"""


async def look_through(file: Path) -> str | None:
    """What is wrong with a SQLite file; ``None`` if nothing is, or that cannot be found out, which is logged."""
    await asyncio.sleep(BEGIN_AFTER_S)
    begun = time.monotonic()
    python = (sys.executable, "-I", "-S")
    process = await asyncio.create_subprocess_exec(
        *(*python, parent_death.__file__, str(os.getpid())),
        *(*python, "-c", _LOOK, f"{file.as_uri()}?mode=ro"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _error = await asyncio.wait_for(process.communicate(), MAX_CHECK_S)
    except TimeoutError:
        log.warning("a database is too large to be looked through", file=str(file), tried_s=MAX_CHECK_S)
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = " ".join(output.decode(errors="replace").split())[:200]
    if said == "ok":
        log.info(
            "a database was looked through and is whole",
            file=str(file),
            seconds=round(time.monotonic() - begun, 1),
        )
        return None
    if process.returncode and not any(word in said for word in ("malformed", "not a database", "corrupt")):
        log.warning("a database cannot be looked through", file=str(file), reason=said or "it was ended")
        return None
    return said
