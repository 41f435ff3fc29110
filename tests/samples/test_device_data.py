"""A device's own data, from files of every kind: the document that programs are given, and what is refused."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from propeller.data_store.service import write_dataset
from propeller.errors import InvalidError
from propeller.fl.tensors.safetensors import to_safetensors
from propeller.samples.device_data import COLUMNS_SCHEMA, DeviceData, read_device_data

X = np.array([[0.5, 1.0], [-0.5, 2.0], [0.25, 3.0]], np.float32)
Y = np.array([1, 0, 1])
DOCUMENT: dict[str, Any] = {
    "data": [{"x": [0.5, 1.0], "y": 1}, {"x": [-0.5, 2.0], "y": 0}, {"x": [0.25, 3.0], "y": 1}],
    "size": 3,
}
CSV = "a,b,label\n0.5,1,1\n-0.5,2,0\n0.25,3,1\n"
TABLE = {"a": X[:, 0], "b": X[:, 1], "label": Y}


def write(file: Path) -> Path:
    """The same samples in a file of its kind."""
    match file.suffix:
        case ".csv":
            file.write_text(CSV)
        case ".json":
            file.write_text(json.dumps({"data": DOCUMENT["data"]}))
        case ".npz":
            np.savez(file, x=X, y=Y)
        case ".safetensors":
            file.write_bytes(to_safetensors({"x": X, "y": Y}))
        case ".parquet":
            write_parquet(file, TABLE)
    return file


Columns = dict[str, Any]
KINDS = ("csv", "json", "npz", "safetensors", "parquet")


def write_parquet(file: Path, columns: Columns) -> Path:
    table: Any = pq.write_table
    table(pa.table(columns), file)
    return file


def content(found: DeviceData) -> Any:
    return json.loads(found.content)


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InvalidError) as error:
        read_device_data(path, **options)
    return str(error.value).replace(str(path), "DATA")


def write_booleans(file: Path) -> Path:
    """The samples with labels that are true and false."""
    labels = [bool(one) for one in Y]
    match file.suffix:
        case ".csv":
            rows = zip(X.tolist(), ("True", "false", " TRUE"), strict=True)
            file.write_text("a,b,label\n" + "".join(f"{a},{b},{label}\n" for (a, b), label in rows))
        case ".json":
            samples = [{"x": x, "y": y} for x, y in zip(X.tolist(), labels, strict=True)]
            file.write_text(json.dumps({"data": samples}))
        case ".npz":
            np.savez(file, x=X, y=np.array(labels))
        case ".safetensors":
            file.write_bytes(to_safetensors({"x": X, "y": np.array(labels)}))
        case ".parquet":
            write_parquet(file, {**TABLE, "label": np.array(labels)})
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_true_and_false_are_one_and_zero(tmp_path: Path, kind: str) -> None:
    found = read_device_data(write_booleans(tmp_path / f"rows.{kind}"))
    assert b"true" not in found.content
    assert content(found) == DOCUMENT
    assert found.columns["y"] == "int64"


def test_true_and_false_are_numbers_of_a_table_and_of_lists_and_other_words_are_texts(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("smokes,age,note,y\ntrue,0.5,yes,1\nfalse,1.5,no,0\n")
    found = read_device_data(file)
    assert content(found)["data"] == [{"x": [1.0, 0.5], "y": 1}, {"x": [0.0, 1.5], "y": 0}]
    assert found.left_out == ("note",)
    document = tmp_path / "rows.json"
    document.write_text('{"data": [{"x": [[true, 2], [0.5, false]], "y": 1}]}')
    assert content(read_device_data(document))["data"] == [{"x": [[1, 2], [0.5, 0]], "y": 1}]
    document.write_text('{"schema": "mine", "data": [{"flag": true}]}')
    assert content(read_device_data(document))["data"] == [{"flag": True}]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_given_as_a_data_store_gives_it(tmp_path: Path, kind: str) -> None:
    found = read_device_data(write(tmp_path / f"rows.{kind}"))
    assert content(found) == DOCUMENT
    assert found.samples == 3
    assert found.columns["y"] == "int64"
    assert found.columns["x"].endswith("[2]")


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_files_is_one_data_set(tmp_path: Path, kind: str) -> None:
    for name in ("b", "a"):
        write(tmp_path / f"{name}.{kind}")
    (tmp_path / ".hidden").write_text("not looked at")
    found = read_device_data(tmp_path)
    assert found.samples == 6
    assert content(found)["data"] == [*DOCUMENT["data"], *DOCUMENT["data"]]


def test_columns_of_texts_are_left_out_and_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("who,a,y\nann,1,0\nbob,2,1\n")
    found = read_device_data(file)
    assert found.left_out == ("who",)
    assert b"ann" not in found.content


@pytest.mark.parametrize(("separator", "called"), [(";", "semicolons"), ("\t", "tabs")])
def test_values_are_separated_by_commas(tmp_path: Path, separator: str, called: str) -> None:
    (tmp_path / "s.csv").write_text(CSV.replace(",", separator))
    with pytest.raises(
        InvalidError, match=rf"s\.csv, line 1: has {called} and no commas: separate values by"
    ):
        read_device_data(tmp_path / "s.csv")


def test_a_label_may_be_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,b,grade\n1,2,3\n")
    assert "name the one with labels; there are a, b, grade" in refused(file)
    assert content(read_device_data(file, "grade"))["data"] == [{"x": [1, 2], "y": 3}]
    assert "only a table's label is named" in refused(write(tmp_path / "rows.json"), label="y")
    assert "only a table's label is named" in refused(write(tmp_path / "rows.npz"), label="y")


def test_a_document_of_a_schema_of_its_own_is_its_programs(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    document = {"schema": "mine-v1", "data": [{"text": "hello"}, 7], "note": "kept"}
    file.write_text(json.dumps(document))
    assert content(read_device_data(file)) == {**document, "size": 2}
    file.write_text('{"schema": "mine-v1", "data": [], "where": "elsewhere"}')
    assert read_device_data(file).samples == 0
    file.write_text('\ufeff[{"x": [1], "y": 0}]', encoding="utf-8")
    assert content(read_device_data(file)) == {"data": [{"x": [1], "y": 0}], "size": 1}


def test_samples_that_are_not_as_the_demos_say_so_to_a_data_store(tmp_path: Path) -> None:
    """A data store takes both, and a document's own schema stays."""
    assert "schema" not in read_device_data(write(tmp_path / "rows.csv")).document()
    np.savez(tmp_path / "images.npz", x=np.zeros((2, 3, 3), np.float32), y=np.arange(2))
    np.savez(tmp_path / "names.npz", pixels=X, digit=Y)
    (tmp_path / "own.json").write_text('{"schema": "mine", "data": [{"x": [1], "y": 0}]}')
    (tmp_path / "text.json").write_text('{"data": [{"x": [1], "y": 0.5, "who": "ann"}]}')
    schemas = {
        name: read_device_data(tmp_path / name).document().get("schema")
        for name in ("images.npz", "names.npz", "own.json", "text.json")
    }
    assert schemas == {
        "images.npz": COLUMNS_SCHEMA,
        "names.npz": COLUMNS_SCHEMA,
        "own.json": "mine",
        "text.json": None,
    }
    for name in schemas:
        write_dataset("p", json.dumps(read_device_data(tmp_path / name).document()).encode(), io.BytesIO())


def test_parquet_with_lists_has_its_columns_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    write_parquet(file, {"x": X.tolist(), "y": Y})
    assert content(read_device_data(file)) == DOCUMENT
    assert "x is a column of lists" in refused(file, label="y")


def _of_csv(text: str) -> Any:
    return lambda folder: _written(folder / "rows.csv", text)


def _of_json(text: str) -> Any:
    return lambda folder: _written(folder / "rows.json", text)


def _of_parquet(columns: dict[str, Any]) -> Any:
    return lambda folder: write_parquet(folder / "rows.parquet", columns)


def _written(file: Path, text: str) -> Path:
    file.write_text(text)
    return file


def _two(first: str, second: str) -> Any:
    def make(folder: Path) -> Path:
        (folder / "1.csv").write_text(first)
        (folder / "2.csv").write_text(second)
        return folder

    return make


def _two_kinds(folder: Path) -> Path:
    write(folder / "a.csv")
    write(folder / "b.json")
    return folder


def _with_test_set(folder: Path) -> Path:
    np.savez(folder / "rows.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    return folder / "rows.npz"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_of_csv("a,y\n1,0\nsecret,1\n"), "line 3: a is 'secret', no finite float32"),
        (_of_csv("a,y\n1,0\n2\n"), "line 3: has 1 values, and the first line 2 names"),
        (_of_csv("a,y\n1,cat\n2,dog\n"), "the label 'y' is of texts, which each device would number in its own way"),
        (_of_csv("a,y\n"), "has no samples"),
        (_of_json('{"data": [{"x": [1], "y": 0}, {"x": [1, 2], "y": 0}]}'), "sample 1: x has the shape [2]"),
        (_of_json('{"data": [{"x": [1], "y": 0}, {"x": [2]}]}'), "sample 1: y is missing, and the first sample has it"),
        (_of_json('{"data": [{"x": NaN}]}'), "x has a number that is no finite float32 in sample 0"),
        (_of_json('{"schema": "mine", "data": [NaN]}'), "has a number that is not finite"),
        (_of_json('{"data": []}'), "has no samples"),
        (_of_json('{"rows": []}'), 'must be {"data": [{"x": [0.1, 0.2], "y": 1}, …]}'),
        (_of_json("{"), "is not JSON"),
        (_of_parquet({"a": [1.0, None], "y": [0, 1]}), "row 1: a is empty"),
        (_of_parquet({"a": [1.0, float("inf")], "y": [0, 1]}), "row 1: a is no finite float32"),
        (_of_parquet({"a": [[1.0], [1.0, 2.0]], "y": [0, 1]}), "row 1: a has 2 numbers, and in the first row 1"),
        (_of_parquet({"a": [b"x"], "y": [0]}), "a is of binary"),
        (_of_parquet({"a": pa.array([], pa.float64())}), "has no samples"),
        (_two("a,b,y\n1,2,0\n", "b,a,y\n1,2,0\n"), "has other columns than"),
        (_two_kinds, "a folder has files of one kind"),
        (lambda folder: folder, "this one has nothing"),
        (lambda folder: folder / "none.csv", "there is no file or folder"),
        (lambda folder: _written(folder / "rows.txt", "a"), "the name must end in .csv"),
        (lambda folder: _written(folder / "rows.parquet", "a"), "is no Parquet file"),
        (lambda folder: _written(folder / "rows.npz", "a"), "is not an .npz file"),
        (lambda folder: _written(folder / "rows.safetensors", "a"), "data: DATA: "),
        (_with_test_set, "a device has one set"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, make: Any, reason: str) -> None:
    assert reason in refused(make(tmp_path))


def test_whole_numbers_in_one_file_are_floats_with_others(tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,y\n1,0\n")
    (tmp_path / "2.csv").write_text("a,y\n1,0.5\n")
    found = read_device_data(tmp_path)
    assert found.columns["y"] == "float32"
    assert [one["y"] for one in content(found)["data"]] == [0.0, 0.5]


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'propeller[parquet]'" in refused(write(tmp_path / "rows.parquet"))
