"""What a native program is given, and what becomes of what it gives back."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from propeller.errors import StartError
from propeller.fl.tensors import from_safetensors
from propeller.native.interpreter import Interpreter
from propeller.wasm import folder_contents
from propeller.wasm.program_run import Limits, StateFolder
from propeller.wasm.sandbox import Sandbox
from support.native_programs import interpreter, python_that_all_may_read, run_native, training


async def test_arrays_are_numpys(sandbox: Sandbox) -> None:
    said: list[str] = []
    script = training(
        """
import numpy as np
assert type(model["w"]) is np.ndarray and model["w"].dtype == np.float64
assert type(data.x) is np.ndarray and data.x.dtype == np.float32 and data.y.dtype == np.int64
model["w"] += 1
print("samples", len(data), data.x.sum())
return Update(model, np.int64(len(data)), {"loss": np.float32(0.5)})
"""
    )
    outcome = await run_native(sandbox, script, on_stderr=said.append)
    assert outcome.error is None, (outcome, said)
    document = json.loads(outcome.stdout)
    assert document["update"] == {"w": [2.0, 3.0]}
    assert (document["num_samples"], document["metrics"]) == (2, {"loss": 0.5})
    assert said == ["samples 2 10.0"]
    assert outcome.metrics["run_ms"] > 0


async def test_what_has_arrays_of_its_own_is_taken(sandbox: Sandbox) -> None:
    """As PyTorch's tensors, which may have a gradient; a large update is in a file."""
    script = training(
        """
import numpy as np
class Tensor:
    def __init__(self, values, free=False):
        self.values, self.free, self.dtype = values, free, "torch.float32"
    def detach(self):
        return Tensor(self.values, free=True)
    def cpu(self):
        return self
    def __array__(self, dtype=None, copy=None):
        assert self.free
        return self.values
return Update({"w": Tensor(np.arange(1000, dtype=np.float32))}, 1)
"""
    )
    model = json.dumps({"w": [0.0] * 1000}).encode()
    outcome = await run_native(sandbox, script, model=model)
    assert outcome.error is None, outcome
    tensors, _ = from_safetensors(outcome.out_files["update.safetensors"])
    assert np.asarray(tensors["w"]).tolist() == list(range(1000))


async def test_the_message_names_the_line_of_the_users_script(sandbox: Sandbox) -> None:
    said: list[str] = []
    script = training("import numpy as np\nnp.linalg.inv(np.zeros((2, 2)))")
    outcome = await run_native(sandbox, script, on_stderr=said.append)
    assert outcome.error == "the program exited with code 1"
    assert said[-1] == "program.py:8: LinAlgError: Singular matrix"


async def test_device_state_has_arrays_and_values(sandbox: Sandbox, tmp_path: Path) -> None:
    script = training(
        """
import numpy as np
rounds = ctx.state.get("rounds", 0)
seen = ctx.state.get("seen")
if seen is None:
    ctx.state["seen"] = np.zeros(3, np.float32)
ctx.state["seen"][rounds] = 7
ctx.state["rounds"] = rounds + 1
return Update(model, 1, {"sum": ctx.state["seen"].sum()})
"""
    )
    sums = []
    kept: Path | None = None
    for number in range(2):
        state = StateFolder(kept, tmp_path / "sandbox" / f"state-{number}")
        outcome = await run_native(sandbox, script, state=state, env={"EXPERIMENT_ID": "e"})
        assert outcome.error is None, outcome
        sums.append(json.loads(outcome.stdout)["metrics"]["sum"])
        kept = state.target
    assert sums == [7, 14]
    assert kept is not None
    tensors, _ = from_safetensors((kept / "tensors.safetensors").read_bytes())
    assert np.asarray(tensors["seen"]).tolist() == [7, 7, 0]


async def test_a_strategy_corrects_gradients(sandbox: Sandbox) -> None:
    script = training(
        """
import numpy as np
gradient = {"w": np.ones(2)}
return Update({"w": ctx.correct(gradient, {"w": model["w"] + 2})["w"]}, 1)
"""
    )
    outcome = await run_native(sandbox, script, env={"FL_STRATEGY": '{"name": "fedprox", "mu": 0.5}'})
    assert outcome.error is None, outcome
    assert json.loads(outcome.stdout)["update"] == {"w": [2.0, 2.0]}


async def test_what_a_device_lacks_is_told(sandbox: Sandbox) -> None:
    outcome = await run_native(
        sandbox, training("return Update(model, 1)"), dependencies=("no-such-package>=2",)
    )
    assert outcome.error is not None
    assert "it lacks no-such-package>=2" in outcome.error


async def test_nothing_runs_where_it_is_not_switched_on(tmp_path: Path) -> None:
    async with Sandbox(tmp_path / "sandbox") as sandbox:
        outcome = await run_native(sandbox, training("return Update(model, 1)"))
    assert outcome.error is not None
    assert outcome.error.startswith("native programs are not switched on on this device: its owner sets")


@pytest.fixture(scope="module")
def open_python() -> Iterator[Path]:
    with python_that_all_may_read() as found:
        yield found


async def test_a_task_of_root_is_a_user_of_its_own(open_python: Path, tmp_path: Path) -> None:
    found = Interpreter.find(open_python)
    assert found.own_user
    script = training(
        """
import os, tempfile
with tempfile.TemporaryFile() as file:
    file.write(b"x")
with open("out/note.txt", "w") as file:
    file.write("kept")
ctx.state["n"] = 1
return Update(model, 1, {"uid": os.getuid(), "threads": len(os.listdir("out"))})
"""
    )
    async with Sandbox(tmp_path / "sandbox", native=found) as sandbox:
        outcome = await run_native(
            sandbox,
            script,
            state=StateFolder(None, tmp_path / "sandbox" / "left"),
            env={"EXPERIMENT_ID": "e"},
            limits=Limits(wall_time_s=60),
        )
        own = await sandbox.shared_user() == ""
    assert outcome.error is None, outcome
    uid = json.loads(outcome.stdout)["metrics"]["uid"]
    assert (uid >= 61184) is own
    assert dict(outcome.out_files) == {"note.txt": b"kept"}
    assert (tmp_path / "sandbox" / "left" / "values.json").read_text() == '{"n": 1}'


def test_an_interpreter_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"PROPLET_NATIVE_PYTHON: .* cannot be run: No such file"):
        Interpreter.find(tmp_path / "python")
    with pytest.raises(StartError, match="is no Python that runs"):
        Interpreter.find(Path("/bin/false"))


def test_libraries_do_not_have_the_proplets_folder_in_them() -> None:
    site = next(one for one in interpreter().readable if one.endswith("site-packages"))
    with pytest.raises(StartError, match="whose files are no program's"):
        Interpreter.find(interpreter().command, keep_out=[Path(site) / "proplet"])


def test_it_tells_what_is_installed() -> None:
    python = interpreter().python
    assert python.distributions["numpy"] == np.__version__
    assert python.complete


LITTER = """
for number in range(200):
    os.mkdir(f"out/{number}")
return Update(model, 1)
"""


@pytest.mark.parametrize("waits", [True, False], ids=["waits", "cancelled"])
async def test_the_loop_goes_on_while_what_a_task_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    """A hundred thousand folders take seconds, in which a proplet still has its heartbeat; neither run nor sandbox end before they are gone."""
    began, may_go_on, held = asyncio.Event(), threading.Event(), list[bool]()
    loop, remove = asyncio.get_running_loop(), folder_contents.remove

    def hold(folder: Path) -> None:
        if (folder / "out" / "199").exists():
            loop.call_soon_threadsafe(began.set)
            held.append(may_go_on.wait(20))
        remove(folder)

    monkeypatch.setattr(folder_contents, "remove", hold)
    limits = Limits(wall_time_s=60, out_files=1000)
    async with Sandbox(tmp_path / "sandbox", native=interpreter()) as sandbox:
        running = asyncio.create_task(run_native(sandbox, training(LITTER, "import os"), limits=limits))
        await began.wait()
        assert not running.done()
        if waits:
            may_go_on.set()
            assert (await running).error is None
            [own] = (tmp_path / "sandbox" / "tasks").iterdir()
            assert list(own.iterdir()) == []
        else:
            running.cancel()
            await asyncio.wait([running])
            loop.call_later(0.5, may_go_on.set)
    assert held == [True]
    assert list((tmp_path / "sandbox" / "tasks").iterdir()) == []
