"""Programs sent ahead: devices fetch and compile one, so that the first round that runs it need not wait for that."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from propeller.errors import PropellerError
from propeller.sdk.connection import Connection

_LOOK_EVERY_S = 0.2
"""Between questions how far devices are, in seconds; more where there are more than twenty."""

_COMPLETED, _FAILED = 3, 4
"""States of tasks that are over."""


@dataclass(frozen=True)
class Prefetched:
    """What became of a program that was sent ahead.

    Attributes:
        done: the devices that have it compiled now, by name.
        failures: why the others have not: name → reason.
        seconds: how long all took together.
    """

    done: tuple[str, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


async def prefetch(
    connection: Connection,
    reference: str,
    devices: Mapping[str, str],
    *,
    limits: Mapping[str, float] | None = None,
    timeout_s: float,
    on_change: Callable[[Mapping[str, str]], None] | None = None,
) -> Prefetched:
    """Have devices fetch and compile a program, and wait until they have.

    Args:
        connection: of the stack.
        reference: the program, as devices name it.
        devices: their names by their ids.
        limits: those of the tasks that will run it; with ``fuel`` it is compiled to count instructions.
        timeout_s: how long to wait, in seconds; what is not done then goes on, and is among the failures.
        on_change: is told what each device does, by name, whenever that is another thing.
    """
    begun, sending = time.monotonic(), _Sending(connection)
    for device, name in devices.items():
        spec = {"name": "prefetch", "kind": "prefetch", "image_url": reference, "proplet_id": device}
        await sending.start(name, {**spec, **({"limits": dict(limits)} if limits else {})})
    while sending.open and time.monotonic() - begun < timeout_s:
        if await sending.look() and on_change is not None:
            on_change(dict(sending.doing))
        if sending.open:
            await connection.transport.sleep(max(_LOOK_EVERY_S, _LOOK_EVERY_S / 20 * len(sending.open)))
    late = {
        name: f"not done after {timeout_s:g} s, it is {sending.doing.get(name) or 'not heard of'}; it goes on"
        for name in sending.open.values()
    }
    return Prefetched(tuple(sending.done), {**sending.failures, **late}, time.monotonic() - begun)


class _Sending:
    """The tasks by which devices fetch a program."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.open: dict[str, str] = {}
        self.done: list[str] = []
        self.failures: dict[str, str] = {}
        self.doing: dict[str, str] = {}

    async def start(self, name: str, spec: Mapping[str, Any]) -> None:
        """Begin on a device."""
        try:
            made = await self._connection.ask("POST", "manager", "/tasks", json=spec)
            await self._connection.ask("POST", "manager", f"/tasks/{made['id']}/start")
        except PropellerError as error:
            self.failures[name] = str(error)
        else:
            self.open[made["id"]] = name

    async def look(self) -> bool:
        """Ask how far the devices are; whether that is another thing than before."""
        before = dict(self.doing)
        for task_id, name in list(self.open.items()):
            task = await self._connection.ask("GET", "manager", f"/tasks/{task_id}")
            self.doing[name] = str(task.get("stage", ""))
            if task["state"] not in {_COMPLETED, _FAILED}:
                continue
            del self.open[task_id]
            self.doing[name] = "done" if task["state"] == _COMPLETED else "failed"
            if task["state"] == _COMPLETED:
                self.done.append(name)
            else:
                self.failures[name] = str(task.get("error"))
        return self.doing != before
