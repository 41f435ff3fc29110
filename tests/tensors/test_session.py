"""Whose tape operations go to: that of the context, and of the process where none was chosen."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest

from propeller.program import tensors as pt
from propeller.program.tensors import TensorError
from propeller.tensors import session
from propeller.tensors.machine import StepMachine
from propeller.tensors.python_machine import PythonMachine


def test_threads_share_the_process_s_own() -> None:
    """Where no machine was chosen: an array of one thread is good in another."""

    def next_values(x: Any) -> Any:
        return (x + 1).tolist()

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        x = one.submit(pt.array, [1.0, 2.0]).result()
        assert other.submit(next_values, x).result() == [2.0, 3.0]


def test_a_context_keeps_its_machine(machine: StepMachine) -> None:
    x = pt.ones(2)

    def elsewhere() -> Any:
        session.use(PythonMachine())
        with pytest.raises(TensorError):
            _ = x + 1
        return pt.ones(3).tolist()

    assert copy_context().run(elsewhere) == [1.0, 1.0, 1.0]
    assert (x + 1).tolist() == [2.0, 2.0]


def test_nested_gradients_and_errors_leave_nothing_behind(machine: StepMachine) -> None:
    def fails(x: Any) -> Any:
        pt.grad(lambda y: (y * y).sum())(x)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        pt.grad(fails)(pt.ones(2))
    now = session.current()
    assert (now.calls, now.tape) == (None, now.main)


def test_what_is_read_ahead_is_what_it_was_then(machine: StepMachine) -> None:
    x, y = pt.ones(2), pt.arange(3)
    session.current().main.read_ahead([x, y])
    kept = x + 0
    x += 1
    assert (x.tolist(), y.tolist(), y.tolist(), kept.tolist()) == ([2, 2], [0, 1, 2], [0, 1, 2], [1, 1])
