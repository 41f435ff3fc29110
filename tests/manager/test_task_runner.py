"""A task goes to the least loaded live proplet, in turn among equals; what is kept of a round's result."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from propeller.manager.task_runner import choose_least_loaded, without_update

IDS = st.text("abcdef0123456789-", min_size=1, max_size=6)
LOADS = st.dictionaries(IDS, st.integers(0, 5), min_size=1, max_size=30)


@given(LOADS, st.none() | IDS)
def test_it_takes_one_of_the_least_loaded(loads: dict[str, int], last: str | None) -> None:
    chosen = choose_least_loaded(loads, last)
    assert chosen is not None
    assert loads[chosen] == min(loads.values())


@given(st.sets(IDS, min_size=1, max_size=20), st.integers(1, 5))
def test_idle_proplets_take_turns(ids: set[str], rounds: int) -> None:
    last, chosen = None, Counter[str]()
    for _ in range(rounds * len(ids)):
        last = choose_least_loaded(dict.fromkeys(ids, 0), last)
        assert last is not None
        chosen[last] += 1
    assert set(chosen.values()) == {rounds}


@given(LOADS, st.integers(0, 60))
def test_loads_even_out(loads: dict[str, int], tasks: int) -> None:
    loads, spread, last = dict(loads), max(loads.values()) - min(loads.values()), None
    for _ in range(tasks):
        last = choose_least_loaded(loads, last)
        assert last is not None
        loads[last] += 1
        assert max(loads.values()) - min(loads.values()) <= max(spread, 1)


def test_nobody_to_choose() -> None:
    assert choose_least_loaded({}) is None


def test_the_copy_of_an_update_in_a_rounds_result_is_not_kept() -> None:
    envelope = {"round_id": "r-1", "num_samples": 64, "update_b64": "eyJ3IjpbXX0=", "metrics": {"loss": 0.5}}
    assert without_update(envelope) == {**envelope, "update_b64": ""}
    assert without_update("8") == "8"
