"""Whole updates: what arrives, what is kept for the next one, and what is refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from propeller.fl.compression import (
    VALUE_FORMS,
    Description,
    EncodedUpdate,
    Scheme,
    decode_update,
    encode_update,
    read_description,
    sparsity,
    tensor,
    values,
)
from propeller.fl.tensors import DTYPES, TensorError, Tensors, from_safetensors, specs_of, to_safetensors

SCHEMES = [
    Scheme(top_k, form, error_feedback=feedback)
    for top_k in (None, 0.3)
    for form in VALUE_FORMS
    for feedback in (False, True)
]


@st.composite
def updates(draw: st.DrawFn) -> tuple[Tensors, Tensors]:
    """A base model and new weights, of all the dtypes that there are."""
    base: Tensors = {}
    update: Tensors = {}
    for name in draw(st.lists(st.sampled_from(sorted(DTYPES)), min_size=1, max_size=4, unique=True)):
        shape = draw(st.sampled_from([(), (1,), (0,), (3, 5), (2, 130)]))
        random = np.random.default_rng(draw(st.integers(0, 1000)))
        dtype = DTYPES[name]
        scale = draw(st.sampled_from([0.0, 1e-30, 1e-3, 1.0])) if dtype.kind not in "iub" else 50
        numbers = np.abs(random.normal(size=(2, *shape))) * scale
        base[name], update[name] = numbers.astype(dtype)
    if draw(st.booleans()):
        update["@control/w"] = np.array([1.5, -2.5], np.float32)
    return base, update


def arrived(encoded: EncodedUpdate, base: Tensors) -> Tensors:
    """What comes out at the other end of the wire."""
    body = to_safetensors(encoded.tensors, {"compression": encoded.description.to_text()})
    tensors, metadata = from_safetensors(body)
    return decode_update(tensors, read_description(metadata["compression"]), specs_of(base))


@given(updates(), st.sampled_from(SCHEMES), st.integers(0, 2**63 - 1))
def test_what_arrives_and_what_is_kept_are_what_was_to_be_sent(
    models: tuple[Tensors, Tensors], scheme: Scheme, seed: int
) -> None:
    base, update = models
    first = encode_update(update, base, scheme, seed)
    second = encode_update(update, base, scheme, seed, residual=first.residual)
    for encoded, before in ((first, {}), (second, first.residual)):
        found = arrived(encoded, base)
        assert found.keys() == update.keys()
        for name, array in update.items():
            if name not in base or base[name].dtype.kind == "b":
                assert np.array_equal(found[name], array)
            elif base[name].dtype.kind in "iu":
                exact = array.astype(object) - base[name].astype(object)
                assert np.array_equal(found[name].astype(object), exact)
            elif scheme.error_feedback:
                wanted = array.astype(np.float64) - base[name].astype(np.float64)
                wanted += before[name] if before else 0
                kept = encoded.residual[name]
                assert found[name].dtype == kept.dtype
                whole = found[name].astype(np.float64) + kept
                assert np.allclose(whole, wanted, rtol=1e-6, atol=1e-44)
        if not scheme.error_feedback:
            assert encoded.residual == {}


@given(updates(), st.sampled_from(SCHEMES), st.integers(0, 2**63 - 1))
def test_one_seed_gives_one_document(models: tuple[Tensors, Tensors], scheme: Scheme, seed: int) -> None:
    base, update = models
    one, other = (encode_update(update, base, scheme, seed) for _ in range(2))
    assert to_safetensors(one.tensors) == to_safetensors(other.tensors)
    assert one.description == other.description


@given(updates(), st.sampled_from([scheme for scheme in SCHEMES if not scheme.error_feedback]))
def test_a_difference_is_compressed_as_the_weights_are(
    models: tuple[Tensors, Tensors], scheme: Scheme
) -> None:
    base, update = models
    difference = {
        name: array
        if name not in base or base[name].dtype.kind == "b"
        else (array.astype(np.float64) - base[name].astype(np.float64))
        if base[name].dtype.kind not in "iu"
        else (array.astype(np.int64) - base[name].astype(np.int64))
        for name, array in update.items()
    }
    of_weights = arrived(encode_update(update, base, scheme, 3), base)
    of_difference = arrived(encode_update(difference, base, scheme, 3, is_difference=True), base)
    assert all(np.array_equal(of_weights[name], of_difference[name]) for name in update)


def test_the_error_is_that_of_what_arrives() -> None:
    random = np.random.default_rng(0)
    base = {"w": random.normal(size=5000), "b": random.normal(size=7)}
    update = {name: array + random.normal(size=array.shape) for name, array in base.items()}
    for scheme in SCHEMES:
        encoded = encode_update(update, base, scheme, 1)
        found = arrived(encoded, base)
        wanted = {name: update[name] - base[name] for name in base}
        missing = sum(float(np.square(wanted[name] - found[name]).sum()) for name in base)
        whole = sum(float(np.square(array).sum()) for array in wanted.values())
        assert encoded.description.error == pytest.approx((missing / whole) ** 0.5)


def test_what_is_kept_is_sent_in_time() -> None:
    """With error feedback, all that training did has arrived or is kept, however little is sent in a round."""
    random = np.random.default_rng(0)
    base: Tensors = {"w": np.zeros(1000, np.float32)}
    scheme, residual, sent = Scheme(top_k=0.05, values="int4", error_feedback=True), Tensors(), np.zeros(1000)
    trained = np.zeros(1000)
    for number in range(50):
        change = random.normal(size=1000).astype(np.float32)
        encoded = encode_update({"w": change}, base, scheme, number, residual=residual)
        residual, trained = encoded.residual, trained + change
        sent += arrived(encoded, base)["w"]
    assert np.allclose(sent + residual["w"], trained, atol=1e-3)


def test_large_tensors_are_done_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """What arrives does not depend on how long they are; of the largest numbers each segment has its own."""
    random = np.random.default_rng(0)
    base = {"w": random.normal(size=5000).astype(np.float32)}
    update = {"w": base["w"] + random.normal(size=5000).astype(np.float32)}
    whole = {form: encode_update(update, base, Scheme(values=form), 1) for form in VALUE_FORMS}
    monkeypatch.setattr(sparsity, "SEGMENT", 1024)
    monkeypatch.setattr(tensor, "SEGMENT", 1024)
    for form, encoded in whole.items():
        parts = encode_update(update, base, Scheme(values=form, error_feedback=True), 1)
        assert to_safetensors(parts.tensors) == to_safetensors(encoded.tensors)
        assert np.allclose(
            parts.residual["w"] + arrived(parts, base)["w"], update["w"] - base["w"], atol=1e-6
        )
    sparse = encode_update(update, base, Scheme(top_k=0.1), 1)
    assert np.count_nonzero(arrived(sparse, base)["w"]) == sum(
        -(-size // 10) for size in (1024,) * 4 + (904,)
    )


@pytest.mark.parametrize(
    ("update", "options", "text"),
    [
        ({"w": np.zeros(3)}, {}, "tensor 'w': has shape [3], the base model has [2]"),
        ({"w": np.array([3e38, 0])}, {}, "tensor 'w': its difference to the base model is too large for F32"),
        ({"@values/0": np.zeros(2)}, {}, "tensor '@values/0': its name is reserved"),
        (
            {"n": np.array([2.0**70, 0])},
            {},
            "tensor 'n': holds a number that I64, the base model's dtype, does not",
        ),
        (
            {"n": np.array([2**63 - 1, 0])},
            {},
            "tensor 'n': differs from the base model by more than int64 holds",
        ),
    ],
)
def test_an_update_that_cannot_be_compressed_is_refused(update: Tensors, options: Any, text: str) -> None:
    base = {"w": np.array([-3e38, 0], np.float32), "n": np.array([-2, 0])}
    with pytest.raises(TensorError) as caught:
        encode_update(update, base, Scheme(values="int8", **options), 0)
    assert str(caught.value).startswith(text)


PARTS = ("values", "scales", "gaps")
BASE: Tensors = {"w": np.zeros((20, 30), np.float32), "n": np.array([1, 2])}
GOOD = encode_update(
    {"w": np.arange(600, dtype=np.float32).reshape(20, 30), "n": np.array([2, 2])},
    BASE,
    Scheme(top_k=0.1, values="int8"),
    0,
)


def refusal(tensors: Tensors | None = None, description: str | None = None, **changed: Any) -> str:
    """Why an update is refused whose tensors, or whose description of ``w``, are changed."""
    if description is None:
        one = replace(GOOD.description.tensors[0], **changed)
        description = replace(GOOD.description, tensors=(one,)).to_text()
    with pytest.raises(TensorError) as caught:
        decode_update(GOOD.tensors | (tensors or {}), read_description(description), specs_of(BASE))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"@gaps/0": np.array([1] * 59 + [600], np.uint16)}, "'w': a place is 658, beyond its 600 numbers"),
        ({"@gaps/0": np.array([1] * 59 + [0], np.uint8)}, "'w': a place comes twice"),
        ({"@gaps/0": np.array([2**32 - 1] * 60, np.uint32)}, "'w': a place is 257698037699, beyond its 600"),
        ({"@gaps/0": np.ones(60, np.int8)}, "'w': its gaps are I8 of shape [60]"),
        ({"@gaps/0": np.ones(59, np.uint8)}, "'w': has 60 numbers and 59 places"),
        ({"@gaps/0": np.ones((2, 30), np.uint8)}, "'w': its gaps are U8 of shape [2, 30]"),
        (
            {"@values/0": np.ones(59, np.int8)},
            "'w': its values are I8 of shape [59]; 60 numbers as int8 are I8 of shape [60]",
        ),
        ({"@values/0": np.ones(60, np.float32)}, "'w': its values are F32 of shape [60]"),
        ({"@values/0": np.full(60, -128, np.int8)}, "'w': its values hold -128"),
        ({"@scales/0": np.array([np.nan], np.float32)}, "'w': a scale is negative or not finite"),
        ({"@scales/0": np.array([-1], np.float32)}, "'w': a scale is negative or not finite"),
        (
            {"@scales/0": np.array([3e38], np.float32)},
            "'w': has a number that is not finite, or too large for int8",
        ),
        (
            {"@scales/0": np.ones(2, np.float32)},
            "'w': its scales are F32 of shape [2]; they must be F32 of shape [1]",
        ),
        ({"@scales/0": np.ones(1)}, "'w': its scales are F64 of shape [1]"),
        ({"@values/1": np.ones(1, np.int8)}, "'@values/1': is of no tensor that compression.tensors names"),
        ({"w": np.zeros((20, 30), np.float32)}, "'w': is there compressed, too"),
    ],
)
def test_tensors_that_are_not_what_their_description_says_are_refused(changed: Tensors, text: str) -> None:
    assert refusal(changed).startswith(f"tensor {text}")


hostile_arrays = st.sampled_from([np.int8, np.uint8, np.uint16, np.uint32, np.float32, np.float64]).flatmap(
    lambda dtype: hnp.arrays(dtype, st.sampled_from([(), (1,), (3,), (60,), (300,), (600,), (20, 30)]))
)
hostile_fields = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["w", "n", "x", "@values/0"]),
        "dtype": st.sampled_from(["F32", "F64", "F16"]),
        "shape": st.sampled_from([[20, 30], [600], [], [2**40]]),
        "values": st.sampled_from([*VALUE_FORMS, "int2"]),
    },
    optional={"kept": st.sampled_from([0, 1, 3, 60, 600, 2**50, -1, None])},
)


@given(
    st.lists(hostile_fields, max_size=3),
    st.dictionaries(
        st.sampled_from(["w", "n", *(f"@{k}/{n}" for k in PARTS for n in (0, 1))]), hostile_arrays
    ),
)
def test_whatever_comes_is_an_update_that_fits_or_is_refused(
    described: list[dict[str, Any]], tensors: Tensors
) -> None:
    text = json.dumps({"format": 1, "uncompressed": 1, "tensors": described})
    try:
        description = read_description(text)
        found = decode_update(tensors, description, specs_of(BASE))
    except TensorError:
        return
    for each in description.tensors:
        assert found[each.name].shape == BASE[each.name].shape
        assert np.isfinite(found[each.name]).all()


def test_four_bits_that_no_number_has_are_refused() -> None:
    values_of = {"@values/0": np.zeros(30, np.uint8)}
    assert (
        refusal(values_of, form="int4") == "tensor 'w': its values are not numbers of four bits from -7 to 7"
    )


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"name": "v"}, "'v': is not in the base model"),
        ({"name": "n"}, "'n': is there compressed, too"),
        ({"form": "float32"}, "'w': its values are I8 of shape [60]; 60 numbers as float32"),
        ({"kept": None}, "'w': either both kept and its gaps must be there, or neither"),
        ({"kept": 2**40}, "'w': its values are I8 of shape [60]; 1099511627776 numbers"),
        (
            {"spec": specs_of({"w": np.zeros(601, np.float32)})["w"]},
            "'w': is compressed as F32 of shape [601]",
        ),
        ({"spec": specs_of({"w": np.zeros((20, 30))})["w"]}, "'w': is compressed as F64 of shape [20, 30]"),
    ],
)
def test_descriptions_that_do_not_fit_the_base_model_are_refused(changed: dict[str, Any], text: str) -> None:
    assert refusal(**changed).startswith(f"tensor {text}")


def test_a_scale_that_the_form_has_not_is_refused() -> None:
    values_of = {"@values/0": np.ones(60, np.float32)}
    assert refusal(values_of, form="float32") == "tensor 'w': float32 has no scales, and some came"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "compression: not JSON"),
        ("[" * 100_000, "compression: not JSON"),
        ("[]", "compression: not an object"),
        ("{}", "compression.format: None is not known here, 1 is: upgrade the coordinator"),
        ('{"format": 2}', "compression.format: 2 is not known here"),
        ('{"format": 1, "error": NaN}', "compression: not JSON"),
        ('{"format": 1, "error": 1e999}', "compression.error: must be a finite number"),
        ('{"format": 1, "error": -1}', "compression.error: must be a finite number"),
        ('{"format": 1, "error": "0"}', "compression.error: must be a finite number"),
        ('{"format": 1}', "compression.uncompressed: must be a number of bytes"),
        ('{"format": 1, "uncompressed": true}', "compression.uncompressed: must be a number of bytes"),
        ('{"format": 1, "uncompressed": 1}', "compression.tensors: must be a list"),
        (
            '{"format": 1, "uncompressed": 1, "tensors": [1]}',
            "compression.tensors.0: must be an object with a name",
        ),
    ],
)
def test_a_description_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(TensorError) as caught:
        read_description(text)
    assert str(caught.value).startswith(reason)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("dtype", "F16", "compression.tensors.0.dtype: must be F32 or F64"),
        ("dtype", [], "compression.tensors.0.dtype: must be F32 or F64"),
        ("shape", [-1], "compression.tensors.0.shape: must be a list of sizes"),
        ("shape", [2**60], "compression.tensors.0.shape: must be a list of sizes"),
        ("shape", 7, "compression.tensors.0.shape: must be a list of sizes"),
        ("values", "int2", "compression.tensors.0.values: must be one of float32, "),
        ("values", {}, "compression.tensors.0.values: must be one of float32, "),
        ("kept", -1, "compression.tensors.0.kept: must be how many numbers are sent"),
        ("name", "w" * 2, None),
    ],
)
def test_a_wrong_tensor_of_a_description_is_named(field: str, value: Any, reason: str | None) -> None:
    fields = json.loads(GOOD.description.to_text())
    fields["tensors"][0][field] = value
    if reason is None:
        assert read_description(json.dumps(fields)).tensors[0].name == "ww"
        fields["tensors"] *= 2
        reason = "is in compression.tensors twice"
    with pytest.raises(TensorError) as caught:
        read_description(json.dumps(fields))
    assert str(caught.value).removeprefix("tensor 'w': ").removeprefix("tensor 'ww': ").startswith(reason)


def test_a_description_is_read_as_it_was_written() -> None:
    for error in (None, 0.0, 0.123456, 7.0):
        description = replace(GOOD.description, error=error, uncompressed=123)
        assert read_description(description.to_text()) == description
    assert isinstance(GOOD.description, Description)
    assert GOOD.description.stages == "top_k + int8"
    assert values.BLOCK == 256
