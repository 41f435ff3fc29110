"""The kinds of faults, each made by chance that a seed decides."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable
from random import Random

import psutil

from faults.damage import damage_broker_store, damage_programs
from faults.hostile import hostile_device
from faults.links import HttpLink
from faults.stack import PROCESSES, FaultyStack

Fault = Callable[[FaultyStack, Random], Awaitable[str]]
"""Makes a fault, and heals what heals; gives what it was in words."""

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


KINDS: dict[str, Fault] = {
    "kill": kill,
    "restart": restart,
    "pause": pause,
    "restart of the stack": restart_stack,
    "partition": partition,
    "lost answers": lose_answers,
    "requests sent twice": send_twice,
    "hostile device": hostile_device,
    "damaged programs": damage_programs,
    "damaged store of the broker": damage_broker_store,
}

OF_THE_WHOLE_STACK = frozenset({"restart of the stack", "damaged store of the broker"})
"""Kinds that end the stack: no other fault is made at the same time."""
