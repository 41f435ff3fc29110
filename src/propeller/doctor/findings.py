"""What the doctor says: one finding a line."""

from dataclasses import dataclass
from enum import StrEnum


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
    """Something is wrong; ``fix`` mends it."""
    return Finding(Status.FAIL, what, detail, fix)


def skipped(what: str, detail: str) -> Finding:
    """It could not be asked, or there is nothing to ask about."""
    return Finding(Status.SKIP, what, detail)


def waits_for(what: str, *others: str) -> Finding:
    """It says nothing new until those other checks pass."""
    return skipped(what, f"waits for {', '.join(others)}")
