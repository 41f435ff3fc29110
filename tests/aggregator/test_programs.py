"""Strategies that are programs: from an OCI registry, in the sandbox, over real Wasm."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.aggregator.program_aggregation import ProgramAggregation
from propeller.aggregator.spill import SpillSpace
from propeller.fl.tensors import Tensors, to_safetensors
from propeller.oci.client import RegistryClient
from propeller.oci.reference import Reference
from propeller.oci.signers import Signers
from propeller.oci.signing import SigningKey
from propeller.program_host.programs import PinnedProgram
from propeller.protocol.aggregation import AggregationPlan, PlannedContribution
from propeller.wasm.task_folders import TaskFolders
from support.aggregation import read_answer, request_body, send
from support.guests import command
from support.python_programs import SOURCES, built
from support.registries import embedded

pytestmark = pytest.mark.timeout(180)

BASE: Tensors = {
    "w": np.array([1.0, 2.0, 3.0], np.float32),
    "n": np.array([5, 2**60 + 1], np.int64),
    "b": np.array(0.5),
}
HEADERS = [
    {"proplet_id": "a", "num_samples": 1},
    {"proplet_id": "b", "num_samples": 3, "slot": 4, "steps": 7, "metrics": {"loss": 0.5}},
]


@pytest.fixture
async def oci_registry(tmp_path: Path) -> AsyncIterator[str]:
    """A registry of the house."""
    async with embedded(tmp_path / "artifacts") as host:
        yield host


async def push(registry: str, name: str, wasm: bytes) -> str:
    """A program in the registry; the reference without the registry."""
    reference = f"{registry}/{name}"
    async with RegistryClient() as client:
        await client.push(Reference.parse(reference), wasm)
    return name


def moved(by: float) -> Tensors:
    return {"w": BASE["w"] + np.float32(by), "n": BASE["n"] + 1, "b": BASE["b"] - by}


def clipped(base: Tensors, updates: list[tuple[int, Tensors]], clip: float) -> Tensors:
    """The mean of clipped differences, by NumPy."""
    total = sum(samples for samples, _ in updates)
    mean = {name: np.zeros(array.shape) for name, array in base.items()}
    for samples, update in updates:
        delta = {name: update[name].astype(np.float64) - base[name].astype(np.float64) for name in base}
        norm = float(np.sqrt(sum(np.square(each).sum() for each in delta.values())))
        for name, each in delta.items():
            mean[name] += samples / total * min(1.0, clip / norm) * each
    return mean


@pytest.mark.parametrize("parts", [None, [["b", "n"], ["w"]]], ids=["whole", "in parts"])
async def test_the_example_over_two_rounds(
    http: httpx.AsyncClient, oci_registry: str, parts: Any, tmp_path: Path
) -> None:
    program = await push(oci_registry, "clipped:v1", built(SOURCES / "clipped_momentum.py").read_bytes())
    strategy = {"program": program, "clip": 2.0, "momentum": 0.5}
    updates = [(1, moved(0.1)), (3, moved(4.0))]
    first = clipped(BASE, updates, 2.0)
    base, state = BASE, None
    values: dict[str, Any] = {}
    velocity = {name: np.zeros(array.shape) for name, array in BASE.items()}
    for number in (1, 2):
        sent = list(zip(HEADERS, [update for _, update in updates], strict=True))
        body = request_body(strategy, [base], sent, state=state, values=values, parts=parts, round_id="r-1")
        result, model, state = await read_answer(await send(http, body))
        mean = first if number == 1 else clipped(base, updates, 2.0)
        velocity = {name: 0.5 * velocity[name] + mean[name] for name in base}
        for name, array in base.items():
            assert model[name].dtype == array.dtype
            assert model[name].shape == array.shape
            if array.dtype.kind == "f":
                np.testing.assert_allclose(model[name], array + velocity[name], rtol=1e-6)
        assert set(state) == set(BASE)
        assert re.fullmatch(r".*/clipped@sha256:[0-9a-f]{64}", result["program"])
        strategy["program"] = result["program"]  # as an experiment goes on: pinned
        values = result["values"]
        assert values["clipped"] == number  # one update of each round was too far away
        base = model
    assert not list((tmp_path / "cache" / "inputs").glob("*/*"))


def test_a_request_that_is_given_up_while_a_document_is_written_leaves_nothing(tmp_path: Path) -> None:
    """As when the aggregator is stopped: the thread that writes goes on for a moment."""

    class Space(SpillSpace):
        def take(self, size: int, already: int) -> None:
            aggregation.close()
            super().take(size, already)

    folders, space = TaskFolders(tmp_path / "inputs"), Space(tmp_path, 10**6)
    folders.open()
    plan = AggregationPlan(
        strategy={"program": "mine:v1"}, contributions=[PlannedContribution(proplet_id="a", num_samples=1)]
    )
    host: Any = SimpleNamespace(inputs=folders)
    aggregation = ProgramAggregation(plan, PinnedProgram("mine@sha256:1", "1"), host, space)
    aggregation.add(to_safetensors(BASE))
    assert list(folders.own.iterdir()) == []
    assert space.used_bytes == 0
    folders.close()


async def test_a_program_is_pinned_when_it_is_asked_for(http: httpx.AsyncClient, oci_registry: str) -> None:
    name = await push(oci_registry, "mine:v1", command("(nop)"))
    answer = await http.post("/programs", json={"program": name})
    assert answer.status_code == 200, answer.text
    pinned = answer.json()["program"]
    await push(oci_registry, "mine:v1", command("(call $proc_exit (i32.const 3))"))
    assert (await http.post("/programs", json={"program": pinned})).json()["program"] == pinned
    assert (await http.post("/programs", json={"program": name})).json()["program"] != pinned


REPLY = """(drop (call $write (i32.const 1) (i32.const 64) (i32.const {size})))"""


def saying(text: str) -> bytes:
    """A program that writes a text, and nothing else."""
    return command(REPLY.format(size=len(text)), data=text.replace('"', '\\"'))


@pytest.mark.parametrize(
    ("wasm", "status", "named"),
    [
        (
            command("(call $proc_exit (i32.const 3))"),
            422,
            "mine@sha256:.* failed: the program exited with code 3",
        ),
        (command("(unreachable)"), 422, "failed: .*unreachable"),
        (saying("hello"), 422, "its standard output is not an aggregate: .*it begins 'hello'"),
        (saying("{}"), 422, "it left no model"),
        (saying('{"state": 3, "model": {}}'), 422, "state: must be an object"),
        (saying('{"model": {"w": [1, 2, 3], "n": [1, 2]}}'), 422, "its model: .*'b'.* is missing"),
        (saying('{"model": {"w": [1, 2], "n": [1, 2], "b": 0}}'), 422, r"its model: .*'w'.*\[2\]"),
        (saying('{"model": {"w": [1, 2, 3], "n": [1, 1e30], "b": 0}}'), 422, "'n'.*int64"),
        (saying('{"model": {"w": [1, 2, 1e300], "n": [1, 2], "b": 0}}'), 422, "'w'.*finite in float32"),
    ],
)
async def test_what_it_leaves_is_checked(
    http: httpx.AsyncClient, oci_registry: str, wasm: bytes, status: int, named: str
) -> None:
    name = await push(oci_registry, "mine:v1", wasm)
    sent = [(header, moved(1.0)) for header in HEADERS]
    answer = await send(http, request_body({"program": name}, [BASE], sent))
    assert answer.status_code == status, answer.text
    assert re.search(named, answer.json()["error"]), answer.text


async def test_a_model_of_nested_lists(http: httpx.AsyncClient, oci_registry: str) -> None:
    """As a program in another language would write a small one: halves go to the even integer."""
    name = await push(
        oci_registry,
        "mine:v1",
        saying('{"model": {"w": [1, 2, 3], "n": [2.5, 7], "b": 1}, "state": {"k": 1}}'),
    )
    sent = [(header, moved(1.0)) for header in HEADERS]
    result, model, _ = await read_answer(await send(http, request_body({"program": name}, [BASE], sent)))
    assert model["n"].tolist() == [2, 7]
    assert model["n"].dtype == np.int64
    assert result["values"] == {"k": 1}


async def test_an_error_in_it_is_told_with_its_line(http: httpx.AsyncClient, oci_registry: str) -> None:
    name = await push(oci_registry, "clipped:v1", built(SOURCES / "clipped_momentum.py").read_bytes())
    sent = [(header, moved(1.0)) for header in HEADERS]
    answer = await send(http, request_body({"program": name, "clip": 0}, [BASE], sent))
    assert answer.status_code == 422
    assert re.search(
        r"clipped_momentum\.py:\d+: ValueError: clip is 0; it must be greater than 0", answer.json()["error"]
    )


async def test_a_program_that_is_not_there(http: httpx.AsyncClient, oci_registry: str) -> None:
    sent = [(header, moved(1.0)) for header in HEADERS]
    answer = await send(http, request_body({"program": "nobody/has:this"}, [BASE], sent))
    assert answer.status_code == 404, answer.text
    assert "nobody/has" in answer.json()["error"]
    assert (await http.post("/programs", json={"program": "No Reference"})).status_code == 400


class TestSigned:
    """Where the aggregator asks for signatures."""

    KEY, OTHER = SigningKey.make(), SigningKey.make()

    @pytest.fixture
    def signers(self) -> Signers:
        return Signers("aggregator", (self.KEY.public("acme"),))

    async def test_a_program_that_nobody_has_signed_who_is_believed_is_refused(
        self, http: httpx.AsyncClient, oci_registry: str
    ) -> None:
        name = await push(oci_registry, "mine:v1", built(SOURCES / "clipped_momentum.py").read_bytes())
        reference = Reference.parse(f"{oci_registry}/{name}")
        sent = [(header, moved(1.0)) for header in HEADERS]
        body = request_body({"program": name, "clip": 2.0}, [BASE], sent)
        async with RegistryClient() as client:
            digest = (await client.resolve(reference)).digest
            for by, said in (
                (None, "it has no signature"),
                (self.OTHER, "none of its 1 signatures is by one of these keys"),
            ):
                if by is not None:
                    await client.add_signature(reference, digest, by.sign("mine", digest))
                for answer in (await http.post("/programs", json={"program": name}), await send(http, body)):
                    assert answer.status_code == 422, answer.text
                    assert f"must be signed: {said} (believed: acme)" in answer.text
                    assert "the aggregator's AGGREGATOR_SIGNERS names who is believed" in answer.text
            await client.add_signature(reference, digest, self.KEY.sign("mine", digest))
        assert (await http.post("/programs", json={"program": name})).status_code == 200
        assert (await send(http, body)).status_code == 200


async def test_a_registry_that_is_not_named(http: httpx.AsyncClient) -> None:
    answer = await http.post("/programs", json={"program": "127.0.0.1:2/x:v1"})
    assert answer.status_code == 403
    assert "is not a registry that the aggregator fetches from" in answer.text
    assert "AGGREGATOR_ALLOWED_REGISTRIES" in answer.text
    assert "those are 127.0.0.1:1," in answer.text


async def test_a_registry_that_is_away(http: httpx.AsyncClient) -> None:
    answer = await http.post("/programs", json={"program": "127.0.0.1:1/mine:v1"})
    assert answer.status_code == 503, answer.text
