"""Experiment files: what is in them, what is changed on the command line, and what cannot be sent."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from propeller.cli.experiment_file import ExperimentFile, read_json
from propeller.errors import StartError
from propeller.protocol.experiments import ExperimentSpec
from propeller.sdk import Experiment, read_dataset

GOOD = 'program = "i"\n[hyperparams]\nlr = 0.1\nlayers = [8, { size = 2 }]\n[model]\nw = [0.0, 1.0]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "experiment.toml").write_text(GOOD)
    return tmp_path / "experiment.toml"


def load(file: Path, text: str, *changes: str) -> ExperimentFile:
    file.write_text(text)
    return ExperimentFile.load(file, changes)


def test_what_json_has_is_taken(file: Path) -> None:
    found = ExperimentFile.load(file)
    assert found.hyperparams == {"lr": 0.1, "layers": [8, {"size": 2}]}
    assert found.first_model() == {"w": [0.0, 1.0]}
    assert found.spec.rounds == 1
    assert found.notes == []


@pytest.mark.parametrize("value", ["1979-05-27", "[07:32:00]", "nan", "{ a = [inf] }"])
@pytest.mark.parametrize(
    ("name", "said"), [("lr", r"hyperparams\.lr: must be"), ("w", "model: w must be made of")]
)
def test_what_json_has_not_is_named(file: Path, name: str, said: str, value: str) -> None:
    lines = [f"{name} = {value}" if line.startswith(f"{name} =") else line for line in GOOD.splitlines()]
    with pytest.raises(StartError, match=rf"experiment\.toml: {said}"):
        load(file, "\n".join(lines))


def test_a_number_that_is_none_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.json"
    file.write_text('{"w": NaN}')
    with pytest.raises(StartError, match=r"model\.json: not JSON: NaN is not a number in JSON"):
        read_json(file)


def test_old_names_are_read_and_said_once(file: Path) -> None:
    found = load(file, 'image = "i"\nparticipants = ["a", "b"]\nk_of_n = 0\nrounds = 2\n')
    assert (found.spec.program, found.spec.selection.names, found.spec.k_of_n) == ("i", ["a", "b"], None)
    assert found.notes == [
        "image is now program",
        "participants is now selection.names",
        "k_of_n = 0 is now no k_of_n",
    ]
    with pytest.raises(StartError, match="image"):
        load(file, 'image = "i"\nprogram = "j"\n')


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["lr=0.5"], {"hyperparams.lr": 0.5}),
        (["rounds=7", "k_of_n=2"], {"rounds": 7, "k_of_n": 2}),
        (
            ["strategy.name=fedadam", "strategy.server_lr=1e-2"],
            {"strategy": {"name": "fedadam", "server_lr": 0.01}},
        ),
        (["mode.kind=async"], {"mode.kind": "async"}),
        (["selection.fraction=0.5", "selection.tags=['gpu']"], {"selection.tags": ["gpu"]}),
        (["hyperparams.momentum=0.9"], {"hyperparams.momentum": 0.9}),
        (["hyperparams.on=true", "hyperparams.when=1979-05-27"], {"hyperparams.when": "1979-05-27"}),
        (["program=127.0.0.1:5000/mine:latest"], {"program": "127.0.0.1:5000/mine:latest"}),
        (["model.version=production"], {"model.version": "production"}),
        (["lr={schedule='linear', start=0.1, end=0.0}"], {"hyperparams.lr.schedule": "linear"}),
    ],
)
def test_fields_are_changed_on_the_command_line(
    file: Path, changes: list[str], expected: dict[str, Any]
) -> None:
    text = GOOD.partition("[model]")[0].replace("[hyper", 'strategy = "fedavg"\nmode = "sync"\n[hyper')
    sent = load(file, text, *changes).spec.to_json()
    for path, value in expected.items():
        found: Any = sent
        for name in path.split("."):
            found = found[name]
        assert found == value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("lr", "--set lr: write FIELD=VALUE"),
        ("=1", "--set =1: write FIELD=VALUE"),
        (
            "timeout=5",
            "--set timeout: neither a field nor a hyperparameter of the file; did you mean timeout_s?",
        ),
        ("momentum=0.9", r"A new hyperparameter is --set hyperparams\.momentum=…"),
        ("strategy.nam=x", "strategy"),
        ("rounds=many", r"experiment\.toml: rounds: "),
        ("selection.fracton=0.5", "did you mean 'fraction'"),
        ("lr=nan", r"hyperparams\.lr: must be a finite number"),
    ],
)
def test_a_change_that_is_none(file: Path, change: str, said: str) -> None:
    with pytest.raises(StartError, match=said):
        ExperimentFile.load(file, [change])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('program = "i"\nmodel = 1\n', "model: must be a table"),
        ('program = "i"\n[model]\nfile = 3\n', r"model\.file: must be the path"),
        ('program = "i"\n[model]\nfile = "a"\nversion = 1\n', "give tensors, or file, or version"),
        ('program = "i"\n[model]\nfile = "a"\nw = [1]\n', "give tensors, or file, or version"),
        ('program = "i"\n[model]\nversion = -1\n', r"model\.version: "),
        ('program = "i"\n[data]\nfiles = []\n', r"data\.files: must be a list"),
        ('program = "i"\n[data]\nfiles = [1]\n', r"data\.files: must be a list"),
        ('program = "i"\n[data.files]\nproplet-1 = 1\n', r"data\.files: must be .*, or a table of paths"),
        ('program = "i"\n[data.files]\n', r"data\.files: must be .*, or a table of paths"),
        ('program = "i"\n[data]\nfiles = ["a.csv"]\nlabel = 1\n', r"data\.label: must be the name"),
        ('program = "i"\n[data]\nlabel = "y"\n', r"data\.label: names a column of the tables in data\.files"),
        ('program = "i"\n[data]\nfils = ["a"]\n', r"data\.fils: there is no such field"),
        ('program = "i"\nrouds = 3\n', "rouds: there is no such field; did you mean 'rounds'"),
        ("rounds = 3\n", "program: "),
        ('program = "i"\nrounds =\n', "not TOML"),
    ],
)
def test_a_wrong_field_is_named(file: Path, text: str, said: str) -> None:
    with pytest.raises(StartError, match=said):
        load(file, text)


def test_a_program_is_no_experiment_file(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"train\.py: is a program; give the experiment file"):
        load(tmp_path / "train.py", "from propeller.program import train\n")


def test_models_and_data_from_files(file: Path) -> None:
    folder = file.parent
    save_file({"w": np.ones(2, np.float16)}, folder / "m.safetensors")
    (folder / "m.json").write_text('{"w": [1, 2]}')
    (folder / "d.json").write_text('{"data": [{"x": [1], "y": 0}]}')
    text = 'program = "i"\n[data]\nfiles = ["d.json"]\nsplit = { holdout = 0.5 }\n[model]\nfile = "m.json"\n'
    described = load(file, text).to_experiment()
    assert (described.model, described.data) == ({"w": [1, 2]}, [{"data": [{"x": [1], "y": 0}], "size": 1}])
    assert described.spec.to_json()["data"] == {"split": {"holdout": 0.5, "seed": 0}}
    model = load(file, text.replace("m.json", "m.safetensors")).first_model()
    assert model is not None
    assert model["w"].dtype == np.float16
    np.savez(folder / "m.npz", w=np.ones(2, np.float16))
    model = load(file, text.replace("m.json", "m.npz")).first_model()
    assert model is not None
    assert model["w"].dtype == np.float16
    for name, said in (
        ("absent.json", "No such file"),
        ("d.safetensors", "d.safetensors: "),
        ("d.npz", r"d\.npz: not an \.npz"),
        ("d.pt", r"d\.pt: not a state_dict as torch.save writes it"),
        ("d.pkl", r"a model is a \.safetensors, \.npz, \.json or \.pt file, or a script"),
    ):
        if name.startswith("d."):
            (folder / name).write_bytes(b"\xff")
        with pytest.raises(StartError, match=said):
            load(file, text.replace("m.json", name)).first_model()


def test_data_by_name(file: Path) -> None:
    one, two = ({"schema": "mine", "data": [number], "size": 1} for number in (1, 2))
    (file.parent / "d.json").write_text(json.dumps(one))
    (file.parent / "t.json").write_text(json.dumps(two))
    text = (
        'program = "i"\n[data.files]\ntest = "t.json"\nproplet-1 = "d.json"\n'
        '[evaluate]\non = "central"\ndataset = "test"\n'
    )
    found = load(file, text)
    assert found.first_data_file == "d.json"
    assert found.to_experiment().data == {"test": two, "proplet-1": one}
    found = load(file, text, "data.files.proplet-2=d.json", "data.split.holdout=0.5")
    assert list(found.datasets()) == ["test", "proplet-1", "proplet-2"]
    (file.parent / "t.json").write_text('{"data": []}')
    with pytest.raises(StartError, match=r"data\.files: \S+t\.json: has no samples"):
        found.to_experiment()


def test_data_as_a_device_that_joins_has_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tables, arrays, a folder, and samples in a bare list; in Python likewise."""
    folder = file.parent
    (folder / "rows.csv").write_text("who,a,b,grade\nann,0.5,1,1\nbob,-0.5,2,0\n")
    np.savez(folder / "rows.npz", x=np.array([[0.5, 1], [-0.5, 2]], np.float32), y=np.array([1, 0]))
    (folder / "parts").mkdir()
    samples = [{"x": [0.5, 1.0], "y": 1}, {"x": [-0.5, 2.0], "y": 0}]
    for number, sample in enumerate(samples):
        (folder / "parts" / f"{number}.json").write_text(json.dumps([sample]))
    expected = {"data": samples, "size": 2}
    found = load(file, 'program = "i"\n[data]\nfiles = ["rows.npz", "parts"]\n')
    assert found.datasets() == [expected, expected]
    assert capsys.readouterr().err == ""
    tables = load(file, 'program = "i"\n[data]\nfiles = { p = "rows.csv" }\nlabel = "grade"\n')
    assert tables.to_experiment().data == {"p": expected}
    rows = folder / "rows.csv"
    assert (
        capsys.readouterr().err
        == f"data.files: {rows}: programs are not given these columns, which are texts: who\n"
    )
    assert read_dataset(rows, label="grade") == read_dataset(str(folder / "parts")) == expected


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "d.json",
            '{"data": [{"x": [1], "y": 0}, {"x": [1]}]}',
            "data.files: DATA, sample 1: y is missing, and the first sample has it: give all samples the same fields",
        ),
        ("d.json", '{"data": [{"x": [1], "y": 0}, {"x": "a", "y": 0}]}', "data.files: DATA, sample 1: x is "),
        ("d.json", '{"rows": []}', "data.files: DATA: must be {"),
        ("d.json", "{", "data.files: DATA is not JSON: "),
        ("d.csv", "a,y\n1,0\nb,1\n", "data.files: DATA, line 3: a is 'b', no finite float32"),
        ("d.csv", "a,grade\n1,0\n", "data.label: DATA has no column called y, label, target, class"),
        ("d.txt", "a", "data.files: DATA: the name must end in .csv"),
        ("d.json", None, "data.files: there is no file or folder DATA"),
    ],
)
def test_data_that_cannot_be_used(file: Path, name: str, content: str | None, said: str) -> None:
    if content is not None:
        (file.parent / name).write_text(content)
    described = load(file, f'program = "i"\n[data]\nfiles = ["{name}"]\n')
    with pytest.raises(StartError) as error:
        described.datasets()
    assert str(error.value).replace(str(file.parent / name), "DATA").startswith(said)


def test_a_file_and_the_sdk_have_the_same_fields(file: Path) -> None:
    own = {"split"}
    assert {one.name for one in fields(Experiment) if one.init} - own == set(ExperimentSpec.model_fields)
    described = load(file, 'program = "i"\nid = "mine"\nmode = "async"\n[evaluate]\nevery = 1\n')
    assert described.to_experiment().spec == described.spec


def test_files_that_begin_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    """As some editors of Windows write them."""
    (tmp_path / "e.toml").write_text(
        'program = "localhost/a:v1"\n[model]\nfile = "m.json"\n[data]\nfiles = ["d.json"]\n',
        encoding="utf-8-sig",
    )
    (tmp_path / "m.json").write_text('{"w": [1.0]}', encoding="utf-8-sig")
    (tmp_path / "d.json").write_text('{"data": [{"x": [1], "y": 0}]}', encoding="utf-8-sig")
    loaded = ExperimentFile.load(tmp_path / "e.toml")
    assert loaded.first_model() == {"w": [1.0]}
    assert loaded.datasets() == [{"data": [{"x": [1], "y": 0}], "size": 1}]
