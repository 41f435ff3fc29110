"""Experiments with a virtual fleet: exact repeats, failures, virtual time, and what a program may not do."""

import contextlib
import errno
import gc
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
import psutil
import pytest
import wasmtime

from propeller.data import program_path
from propeller.errors import InvalidError, PropellerError
from propeller.sdk import Experiment
from propeller.simulation import Simulation, simulate, workers
from propeller.simulation.client_data import DocumentData
from propeller.simulation.messages import WorkerReady, read_message
from propeller.simulation.scratch_folder import scratch_folder
from propeller.wasm.program_run import Limits

FEATURES = 6


def documents(count: int, samples: int = 12) -> list[dict[str, Any]]:
    """A data set for each client, of samples that a line divides."""
    made = []
    for client in range(count):
        source = np.random.default_rng(client)
        x = source.normal(size=(samples + client, FEATURES))
        y = (x[:, 0] + 0.2 * source.normal(size=len(x)) > 0).astype(int)
        made.append({"data": [{"x": a.tolist(), "y": int(b)} for a, b in zip(x, y, strict=True)]})
    return made


def experiment(**fields: Any) -> Experiment:
    given = {
        "program": "logreg",
        "rounds": 3,
        "model": {"w": [0.0] * FEATURES, "b": 0.0},
        "hyperparams": {"epochs": 1, "lr": 0.2, "batch_size": 4},
        "selection": {"count": 3, "seed": 5},
        **fields,
    }
    return Experiment(**given)


def run(made: Experiment | None = None, **more: Any) -> Simulation:
    given = {"data": documents(6), "program": program_path("logreg"), "workers": 1, **more}
    return simulate(made or experiment(), **given)


def told(ended: Simulation) -> str:
    return json.dumps([{**one, "round_id": ""} for one in ended.history()]).replace(ended.id, "")


def test_workers_are_in_memory_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else beside the rest: as much as programs may write there must fit twice."""
    memory, beside = tmp_path / "memory", tmp_path / "beside"
    memory.mkdir()
    monkeypatch.setattr(workers, "memory_folder", lambda: memory)
    free = shutil.disk_usage(memory).free
    with workers.workers_folder(beside, Limits(out_bytes=1, state_bytes=1), 2) as folder:
        assert folder.parent == memory
        assert folder.is_dir()
    assert list(memory.iterdir()) == []
    with workers.workers_folder(beside, Limits(out_bytes=free // 2, state_bytes=1), 2) as folder:
        assert folder == beside
    monkeypatch.setattr(workers, "memory_folder", lambda: None)
    with workers.workers_folder(beside, Limits(), 2) as folder:
        assert folder == beside


def test_the_same_seed_gives_the_same_bytes() -> None:
    one, again, other = (
        run(workers=1),
        run(workers=2),
        run(experiment(selection={"count": 3, "seed": 6}), workers=2),
    )
    assert one.state == "completed"
    assert told(one) == told(again) != told(other)
    for name, tensor in one.model().items():
        assert tensor.tobytes() == again.model()[name].tobytes()
    assert one.clients == 9
    history = one.history()
    assert [each["number"] for each in history] == [1, 2, 3]
    assert history[-1]["metrics"]["accuracy"] > history[0]["metrics"]["accuracy_before"]
    assert {row["outcome"] for row in history.rows()} == {"update"}
    assert {row["name"] for row in history.rows()} <= {f"client-{number}" for number in range(1, 7)}
    assert one.model(1)["w"].tolist() == [0.0] * FEATURES
    assert one.model(4).keys() == one.model("latest").keys()


def test_models_that_are_not_there() -> None:
    ended = run(experiment(rounds=1))
    with pytest.raises(InvalidError, match="9"):
        ended.model(9)
    with pytest.raises(InvalidError, match="no version is the best"):
        ended.model("best")


def test_evaluation_marks_the_best_version() -> None:
    made = experiment(evaluate={"every": 1}, split={"holdout": 0.25, "seed": 1}, rounds=4)
    ended = run(made)
    kinds = [one["kind"] for one in ended.history()]
    assert kinds == ["train", "evaluate"] * 4
    best = ended.status()["best"]
    assert best["metric"] == "loss"
    losses = dict(ended.history().metric("loss", "evaluate"))
    assert best["value"] == min(losses.values())
    assert ended.model("best").keys() == {"w", "b"}


@pytest.mark.parametrize("compression", ["zstd", "int8", {"top_k": 0.3, "values": "float16"}])
def test_compressed_updates(compression: Any) -> None:
    ended = run(experiment(update={"compression": compression}, rounds=4))
    assert ended.state == "completed"
    for one in ended.history():
        for update in one["updates"]:
            assert update["compression"] != "none"
            assert (update.get("compression_error", 0) > 0) == (compression != "zstd")


def test_a_central_evaluation_has_data_of_its_own() -> None:
    named = {f"device-{number}": one for number, one in enumerate(documents(4))}
    made = experiment(evaluate={"every": 3, "on": "central", "dataset": "held-out"})
    ended = run(made, data={**named, "held-out": documents(9)[8]})
    evaluation = ended.history()[-1]
    assert evaluation["kind"] == "evaluate"
    assert evaluation["num_samples"] == 20
    with pytest.raises(InvalidError, match=r"evaluate\.dataset"):
        run(made, data=named)


def columns(count: int = 60) -> dict[str, Any]:
    source = np.random.default_rng(1)
    x = source.normal(size=(count, FEATURES)).astype(np.float32)
    return {"x": x, "y": (x[:, 0] > 0).astype(np.int64)}


def test_a_data_set_is_divided_and_its_test_set_held_out() -> None:
    made = experiment(evaluate={"every": 1, "on": "central", "dataset": "test"})
    ended = run(made, data=columns(), clients=5, partition={"kind": "shards", "seed": 2}, test=0.25)
    evaluations = [one for one in ended.history() if one["kind"] == "evaluate"]
    assert [one["num_samples"] for one in evaluations] == [15] * 3
    counts = ended.fleet.label_counts()
    assert counts.counts.sum() == 45
    assert counts.counts.shape == (5, 2)
    assert "<svg" in counts.svg()
    assert len(ended.figure().axes) == len(ended.history().metric_names())


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({}, r"evaluate\.dataset: 'test' is not there"),
        ({"test": 0.25, "clients": 100}, "clients: 100"),
        ({"test": 2.0}, "test"),
        ({"test": 0.25, "partition": {"kind": "shards", "by": "z"}}, "'z'"),
        ({"data": "digit"}, "digit"),
    ],
)
def test_a_data_set_that_does_not_do(more: dict[str, Any], text: str) -> None:
    made = experiment(evaluate={"every": 1, "on": "central", "dataset": "test"})
    with pytest.raises(PropellerError, match=text):
        run(made, **{"data": columns(), "clients": 5, **more})


def test_slow_devices_and_drop_outs_in_virtual_time() -> None:
    slow = {"seconds": {"distribution": "lognormal", "median": 10, "sigma": 1}, "seed": 3}
    wait = run(experiment(timeout_s=1000), devices=slow)
    surplus = run(
        experiment(timeout_s=1000, selection={"count": 3, "seed": 5, "over_select": 1.0}), devices=slow
    )
    assert surplus.virtual_seconds < wait.virtual_seconds
    assert surplus.clients == wait.clients  # nobody's update is computed that nobody waits for
    # From the start of each round: what the slowest of those took that were waited for.
    spent = sum(one["seconds"] for one in wait.history())
    assert wait.virtual_seconds == pytest.approx(spent)
    dropping = run(experiment(min_updates=1, timeout_s=100), devices={**slow, "drop_out": 0.4})
    failures = [one for each in dropping.history() for one in each["failures"]]
    assert failures
    assert {one["reason"] for one in failures} == {"the device dropped out"}
    assert told(dropping) == told(
        run(experiment(min_updates=1, timeout_s=100), devices={**slow, "drop_out": 0.4})
    )


def test_more_samples_take_a_device_longer() -> None:
    ended = run(experiment(rounds=1, selection={"count": 6}), devices={"seconds_per_sample": 2})
    assert ended.virtual_seconds == 2 * (12 + 5)  # the last of the six has the most


def test_a_recorded_trace_of_devices(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("client,seconds,drops_out\na,3,0\nb,4,0\na,5,0\nb,6,1\n")
    made = experiment(rounds=2, min_updates=1, timeout_s=1000, selection={"count": 6})
    ended = run(made, devices={"trace": str(file), "drop_out": {"noticed_after_s": 50}})
    first, second = ended.history()
    assert (first["seconds"], len(first["failures"])) == (4, 0)
    assert (second["seconds"], len(second["failures"])) == (6 + 50, 3)


def test_a_deadline_closes_a_round_with_what_has_come() -> None:
    devices = {"seconds": {"distribution": "uniform", "low": 1, "high": 100}, "seed": 1}
    ended = run(
        experiment(min_updates=1, timeout_s=50, retries=5, selection={"count": 6, "seed": 0}), devices=devices
    )
    rounds = [one for one in ended.history() if one["state"] == "completed"]
    assert len(rounds) == 3
    assert any(len(one["updates"]) < 6 for one in rounds)
    assert all(one["seconds"] <= 50 for one in rounds)


def test_buffered_asynchronous_rounds() -> None:
    devices = {"seconds": {"distribution": "lognormal", "median": 5, "sigma": 1.5}, "seed": 2}
    made = experiment(
        rounds=6,
        mode={"kind": "async", "buffer": 2, "concurrency": 4},
        timeout_s=10_000,
        selection={"seed": 5},
    )
    ended, again = run(made, devices=devices), run(made, devices=devices, workers=1)
    assert ended.state == "completed"
    assert told(ended) == told(again)
    merged = [one for one in ended.history() if one["kind"] == "train"]
    assert [len(one["updates"]) for one in merged] == [2] * 6


def wat(folder: Path, body: str) -> Path:
    file = folder / "program.wasm"
    file.write_bytes(
        bytes(wasmtime.wat2wasm(f'(module (memory (export "memory") 1) (func (export "_start") {body}))'))
    )
    return file


def is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "propeller.simulation.worker" in process.cmdline()
    return False


def test_a_program_that_never_ends(tmp_path: Path) -> None:
    made = experiment(limits={"wall_time_s": 0.5}, retries=0, selection={"count": 2})
    ended = run(made, program=wat(tmp_path, "(loop $l (br $l))"))
    assert ended.state == "failed"
    assert "wall_time_s: over the limit of 0.5 s" in str(ended.reason)
    assert {one["name"] for one in ended.history()[0]["failures"]} <= {f"client-{n}" for n in range(1, 7)}


def test_a_worker_that_is_killed_is_a_clients_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []
    ready = threading.Event()

    def read(stream: IO[bytes]) -> Any:
        message = read_message(stream)
        if isinstance(message, WorkerReady):
            ready.set()
        return message

    def kill_one() -> None:
        assert ready.wait(60)
        (child,) = (one for one in psutil.Process().children() if is_worker(one))
        child.kill()
        killed.append(child.pid)

    monkeypatch.setattr("propeller.simulation.workers.read_message", read)
    thread = threading.Thread(target=kill_one)
    thread.start()
    made = experiment(rounds=1, limits={"wall_time_s": 60}, retries=0, selection={"count": 1})
    ended = run(made, program=wat(tmp_path, "(loop $l (br $l))"))
    thread.join()
    reasons = {one["reason"] for one in ended.history()[0]["failures"]}
    assert reasons == {"the program made its process end (signal 9)"}
    assert killed


def test_interrupted_while_a_worker_starts_it_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, abort, aborted = subprocess.Popen, workers.WorkerPool.abort, threading.Event()

    def start_slowly(*arguments: Any, **more: Any) -> Any:
        process = start(*arguments, **more)
        os.kill(os.getpid(), signal.SIGINT)
        assert aborted.wait(30)
        return process

    def abort_and_say(pool: workers.WorkerPool) -> None:
        abort(pool)
        aborted.set()

    monkeypatch.setattr("propeller.simulation.workers.subprocess.Popen", start_slowly)
    monkeypatch.setattr(workers.WorkerPool, "abort", abort_and_say)
    with pytest.raises(KeyboardInterrupt):
        run(experiment(limits={"wall_time_s": 600}), program=wat(tmp_path, "(loop $l (br $l))"))
    assert not [one for one in psutil.Process().children() if is_worker(one)]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("(unreachable)", "unreachable"),
        ("(drop (memory.grow (i32.const 60000))) (unreachable)", "unreachable"),
        ("", "standard output is not an update"),
    ],
)
def test_a_program_that_fails(tmp_path: Path, body: str, text: str) -> None:
    made = experiment(retries=0, limits={"memory_bytes": 16 * 2**20})
    ended = run(made, program=wat(tmp_path, body))
    assert ended.state == "failed"
    assert text in ended.history()[0]["failures"][0]["reason"]


def test_a_program_that_writes_without_end(tmp_path: Path) -> None:
    file = tmp_path / "program.wasm"
    file.write_bytes(
        bytes(
            wasmtime.wat2wasm("""(module
              (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
              (memory (export "memory") 2)
              (func (export "_start")
                (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 65536))
                (loop $l (br_if $l (i32.eqz (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
                (unreachable)))""")
        )
    )
    made = experiment(retries=0, rounds=1, limits={"stdout_bytes": 100_000, "out_bytes": 1_000_000})
    ended = run(made, program=file)
    assert "stdout_bytes: over the limit of 100000 bytes" in ended.history()[0]["failures"][0]["reason"]


def test_data_that_the_program_refuses() -> None:
    given = documents(6)
    for sample in given[0]["data"]:
        sample["x"] = sample["x"][:3]
    ended = run(experiment(min_updates=1, selection={"count": 6}), data=given)
    assert ended.state == "completed"
    for one in ended.history():
        (failure,) = one["failures"]
        assert failure["name"] == "client-1"
        assert "3" in failure["reason"]


def test_an_update_that_a_coordinator_would_read_in_a_thread() -> None:
    features = 20_000  # more than 256 KiB of JSON
    made = experiment(rounds=1, model={"w": [0.0] * features, "b": 0.0}, selection={"count": 2})
    data = {"x": np.random.default_rng(0).normal(size=(4, features)), "y": [0, 1, 0, 1]}
    ended = run(made, data=data, clients=2, workers=1)
    assert ended.state == "completed", ended.reason
    assert ended.history()[0]["bytes"] > 256 * 1024


@pytest.mark.parametrize(
    ("fields", "more", "text"),
    [
        ({"model": None}, {}, "model: give the tensors"),
        ({"model": 3}, {}, "model: give the tensors"),
        ({}, {"data": None}, "data: say what clients hold"),
        ({}, {"clients": 7}, "clients: 7, but there is data of 6"),
        ({}, {"program": "nowhere.wasm"}, "program: nowhere.wasm is not a file"),
        ({}, {"data": 5}, "data: int is no data"),
        ({}, {"program": 5}, "program: int is neither"),
        ({}, {"strategy_program": "x.wasm"}, "strategy_program: the strategy is fedavg, which is no program"),
        ({}, {"devices": {"seconds": -1}}, "devices.seconds: -1"),
        ({}, {"devices": {"second": 1}}, "did you mean 'seconds'"),
        ({}, {"workers": 0}, "workers"),
        ({}, {"clients": 0}, "clients"),
        ({"strategy": {"program": "x/y"}}, {}, "strategy.program"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], more: dict[str, Any], text: str) -> None:
    with pytest.raises(PropellerError, match=text):
        run(experiment(**fields), **more)


def test_numbers_of_numpy_and_paths(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, **columns())
    partition = {"kind": "iid", "seed": np.int64(3)}
    ended = run(data=file, clients=np.int64(5), partition=partition, test=np.float64(0.2))
    assert ended.fleet.label_counts().counts.sum() == 48


def test_more_clients_in_a_round_than_there_are() -> None:
    ended = run(experiment(retries=0, timeout_s=5, selection={"count": 9}))
    assert ended.state == "failed"
    assert "9 devices needed, 6 there" in str(ended.reason)


def test_what_a_killed_simulation_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as folder:
        left = folder.parent / "1-left"
        left.mkdir()
    ended = run(experiment(rounds=1))
    assert not left.exists()
    del ended
    gc.collect()
    assert list(folder.parent.iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), OSError("9 requested and 7 written")]
)
def test_a_full_disk(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_data: Any, _folder: Path) -> None:
        raise error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(DocumentData, "write", fail)
    with pytest.raises(PropellerError, match=f"cannot be written to {tmp_path}: .*TMPDIR"):
        run()
