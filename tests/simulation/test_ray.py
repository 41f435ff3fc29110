"""Workers on the nodes of a Ray cluster: the same result, and what is told of a cluster that cannot be used."""

import importlib.util
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from propeller.coordinator.rounds import RoundRecord
from propeller.data import program_path
from propeller.errors import InvalidError, PropellerError
from propeller.sdk import Experiment
from propeller.simulation import Simulation, ray_cluster, ray_nodes, simulate
from propeller.simulation.ray_cluster import RayNode
from propeller.simulation.ray_node import NodeWorkers
from propeller.simulation.ray_nodes import share_workers
from propeller.simulation.simulation import Observe
from support.net import free_port
from support.python_programs import CACHE_HOME, TEMPLATE, built
from support.ray_cluster import RayProcesses
from support.ray_cluster import ray_cluster as started_cluster
from support.stack import propeller

pytestmark = pytest.mark.timeout(180)

FEATURES = 4

EXPERIMENT = """
program = "logreg.wasm"
rounds = 2
selection = { count = 2, seed = 1 }

[model]
w = [0.0, 0.0]
b = 0.0

[simulation]
clients = 4
data = "data.csv"
"""
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayProcesses]:
    """A cluster, to which this process is connected: simulations need not connect each by itself, which takes two seconds."""
    import ray

    with started_cluster() as made:
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield made
        finally:
            ray.shutdown()


def data(clients: int = 6) -> list[dict[str, Any]]:
    return [
        {"data": [{"x": [one / 10, client, 1, -one], "y": int(one > 5)} for one in range(10)]}
        for client in range(clients)
    ]


def run(
    program: str | Path | None = None, ray: str | None = None, observe: Observe | None = None, **fields: Any
) -> Simulation:
    made = {
        "program": "logreg",
        "rounds": 3,
        "model": {"w": [0.0] * FEATURES, "b": 0.0},
        "hyperparams": {"epochs": 1, "lr": 0.2, "batch_size": 4},
        "selection": {"count": 5, "seed": 5},
        **fields,
    }
    program = program or program_path("logreg")
    return simulate(Experiment(**made), data=data(), program=program, ray=ray, observe=observe)


def bits(ended: Simulation) -> dict[str, bytes]:
    assert ended.state == "completed", ended.reason
    return {name: tensor.tobytes() for name, tensor in ended.model().items()}


@needs_ray
def test_the_same_result_as_on_this_machine(cluster: RayProcesses) -> None:
    # Compressed with what was left out before: that goes along with clients, whichever node they are on.
    fields: dict[str, Any] = {
        "update": {"compression": {"top_k": 0.5}},
        "evaluate": {"every": 1},
        "split": {"holdout": 0.2},
    }
    here, there = run(**fields), run(ray=cluster.address, **fields)
    assert bits(here) == bits(there)
    for one, other in zip(here.history(), there.history(), strict=True):
        assert one["metrics"] == other["metrics"]


@needs_ray
def test_what_programs_keep_goes_along_with_clients(
    cluster: RayProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE_HOME))
    fields: dict[str, Any] = {
        "strategy": {"name": "ditto", "lambda": 0.1},
    }
    program = built(TEMPLATE)
    here, there = run(program, **fields), run(program, ray=cluster.address, **fields)
    assert bits(here) == bits(there)
    metrics = [one["metrics"] for one in here.history()]
    assert "personal_loss" in metrics[0]
    assert metrics == [one["metrics"] for one in there.history()]


@needs_ray
def test_a_program_that_never_ends_is_a_failure_of_its_clients(cluster: RayProcesses, tmp_path: Path) -> None:
    never = '(module (memory (export "memory") 1) (func (export "_start") (loop $l (br $l))))'
    (tmp_path / "never.wasm").write_bytes(bytes(wasmtime.wat2wasm(never)))
    ended = run(
        tmp_path / "never.wasm",
        cluster.address,
        limits={"wall_time_s": 0.5},
        retries=0,
        selection={"count": 2},
    )
    assert ended.state == "failed"
    (failure, _other) = ended.history()[0]["failures"]
    assert failure["reason"] == "wall_time_s: over the limit of 0.5 s"


@needs_ray
def test_from_the_command_line(cluster: RayProcesses, tmp_path: Path) -> None:
    (tmp_path / "experiment.toml").write_text(EXPERIMENT)
    lines = [f"{one / 20},{one % 3},{int(one > 10)}" for one in range(20)]
    (tmp_path / "data.csv").write_text("\n".join(["x0,x1,y", *lines]))
    ended = propeller(
        "simulate",
        str(tmp_path / "experiment.toml"),
        "--program",
        str(program_path("logreg")),
        "--ray",
        cluster.address,
    )
    assert ended.returncode == 0, ended.stderr
    assert "completed: 2 rounds, 4 tasks" in ended.stdout
    assert ended.stderr == ""


class OnlyHere(NodeWorkers):
    """A class of a module that nodes do not have."""


@needs_ray
def test_a_connection_that_there_is_is_used_and_stays(
    cluster: RayProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    with ray_cluster.connect(cluster.address) as connected:
        assert [node.processors for node in connected.nodes()] == [2]
    assert ray.is_initialized()

    with monkeypatch.context() as patched:
        patched.setattr(ray_nodes, "versions", lambda: {"propeller": "9.9"})
        with pytest.raises(PropellerError, match=r"the node \S+ has propeller \S+, and here it is 9\.9"):
            run(ray=cluster.address)

    with monkeypatch.context() as patched:  # as where there is no Propeller
        patched.setattr(ray_nodes, "NodeWorkers", OnlyHere)
        with pytest.raises(
            PropellerError, match=r"cannot run clients: ModuleNotFoundError: .*needs Propeller"
        ):
            run(ray=cluster.address)

    with monkeypatch.context() as patched:
        patched.setattr(ray_nodes, "_START_S", 2.0)
        others = ray.remote(num_cpus=1)(NodeWorkers).remote()
        ray.get(others.versions.remote())
        with pytest.raises(PropellerError, match="has not started 2 workers within 2 s"):
            run(ray=cluster.address)
        ray.kill(others)

    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(InvalidError, match=r"connected to another cluster .* ray\.shutdown"),
        ray_cluster.connect(f"127.0.0.1:{port}"),
    ):
        pass


@needs_ray
def test_more_workers_than_the_cluster_has(cluster: RayProcesses) -> None:
    with pytest.raises(InvalidError, match="workers: 99, but the Ray cluster has 2 processors"):
        simulate(
            Experiment(program="logreg", rounds=1, model={"w": [0.0] * FEATURES, "b": 0.0}),
            data=data(),
            program=program_path("logreg"),
            ray=cluster.address,
            workers=99,
        )


@needs_ray
def test_a_lost_node_and_a_lost_actor_change_nothing(cluster: RayProcesses) -> None:
    second = cluster.start_node()

    def lose(_running: Any, record: RoundRecord) -> None:
        if not record.state.is_over:
            return
        if record.numbers["number"] == 2:
            cluster.kill_node(second)
        if record.numbers["number"] == 4:
            (actor,) = cluster.actors("NodeWorkers")
            actor.kill()

    with pytest.warns(UserWarning, match="tasks are run again") as told:
        there = run(ray=cluster.address, observe=lose, rounds=6)
    assert bits(there) == bits(run(rounds=6))
    assert len(told) >= 2


@needs_ray
@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("10.0.0.1", "HOST:PORT of the cluster's head"),
        ("10.0.0.1:99999", "HOST:PORT of the cluster's head"),
        ("http://10.0.0.1:80", "HOST:PORT of the cluster's head"),
        ("ray://10.0.0.1:10001", "run this on a machine of the cluster"),
    ],
)
def test_what_is_no_address(address: str, text: str) -> None:
    with pytest.raises(InvalidError, match=text):
        run(ray=address)


@needs_ray
def test_nothing_answers_at_the_address() -> None:
    with pytest.raises(PropellerError, match=r"nothing answers at 127\.0\.0\.1:.*ray start --head"):
        run(ray=f"127.0.0.1:{free_port()}")


@needs_ray
def test_something_else_listens_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_PROBE_S", 1.0)
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PropellerError, match="does not answer as the head of a Ray cluster"):
            ray_cluster.probe(f"127.0.0.1:{port}")


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(PropellerError, match=r"pip install 'propeller\[ray\]'"):
        run(ray="127.0.0.1:6379")


def test_another_version_of_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    said = """refused: RuntimeError: Version mismatch: The cluster was started with:
    Ray: 2.60.0
    Python: 3.11.7
This process on node 192.0.2.2 was started with:
    Ray: 2.55.1
    Python: 3.11.7
"""
    monkeypatch.setattr(ray_cluster, "_PROBE", f"import sys; sys.exit({said!r})")
    with pytest.raises(
        PropellerError, match=r"has Ray 2\.60\.0 .* here is Ray 2\.55\.1 .*pip install ray==2\.60\.0"
    ):
        ray_cluster.probe("10.0.0.1:6379")


def test_workers_are_shared_evenly() -> None:
    nodes = [RayNode("a", "10.0.0.1", 1), RayNode("b", "10.0.0.2", 4), RayNode("c", "10.0.0.3", 2)]
    assert [count for _node, count in share_workers(nodes, None)] == [1, 4, 2]
    assert [count for _node, count in share_workers(nodes, 6)] == [1, 3, 2]
    assert [(node.id, count) for node, count in share_workers(nodes, 2)] == [("a", 1), ("b", 1)]
    with pytest.raises(InvalidError, match="0 processors"):
        share_workers([], None)
