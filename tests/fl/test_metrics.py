"""The metrics of a round, of those of its updates."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from propeller.metrics import weighted_metrics


@dataclass(frozen=True)
class Measurement:
    num_samples: int
    metrics: Mapping[str, float]


def test_a_metric_is_weighted_over_those_that_have_it() -> None:
    parts = [Measurement(1, {"loss": 4.0, "acc": 0.5}), Measurement(3, {"loss": 2.0}), Measurement(9, {})]
    assert weighted_metrics(parts) == {"acc": 0.5, "loss": 2.5}
    assert weighted_metrics([]) == {}


measurements = st.lists(
    st.builds(
        Measurement,
        st.integers(1, 2**53 - 1),
        st.dictionaries(
            st.sampled_from("ab"), st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9)
        ),
    ),
    max_size=6,
)


@given(measurements, st.randoms())
def test_a_mean_is_exact_enough_within_its_values_and_the_same_in_any_order(
    parts: list[Measurement], order: random.Random
) -> None:
    means = weighted_metrics(parts)
    for name, mean in means.items():
        having = [(one.num_samples, Fraction(one.metrics[name])) for one in parts if name in one.metrics]
        total = sum(weight for weight, _value in having)
        exact = sum((Fraction(weight, total) * value for weight, value in having), Fraction())
        size = max(abs(value) for _weight, value in having)
        assert (
            abs(Fraction(mean) - exact) <= 2 * len(having) * Fraction(2) ** -52 * size + Fraction(2) ** -1070
        )
        assert min(value for _weight, value in having) <= mean <= max(value for _weight, value in having)
    order.shuffle(parts)
    assert weighted_metrics(parts) == means
