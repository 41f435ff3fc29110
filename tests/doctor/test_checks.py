"""Running checks: what one needs, how long one may take, and that one which goes wrong hides no other."""

import asyncio
import time

from propeller.doctor.checks import Check, Finding, Status, failed, passed, run_checks, skipped


async def good() -> list[Finding]:
    return [passed("good", "")]


async def bad() -> list[Finding]:
    return [passed("bad", "in part"), failed("bad", "broken", "mend it")]


async def hangs() -> list[Finding]:
    await asyncio.Event().wait()
    return []


async def wrong() -> list[Finding]:
    raise KeyError("versions")


async def empty() -> list[Finding]:
    return [skipped("empty", "nothing to ask about")]


def shown(findings: list[Finding]) -> list[str]:
    return [f"{one.status} {one.what}: {one.detail}" for one in findings]


async def test_what_needs_a_failed_check_is_skipped_and_so_is_what_needs_that() -> None:
    checks = [
        Check("good", good),
        Check("bad", bad),
        Check("second", good, needs=("good", "bad")),
        Check("third", good, needs=("second",)),
        Check("after", good, after=("bad",)),
        Check("empty", empty),
        Check("last", good, needs=("empty",)),
    ]
    assert shown(await run_checks(checks)) == [
        "PASS good: ",
        "PASS bad: in part",
        "FAIL bad: broken",
        "SKIP second: waits for bad",
        "SKIP third: waits for second",
        "PASS good: ",
        "SKIP empty: nothing to ask about",
        "SKIP last: waits for empty",
    ]


async def test_a_check_that_hangs_ends_at_its_limit_and_all_at_theirs() -> None:
    checks = [
        Check("first", hangs, limit_s=0.1),
        Check("second", hangs, limit_s=60),
        Check("third", hangs, after=("second",)),
        Check("good", good),
    ]
    begun = time.monotonic()
    findings = await run_checks(checks, total_s=0.3)
    assert time.monotonic() - begun < 5
    assert [one.status for one in findings] == [Status.FAIL, Status.FAIL, Status.FAIL, Status.PASS]
    assert "no answer within" in findings[1].detail


async def test_a_check_that_goes_wrong_says_so() -> None:
    [finding, other] = await run_checks([Check("wrong", wrong), Check("good", good)])
    assert finding.status is Status.FAIL
    assert finding.detail == "cannot be checked: KeyError: 'versions'"
    assert finding.fix
    assert other.status is Status.PASS
