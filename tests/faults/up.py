"""``propeller up`` with further variables for single services, which the command itself does not take.

python -m faults.up '{"folder": "…", "extra": {"proplet": {"COORDINATOR_URL": "…"}}}'
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from propeller.cli.up import run_on_stack
from propeller.stack.up import Options


def main(folder: str, extra: dict[str, dict[str, str]]) -> int:
    """Run a stack until SIGTERM; the exit code."""

    async def forever(_description: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    return run_on_stack(
        Options(Path(folder), auto_ports=True, extra=extra), lambda _what, _where: None, forever
    )


if __name__ == "__main__":
    sys.exit(main(**json.loads(sys.argv[1])))
