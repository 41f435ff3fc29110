"""Fixtures for tests of programs' arrays: the machines that do their steps."""

from collections.abc import Iterator

import pytest

from propeller.tensors import session
from propeller.tensors.machine import StepMachine
from propeller.tensors.numpy_machine import NumpyMachine
from propeller.tensors.python_machine import PythonMachine


@pytest.fixture(autouse=True)
def own_machine() -> Iterator[None]:
    """What a test leaves behind is not the next one's."""
    yield
    session.use(NumpyMachine())


@pytest.fixture(params=[NumpyMachine, PythonMachine])
def machine(request: pytest.FixtureRequest) -> StepMachine:
    """Each machine, as the one that arrays of this test are on."""
    made: StepMachine = request.param()
    session.use(made)
    return made
