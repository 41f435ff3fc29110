"""This machine: its clock beside the services', the disk, the ports."""

import asyncio
import shutil
import socket
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from propeller.doctor.checks import Finding, failed, passed, skipped
from propeller.doctor.target import Observations
from propeller.errors import StartError
from propeller.process.run import listening_process
from propeller.process.tls import WARN_DAYS
from propeller.web.sites import is_loopback

MAX_CLOCK_DIFFERENCE_S = 5.0
"""How far two clocks may be apart, in seconds."""

MIN_FREE_BYTES = 512 * 1024 * 1024
"""Free disk space that a stack should have, in bytes."""

_SET_CLOCK = "set the clocks of both machines by NTP: timedatectl set-ntp true"


def clocks(observed: Observations) -> list[Finding]:
    """Whether the services' clocks are this machine's: by the Date of their answers, and by heartbeats to come."""
    if not observed.clocks:
        return [skipped("clocks", "no service told its time")]
    findings = [
        failed(
            "clocks",
            f"{name} is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine",
            _SET_CLOCK,
        )
        for name, ahead in sorted(observed.clocks.items())
        if abs(ahead) > MAX_CLOCK_DIFFERENCE_S
    ]
    if not findings:
        findings = [
            failed("clocks", f"the last heartbeat of {name} is {ahead:.0f} s in the future", _SET_CLOCK)
            for name, proplet in (observed.proplets or {}).items()
            if (ahead := _seconds_ahead(proplet.get("last_alive_at"))) > MAX_CLOCK_DIFFERENCE_S
        ]
    largest = max(map(abs, observed.clocks.values()))
    return findings or [
        passed(
            "clocks",
            f"the clocks of {len(observed.clocks)} listeners are within {largest:.0f} s of this machine's",
        )
    ]


def disk(folder: Path | None) -> list[Finding]:
    """Whether the disk of a state folder has room."""
    if folder is None:
        return [skipped("disk", "the volumes are the container engine's: docker system df")]
    try:
        free = shutil.disk_usage(
            next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        ).free
    except OSError as error:
        return [failed("disk", f"{folder}: {error.strerror}", "choose another folder with --state")]
    if free < MIN_FREE_BYTES:
        detail = f"{folder} has {free // 2**20} MiB left, under {MIN_FREE_BYTES // 2**20}"
        return [failed("disk", detail, "make room, or choose a folder on another disk with --state")]
    return [passed("disk", f"{folder} has {free / 2**30:.1f} GiB left")]


def certificate(file: Path | None) -> list[Finding]:
    """Whether what the servers show is good for some time."""
    if file is None:
        return [skipped("certificate", "the services speak no TLS, or show what they were given")]
    from propeller.process.certificates import read_certificate

    try:
        found = read_certificate(file)
    except StartError as error:
        return [failed("certificate", str(error), "end the stack and start it again: it makes another one")]
    if found.days_left() < WARN_DAYS:
        return [
            failed(
                "certificate",
                f"{file} {found.explain_end()}",
                "end the stack and start it again: it makes another one, which it could not do while it ran (logs/up.log)",
            )
        ]
    return [
        passed(
            "certificate", f"{file} is good until {found.not_after:%Y-%m-%d}, for {', '.join(found.hosts)}"
        )
    ]


def free_ports(ports: Mapping[str, int], remedy: str) -> list[Finding]:
    """Whether ports are free for a stack that does not run."""
    findings = []
    for name, port in ports.items():
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            process = listening_process(port)
            detail = (
                f"{port} ({name}) is not free: {f'{process} listens there' if process else error.strerror}"
            )
            findings.append(failed("ports", detail, remedy))
    return findings or [passed("ports", f"free: {', '.join(map(str, ports.values()))}")]


def listener_on(host: str, port: int) -> str:
    """The program that listens on a port, for a person."""
    return (listening_process(port) if is_loopback(host) else None) or f"what listens on {host}:{port}"


async def listening_names(addresses: Mapping[str, tuple[str, int]]) -> list[str]:
    """The names of the addresses that take connections."""

    async def accepts(address: tuple[str, int]) -> bool:
        try:
            async with asyncio.timeout(2.0):
                _, writer = await asyncio.open_connection(*address)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    answers = await asyncio.gather(*map(accepts, addresses.values()))
    return [name for name, answer in zip(addresses, answers, strict=True) if answer]


def _seconds_ahead(moment: object) -> float:
    try:
        return (datetime.fromisoformat(str(moment)) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
