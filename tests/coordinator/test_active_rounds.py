"""Which rounds stay in memory."""

from types import SimpleNamespace
from typing import Any

from propeller.coordinator.active_rounds import MAX_ROUNDS, ActiveRounds


class State:
    """Of a round; counts how often somebody looked."""

    looks = 0

    def __init__(self) -> None:
        self.over = False

    @property
    def is_over(self) -> bool:
        State.looks += 1
        return self.over


def test_thousands_of_open_rounds_are_added_in_linear_time_and_make_room_when_they_are_over() -> None:
    rounds, states, State.looks = ActiveRounds(None), [], 0  # type: ignore[arg-type]

    def add(number: int) -> None:
        states.append(State())
        record: Any = SimpleNamespace(round_id=f"r-{number}", state=states[-1])
        rounds.add(record)

    for number in range(5000):
        add(number)
    assert all(rounds.get(f"r-{number}") for number in range(5000))
    assert State.looks < 10 * 5000
    for state in states:
        state.over = True
    for number in range(5000, 5000 + 2000):
        add(number)
        states[-1].over = True
    kept = [number for number in range(7000) if rounds.get(f"r-{number}")]
    assert len(kept) <= MAX_ROUNDS * 5 // 4 + 1
    assert kept[-1] == 6999, "the oldest go"
