"""Random numbers of keys: the same for a key wherever they are drawn, others for another one, without a new recording."""

from typing import Any

import pytest

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors.machine import StepMachine


def test_a_key_draws_the_same_traced_or_not(machine: StepMachine) -> None:
    def draw(key: Any) -> Any:
        return pt.normal(key, 3), pt.uniform(key, (2, 2)), pt.permutation(key, 5), pt.normal(key, 3, fold=1)

    key = pt.random(1).key()
    assert (key.dtype, key.shape) == ("int64", (2,))
    once, traced = draw(key), pt.jit(draw)(key)
    assert [each.tolist() for each in once] == [each.tolist() for each in traced]
    assert once[0].tolist() != once[3].tolist()
    assert sorted(once[2].tolist()) == list(range(5))


def test_each_call_of_a_traced_function_draws_anew(machine: StepMachine) -> None:
    ran = []

    @pt.jit
    def noisy(x: Any, key: Any) -> Any:
        ran.append(1)
        return x + pt.normal(key, x.shape)

    r = pt.random("noise")
    results = [noisy(pt.zeros(3), r.key()).tolist() for _ in range(3)]
    assert len(ran) == 1
    assert len({tuple(each) for each in results}) == 3
    again = pt.random("noise")
    assert [noisy(pt.zeros(3), again.key()).tolist() for _ in range(3)] == results


def test_a_number_that_is_computed_folds(machine: StepMachine) -> None:
    key = pt.random(0).key()
    found = [pt.uniform(key, 2, fold=at).tolist() for at in pt.arange(3)]
    assert found == [pt.uniform(key, 2, fold=at).tolist() for at in range(3)]
    assert len({tuple(each) for each in found}) == 3
    assert pt.uniform(key, 2, fold=-1).tolist() not in found
    assert pt.uniform(key + 1, 2).tolist() not in found


def test_dropout(machine: StepMachine) -> None:
    """It keeps the mean, and the gradient is that of what is kept."""
    x, key = pt.ones((40, 50)), pt.random(3).key()
    value, slope = pt.jit(pt.value_and_grad(lambda x: pt.dropout(x, 0.25, key).sum()))(x)
    kept = (slope > 0).astype("float32")
    assert slope.tolist() == pt.dropout(x, 0.25, key).tolist()
    assert sorted(set(slope.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(0.75, abs=0.05)
    assert value.item() == pytest.approx(slope.sum().item(), rel=1e-5)
    assert pt.dropout(x, 0, key) is x
    by_argument = pt.jit(lambda x, rate: pt.dropout(x, rate, key))(x, 0.25)
    assert by_argument.flatten().tolist() == pytest.approx(slope.flatten().tolist())
    nothing = pt.jit(lambda x, rate: pt.dropout(x, rate, key))(x, 0.0)
    assert nothing.tolist() == x.tolist()


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda r: pt.jit(lambda x: x + r.normal(2))(pt.ones(2)), r"pass in key = r\.key\(\)"),
        (lambda r: pt.normal(r, 2), r"a key is key = r\.key\(\)"),
        (lambda r: pt.normal(pt.ones(2), 2), "two integers of int64, not float32"),
        (lambda r: pt.normal(r.key(), 2, fold=pt.array(0.5)), "fold is one integer"),
        (lambda r: pt.dropout(pt.ones(2), 1.0, r.key()), "from 0 to below 1"),
    ],
)
def test_what_is_refused(function: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        function(pt.random(0))
