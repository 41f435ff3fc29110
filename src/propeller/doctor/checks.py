"""Checks and what they find; they run side by side, each with a time limit, and none before those that it needs have passed."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

LIMIT_S = 5.0
"""How long a check may take, in seconds."""

TOTAL_S = 14.0
"""How long all of them may take."""


class Status(StrEnum):
    """How a check ended."""

    PASS = "PASS"  # noqa: S105 - not a password
    FAIL = "FAIL"
    SKIP = "SKIP"


@dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        status: how the check ended; what could not be asked is ``SKIP``.
        what: which check.
        detail: what was found, or which other check it waits for.
        fix: of a failure, what to do: a command or a setting.
    """

    status: Status
    what: str
    detail: str
    fix: str = ""


def passed(what: str, detail: str) -> Finding:
    """All is well."""
    return Finding(Status.PASS, what, detail)


def failed(what: str, detail: str, fix: str) -> Finding:
    """Something is wrong; ``fix`` says how to correct it."""
    return Finding(Status.FAIL, what, detail, fix)


def skipped(what: str, detail: str) -> Finding:
    """It could not be asked, or there is nothing to ask about."""
    return Finding(Status.SKIP, what, detail)


def waits_for(what: str, *others: str) -> Finding:
    """It says nothing new until those other checks pass."""
    return skipped(what, f"waits for {', '.join(others)}")


Ask = Callable[[], Awaitable[list[Finding]]]
"""Asks one question of a stack; may give several lines, and raise what it does not expect."""


class CannotAskError(Exception):
    """What is asked gives no answer, or one that cannot be read; the text says which."""


@dataclass(frozen=True)
class Check:
    """A question.

    Attributes:
        what: its name.
        ask: asks it.
        needs: checks before it in the list; if one of them does not pass, this one is skipped.
        after: checks before it in the list whose end it waits for, however they end.
        limit_s: its time limit in seconds.
    """

    what: str
    ask: Ask
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    limit_s: float = LIMIT_S


async def run_checks(checks: Sequence[Check], total_s: float = TOTAL_S) -> list[Finding]:
    """Run all checks, at most ``total_s`` seconds; gives their findings in the order of the checks."""
    end = asyncio.get_running_loop().time() + total_s
    tasks: dict[str, asyncio.Task[list[Finding]]] = {}
    for check in checks:
        waited = {name: tasks[name] for name in (*check.needs, *check.after)}
        tasks[check.what] = asyncio.create_task(_run(check, waited, end))
    return [finding for task in tasks.values() for finding in await task]


async def _run(check: Check, waited: dict[str, asyncio.Task[list[Finding]]], end: float) -> list[Finding]:
    if waited:
        await asyncio.wait(waited.values())
    missing = [name for name in check.needs if not _all_pass(waited[name].result())]
    if missing:
        return [waits_for(check.what, *missing)]
    limit = max(min(check.limit_s, end - asyncio.get_running_loop().time()), 0)
    try:
        async with asyncio.timeout(limit):
            return await check.ask()
    except TimeoutError:
        detail = f"no answer within {limit:.0f} s"
        return [
            failed(check.what, detail, "fix what fails above, or try again when the machine is less busy")
        ]
    except CannotAskError as error:
        return [failed(check.what, str(error), "see the log of the service that was asked")]
    except Exception as error:  # noqa: BLE001 - one question that goes wrong must not hide the answers to the others
        reason = f"{type(error).__name__}: {error}"[:300]
        return [
            failed(check.what, f"cannot be checked: {reason}", "see the log of the service that was asked")
        ]


def _all_pass(findings: list[Finding]) -> bool:
    return all(finding.status is Status.PASS for finding in findings)
