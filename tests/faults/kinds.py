"""The kinds of faults, each made by chance that a seed decides."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random

import psutil

from faults.damage import (
    damage_artifact,
    damage_broker_store,
    damage_index,
    damage_model,
    damage_programs,
    damage_stopped_stack,
    damage_update,
)
from faults.disks import fill_disk
from faults.hostile import hostile_device
from faults.links import HttpLink
from faults.participant import poison
from faults.stack import PROCESSES, FaultyStack

Fault = Callable[[FaultyStack, Random], Awaitable[str]]
"""Makes a fault, and heals what heals; gives what it was in words, nothing if it came to nothing."""

LONGEST_S = 10.0
"""Of a pause and of a partition: longer ones are other faults, as whoever says nothing for 30 s counts as gone."""


def _some(rng: Random) -> list[str]:
    return rng.sample(PROCESSES, rng.choice((1, 1, 1, 2, 3)))


def _signal(stack: FaultyStack, names: list[str], how: signal.Signals) -> list[psutil.Process]:
    found = [one for one in map(stack.process, names) if one is not None]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    return found


async def kill(stack: FaultyStack, rng: Random) -> str:
    """SIGKILL of one to three processes at once."""
    names = _some(rng)
    _signal(stack, names, signal.SIGKILL)
    return " + ".join(names)


async def restart(stack: FaultyStack, rng: Random) -> str:
    """SIGTERM of one to three processes at once, which then are started again."""
    names = _some(rng)
    _signal(stack, names, signal.SIGTERM)
    return " + ".join(names)


async def pause(stack: FaultyStack, rng: Random) -> str:
    """SIGSTOP of one to three processes, and SIGCONT."""
    names, seconds = _some(rng), rng.uniform(1, LONGEST_S)
    stopped = _signal(stack, names, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)
    return f"{' + '.join(names)} for {seconds:.1f} s"


async def restart_stack(stack: FaultyStack, rng: Random) -> str:
    """The whole stack ends, in order or killed, and is started again on its folder."""
    how = rng.choice((signal.SIGTERM, signal.SIGKILL))
    await stack.stop(how)
    await stack.start()
    return how.name


async def partition(stack: FaultyStack, rng: Random) -> str:
    """The proplets do not reach the broker or a service: connections are lost, or nothing comes through, or late."""
    name, seconds = rng.choice(sorted(stack.links)), rng.uniform(0.5, LONGEST_S)
    link, how = stack.links[name], rng.choice(("cut", "stalled", "slow"))
    if how == "cut":
        link.cut()
    elif how == "stalled":
        link.stall()
    else:
        link.delay_s = rng.uniform(0.05, 1)
    try:
        await asyncio.sleep(seconds)
    finally:
        link.heal()
    return f"{name} {how} for {seconds:.1f} s"


async def lose_answers(stack: FaultyStack, rng: Random) -> str:
    """What proplets ask of the coordinator is done, and they do not hear of it."""
    link, seconds = _coordinator(stack), rng.uniform(0.5, 3)
    link.loses_answers = True
    try:
        await asyncio.sleep(seconds)
    finally:
        link.heal()
    return f"for {seconds:.1f} s"


async def send_twice(stack: FaultyStack, rng: Random) -> str:
    """What proplets ask of the coordinator comes twice."""
    link, seconds = _coordinator(stack), rng.uniform(0.5, 5)
    link.sends_twice = True
    try:
        await asyncio.sleep(seconds)
    finally:
        link.heal()
    return f"for {seconds:.1f} s"


def _coordinator(stack: FaultyStack) -> HttpLink:
    link = stack.links["coordinator"]
    assert isinstance(link, HttpLink)
    return link


def _is_always_there(_stack: FaultyStack) -> str:
    return ""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        make: makes one.
        checks: what is checked of this kind alone, beside what holds whatever happened.
        alone: whether no other fault may be made at the same time: it ends the stack, or what it checks needs the others whole.
        lacks: what keeps it from being made here; empty if nothing does.
    """

    make: Fault
    checks: str = ""
    alone: bool = False
    lacks: Callable[[FaultyStack], str] = _is_always_there


KINDS: dict[str, Kind] = {
    "kill": Kind(kill),
    "restart": Kind(restart),
    "pause": Kind(pause),
    "restart of the stack": Kind(restart_stack, "no process is left", alone=True),
    "partition": Kind(partition),
    "lost answers": Kind(lose_answers),
    "requests sent twice": Kind(send_twice),
    "hostile device": Kind(hostile_device, "no update that it sends is accepted"),
    "poisonous participant": Kind(
        poison, "each update is refused; each round of it names it, and counts the others alone"
    ),
    "full disk": Kind(
        fill_disk,
        "what cannot be kept is refused with 503 or 507, and kept when there is room",
        lacks=lambda stack: stack.no_disks,
    ),
    "damaged programs": Kind(damage_programs),
    "damaged model version": Kind(
        damage_model, "the file is named, and no other numbers are given; mended it is as before", alone=True
    ),
    "damaged update": Kind(damage_update, "its round names its sender, and goes on", alone=True),
    "damaged artifact": Kind(
        damage_artifact, "the blob is set aside by name and never given; a push brings it back", alone=True
    ),
    "damaged index of artifacts": Kind(
        damage_index, "the registry refuses to start and names it", alone=True
    ),
    "damaged store of the broker": Kind(damage_broker_store, "the stack starts", alone=True),
    "damaged file of a stopped stack": Kind(
        damage_stopped_stack,
        "the stack refuses to start and names it; an audit log does not verify",
        alone=True,
    ),
}
