"""What holds of every strategy in the catalog, or of all of a kind."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from propeller.fl.strategies import (
    Contribution,
    Measured,
    Plan,
    ServerState,
    Strategy,
    StrategyInputError,
    UpdateError,
    aggregate,
    create_strategy,
    make_plan,
)
from propeller.fl.strategies.scaffold import Scaffold
from propeller.fl.tensors import TensorError, Tensors
from support.strategies import (
    all_strategies,
    complete,
    contributions,
    default_strategy,
    learning_strategies,
)

OPTIMIZERS = ["fedavgm", "fedadagrad", "fedadam", "fedyogi"]
MEANS = [name for name in learning_strategies() if name not in {*OPTIMIZERS, "qfedavg"}]
"""Strategies that give what all agree on."""

ROBUST = ["fedmedian", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median"]
COUNT = 11


def model(seed: int) -> Tensors:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.normal(size=(3, 5)).astype(np.float32),
        "deep/w": rng.normal(size=9000).astype(np.float32),
        "w/deep": rng.normal(size=2),
        "half": rng.normal(size=4).astype(np.float16),
        "scale": np.array(rng.normal(), np.float32),
        "none": np.zeros((0, 2), np.float32),
        "steps": rng.integers(0, 100, 3).astype(np.int32),
        "big": np.array([2**60 + 1]) + rng.integers(0, 9),
        "mask": rng.random(6) > 0.5,
        "bn.mean": rng.normal(size=3).astype(np.float32),
    }


def received(strategy: Strategy, base: Tensors, updates: list[Tensors]) -> list[tuple[Contribution, Tensors]]:
    samples = [7, 1, 3, 4, 2, 9, 5, 8, 6, 11, 10][: len(updates)]
    tensors = [complete(strategy, base, update) for update in updates]
    return list(zip(contributions(strategy, len(updates), samples), tensors, strict=True))


def assert_same(first: Tensors, second: Tensors, **tolerance: Any) -> None:
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.dtype == second[name].dtype
        assert array.shape == second[name].shape
        if tolerance and array.dtype.kind == "f":
            np.testing.assert_allclose(array, second[name], err_msg=name, **tolerance)
        else:
            np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("name", all_strategies())
def test_neither_the_size_of_parts_nor_the_round_changes_a_bit_or_a_dtype(name: str) -> None:
    strategy, base = default_strategy(name), model(0)
    states: list[ServerState | None] = [None, None, None]
    bases = [base, base, base]
    for seed in (1, 2):
        updates = [model(seed * 100 + number) for number in range(COUNT)]
        for number, part_bytes in enumerate((1, 20_000, 1 << 30)):
            bases[number], states[number] = aggregate(
                strategy,
                bases[number],
                states[number],
                received(strategy, base, updates),
                part_bytes=part_bytes,
            )
        for number in (0, 1):
            assert_same(bases[number], bases[2])
            one, other = states[number], states[2]
            assert one is not None
            assert other is not None
            assert sorted(one.tensors) == sorted(other.tensors)
            for tensor, array in one.tensors.items():
                np.testing.assert_array_equal(array, other.tensors[tensor])
            assert one.values == other.values
    assert {key: (array.dtype, array.shape) for key, array in bases[0].items()} == {
        key: (array.dtype, array.shape) for key, array in base.items()
    }


@pytest.mark.parametrize("name", MEANS)
def test_what_all_agree_on_is_the_result(name: str) -> None:
    strategy, base, update = default_strategy(name), model(0), model(1)
    expected = update | {tensor: array for tensor, array in base.items() if strategy.is_personal(tensor)}
    found, _ = aggregate(strategy, base, None, received(strategy, base, [update] * COUNT))
    assert_same(found, expected, rtol=2**-50)
    np.testing.assert_array_equal(found["deep/w"], update["deep/w"])


@pytest.mark.parametrize("name", learning_strategies())
def test_updates_that_change_nothing_leave_the_model_as_it_is(name: str) -> None:
    strategy, base = default_strategy(name), model(0)
    found, _ = aggregate(strategy, base, None, received(strategy, base, [base] * COUNT))
    assert_same(found, base, rtol=2**-50)
    assert found["big"].tolist() == base["big"].tolist()


@pytest.mark.parametrize("name", all_strategies())
def test_what_is_not_trained_is_not_in_updates_and_stays_bit_for_bit(name: str) -> None:
    plain = default_strategy(name)
    fields = plain.model_dump(by_alias=True, exclude_defaults=True)
    strategy = create_strategy(name, {**fields, "trained": ["w*", "big"]})
    base, updates = model(0), [model(number) for number in range(1, COUNT + 1)]
    assert strategy.for_devices({})["trained"] == ["w*", "big"]
    sent = received(strategy, base, updates)
    names = {tensor for _one, tensors in sent for tensor in tensors if not tensor.startswith("@")}
    assert names == {"w", "w/deep", "big"}
    found, state = aggregate(strategy, base, None, sent)
    for tensor in base.keys() - names:
        assert found[tensor].dtype == base[tensor].dtype
        assert found[tensor].tobytes() == base[tensor].tobytes()
    assert not np.array_equal(found["w"], base["w"])
    assert all(tensor.partition("/")[2] in names for tensor in state.tensors)
    with pytest.raises(
        UpdateError, match=r"'deep/w'.*is not trained \(strategy\.trained\); an update must not"
    ):
        aggregate(strategy, base, None, [(sent[0][0], {**sent[0][1], "deep/w": base["deep/w"]}), *sent[1:]])


@pytest.mark.parametrize("name", all_strategies())
def test_the_order_of_updates_does_not_matter(name: str) -> None:
    strategy, base = default_strategy(name), model(0)
    updates = received(strategy, base, [model(number) for number in range(1, COUNT + 1)])
    shuffled = [updates[number] for number in np.random.default_rng(5).permutation(COUNT)]
    first, first_state = aggregate(strategy, base, None, updates)
    second, second_state = aggregate(strategy, base, None, shuffled)
    # A float64 sum rounded to float32 or float16 may fall on the other side of a tie.
    assert_same(first, second, rtol=1e-3 if name in OPTIMIZERS else 2e-3, atol=1e-6)
    for key in ("w", "deep/w"):
        np.testing.assert_allclose(first[key], second[key], rtol=2e-6, atol=1e-7)
    for key, array in first_state.tensors.items():
        np.testing.assert_allclose(array, second_state.tensors[key], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", all_strategies())
def test_only_ratios_of_samples_matter(name: str) -> None:
    strategy, base = default_strategy(name), model(0)
    updates = received(strategy, base, [model(number) for number in range(1, COUNT + 1)])
    tenfold = [(replace(one, num_samples=10 * one.num_samples), tensors) for one, tensors in updates]
    first, second = (aggregate(strategy, base, None, each)[0] for each in (updates, tenfold))
    assert_same(first, second, rtol=1e-12 if name == "fedavg" else 1e-3, atol=1e-7)
    np.testing.assert_allclose(first["deep/w"], second["deep/w"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", all_strategies())
def test_a_difference_is_as_good_as_weights(name: str) -> None:
    strategy = default_strategy(name)
    rng = np.random.default_rng(3)
    # Eighths: their differences and sums are exact.
    base: Tensors = {"w": rng.integers(-80, 80, 50) / 8, "steps": rng.integers(0, 9, 4)}
    updates: list[Tensors] = [
        {"w": rng.integers(-80, 80, 50) / 8, "steps": rng.integers(0, 9, 4)} for _ in range(COUNT)
    ]
    weights = received(strategy, base, updates)
    deltas: list[tuple[Contribution, Tensors]] = [
        (replace(one, kind="delta"), tensors | {key: tensors[key] - base[key] for key in base})
        for one, tensors in weights
    ]
    assert_same(
        *(aggregate(strategy, base, None, each)[0] for each in (weights, deltas)), rtol=1e-12, atol=1e-12
    )


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1.0, 50.0, 1e30]))
@example(seed=202, size=1.0)  # Bulyan keeps a bad number beyond all good ones
@example(seed=4063142, size=1.0)
@pytest.mark.parametrize("name", ROBUST)
def test_a_few_bad_updates_do_not_move_robust_strategies_far(name: str, seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    bad = 2
    parameters: dict[str, dict[str, Any]] = {
        "trimmed_mean": {"beta": 0.2},
        "fedmedian": {},
        "geometric_median": {"weighting": "uniform"},
    }
    strategy = create_strategy(name, parameters.get(name, {"byzantine": bad}))
    base: Tensors = {"w": np.zeros(5)}
    good = [rng.normal(size=5) for _ in range(COUNT - bad)]
    noise = [rng.normal(size=5) * size for _ in range(bad)]
    order = rng.permutation(COUNT)
    updates: list[Tensors] = [{"w": [*good, *noise][number]} for number in order]
    found = aggregate(strategy, base, None, received(strategy, base, updates))[0]["w"]
    if name == "geometric_median":
        # Minsker 2015, lemma 2.1: within 2 (1 - a) / (1 - 2 a) times the largest distance of a good one to any point, here their mean.
        centre, share = np.mean(good, axis=0), bad / COUNT
        radius = max(np.linalg.norm(one - centre) for one in good)
        assert np.linalg.norm(found - centre) <= 2 * (1 - share) / (1 - 2 * share) * radius
    elif name in {"krum", "multi_krum"}:
        # What was chosen is at most as far from the good ones as they are from each other, times a constant of n and f.
        spread = max(np.linalg.norm(one - other) for one in good for other in good)
        assert min(np.linalg.norm(found - one) for one in good) <= 4 * spread
    else:
        low, high = np.min(good, axis=0), np.max(good, axis=0)
        # Bulyan's mean is of the numbers nearest to a median, which is between good ones: a bad number among them is as near
        # to it as a good one that is not.
        slack = high - low if name == "bulyan" else 1e-12
        assert np.all(low - slack <= found)
        assert np.all(found <= high + slack)


@pytest.mark.parametrize("name", all_strategies())
def test_nan_is_refused_by_name(name: str) -> None:
    strategy, base = default_strategy(name), {"w": np.zeros(4)}
    updates: list[Tensors] = [{"w": np.full(4, np.nan if number == 1 else 1.0)} for number in range(COUNT)]
    with pytest.raises(UpdateError, match=r"'p-1'.*'w'.*NaN") as caught:
        aggregate(strategy, base, None, received(strategy, base, updates))
    assert caught.value.number == 1


@pytest.mark.parametrize("name", ["fedavg", "fedmedian"])
def test_nan_for_an_integer_is_refused_by_name(name: str) -> None:
    base: Tensors = {"n": np.zeros(2, np.int32)}
    updates: list[tuple[Contribution, Tensors]] = [
        (Contribution(0, "p-0", 1), {"n": np.array([1.0, np.nan])})
    ]
    with pytest.raises(UpdateError, match=r"'p-0'.*'n'.*NaN"):
        aggregate(create_strategy(name), base, None, updates)


@pytest.mark.parametrize(
    "plan",
    [
        Plan([1.0]),
        Plan([1.0, np.nan]),
        Plan([0.0, 0.0]),
        Plan([1.0, 1.0], 0.0),
        Plan([1.0, 1.0], weights=[1.0]),
        Plan([1.0, 1.0], weights=[0.0, 0.0]),
        Plan([1.0, 1.0], extra={"control": [1.0]}),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused_by_the_strategys_name(plan: Plan) -> None:
    class Odd(Scaffold):
        name = "odd"

        def plan(self, *_arguments: Any) -> Plan:
            return replace(plan, extra=plan.extra or {"control": [1.0, 1.0]})

    with pytest.raises(StrategyInputError, match=r"^odd (planned|gave)"):
        make_plan(Odd(), contributions(Odd(), 2), {}, Measured())


@pytest.mark.parametrize("name", all_strategies())
def test_a_tensor_too_few_too_many_or_of_another_shape_is_refused_by_name(name: str) -> None:
    strategy, base = default_strategy(name), {"w": np.zeros(4), "b": np.zeros(1)}
    right = received(strategy, base, [base] * COUNT)
    for wrong, named in (
        ({"w": np.zeros(3)}, "'w'.*shape"),
        ({"more": np.zeros(1)}, "'more'"),
        ({}, "'b'.*missing"),
    ):
        tensors = right[2][1] | wrong
        if not wrong:
            del tensors["b"]
        with pytest.raises(UpdateError, match=f"'p-2'.*{named}"):
            aggregate(strategy, base, None, [*right[:2], (right[2][0], tensors), *right[3:]])


@pytest.mark.parametrize("name", all_strategies())
def test_no_updates(name: str) -> None:
    with pytest.raises(StrategyInputError, match="no updates"):
        aggregate(default_strategy(name), {"w": np.zeros(1)}, None, [])


@pytest.mark.parametrize("name", ["fedadam", "fedavgm", "scaffold"])
def test_a_server_state_of_another_model_is_refused(name: str) -> None:
    strategy = default_strategy(name)
    state = strategy.init({"w": np.zeros(3)})
    base: Tensors = {"w": np.zeros(4)}
    with pytest.raises(TensorError, match=r"/w'.*shape \[3\].*server state"):
        aggregate(strategy, base, state, received(strategy, base, [base]))


@pytest.mark.parametrize("name", all_strategies())
def test_state_and_parameters_are_the_same_after_a_trip_through_text(name: str) -> None:
    strategy = default_strategy(name)
    again = type(strategy).model_validate_json(strategy.model_dump_json(by_alias=True))
    assert again == strategy
    for tensor, array in strategy.init({"w": np.zeros(2, np.float16)}).tensors.items():
        assert tensor.endswith("/w")
        assert array.dtype == np.float32


def test_results_beyond_the_models_dtype_name_the_tensor() -> None:
    strategy = create_strategy("fedavgm", {"server_lr": 100.0})
    updates = [(Contribution(0, "p", 1), {"w": np.array([60_000], np.float16)})]
    with pytest.raises(TensorError, match=r"'w'.*too large for float16"):
        aggregate(strategy, {"w": np.zeros(1, np.float16)}, None, updates)
