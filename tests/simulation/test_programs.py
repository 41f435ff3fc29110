"""Programs of a simulation that are not files: from a registry, and strategies that are programs."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.aggregator.api import create_api
from propeller.aggregator.service import Aggregator
from propeller.aggregator.spill import SpillSpace
from propeller.data import program_path
from propeller.errors import PropellerError
from propeller.fl.strategies.aggregation import Aggregated
from propeller.fl.tensors import Tensors
from propeller.oci.client import RegistryClient
from propeller.oci.reference import DefaultRegistry, Reference
from propeller.program_host.programs import HostSettings, ProgramHost
from propeller.sdk import Experiment
from propeller.simulation import Simulation, simulate
from propeller.simulation.aggregation import Bases, Received
from propeller.simulation.program_aggregator import ProgramAggregator
from propeller.wasm.program_run import Limits
from support.aggregation import read_answer, request_body, send
from support.guests import command
from support.net import free_port
from support.python_programs import CACHE_HOME, COMPILED, SOURCES, built
from support.registries import embedded
from support.stack import propeller

pytestmark = pytest.mark.timeout(180)

FEATURES = 4


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE_HOME))


def data(clients: int = 4) -> list[dict[str, Any]]:
    return [
        {"data": [{"x": [one / 10, client, 1, -one], "y": int(one > 5)} for one in range(10 + client)]}
        for client in range(clients)
    ]


def run(program: str | Path | None = None, strategy_program: Path | None = None, **fields: Any) -> Simulation:
    made = {
        "program": "logreg",
        "rounds": 3,
        "model": {"w": [0.0] * FEATURES, "b": 0.0},
        "hyperparams": {"epochs": 1, "lr": 0.2, "batch_size": 4},
        "selection": {"count": 3, "seed": 5},
        "retries": 0,
        **fields,
    }
    return simulate(
        Experiment(**made), data=data(), program=program, strategy_program=strategy_program, workers=1
    )


def bits(tensors: Tensors) -> dict[str, bytes]:
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


async def push(registry: str, name: str, content: bytes) -> str:
    reference = f"{registry}/{name}"
    async with RegistryClient() as client:
        await client.push(Reference.parse(reference), content)
    return reference


# A strategy that is a program --------------------------------------------------------------------------------------


async def test_a_strategy_that_is_a_program_gives_what_the_aggregator_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rounds: list[tuple[str, Bases, list[tuple[dict[str, Any], Tensors]], Aggregated]] = []
    own = ProgramAggregator.aggregate

    def aggregate(self: ProgramAggregator, round_id: str, bases: Bases, received: Received) -> Aggregated:
        made = own(self, round_id, bases, received)
        sent = [
            (
                {
                    "proplet_id": each.proplet_id,
                    "slot": each.slot,
                    "num_samples": each.num_samples,
                    "metrics": dict(each.metrics),
                },
                tensors() if callable(tensors) else tensors,
            )
            for each, tensors in received
        ]
        rounds.append((round_id, bases, sent, made))
        return made

    monkeypatch.setattr(ProgramAggregator, "aggregate", aggregate)
    program = built(SOURCES / "clipped_momentum.py")
    params = {"clip": 0.1, "momentum": 0.5}
    ended = await asyncio.to_thread(
        run, program_path("logreg"), program, strategy={"program": "mine/clipped:v1", **params}
    )
    assert ended.state == "completed", ended.reason
    assert len(rounds) == 3
    assert rounds[2][1].state is not None
    async with embedded(tmp_path / "artifacts") as registry:
        strategy = {"program": await push(registry, "clipped:v1", program.read_bytes()), **params}
        limits = Limits(wall_time_s=60)
        settings = HostSettings(
            "aggregator", tmp_path / "cache", DefaultRegistry.parse(registry), None, limits, 1 << 30, COMPILED
        )
        aggregator = Aggregator(
            SpillSpace(tmp_path / "spill", 10**8),
            max_update_bytes=10**6,
            open_programs=lambda: ProgramHost(settings),
        )
        app = create_api(aggregator, max_bytes=10**8, max_json_bytes=10**5)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://aggregator") as http:
            for round_id, bases, sent, made in rounds:
                state = bases.state
                body = request_body(
                    strategy,
                    [bases.model],
                    sent,
                    state=None if state is None else state.tensors,
                    values=None if state is None else dict(state.values),
                    round_id=round_id,
                )
                result, model, left = await read_answer(await send(http, body))
                assert bits(model) == bits(made.model)
                assert bits(left) == bits(made.state.tensors)
                assert (
                    result["values"]
                    == made.state.values
                    == {"clipped": pytest.approx(result["values"]["clipped"])}
                )
        await aggregator.close()
    assert bits(ended.model()) == bits(rounds[2][3].model)


def test_a_strategy_that_is_a_program_merges_stale_updates() -> None:
    devices = {"seconds": {"distribution": "lognormal", "median": 5, "sigma": 1.5}, "seed": 2}
    made = Experiment(
        program="logreg",
        rounds=5,
        strategy={"program": "mine", "clip": 1.0},
        model={"w": [0.0] * FEATURES, "b": 0.0},
        mode={"kind": "async", "buffer": 2, "concurrency": 4},
        timeout_s=10_000,
    )
    program = built(SOURCES / "clipped_momentum.py")
    ended, again = (
        simulate(
            made,
            data=data(),
            program=program_path("logreg"),
            strategy_program=program,
            devices=devices,
            workers=count,
        )
        for count in (1, 2)
    )
    assert ended.state == "completed", ended.reason
    assert bits(ended.model()) == bits(again.model())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (command("(call $proc_exit (i32.const 3))"), "the program exited with code 3"),
        (command("(nop)"), "its standard output is not an aggregate"),
    ],
)
def test_a_strategy_that_fails_fails_the_round(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "strategy.wasm").write_bytes(content)
    ended = run(program_path("logreg"), tmp_path / "strategy.wasm", strategy={"program": "mine"})
    assert ended.state == "failed"
    assert "aggregation: the strategy" in str(ended.reason)
    assert text in str(ended.reason)


# From a registry ---------------------------------------------------------------------------------------------------


async def test_a_program_by_its_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = program_path("logreg")
    here = await asyncio.to_thread(run, file)
    async with embedded(tmp_path / "artifacts") as registry:
        reference = await push(registry, "logreg:v1", file.read_bytes())
        there = await asyncio.to_thread(run, reference)
        assert bits(there.model()) == bits(here.model())
        assert there.status()["program"].startswith(f"{registry}/logreg@sha256:")
        monkeypatch.setenv(
            "PROXY_REGISTRY_URL", f"http://{registry}"
        )  # as of the fleet, where no registry is named
        again = await asyncio.to_thread(run, program="logreg:v1")
        assert bits(again.model()) == bits(here.model())
        with pytest.raises(PropellerError, match="gone"):
            await asyncio.to_thread(run, program="gone:v1")


def test_a_registry_that_does_not_answer() -> None:
    port = free_port()
    with pytest.raises(PropellerError, match=f"127.0.0.1:{port}"):
        run(f"127.0.0.1:{port}/mlp:v1")


async def test_an_experiment_file_runs_unchanged(tmp_path: Path) -> None:
    async with embedded(tmp_path / "artifacts") as registry:
        program = await push(registry, "logreg:v1", program_path("logreg").read_bytes())
        strategy = await push(registry, "clipped:v1", built(SOURCES / "clipped_momentum.py").read_bytes())
        (tmp_path / "experiment.toml").write_text(f"""
program = "{program}"
rounds = 2
strategy = {{ program = "{strategy}", clip = 1.0 }}

[model]
w = [0.0, 0.0]
b = 0.0

[simulation]
clients = 4
data = "data.csv"
""")
        lines = [f"{one / 20},{one % 3},{int(one > 10)}" for one in range(20)]
        (tmp_path / "data.csv").write_text("\n".join(["x0,x1,y", *lines]))
        file = str(tmp_path / "experiment.toml")
        ended = await asyncio.to_thread(propeller, "simulate", file, "--workers", "1", "--json")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.startswith("{"), "a log line before the JSON"
    refused = await asyncio.to_thread(propeller, "simulate", file)
    assert refused.returncode == 1
    assert registry in refused.stderr
    assert "Traceback" not in refused.stderr
