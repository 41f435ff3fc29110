"""Who is left out of an aggregation that failed: by norms, by the metric that counts, and nobody where nobody stands out."""

from propeller.fl.outliers import find_outliers
from propeller.fl.strategies import Contribution, read_strategy

QFEDAVG = read_strategy({"name": "qfedavg", "lr": 0.1})


def contributions(*losses: float) -> list[Contribution]:
    return [
        Contribution(slot, f"p-{slot + 1}", 10, metrics={"loss_before": loss})
        for slot, loss in enumerate(losses)
    ]


def test_whose_norm_is_far_beyond_the_others() -> None:
    norms = [{"": 1.0}, {"": 1e30}, {"": 2.0}, {"": 1500.0}, {"": 900.0}]
    found = find_outliers(
        read_strategy("fedadam"), contributions(1, 1, 1, 1, 1), norms, "too large for float32"
    )
    assert found == {
        "p-2": "left out of the aggregation, which failed with it: the norm of its difference to the base model is 1e+30, "
        "that of others 900 (too large for float32)"
    }


def test_each_kind_of_tensors_is_compared_by_itself() -> None:
    norms = [{"": 1.0, "@control": 3e5}, {"": 1.0, "@control": 2e5}, {"": 1.0, "@control": 1e38}]
    found = find_outliers(read_strategy("scaffold"), contributions(1, 1, 1), norms, "no")
    assert list(found) == ["p-3"]
    assert "the norm of its tensors @control/… is 1e+38, that of others 3e+05" in found["p-3"]


def test_whose_loss_is_far_beyond_the_others_where_it_counts() -> None:
    norms = [{"": 1.0}] * 3
    found = find_outliers(QFEDAVG, contributions(0.5, 1e300, 0.7), norms, "no")
    assert list(found) == ["p-2"]
    assert "the metric 'loss_before' is 1e+300, that of others 0.7" in found["p-2"]
    assert find_outliers(read_strategy("fedavg"), contributions(0.5, 1e300, 0.7), norms, "no") == {}


def test_nobody_where_nobody_stands_out() -> None:
    assert find_outliers(QFEDAVG, contributions(1, 2, 900), [{"": 1e300}] * 3, "no") == {}
    assert find_outliers(QFEDAVG, [], [], "no") == {}
