"""Convolutions and pooling beside PyTorch's own values, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.program import tensors as pt
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_windows import _STRETCH_BYTES

CASES = json.loads((Path(__file__).parent / "pytorch_windows.json").read_text())["cases"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["function"]))
def test_values_and_gradients_are_pytorchs(machine: StepMachine, case: dict[str, Any]) -> None:
    function = getattr(pt, case["function"])
    arrays = [pt.array(each, "float64") for each in case["arrays"]]
    up = pt.array(case["up"], "float64")
    result = function(*arrays, **case["options"])
    np.testing.assert_allclose(result.tolist(), case["result"], rtol=1e-12)
    gradients = pt.grad(lambda given: (function(*given, **case["options"]) * up).sum())(arrays)
    for gradient, expected in zip(gradients, case["gradients"], strict=True):
        np.testing.assert_allclose(gradient.tolist(), expected, rtol=1e-12)


def test_samples_in_turns_give_what_they_give_at_once() -> None:
    """A batch whose memory is filled in several turns, beside its samples one by one."""
    r = pt.random(5)
    x, weight = r.normal((12, 8, 40, 40)), r.normal((4, 8, 5, 5))
    assert 2 * _STRETCH_BYTES < 12 * 8 * 5 * 40 * 36 * 4
    loss = pt.value_and_grad(lambda given, up: (pt.conv2d(given[0], given[1]) * up).sum())
    up = r.normal((12, 4, 36, 36))
    value, (by_x, by_weight) = loss([x, weight], up)
    singly = [loss([x[at : at + 1], weight], up[at : at + 1]) for at in range(12)]
    assert value.item() == pytest.approx(sum(one.item() for one, _ in singly), rel=1e-3)
    np.testing.assert_allclose(
        by_x.tolist(), np.concatenate([g[0].tolist() for _, g in singly]), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        by_weight.tolist(), sum(np.array(g[1].tolist()) for _, g in singly), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda x, w: pt.conv2d(x.reshape(2, -1), w), r"conv2d takes arrays of 4 dimensions, \[n, channels, height, width\], got \[2, 192\]"),
        (lambda x, w: pt.conv2d(x, w[:, :2]), r"the kernel \[4, 2, 3, 3\] takes 2 channels, \[2, 3, 8, 8\] has 3"),
        (lambda x, w: pt.conv2d(x, w, groups=2), "2 groups do not divide 3 channels into 4"),
        (lambda x, w: pt.conv2d(x, pt.zeros((4, 3, 9, 9))), r"a window of \[9, 9\] .* is larger than \[8, 8\]"),
        (lambda x, w: pt.conv2d(x, w, stride=0), "strides and dilations are 1 or more"),
        (lambda x, w: pt.conv2d(x, w, stride=(1, 2, 3)), r"\(1, 2, 3\) is not one number or 2"),
        (lambda x, w: pt.conv2d(x, w, padding=-1), "is not a shape"),
        (lambda x, w: pt.conv2d(x, w, padding="half"), 'is neither a number nor "same" nor "valid"'),
        (lambda x, w: pt.conv2d(x, w, padding="same", stride=2), "a stride of 1"),
        (lambda x, w: pt.conv2d(x, w, pt.zeros(3)), r"a bias has one number for each of 4 channels, got \[3\]"),
        (lambda x, w: pt.conv2d(x.astype("int64"), w.astype("int64")), "float32 or float64, got int64 and int64"),
        (lambda x, w: pt.conv_transpose2d(x, pt.zeros((3, 4, 3, 3)), stride=2, output_padding=2), "must be smaller than the stride"),
        (pt.conv_transpose2d, "3.*4"),
        (lambda x, w: pt.max_pool2d(x, 9), "is larger than"),
        (lambda x, w: pt.max_pool2d(x, 2, padding=2), "a padding is at most half the window"),
        (lambda x, w: pt.avg_pool1d(x, 2), r"avg_pool1d takes arrays of 3 dimensions, \[n, channels, length\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(machine: StepMachine, act: Any, text: str) -> None:
    with pytest.raises(pt.TensorError, match=text):
        act(pt.zeros((2, 3, 8, 8)), pt.zeros((4, 3, 3, 3)))
