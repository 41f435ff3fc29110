"""How two versions differ, and which there are."""

import io
import json
import math
from fractions import Fraction
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from propeller.fl.tensors import Tensors, to_safetensors
from propeller.model_registry.diff import diff_documents, diff_lineages
from propeller.store.documents import Document
from support.model_registry import post


def diff(first: Tensors, second: Tensors) -> dict[str, Any]:
    return diff_documents(*(Document(io.BytesIO(to_safetensors(tensors))) for tensors in (first, second)))


def exact_root(square: Fraction) -> float | None:
    """The root of a fraction, as a float; ``None`` beyond float64."""
    shift = (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    scaled = square / Fraction(4) ** shift
    try:
        return math.ldexp(math.sqrt(scaled), shift)
    except OverflowError:
        return None


def assert_close(found: float | None, exact: float | None) -> None:
    if found is None or exact is None:
        # At the edge of float64 a rounding decides.
        assert found is exact or (found or exact or 0) > 1.79e308
    else:
        assert found == pytest.approx(exact, rel=1e-12, abs=1e-320)


DTYPES = ["<f8", "<f4", "<f2", "<i8", "<u8", "<i2", "?"]
pairs = st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)).flatmap(
    lambda kinds: hnp.array_shapes(min_dims=0, max_dims=2, max_side=4).flatmap(
        lambda shape: st.tuples(
            *(
                hnp.arrays(
                    kind,
                    shape,
                    elements={"allow_nan": False, "allow_infinity": False} if "f" in kind else None,
                )
                for kind in kinds
            )
        )
    )
)


@given(pair=pairs)
def test_figures_are_those_of_exact_arithmetic(pair: tuple[Any, Any]) -> None:
    first, second = pair
    same_kind = {first.dtype.kind, second.dtype.kind} in ({"i"}, {"u"})
    a = [Fraction(item.item()) for item in first.reshape(-1)]
    b = [Fraction(item.item()) for item in second.reshape(-1)]
    if not same_kind:  # the numbers are compared as float64
        a, b = ([Fraction(float(item)) for item in one] for one in (a, b))
    found = diff({"w": first}, {"w": second})
    line = found["tensors"]["w"]
    differences = [abs(y - x) for x, y in zip(a, b, strict=True)]
    square, of_a, of_b = (sum(x * x for x in one) for one in (differences, a, b))
    assert_close(line["l2"], exact_root(Fraction(square)))
    try:
        assert_close(line["max_abs"], float(max(differences)))
    except OverflowError:
        assert line["max_abs"] is None
    if square == 0:
        assert line["relative"] == 0
    elif of_a == 0:
        assert line["relative"] is None
    else:
        assert_close(line["relative"], exact_root(Fraction(square) / of_a))
    if of_a == 0 or of_b == 0:
        assert line["cosine"] is None
    else:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        cosine = exact_root(Fraction(dot * dot) / (of_a * of_b)) or 0.0
        assert line["cosine"] == pytest.approx(cosine if dot >= 0 else -cosine, abs=1e-9)
    assert line["numbers"] == len(a)
    assert {**found["total"], "tensors": 0} == {
        **{name: line[name] for name in ("numbers", "changed", "l2", "relative", "max_abs", "cosine")},
        "tensors": 0,
    }


def test_integers_differ_where_floats_would_not() -> None:
    first, second = np.array([2**60, -(2**63)]), np.array([2**60 + 1, 2**63 - 1])
    line = diff({"w": first}, {"w": second})["tensors"]["w"]
    assert line["changed"] == 2
    assert line["max_abs"] == 2.0**64
    line = diff({"w": first[:1]}, {"w": second[:1]})["tensors"]["w"]
    assert (line["status"], line["l2"]) == ("changed", 1.0)


def test_norms_of_numbers_whose_squares_are_beyond_float64() -> None:
    line = diff({"w": np.array([3e300, 0.0])}, {"w": np.array([0.0, 4e300])})["tensors"]["w"]
    assert line["l2"] == pytest.approx(5e300)
    line = diff({"w": np.array([0.0])}, {"w": np.array([1e-300])})["tensors"]["w"]
    assert line["l2"] == pytest.approx(1e-300)
    line = diff({"w": np.array([-1.7e308])}, {"w": np.array([1.7e308])})["tensors"]["w"]
    assert line == {
        "status": "changed",
        "dtype": ["F64", "F64"],
        "shape": [[1], [1]],
        "numbers": 1,
        "changed": 1,
        "l2": None,
        "relative": pytest.approx(2.0),
        "max_abs": None,
        "cosine": -1.0,
    }


def test_many_blocks_of_a_tensor_and_of_several() -> None:
    rng = np.random.default_rng(0)
    first = {
        "a": rng.normal(size=300_000).astype(np.float32),
        "b": rng.normal(size=(400, 400)).astype(ml_dtypes.bfloat16),
        "same": np.arange(5),
        "none": np.zeros((0, 3)),
    }
    second = {**first, "a": first["a"] + np.float32(0.25), "b": first["b"].astype(np.float64)}
    found = diff(first, second)
    assert [line["status"] for line in found["tensors"].values()] == ["changed", "changed", "same", "same"]
    assert found["tensors"]["b"]["changed"] == 0
    assert found["tensors"]["b"]["dtype"] == ["BF16", "F64"]
    assert found["tensors"]["none"]["cosine"] is None
    difference = second["a"].astype(np.float64) - first["a"]
    assert found["total"]["l2"] == pytest.approx(np.linalg.norm(difference), rel=1e-12)
    assert found["total"]["tensors"] == {"same": 2, "changed": 2, "reshaped": 0, "added": 0, "removed": 0}
    assert found["total"]["numbers"] == 300_000 + 160_000 + 5


def test_tensors_that_only_one_has_or_in_another_shape() -> None:
    found = diff(
        {"gone": np.ones(2), "w": np.ones(4), "b": np.ones(1)},
        {"b": np.ones(1), "w": np.ones((2, 2)), "new": np.ones(3, np.float32)},
    )
    assert found["tensors"] == {
        "gone": {"status": "removed", "dtype": ["F64", None], "shape": [[2], None]},
        "w": {"status": "reshaped", "dtype": ["F64", "F64"], "shape": [[4], [2, 2]]},
        "b": found["tensors"]["b"],
        "new": {"status": "added", "dtype": [None, "F32"], "shape": [None, [3]]},
    }
    assert found["tensors"]["b"]["status"] == "same"
    assert found["total"]["tensors"] == {"same": 1, "changed": 0, "reshaped": 1, "added": 1, "removed": 1}
    assert found["total"]["numbers"] == 1


def test_lineages_differ_by_field() -> None:
    first = {"experiment": "e", "number": 1, "updates": [1], "metrics": {"loss": 1}}
    second = {"experiment": "e", "number": 2, "updates": [2], "parent": 0, "metrics": {"loss": 1}}
    assert diff_lineages(first, second) == {"number": [1, 2], "parent": [None, 0]}
    assert diff_lineages(None, first)["number"] == [None, 1]
    assert diff_lineages(None, None) == {}


async def fill(http: httpx.AsyncClient) -> None:
    for number in range(5):
        lineage = {
            "experiment": f"e-{number % 2}",
            "number": number + 1,
            "strategy": {"name": "fedadam"} if number % 2 else {"program": "localhost:5000/mine:v1"},
            "updates": [{"proplet_id": "p", "digest": "d", "num_samples": 1}],
        }
        await post(http, {"w": np.full((2, 3), float(number))}, {"lineage": json.dumps(lineage)})
    await post(http, {"w": np.zeros(1), "b": np.zeros(())})
    await http.put("/aliases/best", json={"version": 3})


async def test_a_diff_over_http(http: httpx.AsyncClient) -> None:
    await fill(http)
    answer = (await http.get("/models/1/diff/best")).json()
    assert (answer["from"], answer["to"]) == (1, 3)
    assert answer["total"]["l2"] == pytest.approx(2 * math.sqrt(6))
    assert answer["lineage"] == {"number": [2, 4]}
    assert (await http.get("/models/best/diff/latest")).json()["total"]["tensors"]["reshaped"] == 1
    assert (await http.get("/models/1/diff/99")).status_code == 404
    assert (await http.get("/models/1/diff/bst")).status_code == 404
    await http.put("/aliases/e-1/best", json={"version": 1})
    await http.put("/aliases/e-0/best", json={"version": 2})
    answer = (await http.get("/models/e-1/best/diff/e-0/best")).json()
    assert (answer["from"], answer["to"]) == (1, 2)


async def test_versions_are_listed_and_filtered(http: httpx.AsyncClient) -> None:
    await fill(http)
    assert (await http.get("/models")).json() == {"versions": [0, 1, 2, 3, 4, 5]}
    page = (await http.get("/models", params={"details": 1})).json()
    assert page["total"] == 6
    assert [line["version"] for line in page["models"]] == [5, 4, 3, 2, 1, 0]
    line = page["models"][2]
    assert line.pop("created_at").endswith("Z")
    assert line.pop("size") > 48
    assert len(line.pop("digest")) == 64
    assert line == {
        "version": 3,
        "tensors": 1,
        "numbers": 6,
        "lineage": {"experiment": "e-1", "number": 4, "strategy": {"name": "fedadam"}},
        "aliases": ["best"],
        "has_state": False,
    }
    assert page["models"][0]["lineage"] is None

    async def found(**params: Any) -> tuple[int, list[int]]:
        answer = (await http.get("/models", params=params)).json()
        return answer["total"], [line["version"] for line in answer["models"]]

    assert await found(details=1, experiment="e-0") == (3, [4, 2, 0])
    assert await found(strategy="fedadam") == (2, [3, 1])
    assert await found(strategy="localhost:5000/mine:v1", experiment="e-0") == (3, [4, 2, 0])
    assert await found(alias="best") == (1, [3])
    assert await found(alias="best", experiment="e-0") == (0, [])
    assert await found(limit=2, offset=1) == (6, [4, 3])
    assert await found(offset=9) == (6, [])
    assert (await http.get("/models", params={"alias": "bset"})).status_code == 404
    for wrong in ({"limit": 0}, {"limit": 1001}, {"offset": -1}, {"details": "x"}):
        assert (await http.get("/models", params=wrong)).status_code == 400


async def test_a_damaged_version_does_not_hide_the_others(http: httpx.AsyncClient, tmp_path: Any) -> None:
    await fill(http)
    (tmp_path / "global_model_v2.safetensors").unlink()
    (tmp_path / "global_model_v2.safetensors").write_bytes(b"x")
    page = (await http.get("/models", params={"details": 1})).json()
    assert [line.get("error") is None for line in page["models"]] == [True, True, True, False, True, True]
    assert (await http.get("/models/2/diff/1")).status_code == 500
