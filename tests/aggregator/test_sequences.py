"""The aggregator over HTTP: a plan and its documents, in any number of parts, for every strategy; and what is refused."""

import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from propeller.aggregator import aggregation as aggregation_module
from propeller.aggregator.spill import SpillSpace, SpillStore
from propeller.fl.strategies import (
    Contribution,
    PartAggregation,
    ServerState,
    Strategy,
    aggregate,
    create_strategy,
    strategy_names,
)
from propeller.fl.tensors import Tensors, to_safetensors
from support.aggregation import document, headers, read_answer, request_body, send
from support.strategies import SUM

SOURCE = np.random.default_rng(7)
BASE: Tensors = {
    "w": SOURCE.normal(size=(5, 3)).astype(np.float32),
    "b": SOURCE.normal(size=3),
    "h": SOURCE.normal(size=(40, 2)).astype(np.float16),
    "n": np.array(2**60 + 1, np.int64),
}
PARTS = [["w"], ["b", "n"], ["h"]]
COUNT = 10
PARAMS: dict[str, dict[str, Any]] = {
    "fedper": {"personal": ["b"]},
    "fedbn": {"personal": ["b"]},
    "qfedavg": {"lr": 0.1},
    "sum": SUM,
    "bagging": {"free": ["trees"]},
}


def near(base: Tensors, strategy: Strategy) -> Tensors:
    """An update that is not far from the base."""
    found: Tensors = {}
    for name, array in base.items():
        if strategy.is_personal(name):
            continue
        if array.dtype.kind == "f":
            noise = SOURCE.normal(size=array.shape)
            found[name] = (array + 0.1 * noise).astype(array.dtype)
            found |= {f"@{kind}/{name}": noise.astype(np.float32) for kind in strategy.extra_kinds}
        else:
            found[name] = array + SOURCE.integers(0, 5, array.shape)
    return found


def same(found: Tensors, expected: Tensors) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("parts", [None, PARTS], ids=["whole", "in parts"])
@pytest.mark.parametrize("on_disk", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("name", strategy_names())
async def test_every_strategy_gives_what_it_gives_in_memory(
    http: httpx.AsyncClient,
    space: SpillSpace,
    name: str,
    parts: Any,
    on_disk: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two rounds, the second with the state of the first, bit for bit."""
    if on_disk:
        monkeypatch.setattr(
            aggregation_module, "SpillStore", lambda space, **_limits: SpillStore(space, memory_bytes=100)
        )
    params = PARAMS.get(name, {})
    strategy = create_strategy(name, params)
    base, state = BASE, None
    for _ in range(2):
        sent = list(
            zip(
                headers(COUNT),
                [near(base, strategy) for _ in range(COUNT)],
                strict=True,
            )
        )
        answer = await send(
            http,
            request_body(
                {"name": name, **params},
                [base],
                sent,
                state=state.tensors if state and strategy.state_kinds else None,
                values=dict(state.values) if state else None,
                parts=parts,
            ),
        )
        result, model, tensors = await read_answer(answer)
        received = [
            (Contribution(slot, h["proplet_id"], h["num_samples"], h["steps"], h["metrics"]), update)
            for slot, (h, update) in enumerate(sent)
        ]
        expected, expected_state = aggregate(strategy, base, state, received)
        order = [name for part in parts for name in part] if parts else list(base)
        same(model, {name: expected[name] for name in order})
        assert tensors.keys() == expected_state.tensors.keys()
        same(tensors, {name: expected_state.tensors[name] for name in tensors})
        assert result["values"] == dict(expected_state.values)
        assert result["state"] == bool(strategy.state_kinds)
        base, state = expected, ServerState(expected_state.tensors, expected_state.values)
    assert space.used_bytes == 0


async def test_several_bases_and_differences(http: httpx.AsyncClient) -> None:
    """As of asynchronous rounds: each update counts by its difference to the base that it started from."""
    old: Tensors = {"w": np.array([1.0, 2.0])}
    new: Tensors = {"w": np.array([10.0, 20.0])}
    updates = [
        ({"proplet_id": "a", "num_samples": 1, "base": 1, "staleness": 1}, {"w": np.array([3.0, 2.0])}),
        ({"proplet_id": "b", "num_samples": 1}, {"w": np.array([10.0, 24.0])}),
        ({"proplet_id": "c", "num_samples": 2, "kind": "delta"}, {"w": np.array([0.0, 2.0])}),
    ]
    _, model, _ = await read_answer(await send(http, request_body("fedavg", [new, old], updates)))
    np.testing.assert_allclose(model["w"], [10.5, 22.0])


PLAN = {"strategy": "fedavg", "contributions": [{"proplet_id": "p-1", "num_samples": 3}]}
ONE = {"w": np.ones(3)}


def planned(**changed: Any) -> bytes:
    return document({}, plan=json.dumps({**PLAN, **changed}))


def contributed(**changed: Any) -> bytes:
    return planned(contributions=[{**PLAN["contributions"][0], **changed}])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("content", "status", "named"),
    [
        (b"", 400, "No updates provided"),
        (b"\xff" * 40, 422, "the plan: not safetensors"),
        (document(ONE, num_samples="3"), 400, "first document must have no tensors, and 'plan'"),
        (document({}, plan="{"), 400, "plan: Invalid JSON"),
        (planned(what=1), 400, "plan: what: Extra inputs are not permitted"),
        (planned(strategy={}), 400, "plan: strategy"),
        (planned(strategy={"name": "fedavg", "program": "x:v1"}), 400, "plan: strategy.*leave one out"),
        (planned(strategy="fedavgg"), 400, "'fedavgg' is not known .did you mean 'fedavg'"),
        (planned(strategy={"name": "fedavg", "mu": 1}), 400, "strategy.mu: fedavg has no such parameter"),
        (planned(contributions=[]), 400, "No updates provided"),
        (contributed(num_samples=0), 400, r"plan: contributions\.0\.num_samples"),
        (contributed(steps=0.5), 400, r"plan: contributions\.0\.steps"),
        (contributed(metrics={"loss": "low"}), 400, r"plan: contributions\.0\.metrics\.loss"),
        (contributed(base=1), 400, r"contributions\.0\.base: is 1, there are 1 bases"),
        (contributed(device="x"), 400, r"contributions\.0\.device"),
        (planned(), 400, "ends after 0 of 2 documents: base model 0 is missing"),
        (planned() + document(ONE), 400, "ends after 1 of 2 documents: update 1 of 'p-1' is missing"),
        (planned() + document(ONE)[:-4], 422, "base model 0: the stream ends inside"),
        (planned() + 3 * document(ONE), 400, "2 documents are announced .*, and more came"),
        (
            planned() + document(ONE) + document({"v": np.ones(3)}),
            422,
            "update 1 of 'p-1': .*'w'.* is missing",
        ),
        (planned() + document(ONE) + document({"w": np.ones(4)}), 422, r"update 1 of 'p-1': .*'w'.*\[4\]"),
        (
            planned() + document(ONE) + document({**ONE, "v": np.ones(4)}),
            422,
            "update 1 of 'p-1': .*'v'.* is not in",
        ),
        (
            planned(parts=2) + 4 * document(ONE),
            400,
            r"base model 0 \(part 2 of 2\): 'w' was in an earlier part",
        ),
        (
            planned(bases=2) + document(ONE) + document({"w": np.ones(2)}),
            422,
            "base model 1: .*'w'.*base model 0 has",
        ),
        (planned() + document({"w": np.ones(200_000)}), 413, "limit"),
    ],
)
async def test_what_does_not_fit_is_refused_by_name(
    http: httpx.AsyncClient, content: bytes, status: int, named: str
) -> None:
    answer = await send(http, content)
    assert answer.status_code == status, answer.text
    assert re.search(named, answer.json()["error"]), answer.text


@pytest.mark.parametrize("strategy", ["fedavg"])
async def test_numbers_that_are_not_finite_are_refused_by_name(
    http: httpx.AsyncClient, strategy: str
) -> None:
    broken = bytearray(to_safetensors({"w": np.ones(3)}))
    broken[-8:] = np.array(np.nan).tobytes()
    answer = await send(http, planned(strategy=strategy) + document(ONE) + bytes(broken))
    assert answer.status_code == 422, answer.text
    assert re.search("p-1.*'w'.*finite", answer.json()["error"]), answer.text


@pytest.mark.parametrize("name", ["norm_clipping", "geometric_median", "krum", "multi_krum", "bulyan"])
async def test_one_device_beyond_any_norm_ends_no_round(http: httpx.AsyncClient, name: str) -> None:
    sent = [(header, {"w": np.array([1.0 + n / 8])}) for n, header in enumerate(headers(7))]
    sent[3] = (sent[3][0], {"w": np.array([1e200])})
    answer = await send(http, request_body(name, [{"w": np.zeros(1)}], sent))
    result, model, _ = await read_answer(answer)
    assert 0 < model["w"][0] < 2
    norms = result["measured"]["norms"]
    assert norms[3] == np.finfo(np.float64).max
    assert norms[0] == 1


@pytest.mark.parametrize("name", ["krum", "fedmedian"])
async def test_many_small_updates_are_not_dealt_with_in_the_event_loop(
    http: httpx.AsyncClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are answered meanwhile: the distances of a thousand updates take seconds."""
    threads: set[threading.Thread] = set()
    finish = PartAggregation.finish

    def seen(part: PartAggregation) -> tuple[Tensors, Tensors]:
        threads.add(threading.current_thread())
        return finish(part)

    monkeypatch.setattr(PartAggregation, "finish", seen)
    base: Tensors = {"w": np.zeros(100)}
    sent = [(header, {"w": np.full(100, 1.0)}) for header in headers(100)]
    await read_answer(await send(http, request_body(name, [base], sent)))
    assert threads
    assert threading.current_thread() not in threads


async def test_no_room_on_disk(
    http: httpx.AsyncClient, space: SpillSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        aggregation_module, "SpillStore", lambda space, **_limits: SpillStore(space, memory_bytes=10)
    )
    space.take(199_999_990, 0)
    answer = await send(http, planned() + 2 * document(ONE))
    assert answer.status_code == 503, answer.text
    assert "AGGREGATOR_SPILL_BYTES" in answer.json()["error"]
    space.give_back(199_999_990)
    assert space.used_bytes == 0
    for path in (tmp_path / "spill").iterdir():
        pytest.fail(f"{path} was left")
