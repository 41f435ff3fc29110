"""What someone who comes from NumPy writes: it works, or the error says what does."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest

from propeller.program import tensors as pt
from propeller.tensors import hints
from propeller.tensors.machine import StepMachine
from propeller.tensors.shapes import TensorError

MATRIX = np.array([[1.0, -2.0, 3.0], [4.0, 0.0, -6.0]], "float32")
SAME: dict[str, Any] = {
    "var": lambda _, x: x.var(axis=0),
    "std": lambda _, x: x.std(axis=-1, keepdims=True),
    "all": lambda _, x: x.all(axis=0),
    "any": lambda _, x: (x > 3).any(axis=1),
    "any of none": lambda _, x: x[:0].any(),
    "clip": lambda _, x: x.clip(-1, 2),
    "clip at one side": lambda m, x: m.clip(x, None, 2),
    "flatten": lambda _, x: x.flatten(),
    "squeeze": lambda _, x: x[:1, None].squeeze(),
    "squeeze one": lambda _, x: x[None, :1].squeeze(1),
    "transpose": lambda _, x: x.transpose((1, 0)),
    "functions": lambda m, x: m.abs(x) + m.mean(x, axis=0) * m.max(x) - m.isnan(m.sqrt(x)),
    "new axes": lambda _, x: x[:, None, 0] * x[None, 1, ...] + x[..., None, None][0, 0],
    "rows of a list": lambda _, x: x[[1, 0, 1]],
    "rows and a slice": lambda _, x: x[[1, 0], :],
    "columns": lambda _, x: x[:, [2, -1]],
    "an element of each row": lambda m, x: x[m.arange(2), m.array([2, 0])],
    "an element of some rows": lambda _, x: x[[1, -1, 0], [2, -3, 1]],
    "a place that was found": lambda m, x: x[0, m.argmax(x[1])],
    "reflected": lambda _, x: 2**x + 7 % (x * x + 1) + 7 // (x * x + 1),
    "arange": lambda m, _: m.arange(3, 12, 4),
    "arange down": lambda m, _: m.arange(3, -2, -2),
    "eye": lambda m, _: m.eye(3, dtype="float32") if m is np else m.eye(3),
    "stack": lambda m, x: m.stack([x, x + 1], axis=-1),
    "deepcopy": lambda _, x: copy.deepcopy({"x": x})["x"] + copy.copy(x),
    "types": lambda m, x: x.astype(int) + m.array([True, False, True], dtype=bool),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", SAME)
@np.errstate(all="ignore")
def test_as_in_numpy(machine: StepMachine, name: str, traced: bool) -> None:
    def function(x: Any) -> Any:
        return SAME[name](pt, x)

    if traced and name != "a place that was found":  # which is a value
        function = pt.jit(function)
    found, expected = function(pt.array(MATRIX.tolist())), SAME[name](np, MATRIX)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype.name)
    np.testing.assert_allclose(found.tolist(), expected, rtol=1e-6)


def test_a_copy_is_apart(machine: StepMachine) -> None:
    x = pt.array([1.0, 2.0])
    others = [copy.copy(x), *copy.deepcopy([x, x])]
    others[0] += 1.0
    others[1] += 1.0
    assert others[2].tolist() == [2.0, 3.0]  # one array twice stays one array
    del others
    pt.zeros(2).tolist()
    assert x.tolist() == [1.0, 2.0]


def test_lists_are_set(machine: StepMachine) -> None:
    x = pt.zeros((3, 2))
    x[0] = [1.0, 2.0]
    x[[2, 1], :] = [[3.0, 4.0], [5.0, 6.0]]
    assert x.tolist() == [[1.0, 2.0], [5.0, 6.0], [3.0, 4.0]]


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (pt.jit(lambda x: x[x > 0]), r"how many elements a mask chooses: write where\(mask"),
        (pt.jit(pt.nonzero), "write where"),
        (lambda x: x[x[0] > 0], r"a mask of shape \[3\] does not fit \[2\]"),
        (lambda x: x[:, [True, False]], r"a mask of shape \[2\] does not fit \[3\]"),
        (lambda x: x[x > 0, None], "nothing else beside"),
        (lambda x: x[x[0, 0] > 0], "an array of bool is no index"),
        (lambda x: x.__setitem__((slice(None), [True, False, True]), 0.0), "choose with where"),
        (lambda x: pt.nonzero(x[0, 0]), "no positions"),
        (lambda x: pt.take_along_axis(x, pt.array([0]), 0), "not as many dimensions"),
        (max, r"\.any\(\)"),
        (float, "not one number"),
        (lambda x: x[[0, 1], [0, 1], 0], "too many indices"),
        (lambda x: pt.zeros((2, 2, 2))[0, :, [0, 1]], "choose rows"),
        (lambda x: x[1.5], "not a float"),
        (lambda x: x[0, 3], "outside axis 1 of size 3"),
        (lambda x: x.__setitem__((range(2), pt.array([0, 1])), 1.0), "one_hot"),
        (lambda x: x.__setitem__((None, 0), 1.0), "None makes an axis"),
        (lambda x: x.squeeze(0), "axis 0"),
        (lambda x: x.reshape(-1, -1), "more than one size"),
        (lambda x: pt.array([x, x]), "stack"),
        (lambda x: pt.zeros(2, 3), r"zeros\(\(2, 3\)\)"),
        (lambda x: pt.stack(x, x), "an axis is an integer"),
        (lambda x: pt.arange(x[0, 0]), "arange: .*float32 is not an index"),
        (pt.grad(lambda w: float(w.sum())), "without float"),
    ],
)
def test_errors_say_what_to_do(function: Any, text: str) -> None:
    with pytest.raises(TensorError, match=text):
        function(pt.array(MATRIX.tolist()))


def test_other_names_are_answered() -> None:
    x: Any = pt.ones(2)
    everything: Any = pt
    with pytest.raises(AttributeError, match=r"no 'ravel'; here it is x\.flatten\(\)"):
        x.ravel()
    with pytest.raises(AttributeError, match=r"no 'vstack'; here it is concatenate"):
        everything.vstack([x, x])
    with pytest.raises(AttributeError, match=r"no 'nonsense'$"):
        x.nonsense()
    assert not [name for name in hints.EQUIVALENTS if name in vars(pt.Array) and name in pt.__all__]
    with pytest.raises(TypeError, match=r"tolist\(\)"):
        pickle.dumps(x)


def test_printed(machine: StepMachine) -> None:
    x = pt.array([[1.0, 0.25], [1e-9, float("nan")]])
    assert str(x) == "[[1.0, 0.25],\n [1e-09, nan]]"
    assert repr(pt.array([1, 2])) == "Array([1, 2], int64)"
    assert f"{x[0, 1]:.3f} {x[0]} {round(x[0, 1], 1)}" == "0.250 [1.0, 0.25] 0.2"
    assert str(pt.arange(1000)) == "[0, 1, 2, ..., 997, 998, 999]"
    assert (
        str(pt.zeros((2, 500)))
        == "[[0.0, 0.0, 0.0, ..., 0.0, 0.0, 0.0],\n [0.0, 0.0, 0.0, ..., 0.0, 0.0, 0.0]]"
    )
    assert str(pt.zeros((0, 2))) == "[]"
    shown = []
    pt.jit(lambda w: shown.append(f"{w} {x}"))(pt.ones(2))
    assert shown == ["<Array float32 [2]> <Array float32 [2, 2]>"]
    assert pt.grad(lambda w: (str(w), (w * w).sum())[1])(x[0]).tolist() == [2.0, 0.5]


def test_many_recordings_are_warned_of(machine: StepMachine) -> None:
    step = pt.jit(lambda x, t: x * t)
    x = pt.ones(2)
    for t in range(1, 32):
        step(x, t)
    with pytest.warns(RuntimeWarning, match="recorded 32 times") as found:
        step(x, 32)
    assert found[0].filename == __file__
    step(x, 33)


def test_seeds(machine: StepMachine) -> None:
    first, again, other = (pt.random(seed).uniform(4).tolist() for seed in ("round-1", "round-1", "round-2"))
    assert first == again != other
    with pytest.raises(TensorError, match="an integer or a text"):
        pt.random(None)  # type: ignore[arg-type]


def test_a_name_that_is_nearly_one_is_told() -> None:
    with pytest.raises(AttributeError, match="has no 'sigmod'; did you mean 'sigmoid'\\?"):
        _ = pt.sigmod  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="an array has no 'reshap'; did you mean 'reshape'\\?"):
        _ = pt.array([1.0]).reshap  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"has no 'zzzzzz'$"):
        _ = pt.zzzzzz  # type: ignore[attr-defined]
