"""Forms of numbers: how far off one can be, that nothing is off on average, and that all bits come from the seed."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from propeller.fl.compression import VALUE_FORMS, ValueForm
from propeller.fl.compression.sparsity import from_gaps, largest, to_gaps
from propeller.fl.compression.values import BLOCK, decode_values, encode_values, random_source
from propeller.fl.tensors.dtypes import Array

LEVELS = {"int8": 127, "int4": 7}
BITS = {"float32": 24, "float16": 11, "bfloat16": 8}


def numbers(dtype: type[np.floating], most: float) -> st.SearchStrategy[Array]:
    """Up to three blocks of numbers, of all sizes that there are."""
    width: Literal[32, 64] = 32 if dtype is np.float32 else 64
    return hnp.arrays(
        dtype, st.integers(0, 2 * BLOCK + 9), elements=st.floats(-most, most, width=width), fill=st.just(0.0)
    )


both = st.one_of(numbers(np.float32, 2.0**120), numbers(np.float64, 2.0**100))


def sent(form: ValueForm, array: Array, seed: int = 0) -> Array:
    stored, scales = encode_values(form, array, random_source(seed, "w"))
    return decode_values(form, stored, scales, array.size, array.dtype)


@given(both, st.sampled_from(sorted(LEVELS)), st.integers(0, 2**63))
def test_a_quantised_number_is_less_than_a_level_off(array: Array, form: ValueForm, seed: int) -> None:
    found = sent(form, array, seed)
    assert found.dtype == array.dtype
    for start in range(0, array.size, BLOCK):
        block = array[start : start + BLOCK].astype(np.float64)
        level = np.abs(block).max() / LEVELS[form]
        off = np.abs(found[start : start + BLOCK].astype(np.float64) - block)
        assert (off <= level * (1 + 1e-5) + 1e-43).all()
        assert (off[block == 0] == 0).all()


@given(both, st.sampled_from(sorted(BITS)))
def test_a_shorter_number_is_the_nearest_one(array: Array, form: ValueForm) -> None:
    found = sent(form, array)
    for start in range(0, array.size, BLOCK):
        block = array[start : start + BLOCK].astype(np.float64)
        off = np.abs(found[start : start + BLOCK].astype(np.float64) - block)
        # What is small beside the largest number of a block has fewer bits in float16; and what is small, in each form.
        least = np.abs(block).max() * 2.0**-38 if form == "float16" else 2.0**-133
        assert (off <= np.abs(block) * 2.0 ** -BITS[form] + least).all()


@given(
    st.sampled_from(sorted(LEVELS)),
    st.lists(st.floats(-1, 1, width=32), min_size=2, max_size=8),
    st.integers(0, 99),
)
def test_rounding_is_right_on_average(form: ValueForm, some: list[float], seed: int) -> None:
    """QSGD, lemma 3.1 (i): the expectation of what is sent is what was to be sent. 4000 draws of each number of a block."""
    block = np.zeros(BLOCK, np.float32)
    block[: len(some)] = some
    array = np.tile(block, 4000)
    mean = sent(form, array, seed).reshape(4000, BLOCK).astype(np.float64).mean(axis=0)
    level = np.abs(block).max() / LEVELS[form]
    # The standard deviation of a mean is at most half a level by the root of 4000; six of them are never seen by chance.
    assert (np.abs(mean - block) <= 6 * level / 2 / 4000**0.5 + 1e-6 * np.abs(block) + 1e-43).all()


def test_other_seeds_and_names_round_otherwise() -> None:
    array = np.linspace(0, 1, 500, dtype=np.float32)
    drawn = {
        encode_values("int4", array, random_source(seed, name))[0].tobytes()
        for seed in (0, 1, 2**62)
        for name in ("w", "b")
    }
    assert len(drawn) == 6


def test_the_same_bits_come_of_a_seed_for_good() -> None:
    """Written down, as a later version must round as this one: a device that does a round again must send the same update."""
    array = np.linspace(-1, 1, 9, dtype=np.float32)
    stored, scales = encode_values("int8", array, random_source(7, "layer.weight"))
    assert stored.tolist() == [-127, -95, -63, -32, 0, 32, 63, 95, 127]
    assert scales is not None
    assert scales.tolist() == [0.007874016650021076]


@pytest.mark.parametrize("form", VALUE_FORMS)
def test_there_may_be_no_numbers(form: ValueForm) -> None:
    assert sent(form, np.zeros(0, np.float32)).size == 0


@given(
    hnp.arrays(np.float32, st.integers(0, 400), elements=st.integers(-5, 5).map(float)),
    st.floats(0.001, 0.999),
)
def test_the_largest_numbers_are_chosen(array: Array, fraction: float) -> None:
    places = largest(array, fraction)
    count = min(int(np.ceil(fraction * array.size)), np.count_nonzero(array))
    assert places.size == count
    assert (np.diff(places) > 0).all()
    chosen, rest = np.abs(array[places]), np.delete(np.abs(array), places)
    assert not chosen.size or not rest.size or chosen.min() >= rest.max()
    # Stich et al. 2018, definition 2.1: a part of the squared norm of at least the fraction is kept.
    assert np.square(rest).sum() <= (1 - fraction) * np.square(array).sum() + 1e-3


@given(st.sets(st.integers(0, 70_000)))
def test_places_come_back_from_gaps(chosen: set[int]) -> None:
    places = np.array(sorted(chosen), np.int64)
    assert from_gaps(to_gaps(places), 70_001).tolist() == places.tolist()
