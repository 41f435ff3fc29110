"""What a program holds on the machine, and how much waits to cross."""

import gc
from typing import Any

import pytest

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors import session
from propeller.tensors.array import from_bytes
from propeller.tensors.machine import QuotaError, StepMachine
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.tape import MainTape


def held(machine: StepMachine) -> tuple[int, int]:
    """Handles and bytes, when all that is waiting has crossed."""
    gc.collect()
    session.current().main.flush()
    return len(machine.arrays), machine.held_bytes


def test_arrays_that_die_are_freed(machine: StepMachine) -> None:
    x = pt.ones((10, 10))
    for _ in range(3):
        y = (x @ x + x.T)[0].sum()
        y.item()
    assert held(machine) == (2, 404)
    del x, y
    assert held(machine) == (0, 0)


def test_in_place_changes_hold_one_array(machine: StepMachine) -> None:
    x = pt.zeros(5)
    for _ in range(10):
        x += 1
        x[0] = 2.0
        x *= 0.5
    assert held(machine) == (1, 20)


def test_replays_hold_nothing(machine: StepMachine) -> None:
    @pt.jit
    def step(w: Any, x: Any, rate: float) -> Any:
        value, slope = pt.value_and_grad(lambda w: ((x @ w) * (x @ w)).sum())(w)
        w -= rate * slope
        return value

    w, x = pt.ones((4, 2)), pt.ones((3, 4))
    for _ in range(20):
        step(w, x, 0.01)
    assert held(machine) == (2, 4 * (8 + 12))
    del w, x, step
    assert held(machine) == (0, 0)


def test_a_long_loop_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a value read: steps cross by themselves, and frees with them."""
    machine = NumpyMachine(max_bytes=100_000, max_handles=20)
    session.use(machine)
    tape = session.current().main
    x = pt.ones(1000)
    longest = 0
    for _ in range(3000):
        x = x * 0.5 + 1.0
        longest = max(longest, len(tape.steps))
    assert longest <= 2001
    assert held(machine) == (1, 4000)
    assert x.tolist()[0] == pytest.approx(2.0)


def test_elements_that_wait_are_bounded() -> None:
    tape = session.current().main
    kept = [from_bytes(bytes(1_200_000), "uint8", [1_200_000]) for _ in range(20)]  # 32 MB of text
    assert len(kept) == 20
    assert sum(len(step[3][2]) for step in tape.steps if step[0] == "create") <= (8 << 20) + 1_600_000


def test_after_a_step_that_failed(machine: StepMachine) -> None:
    """What was done stays, what was not is gone, and frees of either do no harm."""
    x = pt.ones(3)
    bad = x[pt.array([7])]
    after = x + 1
    dying = x * 2
    del dying
    with pytest.raises(TensorError, match="outside 3 rows"):
        after.tolist()
    assert x.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(TensorError, match="there is no array with the handle"):
        after.tolist()
    del bad, after
    assert (x + 1).tolist() == [2.0, 2.0, 2.0]
    assert held(machine) == (1, 12)
    del x
    assert held(machine) == (0, 0)


def test_quotas() -> None:
    session.use(NumpyMachine(max_bytes=1000, max_handles=3))
    with pytest.raises(QuotaError, match="800 bytes of tensors and 800 more are over 1000") as caught:
        (pt.ones(200) + pt.ones(200)).tolist()
    assert caught.value.limit == "tensor_bytes"
    session.use(NumpyMachine(max_bytes=1000, max_handles=3))
    kept = [pt.ones(1) for _ in range(4)]
    with pytest.raises(QuotaError, match="over 3 tensors") as caught:
        kept[0].item()
    assert caught.value.limit == "tensor_handles"


def test_a_routine_is_charged_for_its_peak() -> None:
    session.use(NumpyMachine(max_bytes=30_000))

    @pt.jit
    def wide(x: Any) -> Any:
        return (x.reshape(100, 1) * x.reshape(1, 100)).sum()

    with pytest.raises(QuotaError, match="over 30000"):
        wide(pt.ones(100)).item()


def test_arrays_of_a_machine_that_is_gone(machine: StepMachine) -> None:
    x = pt.ones(2)
    session.use(NumpyMachine())
    with pytest.raises(TensorError):
        _ = x + 1
    assert isinstance(x.tape, MainTape)
