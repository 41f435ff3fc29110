"""Updates that the experiment wants compressed, from the program's output to the coordinator: real sandbox, scripted services."""

import json
from typing import Any

import numpy as np
import pytest

from propeller.coordinator.content_coding import coding_of_message
from propeller.coordinator.updates import MESSAGE
from propeller.coordinator.updates import decode_update as decode_received
from propeller.fl.compression import decode_update, read_description
from propeller.fl.tensors import Tensors, from_safetensors, specs_of, to_safetensors
from support.proplet import World

BASE: Tensors = {
    "w": np.linspace(-1, 1, 1000, dtype=np.float32),
    "b": np.array(0.5, np.float32),
    "seen": np.array([7]),
}
TRAINED: Tensors = {
    "w": BASE["w"] + np.random.default_rng(0).normal(size=1000).astype(np.float32),
    "b": np.array(0.75, np.float32),
    "seen": np.array([9]),
}


def task(me: str, number: int, compression: Any, **env: str) -> dict[str, Any]:
    """A task of an experiment's round that wants compression."""
    round_id = f"e-1.{number}"
    reply = {
        "round_id": round_id,
        "proplet_id": me,
        "num_samples": 64,
        "metrics": {"loss": 0.5},
        "update": {name: array.tolist() for name, array in TRAINED.items()},
    }
    wanted = {
        "ROUND_ID": round_id,
        "MODEL_URI": "fl/models/global_model_v0",
        "REPLY": json.dumps(reply),
        "EXPERIMENT_ID": "e-1",
        "FL_ROUND": str(number),
        "FL_SEED": str(number),
        "FL_UPDATE": json.dumps({"compression": compression}),
    }
    return {"name": f"fl-round-{round_id}-{me}", "env": {**wanted, **env}}


async def run(world: World, start: dict[str, Any]) -> str | None:
    """The error of a task."""
    me = start["name"].partition("-proplet-")[2]
    result = await world.peers.result_of(await world.peers.start(f"proplet-{me}", **start), 30)
    error: str | None = result["error"]
    return error


def arrived(body: bytes) -> tuple[Tensors, dict[str, str]]:
    """What the coordinator reads of an update."""
    tensors, metadata = from_safetensors(body)
    return decode_update(tensors, read_description(metadata["compression"]), specs_of(BASE)), metadata


async def test_an_update_is_compressed_as_the_experiment_asks(world: World) -> None:
    world.services.tensors[0] = to_safetensors(BASE)
    me = await world.join()
    assert await run(world, task(me, 1, {"values": "int8", "zstd": True, "error_feedback": False})) is None
    assert (world.services.update_types, world.services.update_codings) == (
        ["application/vnd.safetensors"],
        ["zstd"],
    )
    found, metadata = arrived(world.services.updates[0])
    assert (metadata["kind"], metadata["num_samples"]) == ("delta", "64")
    assert json.loads(metadata["metrics"]) == {"loss": 0.5}
    description = read_description(metadata["compression"])
    assert description.error is not None
    assert 0 < description.error < 0.02
    assert description.uncompressed == pytest.approx(len(task(me, 1, {})["env"]["REPLY"]), rel=0.1)
    assert found["seen"].tolist() == [2]
    assert np.allclose(found["w"], TRAINED["w"] - BASE["w"], atol=0.05)
    assert len(world.services.updates[0]) < 2500
    assert list((world.folder / "states").iterdir()) == []
    # The same seed gives the same bytes: the round may be done again.
    assert await run(world, task(me, 1, {"values": "int8", "zstd": False})) is None
    assert world.services.updates[1] == world.services.updates[0]
    assert world.services.update_codings[1] is None


async def test_zstd_alone_changes_nothing(world: World) -> None:
    me = await world.join()
    assert await run(world, task(me, 1, {"zstd": True})) is None
    (received,) = world.services.updates
    assert (world.services.update_types, world.services.update_codings) == (["application/json"], ["zstd"])
    assert received["update"]["seen"] == [9]


async def test_what_was_not_sent_goes_into_the_next_update(world: World) -> None:
    """It is kept when the coordinator has the update, and is as it was when the task has failed."""
    world.services.tensors[0] = to_safetensors(BASE)
    me = await world.join()
    wanted = {"top_k": 0.1, "values": "int8", "error_feedback": True, "zstd": True}
    change = (TRAINED["w"] - BASE["w"]).astype(np.float64)
    assert await run(world, task(me, 1, wanted)) is None
    first, _ = arrived(world.services.updates[0])
    assert np.count_nonzero(first["w"]) == 100
    world.services.answers.append(409)
    refused = await run(world, task(me, 2, wanted))
    assert refused is not None
    assert refused.startswith("the update was refused")
    assert (await run(world, task(me, 2, wanted, FAIL="1"))) is not None
    assert await run(world, task(me, 2, wanted)) is None
    second, _ = arrived(world.services.updates[1])
    assert np.count_nonzero(second["w"]) == 100
    # Whatever the second update sends was missing in the first.
    both = first["w"].astype(np.float64) + second["w"]
    assert np.linalg.norm(2 * change - both) < np.linalg.norm(2 * change - 2 * first["w"])
    # The round is done again from where it began: the same update, and the next one follows from it all the same.
    assert await run(world, task(me, 2, wanted)) is None
    assert world.services.updates[2] == world.services.updates[1]
    states = [json.loads(file.read_text()) for file in (world.folder / "states").glob("*/about.json")]
    assert [state["experiment_id"] for state in states] == ["e-1"]
    assert list((world.folder / "states").glob(".*")) == []


async def test_what_cannot_be_compressed_fails_the_task(world: World) -> None:
    world.services.tensors[0] = to_safetensors({**BASE, "w": BASE["w"][:-1]})
    me = await world.join()
    assert await run(world, task(me, 1, {"values": "int8"})) == (
        "the update cannot be compressed (update.compression): tensor 'w': has shape [1000], the base model has [999]"
    )
    assert await run(world, task(me, 1, {"values": "int3"})) == (
        "FL_UPDATE: compression: values: Input should be 'float32', 'float16', 'bfloat16', 'int8' or 'int4'"
    )
    assert await run(world, task(me, 1, {"values": "int8"}, FL_SEED="x")) == (
        "FL_SEED is 'x'; it is a whole number of 0 or more"
    )
    assert world.services.updates == []


async def test_a_model_that_is_there_as_json_alone_lets_updates_go_as_they_are(world: World) -> None:
    del world.services.tensors[0]
    me = await world.join()
    assert await run(world, task(me, 1, {"values": "int8", "zstd": True})) is None
    assert (world.services.update_types, world.services.update_codings) == (["application/json"], [None])


async def test_what_error_feedback_keeps_is_bounded(world: World) -> None:
    world.services.tensors[0] = to_safetensors({"w": np.zeros(200_000, np.float32)})
    me = await world.join(state_bytes=1024 * 1024, task_state_bytes=0)
    start = task(me, 1, {"top_k": 0.1})
    reply = json.loads(start["env"]["REPLY"]) | {"update": {"w": [0.25] * 200_000}}
    start["env"]["REPLY"] = json.dumps(reply)
    error = await run(world, start)
    assert error is not None
    assert error.startswith("update.compression.error_feedback: two times 800")
    assert error.endswith(
        "over the limit of 1048576 bytes (PROPLET_STATE_BYTES): raise it, or leave error_feedback out"
    )


async def test_a_compressed_update_goes_over_mqtt_too(world: World) -> None:
    world.services.tensors[0] = to_safetensors(BASE)
    me = await world.join(coordinator_url="http://127.0.0.1:1")
    sent: list[bytes] = []

    async def take(_topic: str, payload: bytes) -> None:
        sent.append(payload)

    await world.peers.session.unsubscribe(f"{world.peers.channel.prefix}/fl/#")
    await world.peers.session.subscribe(world.peers.channel.update("e-1.1", me), take)
    wanted = {"top_k": 0.1, "values": "int4"}
    assert await run(world, task(me, 1, wanted)) is None
    received = await decode_received(MESSAGE, sent[0], coding=coding_of_message(sent[0]))
    assert received.transfer is not None
    assert (received.transfer.bytes, received.transfer.compression) == (len(sent[0]), "top_k + int4 + zstd")


async def test_a_large_update_goes_from_file_to_file(world: World) -> None:
    """What is still large is sent from a file; the program sends its model back."""
    model = {"w": np.random.default_rng(0).normal(size=2_500_000).astype(np.float32)}
    world.services.tensors[0] = to_safetensors(model)
    me = await world.join()
    for number, wanted in enumerate(({"zstd": True}, {"values": "float16", "zstd": False}), 1):
        assert await run(world, task(me, number, wanted, COPY="1")) is None
    same, halves = world.services.updates
    assert world.services.update_codings == ["zstd", None]
    tensors, metadata = from_safetensors(same)
    assert np.array_equal(tensors["w"], model["w"])
    assert (metadata["round_id"], metadata["num_samples"]) == ("e-1.1", "64")
    tensors, metadata = from_safetensors(halves)
    assert (tensors["@values/0"].nbytes, metadata["round_id"]) == (5_000_000, "e-1.2")
    assert not tensors["@values/0"].any()
    assert read_description(metadata["compression"]).error == 0
    assert list((world.folder / "large").glob("task-*")) == []
