"""What clients hold: the same whether it is given as arrays or as documents, in memory or through a folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from propeller.errors import InvalidError
from propeller.fl.data_split import split_positions
from propeller.simulation.client_data import ArrayData, DocumentData, Part, open_client_data

X = np.arange(24, dtype=np.float64).reshape(12, 2) / 7
Y = np.arange(12) % 3
PARTS = [[0, 5, 7], [1, 2, 3, 4], [11, 6, 8, 9, 10]]


def read(source: object) -> dict[str, np.ndarray]:
    return {name: fetch() for name, (_spec, fetch) in source.items()}  # type: ignore[attr-defined]


def test_arrays_and_documents_are_the_same(tmp_path: Path) -> None:
    arrays = ArrayData.of_parts({"x": X, "y": Y}, PARTS)
    documents = DocumentData([arrays.document(client, None) for client in range(len(arrays))])
    assert len(arrays) == len(documents) == 3
    for name, data in (("arrays", arrays), ("documents", documents)):
        (tmp_path / name).mkdir()
        data.write(tmp_path / name)
        for found in (data, open_client_data(tmp_path / name)):
            assert len(found) == 3
            for client, rows in enumerate(PARTS):
                source = found.source(client, None)
                assert {key: spec for key, (spec, _fetch) in source.items()} == {
                    "x": ("float32", (len(rows), 2)),
                    "y": ("int64", (len(rows),)),
                }
                columns = read(source)
                np.testing.assert_array_equal(columns["x"], X[rows].astype(np.float32))
                np.testing.assert_array_equal(columns["y"], Y[rows])
                assert json.loads(found.document(client, None)) == json.loads(arrays.document(client, None))


def test_a_document_says_how_many_samples_it_has() -> None:
    document = json.loads(ArrayData.of_parts({"x": X, "y": Y}, PARTS).document(1, None))
    assert document["size"] == 4
    assert document["data"][0] == {"x": X[1].astype(np.float32).tolist(), "y": 1}


@given(st.integers(2, 40), st.floats(0.05, 0.9), st.integers(0, 9))
def test_a_part_is_the_one_of_a_device(count: int, holdout: float, seed: int) -> None:
    train, held_out = split_positions(count, holdout, seed)
    data = ArrayData.of_parts({"y": np.arange(count)}, [np.arange(count)])
    for positions, evaluates in ((train, False), (held_out, True)):
        part = Part(holdout, seed, evaluates=evaluates)
        assert read(data.source(0, part))["y"].tolist() == positions
        assert [one["y"] for one in json.loads(data.document(0, part))["data"]] == positions


@pytest.mark.parametrize(
    ("columns", "parts", "text"),
    [
        ({"x": X, "y": Y[:5]}, PARTS, "x 12, y 5"),
        ({}, PARTS, "they have: none"),
        ({"x": X, "y": ["a"] * 12}, PARTS, "the column 'y' is <U1"),
        ({"x": X}, [[0], []], "client-2 has no samples"),
        ({"x": X}, [[0], [12]], "client-2 has rows that are not among the 12"),
    ],
)
def test_what_is_no_data(columns: dict[str, object], parts: list[list[int]], text: str) -> None:
    with pytest.raises(InvalidError, match=text):
        ArrayData.of_parts(columns, parts)  # type: ignore[arg-type]


@pytest.mark.parametrize("document", [b"{", b'{"data": []}', b'{"data": [1]}', b"3"])
def test_what_is_no_document(document: bytes) -> None:
    with pytest.raises(InvalidError, match="client-1"):
        DocumentData([document]).document(0, None)


def test_too_few_samples_to_hold_some_out() -> None:
    data = ArrayData.of_parts({"x": X}, [[0]])
    with pytest.raises(InvalidError, match=r"data\.split: 1 samples cannot be split"):
        data.source(0, Part(0.5, 0, evaluates=False))
