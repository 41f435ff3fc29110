"""Projects of `propeller new --template`: each learns on a stack, as its user would see it; and models that a script or PyTorch made."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from propeller.cli.template_data import TEMPLATES
from propeller.fl.tensors import from_safetensors
from propeller.fl.tensors.pytorch import from_pytorch
from support.native_programs import compile_libraries
from support.stack import Up, propeller, running_stack

pytestmark = pytest.mark.timeout(300)
LEAST = {"mlp": 0.95, "cnn": 0.9, "text": 0.7, "tabular": 0.8, "native": 0.7}
FEWER = {"native": ("--set", "rounds=2", "--set", "evaluate.every=1")}
"""Where each task costs seconds: a native one imports scikit-learn."""
STATE_DICT = Path(__file__).parents[1] / "program" / "pytorch" / "net.pt"

OF_PYTORCH = """
from propeller.program import Update, batches, nn, optim, train
from propeller.program import tensors as pt


class Net(nn.Module):
    def __init__(self):
        self.conv1 = nn.Conv2d(1, 2, 3)
        self.conv2 = nn.Conv2d(2, 3, 2, stride=2, padding=1)
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        x = pt.max_pool2d(pt.relu(self.conv1(x.reshape(-1, 1, 8, 8))), 2)
        x = pt.relu(self.conv2(x))
        return self.fc(x.reshape(len(x), -1))


net = Net()
optimizer = optim.SGD(0.1)
step = nn.training_step(net, pt.cross_entropy, optimizer)


@train
def fit(model, data, hyperparams, ctx):
    source = pt.random(ctx.seed)
    losses = [step(model, {}, x, y, source.key()) for x, y in batches(data, 8, source)]
    return Update(model, num_samples=len(data), metrics={"loss": losses[-1]})
"""


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    compile_libraries()
    with running_stack(
        tmp_path_factory.mktemp("templates") / "state", "--native-python", sys.executable
    ) as running:
        yield running


def project(folder: Path, template: str) -> Path:
    made = propeller("new", str(folder / f"my-{template}"), "--template", template)
    assert made.returncode == 0, made.stderr
    return folder / f"my-{template}"


@pytest.mark.parametrize("template", LEAST)
def test_a_project_learns(up: Up, tmp_path: Path, template: str) -> None:
    """Run as it is, but for ``FEWER`` rounds: the accuracy of the last evaluation on what devices hold out."""
    folder = project(tmp_path, template)
    changes = FEWER.get(template, ())
    done = propeller("run", str(folder / "experiment.toml"), "--state", str(up.folder), *changes)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"eval.*loss (\S+)  accuracy (\S+)", done.stdout)
    (first, _), *_, (last, accuracy) = found
    assert float(last) < float(first)
    assert float(accuracy) >= LEAST[template], done.stdout


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_project_is_tried_as_plain_python(tmp_path: Path, template: str) -> None:
    folder = project(tmp_path, template)
    done = propeller("try", str(folder / "train.py"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["loss"] > 0
    evaluated = propeller("try", str(folder / "train.py"), "--mode", "evaluate")
    assert 0 <= json.loads(evaluated.stdout)["metrics"]["accuracy"] <= 1


def test_a_template_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = propeller("new", str(tmp_path / "mine"), "--template", "transformer")
    assert done.returncode == 1
    assert "--template: there is no 'transformer'; there are linear, mlp, cnn, text" in " ".join(
        done.stderr.split()
    )
    assert list(tmp_path.iterdir()) == []


def test_a_state_dict_of_pytorch_is_trained_in_the_sandbox_and_comes_back(up: Up, tmp_path: Path) -> None:
    """Saved by PyTorch, trained for two rounds, exported with the same names, shapes and dtypes."""
    source = np.random.default_rng(1)
    samples = [
        {"x": source.normal(size=64).round(3).tolist(), "y": int(source.integers(4))} for _ in range(16)
    ]
    (tmp_path / "train.py").write_text(OF_PYTORCH)
    (tmp_path / "net.pt").write_bytes(STATE_DICT.read_bytes())
    (tmp_path / "data.json").write_text(json.dumps({"data": samples}))
    (tmp_path / "experiment.toml").write_text(
        'program = "train.py"\nrounds = 2\n[model]\nfile = "net.pt"\n'
        '[data]\nfiles = ["data.json", "data.json", "data.json"]\n'
    )
    done = propeller("run", str(tmp_path / "experiment.toml"), "--state", str(up.folder))
    assert done.returncode == 0, done.stdout + done.stderr
    version = re.findall(r"Model v(\d+)", done.stdout)[-1]
    exported = tmp_path / "trained.safetensors"
    assert propeller("model", "export", version, str(exported), "--state", str(up.folder)).returncode == 0
    before, after = from_pytorch(STATE_DICT.read_bytes())[0], from_safetensors(exported.read_bytes())[0]
    assert [(name, each.shape, each.dtype) for name, each in after.items()] == [
        (name, each.shape, each.dtype) for name, each in before.items()
    ]
    assert all(not np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("import numpy\n", "No module named 'numpy' for programs"),
        ("x = 1\n", "no function for 'initial_model': mark one with @initial_model"),
        (
            "from propeller.program import initial_model\n@initial_model\ndef first(hyperparams):\n    return [1]\n",
            "first.py:2: TypeError: @initial_model returns arrays by name, not a list",
        ),
        (
            "from propeller.program import initial_model\n@initial_model\ndef first(hyperparams):\n    return hyperparams['depth']\n",
            "first.py:4: KeyError: 'depth'",
        ),
        (
            "from propeller.program import initial_model\n@initial_model\ndef first():\n    return {}\n",
            "first takes (), and is given (hyperparams)",
        ),
    ],
)
def test_a_script_that_makes_no_model_is_named(up: Up, tmp_path: Path, script: str, text: str) -> None:
    (tmp_path / "first.py").write_text(script)
    (tmp_path / "experiment.toml").write_text('program = "demo/logreg:v1"\n[model]\nfile = "first.py"\n')
    done = propeller("run", str(tmp_path / "experiment.toml"), "--state", str(up.folder))
    assert done.returncode == 1
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
