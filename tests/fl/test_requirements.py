"""What a device lacks of what a native program requires."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import InvalidError
from propeller.fl.requirements import check_requirements, lacking
from propeller.protocol.requirements import NativePython, Requirements

DEVICE = NativePython(
    version="3.12.4", distributions={"numpy": "2.1.0", "scikit-learn": "1.5.0rc1", "odd": "what"}
)


def needs(*dependencies: str, python: str = "") -> Requirements:
    return Requirements(python=python, dependencies=list(dependencies))


@pytest.mark.parametrize(
    ("required", "missing"),
    [
        (needs(), None),
        (needs("numpy"), None),
        (needs("NumPy >=2,<3", "scikit_learn>=1.4", python=">=3.11,<4"), None),
        (needs("numpy>=3"), "it lacks numpy>=3 (it has 2.1.0)"),
        (needs("torch", "xgboost>=2"), "it lacks torch, xgboost>=2"),
        (needs(python=">=3.13"), "it lacks Python >=3.13 (it has 3.12.4)"),
        (needs("torch; python_version < '3.12'"), None),
        (needs("torch; sys_platform == 'linux'"), 'it lacks torch; sys_platform == "linux"'),
        (needs("pywin32; sys_platform == 'win32'"), None),
        (needs("odd>=1"), "it lacks odd>=1 (it has what)"),
        (needs("odd"), None),
    ],
)
def test_what_is_missing_is_named_with_what_there_is(required: Requirements, missing: str | None) -> None:
    assert lacking(required, DEVICE) == missing


def test_a_device_that_is_not_switched_on_lacks_all() -> None:
    assert lacking(needs(), None) == "native programs are not switched on there (PROPLET_NATIVE_PYTHON)"


def test_a_list_that_was_cut_is_said_to_be() -> None:
    cut = NativePython(version="3.12.4", distributions={"numpy": "2.1.0"}, complete=False)
    assert lacking(needs("torch"), cut) == "it lacks torch (as far as its list of 1 tells)"


@pytest.mark.parametrize(
    ("required", "told"),
    [
        (needs("scikit learn"), "'scikit learn' is no requirement"),
        (needs("numpy @ file:///tmp/x.whl"), "devices install nothing"),
        (needs(python="newest"), "'newest' is no specifier of versions"),
    ],
)
def test_what_cannot_be_read_is_refused_and_fits_no_device(required: Requirements, told: str) -> None:
    with pytest.raises(InvalidError, match=told):
        check_requirements(required)
    assert told in str(lacking(required, DEVICE))


versions = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda found: f"{found[0]}.{found[1]}")


@given(versions, versions)
def test_a_lower_bound_holds_as_versions_are_ordered(has: str, least: str) -> None:
    device = NativePython(version="3.12.0", distributions={"x": has})
    fits = tuple(map(int, has.split("."))) >= tuple(map(int, least.split(".")))
    assert (lacking(needs(f"x>={least}"), device) is None) is fits
