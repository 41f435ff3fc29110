"""What each proplet may ask of the proxy."""

from propeller.proxy.requesters import ALL_COMPAT, MAX_OPEN, REQUESTS_BURST_S, Requesters, RequestLimits


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.asked = Requesters(RequestLimits(requests=1.0, bytes=100.0), clock=lambda: self.now)

    def ask(self, sender: str | None = "a") -> str | None:
        excess = self.asked.begin(sender)
        if excess is None:
            self.asked.end(sender)
        return excess


def test_requests_come_back_with_time_and_cost_nobody_else() -> None:
    world = World()
    answers = [world.ask() for _ in range(int(REQUESTS_BURST_S) + 1)]
    assert answers[:-1] == [None] * int(REQUESTS_BURST_S)
    assert answers[-1] == "it asks more than 1 times a second (PROXY_CLIENT_REQUESTS)"
    assert world.ask("b") is None
    world.now = 2.0
    assert [world.ask() is None for _ in range(3)] == [True, True, False]


def test_open_requests_are_bounded_also_those_of_an_earlier_process() -> None:
    world = World()
    for _ in range(MAX_OPEN):
        assert world.asked.begin("a", repeated=True) is None
    assert world.asked.begin("a") == f"{MAX_OPEN} of its requests are not answered yet"
    assert world.asked.begin("a", repeated=True) is None
    for _ in range(2):
        world.asked.end("a")
    assert world.asked.begin("a") is None


def test_bytes_come_back_and_a_large_program_is_owed() -> None:
    world = World()
    assert world.asked.begin("a") is None
    assert world.asked.take_bytes("a", 7000) is None
    assert world.asked.take_bytes("a", 0) == "it asks for more than 100 bytes a second (PROXY_CLIENT_BYTES)"
    world.now = 11.0
    assert world.asked.take_bytes("a", 0) is None


def test_those_that_are_not_told_apart_have_more_together() -> None:
    world = World()
    assert all(world.asked.begin(None) is None for _ in range(int(REQUESTS_BURST_S) * ALL_COMPAT))
    assert world.asked.begin(None) is not None
