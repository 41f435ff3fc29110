"""The throttle slows down whoever guesses, and nobody else."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import ThrottledError
from propeller.identity.login_throttle import (
    BURST,
    FREE_FAILURES,
    MAX_AT_ONCE,
    MAX_AT_ONCE_OF_ADDRESS,
    PAUSE_S,
    PER_S,
    LoginThrottle,
)

HOME = ("ann", "10.0.0.1")


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> LoginThrottle:
    return LoginThrottle(clock)


def test_one_account_from_one_address(throttle: LoginThrottle, clock: Clock) -> None:
    for _ in range(FREE_FAILURES):
        assert throttle.wait_s(HOME) == 0
        throttle.note_failure(HOME)
    assert throttle.wait_s(HOME) == PAUSE_S
    with (
        pytest.raises(ThrottledError, match="too many logins failed: try again in 30 s"),
        throttle.trying(HOME),
    ):
        pass
    assert throttle.wait_s(("ann", "10.0.0.2")) == 0
    clock.now += PAUSE_S + 1
    assert throttle.wait_s(HOME) == 0
    throttle.note_failure(HOME)
    assert throttle.wait_s(HOME) == 0
    throttle.note_success(HOME)
    assert throttle.wait_s(HOME) == 0


def test_one_account_from_many_addresses_does_not_lock_its_user_out(
    throttle: LoginThrottle, clock: Clock
) -> None:
    throttle.note_success(HOME)
    for number in range(200):
        throttle.note_failure(("ann", f"192.0.2.{number}"))
    assert throttle.wait_s(("ann", "198.51.100.1")) == pytest.approx((200 - BURST) / PER_S)
    assert throttle.wait_s(HOME) == 0
    assert throttle.wait_s(("bob", "198.51.100.1")) == 0
    clock.now += 200 / PER_S
    assert throttle.wait_s(("ann", "198.51.100.1")) == 0


def test_many_accounts_from_one_address_do_not_lock_its_other_users_out(throttle: LoginThrottle) -> None:
    throttle.note_success(HOME)
    for number in range(100):
        throttle.note_failure((f"user-{number}", HOME[1]))
    assert throttle.wait_s(("bob", HOME[1])) > 0
    assert throttle.wait_s(HOME) == 0
    assert throttle.wait_s(("bob", "10.0.0.2")) == 0


def test_addresses_of_one_network_are_one_caller(throttle: LoginThrottle) -> None:
    for number in range(100):
        throttle.note_failure((f"user-{number}", f"2001:db8::{number:x}"))
    assert throttle.wait_s(("bob", "2001:db8::ffff")) > 0
    assert throttle.wait_s(("bob", "2001:db8:0:1::1")) == 0


def test_what_hashing_may_cost(throttle: LoginThrottle) -> None:
    throttle.note_success(HOME)
    with contextlib.ExitStack() as at_it:
        for _ in range(MAX_AT_ONCE_OF_ADDRESS):
            at_it.enter_context(throttle.trying(("bob", HOME[1])))
        with pytest.raises(ThrottledError, match="at once"), throttle.trying(("bob", HOME[1])):
            pass
        with throttle.trying(HOME):  # who is known does not wait for those who are not
            pass
        for number in range(MAX_AT_ONCE - MAX_AT_ONCE_OF_ADDRESS):
            at_it.enter_context(throttle.trying(("bob", f"192.0.2.{number}")))
        with pytest.raises(ThrottledError, match="at once"), throttle.trying(("bob", "198.51.100.1")):
            pass
    with throttle.trying(("bob", HOME[1])):
        pass


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["1.1.1.1", "2.2.2.2", "x", ""]), st.floats(0, 100))
    )
)
def test_nobody_waits_longer_than_the_failures_are_worth(failures: list[tuple[str, str, float]]) -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    for account, address, later in failures:
        clock.now += later
        throttle.note_failure((account, address))
        assert 0 <= throttle.wait_s((account, address)) <= max(PAUSE_S, len(failures) / PER_S)
    clock.now += max(PAUSE_S, len(failures) / PER_S) + 1
    assert all(throttle.wait_s((account, address)) == 0 for account, address, _later in failures)
