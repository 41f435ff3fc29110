"""``propeller doctor``: what is wrong with a stack, and how to fix it."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.text import Text

from propeller.cli.connection import Target
from propeller.cli.terminal import Terminal
from propeller.doctor.advice import RemoteAdvice
from propeller.doctor.checks import Finding, Status
from propeller.doctor.diagnosis import diagnose, is_healthy
from propeller.doctor.elsewhere import diagnose_elsewhere
from propeller.doctor.sources import from_env, from_state
from propeller.process.control_characters import escape_line

_STYLES = {Status.PASS: "green", Status.FAIL: "bold red", Status.SKIP: "yellow"}


def run_doctor(
    target: Target,
    env_file: Path | None,
    host: str,
    *,
    image: str | None,
    participants: str | None,
    as_json: bool,
) -> int:
    """Examine the stack of a state folder, of an ``.env`` file, or elsewhere, and print what was found.

    Returns:
        1 if something is wrong, else 0.
    """
    chosen = [name.strip() for name in participants.split(",") if name.strip()] if participants else None
    if env_file is None and target.is_remote:
        findings = asyncio.run(_examine_elsewhere(target, chosen))
    else:
        source = partial(from_env, env_file, host) if env_file else partial(from_state, target.state)
        folder = None if env_file else target.state
        findings = asyncio.run(diagnose(source, folder=folder, image=image, participants=chosen))
    healthy = is_healthy(findings)
    if as_json:
        print(json.dumps({"healthy": healthy, "checks": [asdict(one) for one in findings]}, indent=2))
    else:
        _show(findings)
    return 0 if healthy else 1


async def _examine_elsewhere(target: Target, participants: Sequence[str] | None) -> list[Finding]:
    async with target.connect_async() as fl:
        options = target.command().removeprefix("propeller")
        return await diagnose_elsewhere(fl, RemoteAdvice(options), fl.ca_cert, participants)


def _show(findings: Sequence[Finding]) -> None:
    console = Terminal(soft_wrap=True)
    for one in findings:
        console.print(
            Text.assemble((one.status, _STYLES[one.status]), f" {one.what}: {escape_line(one.detail)}")
        )
        if one.fix:
            console.print(Text(f"     fix: {escape_line(one.fix)}"))
    counts = {status: sum(one.status is status for one in findings) for status in Status}
    console.print(
        f"{counts[Status.PASS]} passed, {counts[Status.FAIL]} failed, {counts[Status.SKIP]} skipped"
    )
