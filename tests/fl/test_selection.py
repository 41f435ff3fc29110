"""The choice of participants: what the policy says, why there are too few, and nothing that depends on ids."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import UnprocessableError
from propeller.fl.selection import (
    Candidate,
    Draw,
    NotEnoughError,
    explain_unknown_devices,
    natural_order,
    select,
    slot_seed,
)
from propeller.protocol.selection import SelectionPolicy

FIRST = Draw(1)


def fleet(count: int, prefix: str = "id") -> list[Candidate]:
    return [Candidate(f"{prefix}-{i:03}", f"edge-{i:03}") for i in range(count)]


def chosen(candidates: Sequence[Candidate], draw: Draw = FIRST, **fields: Any) -> tuple[str, ...]:
    return select(candidates, SelectionPolicy(**fields), draw).ids


def too_few(candidates: Sequence[Candidate], **fields: Any) -> NotEnoughError:
    with pytest.raises(NotEnoughError) as caught:
        chosen(candidates, **fields)
    return caught.value


def test_without_a_policy_all_take_part_in_the_order_of_their_names() -> None:
    devices = [Candidate("1", "c"), Candidate("2", "a"), Candidate("4", "b"), Candidate("3", "b")]
    assert chosen(devices) == ("2", "3", "4", "1")


def test_names_are_in_the_order_in_which_people_count() -> None:
    names = [
        "",
        "edge",
        "edge1",
        "edge-9",
        "edge-10",
        "edge-10b",
        "edge-010c",
        "edge-x",
        "proplet-2",
        "proplet-10",
    ]
    assert sorted(set(names), key=natural_order) == names
    assert natural_order("9" * 5000) < natural_order("1" + "0" * 5000)
    devices = [Candidate("1", "p-10"), Candidate("2", "p-2"), Candidate("3", "p-02")]
    assert chosen(devices) == ("3", "2", "1")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (None, None),
        (["edge-001", "id-002"], None),
        (
            ["edge-001", "edge-0O1"],
            "selection.names: there is no device 'edge-0O1'; did you mean 'edge-001'?",
        ),
        (["zzz"], "selection.names: there is no device 'zzz'; there are: edge-000, edge-001, edge-002"),
        ([f"z{i}" for i in range(12)], "; and 2 more"),
    ],
)
def test_names_of_devices_that_there_never_were_are_told(names: list[str] | None, said: str | None) -> None:
    found = explain_unknown_devices(fleet(3), SelectionPolicy(names=names, count=1))
    assert found is None if said is None else said in str(found)
    assert "there is none" in str(explain_unknown_devices([], SelectionPolicy(names=["edge"])))


def test_a_device_that_calls_itself_by_the_id_of_another_is_not_meant() -> None:
    devices = [Candidate("1", "2"), Candidate("2", "b")]
    assert chosen(devices, names=["2"]) == ("2",)


def test_a_fraction_is_of_those_that_are_there_rounded_up_as_decimals() -> None:
    assert len(chosen(fleet(10), fraction=0.25)) == 3
    assert len(chosen(fleet(100), fraction=0.07)) == 7  # 0.07 * 100 > 7 in binary
    assert len(chosen(fleet(3), fraction=0.01)) == 1
    assert len(chosen(fleet(4), fraction=0.5, min_chosen=3)) == 3


def test_over_selection_asks_for_more_while_there_are_more() -> None:
    wide = select(fleet(20), SelectionPolicy(count=8, over_select=0.25), FIRST)
    assert (len(wide.ids), wide.surplus) == (10, 2)
    narrow = select(fleet(9), SelectionPolicy(count=8, over_select=0.25), FIRST)
    assert (len(narrow.ids), narrow.surplus) == (9, 1)
    failed = [f"id-{i:03}" for i in range(10)]
    assert select(fleet(11), SelectionPolicy(count=4, over_select=1.0, exclude=failed), FIRST).surplus == 0


def test_tags_and_names_say_who_there_is_to_choose_from() -> None:
    devices = [
        Candidate("1", "a", frozenset({"gpu", "x"})),
        Candidate("2", "b", frozenset({"gpu"})),
        Candidate("3", "c"),
    ]
    assert chosen(devices, tags=["gpu"]) == ("1", "2")
    assert chosen(devices, tags=["gpu", "x"]) == ("1",)
    assert chosen(devices, names=["c", "1"]) == ("1", "3")  # a name or an id
    assert chosen(devices, names=["a", "b", "d"], min_available=2) == ("1", "2")
    assert len(chosen(devices, names=["a", "b", "d"], count=1)) == 1


def test_device_state_that_devices_do_not_have() -> None:
    devices = [Candidate(f"{i}", f"edge-{i}", keeps_state=i > 1) for i in range(5)]
    assert chosen(devices, device_state=True) == ("2", "3", "4")
    assert len(chosen(devices)) == 5
    assert set(chosen(devices, device_state=True, count=2)) < {"2", "3", "4"}
    for fields in ({"count": 4}, {"min_available": 4}, {"names": ["edge-1", "edge-2"], "count": 1}):
        with pytest.raises(
            UnprocessableError, match=r"strategy: it needs device state.*edge-1.*selection\.names"
        ):
            chosen(devices, device_state=True, **fields)
    # Others may come: it waits, as it does without.
    assert "7 devices needed, 3 there" in str(too_few(devices, device_state=True, count=7))


def test_those_that_failed_are_left_out_while_others_are_there() -> None:
    assert chosen(fleet(4), exclude=["id-001"]) == ("id-000", "id-002", "id-003")
    assert set(chosen(fleet(4), count=2, exclude=["id-000", "id-001"])) == {"id-002", "id-003"}
    assert set(chosen(fleet(4), count=3, exclude=["id-000", "id-001"])) > {"id-002", "id-003"}
    assert len(chosen(fleet(2), names=["edge-000", "edge-001"], min_chosen=2, exclude=["id-001"])) == 2
    assert len(chosen(fleet(2), names=["edge-000", "edge-001"], exclude=["id-001"])) == 2


def test_where_all_have_failed_nobody_is_left_out() -> None:
    everyone = [f"id-{i:03}" for i in range(4)]
    assert chosen(fleet(4), exclude=everyone) == tuple(everyone)
    again = select(fleet(4), SelectionPolicy(count=2, over_select=0.5, exclude=everyone), FIRST)
    assert (len(again.ids), again.surplus) == (3, 1)
    rest = {"cooldown_rounds": 1, "last_rounds": {"id-000": 1, "id-001": 1}}
    assert chosen(fleet(4), Draw(2), count=2, exclude=everyone, **rest) == ("id-002", "id-003")


def test_who_took_part_rests_while_enough_others_are_there() -> None:
    last = {"id-000": 4, "id-001": 3, "id-002": 2}
    rest = {"cooldown_rounds": 2, "last_rounds": last}
    assert set(chosen(fleet(4), Draw(5), count=2, **rest)) == {"id-002", "id-003"}
    assert set(chosen(fleet(4), Draw(5), count=3, **rest)) > {"id-002", "id-003"}
    assert set(chosen(fleet(4), Draw(6), count=3, **rest)) == {"id-001", "id-002", "id-003"}
    # Better one that took part just now than one that failed.
    assert set(chosen(fleet(4), Draw(5), count=3, exclude=["id-003"], **rest)) == {
        "id-000",
        "id-001",
        "id-002",
    }


def test_those_that_are_busy_are_never_taken() -> None:
    assert chosen(fleet(4), busy=["id-001"], up_to=4) == ("id-000", "id-002", "id-003")
    assert len(chosen(fleet(4), busy=["id-001"], up_to=2)) == 2
    assert chosen(fleet(2), busy=["id-000", "id-001"], up_to=2, min_chosen=0) == ()
    error = too_few(fleet(2), busy=["id-000", "id-001"], up_to=2)
    assert str(error) == "all 2 devices that are there take part in another round of the experiment"
    # They are there all the same.
    assert chosen(fleet(2), busy=["id-001"], up_to=2, min_available=2) == ("id-000",)


def test_up_to_a_number_takes_those_that_failed_only_where_there_must_be_someone() -> None:
    failed = ["id-000", "id-001"]
    assert chosen(fleet(3), up_to=3, exclude=failed) == ("id-002",)
    assert chosen(fleet(2), up_to=2, exclude=failed, min_chosen=0) == ()
    assert len(chosen(fleet(2), up_to=2, exclude=failed)) == 1


def test_each_round_attempt_kind_and_seed_draws_anew() -> None:
    draws = [Draw(1), Draw(2), Draw(1, 2), Draw(1, 1, "evaluate")]
    assert len({chosen(fleet(100), draw, count=5) for draw in draws}) == 4
    assert chosen(fleet(100), count=5, seed=1) != chosen(fleet(100), count=5, seed=2)


def test_everyone_is_chosen_about_as_often() -> None:
    counts = Counter(one for number in range(2000) for one in chosen(fleet(10), Draw(number), count=3))
    # 600 each; the standard deviation of a binomial count is about 20.5.
    assert all(abs(count - 600) < 5 * 20.5 for count in counts.values())


def test_the_choice_is_the_same_in_every_version() -> None:
    assert chosen(fleet(10), Draw(3, 2), count=4, seed=7) == ("id-003", "id-004", "id-006", "id-008")


def test_too_few_devices_are_counted_and_named() -> None:
    error = too_few(fleet(2), count=3)
    assert (error.needed, error.available, error.temporary) == (3, 2, True)
    assert str(error) == "3 devices needed, 2 there; there: edge-000, edge-001"
    assert str(too_few([])) == "1 device needed, 0 there; no device is alive"
    assert str(too_few(fleet(12), min_available=13)).endswith("edge-009 and 2 more")
    assert too_few(fleet(2), min_chosen=3).needed == 3


def test_devices_that_rest_are_told_apart_from_those_that_are_not_there() -> None:
    with pytest.raises(NotEnoughError) as caught:
        select([], SelectionPolicy(), Draw(1), resting=["edge-10", "edge-2"])
    assert str(caught.value) == (
        "1 device needed, 0 there; alive, but by PROPLET_POLICY (its hours, or a mistake that the log tells) "
        "no task begins now on: edge-2, edge-10"
    )


def test_names_that_are_not_there_are_told_with_those_near() -> None:
    text = str(too_few(fleet(2), names=["edge-01", "zzz"]))
    assert "selection.names: no device 'edge-01' is alive, but 'edge-001' is" in text
    assert "selection.names: no device 'zzz' is alive;" in f"{text};"
    many = str(too_few(fleet(1), names=[f"n{i}" for i in range(15)]))
    assert many.endswith("no device 'n9' is alive; and 5 more")
    twins = [Candidate("1", "a"), Candidate("2", "a")]
    assert "no device 'b' is alive" in str(too_few(twins, names=["a", "b"]))


def test_tags_that_nobody_has_are_told_with_those_there_are() -> None:
    devices = [Candidate("1", "a", frozenset({"gpu"})), Candidate("2", "b", frozenset({"arm"}))]
    assert "no device that is alive has 'gpus'; did you mean 'gpu'?" in str(too_few(devices, tags=["gpus"]))
    assert "no device that is alive has 'x', there are: arm, gpu" in str(too_few(devices, tags=["x"]))
    assert "no device that is alive has 'x'" in str(too_few(fleet(2), tags=["x"]))
    assert "too few devices have 'arm' and 'gpu'" in str(too_few(devices, tags=["arm", "gpu"]))


policies = st.builds(
    SelectionPolicy,
    fraction=st.none() | st.floats(0.01, 1),
    over_select=st.floats(0, 2),
    min_available=st.none() | st.integers(1, 4),
    min_chosen=st.integers(1, 4),
    seed=st.integers(0, 3),
    cooldown_rounds=st.integers(0, 3),
    exclude=st.lists(st.sampled_from([f"id-{i:03}" for i in range(12)]), unique=True),
    last_rounds=st.dictionaries(st.sampled_from([f"id-{i:03}" for i in range(12)]), st.integers(1, 5)),
)
counted = st.tuples(policies, st.integers(4, 9)).map(
    lambda both: both[0].model_copy(update={"fraction": None, "count": both[1]})
)


@given(policy=policies | counted, size=st.integers(0, 12), number=st.integers(5, 9), order=st.randoms())
def test_a_choice_has_who_is_needed_and_nobody_twice(
    policy: SelectionPolicy, size: int, number: int, order: Any
) -> None:
    devices = fleet(size)
    order.shuffle(devices)
    needed = max(policy.min_chosen, policy.min_available or 1, policy.count or 1)
    if size < needed:
        with pytest.raises(NotEnoughError) as caught:
            select(devices, policy, Draw(number))
        assert (caught.value.needed, caught.value.available) == (needed, size)
        return
    one = select(devices, policy, Draw(number))
    assert len(set(one.ids)) == len(one.ids) <= size
    assert list(one.ids) == sorted(one.ids)
    assert policy.min_chosen <= len(one.ids) - one.surplus
    if policy.count is not None:
        assert len(one.ids) - one.surplus == policy.count
        assert len(one.ids) <= math.ceil(policy.count * (1 + policy.over_select) + 1e-9)
    if not set(policy.exclude).isdisjoint(one.ids):  # only because all others are there
        assert {device.id for device in devices} - set(policy.exclude) <= set(one.ids)
    assert select(fleet(size), policy, Draw(number)) == one


@given(
    count=st.integers(1, 12),
    number=st.integers(1, 99),
    seed=st.integers(0, 2**53 - 1),
    ids=st.lists(st.uuids().map(str), min_size=12, max_size=12, unique=True),
)
def test_names_decide_who_is_in_which_slot_and_ids_do_not(
    count: int, number: int, seed: int, ids: list[str]
) -> None:
    devices = [Candidate(id_, f"proplet-{i}") for i, id_ in enumerate(ids, 1)]
    there = sorted(devices, key=lambda one: one.id)  # as they happened to register
    names = {one.id: one.name for one in devices}
    found = [names[id_] for id_ in chosen(there, Draw(number), count=count, seed=seed)]
    plain = [Candidate(f"{i:02}", f"proplet-{i}") for i in range(1, 13)]
    assert found == [f"proplet-{int(id_)}" for id_ in chosen(plain, Draw(number), count=count, seed=seed)]


@given(seed=st.integers(0, 2**53 - 1), number=st.integers(1, 10**5), slot=st.integers(0, 10**4))
def test_a_slots_seed_fits_any_reader(seed: int, number: int, slot: int) -> None:
    assert 0 <= slot_seed(seed, number, slot) < 2**63
    assert slot_seed(seed, number, slot) != slot_seed(seed, number, slot + 1)


def test_a_slots_seed_is_the_same_in_every_version() -> None:
    assert slot_seed(0, 1, 0) == 1078089835635643068
