"""Native programs of virtual clients: run as on a device, repeatable, and each client's failure its own."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from propeller.errors import PropellerError
from propeller.native.build import metadata_of, native_program
from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.sdk import Experiment
from propeller.simulation import Simulation, simulate
from support.native_programs import training
from support.registries import embedded

METADATA = '# /// script\n# dependencies = ["numpy>=1.20"]\n#\n# [tool.propeller]\n# native = true\n# ///'
FEATURES = 3

pytestmark = pytest.mark.timeout(120)


def script(folder: Path, body: str, *, dependencies: str = "numpy>=1.20") -> Path:
    file = folder / "program.py"
    file.write_text(training(body, METADATA.replace("numpy>=1.20", dependencies)))
    return file


def documents(count: int) -> list[dict[str, Any]]:
    made = []
    for client in range(count):
        x = np.random.default_rng(client).normal(size=(10 + client, FEATURES))
        made.append({"data": [{"x": row.tolist(), "y": client} for row in x]})
    return made


def run(program: str | Path, *, clients: int = 3, **fields: Any) -> Simulation:
    more = {name: fields.pop(name) for name in ("workers", "native_python", "ray") if name in fields}
    given = {
        "program": "mine",
        "rounds": 2,
        "model": {"w": [0.0] * FEATURES},
        "retries": 0,
        "selection": {"seed": 5},
        **fields,
    }
    return simulate(Experiment(**given), data=documents(clients), program=program, **more)


def told(ended: Simulation) -> str:
    return json.dumps([{**one, "round_id": ""} for one in ended.history()]).replace(ended.id, "")


DRAWS = """
import numpy as np
random = np.random.default_rng(ctx.seed)
seen = ctx.state.get("seen", 0)
ctx.state["seen"] = seen + len(data)
step = data.x.mean(axis=0) + random.normal(size=3) / 10
return Update({"w": model["w"] + step}, len(data), {"seen": seen, "step": float(np.abs(step).sum())})
"""


def test_the_same_seed_gives_the_same_bytes_and_state_is_each_clients(tmp_path: Path) -> None:
    program = script(tmp_path, DRAWS)
    one, again, other = (
        run(program, workers=1),
        run(program, workers=2),
        run(program, selection={"seed": 6}, rounds=1),
    )
    assert one.state == "completed", one.reason
    assert told(one) == told(again)
    assert one.model()["w"].tobytes() == again.model()["w"].tobytes()
    assert one.model(2)["w"].tobytes() != other.model(2)["w"].tobytes()
    assert one.clients == 6
    seen = {(row["number"], row["name"]): row["metrics.seen"] for row in one.history().rows()}
    assert seen == {
        (number, f"client-{client + 1}"): (number - 1) * (10 + client)
        for number in (1, 2)
        for client in range(3)
    }


MEASURES = """
from propeller.program import Evaluation


@evaluate
def score(model, data, hyperparams, ctx):
    return Evaluation(len(data), {"sum": float(model["w"].sum() + data.x.sum())})
"""


def test_a_central_evaluation(tmp_path: Path) -> None:
    program = script(tmp_path, 'return Update({"w": model["w"] + 1}, len(data))')
    program.write_text(program.read_text() + MEASURES)
    data = {f"client-{number}": one for number, one in enumerate(documents(2), 1)}
    ended = simulate(
        Experiment(
            program="mine",
            rounds=2,
            model={"w": [0.0] * FEATURES},
            evaluate={"every": 1, "on": "central", "dataset": "test"},
        ),
        data={**data, "test": {"data": [{"x": [0.5, 0, 0], "y": 0}, {"x": [0, 0, 0.25], "y": 1}]}},
        program=program,
        workers=1,
    )
    assert ended.state == "completed", ended.reason
    measured = [one for one in ended.history() if one["kind"] == "evaluate"]
    assert [one["participants"] for one in measured] == [["coordinator"]] * 2
    assert [(one["num_samples"], one["metrics"]) for one in measured] == [
        (2, {"sum": 3.75}),
        (2, {"sum": 6.75}),
    ]


def test_compressed_updates_and_what_they_leave_out(tmp_path: Path) -> None:
    program = script(tmp_path, DRAWS)
    compression = {"values": "int8", "error_feedback": True}
    plain, packed = run(program), run(program, update={"kind": "delta", "compression": compression})
    assert packed.state == "completed", packed.reason
    assert np.allclose(plain.model()["w"], packed.model()["w"], atol=0.02)
    assert plain.model()["w"].tobytes() != packed.model()["w"].tobytes()


def test_a_strategy_that_gives_devices_tensors(tmp_path: Path) -> None:
    body = """
import numpy as np
from propeller.program import tensors as pt
gradient = ctx.correct({"w": np.ones(3)}, {"w": model["w"]})
return Update({"w": model["w"] - gradient["w"]}, len(data), steps=1, lr=1.0)
"""
    ended = run(script(tmp_path, body), strategy="scaffold", hyperparams={"lr": 1.0})
    assert ended.state == "completed", ended.reason


MEAN_ONES = """
import os, time, sys
import numpy as np
from pathlib import Path
who = ctx.proplet_id
if who == "client-1":
    return Update({"w": model["w"] + 1}, len(data))
if who == "client-2":
    raise ValueError("this one's data is bad")
if who == "client-3":
    os._exit(3)
if who == "client-4":
    while True:
        pass
if who == "client-5":
    print(Path("/etc/hostname").read_text())
if who == "client-6":
    bytes(4_000_000_000)
if who == "client-7":
    os.fork()
if who == "client-8":
    os.kill(os.getppid(), 9)
if who == "client-9":
    os.symlink("/etc/hostname", "out/update.safetensors")
    return Update(model, 1)
"""

REASONS = {
    "client-2": "program.py:19: ValueError: this one's data is bad",
    "client-3": "the program exited with code 3",
    "client-4": "wall_time_s: over the limit of 10 s",
    "client-5": "PermissionError: [Errno 13] Permission denied: '/etc/hostname'",
    "client-6": "memory_bytes",
    "client-7": "PermissionError",
    "client-8": "Function not implemented",
    "client-9": "not a regular file",
}


def test_a_client_that_fails_or_means_ill_fails_alone(tmp_path: Path) -> None:
    others = psutil.Process().children(recursive=True)  # of the tests themselves
    ended = run(
        script(tmp_path, MEAN_ONES), clients=9, rounds=1, min_updates=1, limits={"wall_time_s": 10}, workers=2
    )
    assert ended.state == "completed", ended.reason
    assert ended.model()["w"].tolist() == [1.0] * FEATURES
    [history] = ended.history()
    reasons = {one["name"]: one["reason"] for one in history["failures"]}
    assert reasons.keys() == REASONS.keys(), reasons
    for name, text in REASONS.items():
        assert text in reasons[name], (name, reasons[name])
    left = [one for one in psutil.Process().children(recursive=True) if one not in others]
    assert not [one for one in left if one.status() != "zombie"]


@pytest.mark.parametrize(
    ("dependencies", "more", "text"),
    [
        ("no-such-package>=2", {}, r"cannot run it: it lacks no-such-package>=2\. Install that there"),
        ("numpy", {"native_python": "/no/python"}, "native_python: /no/python cannot be run"),
        ("numpy", {"ray": "127.0.0.1:1"}, "ray: a native program is simulated on this machine alone"),
    ],
)
def test_what_is_refused(tmp_path: Path, dependencies: str, more: dict[str, Any], text: str) -> None:
    with pytest.raises(PropellerError, match=text):
        run(script(tmp_path, "return Update(model, 1)", dependencies=dependencies), **more)


def test_the_devices_interpreter_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = script(tmp_path, "return Update(model, 1)")
    monkeypatch.setenv("PROPLET_NATIVE_PYTHON", "/no/device")
    with pytest.raises(PropellerError, match="native_python: /no/device cannot be run"):
        run(program)


def test_a_machine_that_does_not_confine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("propeller.simulation.native_python.available_protections", lambda: ("rlimits",))
    with pytest.raises(PropellerError, match="this kernel does not confine: it lacks landlock, seccomp"):
        run(script(tmp_path, "return Update(model, 1)"))


def test_the_owners_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5 GB are within the 2 GiB that native programs have by default."""
    program = script(tmp_path, "bytes(1_500_000_000)\nreturn Update(model, 1)")
    assert run(program, clients=1, rounds=1).state == "completed"
    monkeypatch.setenv("PROPLET_TASK_MEMORY", "1000000000")
    refused = run(program, clients=1, rounds=1)
    assert refused.state == "failed"
    assert "memory_bytes: over the limit of 1000000000 bytes" in str(refused.reason)


async def test_a_program_by_its_reference(tmp_path: Path) -> None:
    program = script(tmp_path, DRAWS)
    content = native_program(program, metadata_of(program)).encode()
    async with embedded(tmp_path / "artifacts") as registry:
        reference = f"{registry}/mine:v1"
        async with RegistryClient() as client:
            await client.push(Reference.parse(reference), content)
        fetched = await asyncio.to_thread(run, reference)
    assert fetched.state == "completed", fetched.reason
    assert fetched.status()["program"].startswith(f"{registry}/mine@sha256:")
    assert fetched.model()["w"].tobytes() == run(program).model()["w"].tobytes()
