"""``propeller up`` with further variables for single services, and standbys, which the command itself does not take.

python -m faults.up '{"folder": "…", "extra": {"proplet": {"COORDINATOR_URL": "…"}}, "standbys": ["coordinator"]}'
"""

import asyncio
import faulthandler
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from propeller.cli.up import run_on_stack
from propeller.stack.config import StackConfig
from propeller.stack.services import find_service
from propeller.stack.state_folder import StateFolder
from propeller.stack.supervisor import ProcessSpec, Supervisor
from propeller.stack.up import Options

# Also in the services, each of which imports what its parent ran: they say on SIGUSR1 where they are.
faulthandler.register(signal.SIGUSR1)


def main(folder: str, extra: dict[str, dict[str, str]], standbys: Sequence[str] = ()) -> int:
    """Run a stack until SIGTERM, and second processes of some of its services; the exit code."""

    async def forever(_description: dict[str, Any]) -> None:
        supervisor = Supervisor()
        try:
            for name in standbys:
                await supervisor.start(_standby(StateFolder(Path(folder)), extra, name))
            await asyncio.Event().wait()
        finally:
            await supervisor.close()

    return run_on_stack(
        Options(Path(folder), auto_ports=True, extra=extra), lambda _what, _where: None, forever
    )


def _standby(folder: StateFolder, extra: dict[str, dict[str, str]], name: str) -> ProcessSpec:
    """A second process of a service, with the same settings; it writes logs of its own."""
    secrets = folder.load_secrets()
    config = StackConfig(folder, secrets.ports, secrets, "info", extra, {}, False, None)
    own = f"{name}-standby"
    env = {**find_service(name).environment_in(config), "PROPELLER_AUDIT_LOG": str(folder.audit_log(own))}
    return ProcessSpec(own, name, env, folder.log_file(own))


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
