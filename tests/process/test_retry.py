import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import ConflictError, UnavailableError
from propeller.process.retry import Backoff, doubling, retry


class Calls:
    """Fails with each of the errors in turn, then answers; waits are recorded instead of waited."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.tries, self.waits = list(errors), 0, list[float]()

    async def __call__(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"

    async def sleep(self, delay: float) -> None:
        self.waits.append(delay)


def passes(error: BaseException) -> bool:
    return isinstance(error, UnavailableError)


@given(first=st.floats(0.001, 10), longest=st.floats(0.001, 1000))
def test_doubling_delays(first: float, longest: float) -> None:
    delays = doubling(first, longest)
    assert delays[0] == first
    assert all(
        later <= max(longest, first) and later <= 2 * before for before, later in itertools.pairwise(delays)
    )
    assert delays[-1] >= longest


async def test_waits_in_the_order_of_the_delays_and_tells_of_each_failure() -> None:
    calls, told = Calls(*[UnavailableError(str(number)) for number in range(3)]), []
    result = await retry(
        calls,
        delays=(0.1, 0.5, 2.0),
        on=passes,
        failed=lambda error, delay: told.append((str(error), delay)),
        sleep=calls.sleep,
    )
    assert (result, calls.tries, calls.waits) == ("done", 4, [0.1, 0.5, 2.0])
    assert told == [("0", 0.1), ("1", 0.5), ("2", 2.0)]


async def test_delays_can_be_spread() -> None:
    calls = Calls(*[UnavailableError("away")] * 50)
    told: list[float] = []
    await retry(
        calls,
        delays=(0.1, 2.0),
        forever=True,
        on=passes,
        failed=lambda _error, delay: told.append(delay),
        spread=True,
        sleep=calls.sleep,
    )
    assert told == calls.waits
    assert 0.05 <= calls.waits[0] <= 0.1
    assert all(1.0 <= wait <= 2.0 for wait in calls.waits[1:])
    assert len(set(calls.waits)) > 40


async def test_work_may_be_any_callable_that_returns_an_awaitable() -> None:
    calls = Calls(UnavailableError("away"))
    assert await retry(lambda: calls(), delays=(0.1,), on=passes, sleep=calls.sleep) == "done"  # noqa: PLW0108


async def test_raises_the_last_error_when_the_tries_are_over() -> None:
    calls, told = Calls(UnavailableError("a"), UnavailableError("b")), []
    with pytest.raises(UnavailableError, match="b"):
        await retry(
            calls, delays=(0.1,), on=passes, failed=lambda *what: told.append(what), sleep=calls.sleep
        )
    assert (calls.tries, calls.waits, len(told)) == (2, [0.1], 1)


async def test_what_does_not_pass_by_itself_is_raised_at_once() -> None:
    calls = Calls(UnavailableError("a"), ConflictError("b"))
    with pytest.raises(ConflictError, match="b"):
        await retry(calls, delays=(0.1,), on=passes, forever=True, sleep=calls.sleep)
    assert calls.tries == 2


async def test_for_ever_goes_on_with_the_last_delay() -> None:
    calls = Calls(*[UnavailableError(str(number)) for number in range(6)])
    assert await retry(calls, delays=(1.0, 2.0), on=passes, forever=True, sleep=calls.sleep) == "done"
    assert calls.waits == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


async def test_no_try_begins_after_the_timeout() -> None:
    calls = Calls(*[UnavailableError(str(number)) for number in range(3)])
    with pytest.raises(UnavailableError):
        await retry(calls, delays=(0.0,), on=passes, forever=True, timeout_s=0.0, sleep=calls.sleep)
    assert calls.tries == 1


async def test_no_try_is_waited_for_that_would_begin_after_the_timeout() -> None:
    calls = Calls(*[UnavailableError(str(number)) for number in range(3)])
    with pytest.raises(UnavailableError, match="0"):
        await retry(calls, delays=(60.0,), on=passes, forever=True, timeout_s=30.0, sleep=calls.sleep)
    assert (calls.tries, calls.waits) == (1, [])


async def test_backoff_grows_and_begins_again_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = list[float]()

    async def record(delay: float) -> None:
        waits.append(delay)

    monkeypatch.setattr("propeller.process.retry.asyncio.sleep", record)
    backoff = Backoff(1.0, 4.0)
    for _ in range(4):
        await backoff.wait()
    backoff.reset()
    await backoff.wait()
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, (1.0, 2.0, 4.0, 4.0, 1.0), strict=True))


async def test_work_may_be_a_plain_function_that_gives_an_awaitable() -> None:
    calls, given = Calls(UnavailableError("away")), list[str]()

    async def answer(text: str) -> str:
        given.append(text)
        return await calls()

    assert await retry(lambda: answer("a"), delays=(0.1,), on=passes, sleep=calls.sleep) == "done"
    assert given == ["a", "a"]
