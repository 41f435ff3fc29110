"""One line a sender and a while."""

from structlog.testing import capture_logs

from propeller.mqtt.refusals import MAX_SENDERS, QUIET_S, Refusals
from propeller.process.logs import get_logger


def test_a_sender_is_told_of_once_in_a_while() -> None:
    now = 0.0
    with capture_logs() as logs:
        refusals = Refusals("refused", get_logger("test"), clock=lambda: now)
        for _ in range(5):
            refusals.log("a", "t/a", "garbage")
        refusals.log(None, "t", "garbage" * 1000)
        now = QUIET_S + 1
        refusals.log("a", "t/a", "more garbage", named="b")
    assert [(line["sender"], line["refused"]) for line in logs] == [("a", 1), (None, 6), ("a", 7)]
    assert len(logs[1]["reason"]) == 500
    assert logs[2]["named"] == "b"
    assert refusals.count == 7


def test_what_is_remembered_is_bounded() -> None:
    with capture_logs() as logs:
        refusals = Refusals("refused", get_logger("test"))
        for number in range(MAX_SENDERS + 1):
            refusals.log(str(number), "t", "x")
        refusals.log(str(MAX_SENDERS), "t", "x")
        refusals.log("0", "t", "x")
    assert len(logs) == MAX_SENDERS + 2
