"""float16 and bfloat16: what is kept and sent in half the bytes, against NumPy's and ml_dtypes'."""

from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given

from propeller.fl.tensors import from_safetensors
from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors import session
from propeller.tensors.files import TaskFiles
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_machine import ArrayFiles, NumpyMachine
from propeller.tensors.python_machine import PythonMachine

HALVES = {"float16": np.dtype("float16"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MACHINES = pytest.mark.parametrize("machine_", [NumpyMachine, PythonMachine])
EVERY = pytest.mark.parametrize("half", HALVES)


@MACHINES
@EVERY
@given(x=hnp.arrays("float32", 5, elements=st.floats(width=32)))
def test_rounded_as_numpy_does(machine_: type[StepMachine], half: str, x: Any) -> None:
    session.use(machine_())
    with np.errstate(over="ignore"):
        expected = x.astype(HALVES[half]).astype("float32")
    found = pt.array(x).astype(half)
    assert (found.dtype, found.shape) == (half, (5,))
    np.testing.assert_array_equal(found.tolist(), expected)
    np.testing.assert_array_equal(np.asarray(found), expected)
    np.testing.assert_array_equal(np.asarray(found.astype("float64")), expected)
    np.testing.assert_array_equal(pt.array(x.tolist(), half).tolist(), expected)


@EVERY
def test_every_pattern_of_bits(machine: StepMachine, half: str) -> None:
    """Between two equal ones, too, and where two floats are as near."""
    bits = np.arange(1 << 16, dtype="uint16")
    known = bits.view(HALVES[half]).astype("float32")
    np.testing.assert_array_equal(np.asarray(pt.array(known).astype(half).astype("float32")), known)
    finite = known[np.isfinite(known)]
    between = ((finite[1:].astype("float64") + finite[:-1]) / 2).astype("float32")
    with np.errstate(over="ignore"):
        expected = between.astype(HALVES[half]).astype("float32")
    np.testing.assert_array_equal(np.asarray(pt.array(between).astype(half).astype("float32")), expected)


@EVERY
def test_of_other_dtypes(machine: StepMachine, half: str) -> None:
    whole = pt.array([1, -3, 200])
    assert whole.astype(half).tolist() == [1.0, -3.0, 200.0]
    assert whole.astype(half).astype(int).tolist() == [1, -3, 200]
    assert (whole > 0).astype(half).tolist() == [1.0, 0.0, 1.0]
    assert whole.astype("float16").astype("bfloat16").astype("float16").tolist() == [1.0, -3.0, 200.0]
    assert pt.array([0.0, 2.0]).astype(half).astype(bool).tolist() == [False, True]
    assert whole.astype(half).copy().tolist() == [1.0, -3.0, 200.0]
    assert pt.full((2,), 0.5, half).tolist() == [0.5, 0.5]
    assert repr(pt.ones(2, half)) == f"Array([1.0, 1.0], {half})"
    with pytest.raises(TensorError, match="does not fit int64"):
        pt.array([float("inf")]).astype(half).astype(int).tolist()


@EVERY
def test_it_is_not_computed_with(machine: StepMachine, half: str) -> None:
    x = pt.ones(2, half)
    with pytest.raises(
        TensorError, match=rf"add: an array of {half} is only carried; .* x\.astype\('float32'\)"
    ):
        _ = x + 1
    with pytest.raises(TensorError, match="only carried"):
        x[0] = 1.0


@EVERY
def test_gradients_go_through_it(machine: StepMachine, half: str) -> None:
    """Of a model that is kept so, they are float32."""
    kept = {"w": pt.array([1.5, 2.0]).astype(half), "unused": pt.ones(1, half)}
    slope = pt.jit(pt.grad(lambda m: pt.square(m["w"].astype("float32")).sum()))(kept)
    assert (slope["w"].dtype, slope["w"].tolist()) == ("float32", [3.0, 4.0])
    assert (slope["unused"].dtype, slope["unused"].tolist()) == ("float32", [0.0])
    rounded = pt.grad(lambda x: (x.astype(half).astype("float32") * 3.0).sum())
    assert rounded(pt.ones(2)).tolist() == [3.0, 3.0]


@EVERY
def test_saved_and_held_in_half_the_bytes(tmp_path: Path, half: str) -> None:
    code = {"float16": "F16", "bfloat16": "BF16"}[half]
    written = []
    for at, (machine_, files) in enumerate(((NumpyMachine, ArrayFiles), (PythonMachine, TaskFiles))):
        root = tmp_path / str(at)
        (root / "out").mkdir(parents=True)
        machine = machine_(files(root))
        session.use(machine)
        x = pt.jit(lambda x: (x * 0.1).astype(half))(pt.arange(6).reshape(2, 3))
        session.current().main.save({"x": x}, "kept")
        assert machine.held_bytes == 12
        written.append((root / "out" / "kept.safetensors").read_bytes())
        assert code.encode() in written[-1]
        back = from_safetensors(written[-1])[0]["x"]
        assert back.dtype == HALVES[half]
        np.testing.assert_array_equal(back.astype("float32"), np.asarray(x.astype("float32")))
    assert written[0] == written[1]
