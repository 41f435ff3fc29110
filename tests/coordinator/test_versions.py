"""From updates to a version with the real model registry and aggregator: strategies with server state, lineage, verification."""

import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from coordinator.test_real_peers import serving_aggregator, serving_registry
from propeller.coordinator import aggregation, aggregation_requests, aggregator_client, documents
from propeller.coordinator.aggregation import Aggregation, AggregationError
from propeller.coordinator.aggregation_requests import AggregationRequest, RoundContribution
from propeller.coordinator.aggregator_client import AggregatorClient
from propeller.coordinator.base_models import BaseModels
from propeller.coordinator.documents import AssembledDocument, ModelCut
from propeller.coordinator.kept_updates import KeptUpdates
from propeller.coordinator.registry_client import ModelRegistryClient
from propeller.coordinator.store import RoundStore
from propeller.coordinator.update_checks import check_contribution, update_specs
from propeller.coordinator.updates import UpdateDocument
from propeller.coordinator.verification import Verification
from propeller.digests import digest_of
from propeller.errors import ConflictError, InvalidError
from propeller.fl.strategies import PART_BYTES, Contribution, aggregate, create_strategy
from propeller.fl.tensors import SAFETENSORS, Tensors, from_safetensors, specs_of, to_safetensors
from propeller.process.http import ServiceClient
from propeller.store.blobs import BlobStore
from propeller.store.database import Database
from support.coordinator import (
    PARTICIPANTS,
    configure,
    coordinating,
    ended,
    environment,
    kept_updates,
    update,
)
from support.databases import database_at
from support.net import eventually, free_port

SOURCE = np.random.default_rng(3)
BASE: Tensors = {
    "w": SOURCE.normal(size=(6, 2)).astype(np.float32),
    "n": np.array([1, 2**60 + 1]),
    "b": SOURCE.normal(size=2),
}


class Peers:
    """What makes versions, with its database and blobs in a folder; each ``fresh`` one has forgotten everything that was in memory."""

    def __init__(self, folder: Path, registry: str, aggregator: str) -> None:
        self.folder = folder
        self.urls = {"model registry": registry, "aggregator": aggregator}
        self.database = Database(database_at(folder / "d.db"))
        self.updates = KeptUpdates(BlobStore(folder / "blobs"), self.database)

    async def store(self, slot: int, update: Tensors, **more: Any) -> RoundContribution:
        content = to_safetensors(update)
        digest = digest_of(content).removeprefix("sha256:")
        write = await self.updates.put(UpdateDocument(digest, content, len(content)))
        if write is not None:
            async with self.database.transaction() as connection:
                await write(connection)
        return RoundContribution(f"p-{slot}", slot, digest, 10 + slot, **more)

    @contextlib.asynccontextmanager
    async def fresh(
        self, part_bytes: int = PART_BYTES
    ) -> AsyncIterator[tuple[Aggregation, ModelRegistryClient]]:
        async with contextlib.AsyncExitStack() as stack:
            registry, aggregator = [
                await stack.enter_async_context(ServiceClient(name, url, retry_delays=()))
                for name, url in self.urls.items()
            ]
            known = ModelRegistryClient(registry)
            made = Aggregation(
                self.updates,
                known,
                AggregatorClient(aggregator),
                BaseModels(known, self.folder),
                part_bytes=part_bytes,
                retry_delays=(),
            )
            yield made, known


@pytest.fixture
async def models(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with serving_registry(tmp_path / "models", free_port()) as http:
        yield http


@pytest.fixture
async def peers(models: httpx.AsyncClient, tmp_path: Path) -> AsyncIterator[Peers]:
    port = free_port()
    async with serving_aggregator(port):
        made = Peers(tmp_path, str(models.base_url).rstrip("/"), f"http://127.0.0.1:{port}")
        await RoundStore(made.database).create()
        yield made
        await made.database.close()


async def upload(models: httpx.AsyncClient, model: Tensors) -> int:
    stored = await models.post(
        "/models", content=to_safetensors(model), headers={"content-type": SAFETENSORS}
    )
    version: int = stored.json()["version"]
    return version


def near(base: Tensors) -> Tensors:
    return {
        name: (array + SOURCE.normal(size=array.shape)).astype(array.dtype)
        if array.dtype.kind == "f"
        else array + 3
        for name, array in base.items()
    }


async def no_round(_round_id: str) -> None:
    """As a coordinator whose database is another one."""


async def read(models: httpx.AsyncClient, version: int, what: str = "") -> Tensors:
    answer = await models.get(f"/models/{version}{what}", headers={"accept": SAFETENSORS})
    assert answer.status_code == 200, answer.text
    return from_safetensors(answer.content)[0]


@pytest.mark.parametrize("part_bytes", [PART_BYTES, 48, 16], ids=["whole", "in parts", "in pieces"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "restarted"])
@pytest.mark.parametrize("small", [True, False], ids=["in memory", "on disk"])
async def test_rounds_of_a_strategy_with_state(
    peers: Peers,
    models: httpx.AsyncClient,
    cached: bool,
    part_bytes: int,
    small: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three rounds give what the strategy gives in memory, bit for bit, whether or not the coordinator was started again."""
    if not small:
        monkeypatch.setattr(
            aggregator_client,
            "AssembledDocument",
            lambda folder, cut: AssembledDocument(folder, memory_bytes=16, cut=cut),
        )
    if part_bytes == 16:
        monkeypatch.setattr(documents, "PIECE_NUMBERS", 1)
    strategy = create_strategy("fedadam", {"server_lr": 0.1})
    base, state, version, state_version = BASE, None, await upload(models, BASE), None
    async with contextlib.AsyncExitStack() as stack:
        aggregation, registry = await stack.enter_async_context(peers.fresh(part_bytes))
        for number in (1, 2, 3):
            if not cached:
                aggregation, registry = await stack.enter_async_context(peers.fresh(part_bytes))
            updates = [near(base) for _ in range(3)]
            contributions = [await peers.store(slot, each) for slot, each in enumerate(updates)]
            request = AggregationRequest(
                f"key-{number}",
                f"e.{number}",
                version,
                contributions[::-1],  # as they came; they are aggregated by slots
                {"name": "fedadam", "server_lr": 0.1},
                state_version,
                {"experiment": "e", "number": number},
            )
            new = await aggregation.make_version(request)
            assert (await aggregation.make_version(request)).version == new.version
            received = [
                (Contribution(each.slot, each.proplet_id, each.num_samples), update)
                for each, update in zip(contributions, updates, strict=True)
            ]
            base, state = aggregate(strategy, base, state, received)
            for found, expected in (
                (await read(models, new.version), base),
                (await read(models, new.version, "/state"), state.tensors),
            ):
                assert found.keys() == expected.keys()
                for name, array in expected.items():
                    assert found[name].dtype == array.dtype
                    np.testing.assert_array_equal(found[name], array)
            lineage = (await models.get(f"/models/{new.version}/info")).json()["lineage"]
            assert lineage["experiment"] == "e"
            assert (lineage["round"], lineage["number"], lineage["parent"]) == (
                f"e.{number}",
                number,
                version,
            )
            assert lineage["strategy"] == {"name": "fedadam", "params": {"server_lr": 0.1}}
            assert (lineage["participants"], lineage["num_samples"]) == (3, 33)
            assert [each["proplet_id"] for each in lineage["updates"]] == ["p-0", "p-1", "p-2"]
            version = state_version = new.version
        result = await Verification(registry, peers.updates, aggregation, no_round).verify(version)
        assert result.to_json() == {
            "version": version,
            "verified": True,
            "digest": result.digest,
            "recomputed": result.digest,
            "updates": 3,
            "on_record": False,
        }


@pytest.mark.parametrize(
    ("strategy", "params"),
    [("fedavg", {}), ("fedmedian", {}), ("krum", {"byzantine": 1}), ("scaffold", {"devices": 5})],
)
async def test_pieces_of_tensors_give_what_whole_ones_do(
    peers: Peers, models: httpx.AsyncClient, strategy: str, params: dict[str, Any]
) -> None:
    """Bit for bit, of weights and differences, with what an update has beside the model."""
    base: Tensors = {
        "b": SOURCE.normal(size=3),
        "layers/w": SOURCE.normal(size=(300, 150)).astype(np.float32),
        "w": np.arange(20_000, dtype=np.int64) + 2**60,
        "one": np.array(1.5),
    }
    made = create_strategy(strategy, params)
    version, contributions, received = await upload(models, base), [], []
    for slot in range(5):
        extra = {
            name: SOURCE.normal(size=shape)
            for name, shape in made.update_shapes(base).items()
            if name not in base
        }
        fields: dict[str, Any] = {"steps": 3, "metrics": {"loss": 0.5}}
        contributions.append(await peers.store(slot, {**near(base), **extra}, **fields))
        content = b"".join([piece async for piece in peers.updates.stream(contributions[-1].digest)])
        update = from_safetensors(content)[0]
        received.append((Contribution(slot, f"p-{slot}", 10 + slot, **fields), update))
    expected, _state = aggregate(made, base, None, received)
    cut = ModelCut(specs_of(base), 100_000)
    assert cut.tensors == {"layers/w": (300, 150), "w": (20_000,)}
    async with peers.fresh(100_000) as (aggregation, _registry):
        request = AggregationRequest("k", "r", version, contributions, {"name": strategy, **params})
        found = await read(models, (await aggregation.make_version(request)).version)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape


async def test_values_alone_are_a_state_too(peers: Peers, models: httpx.AsyncClient) -> None:
    """The proximal term of FedProx may adapt: one number, and no tensors."""
    version = await upload(models, BASE)
    async with peers.fresh() as (aggregation, registry):
        contributions = [await peers.store(0, near(BASE), metrics={"loss": 0.5})]
        strategy = {"name": "fedprox", "mu": 0.1, "adaptive": True}
        request = AggregationRequest("key", "r", version, contributions, strategy)
        new = await aggregation.make_version(request)
        kept = await registry.state(new.version)
        assert kept is not None
    async with peers.fresh() as (aggregation, registry):
        assert await registry.state(new.version)
        again = AggregationRequest("key2", "r2", new.version, contributions, strategy, new.version)
        await aggregation.make_version(again)


@pytest.mark.parametrize("part_bytes", [PART_BYTES, 16], ids=["whole", "in parts"])
async def test_updates_of_older_versions(peers: Peers, models: httpx.AsyncClient, part_bytes: int) -> None:
    older: Tensors = {"w": np.array([1.0, 2.0]), "v": np.ones(2)}
    newer: Tensors = {"w": np.array([10.0, 20.0]), "v": np.ones(2)}
    old, new = await upload(models, older), await upload(models, newer)
    async with peers.fresh(part_bytes) as (aggregation, registry):
        contributions = [
            await peers.store(0, {"w": np.array([3.0, 2.0]), "v": np.ones(2)}, base_version=old),
            await peers.store(1, {"w": np.array([0.0, 4.0]), "v": np.zeros(2)}, kind="delta"),
        ]
        made = await aggregation.make_version(AggregationRequest("k", "r", new, contributions))
        np.testing.assert_allclose((await read(models, made.version))["w"], [10 + 20 / 21, 20 + 44 / 21])
        assert (
            await Verification(registry, peers.updates, aggregation, no_round).verify(made.version)
        ).verified


@pytest.mark.parametrize("is_small", [True, False], ids=["in memory", "on disk"])
async def test_a_program_that_gives_another_model_when_it_is_tried_again(
    peers: Peers, models: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    """Under the same key: the version of the first try counts, and has its own state or none."""
    monkeypatch.setattr(aggregation, "is_program", lambda _strategy: True)
    if not is_small:
        monkeypatch.setattr(
            aggregator_client,
            "AssembledDocument",
            lambda folder, **given: AssembledDocument(folder, memory_bytes=16, **given),
        )
    version = await upload(models, BASE)
    first, second, third = [[await peers.store(0, near(BASE))] for _ in range(3)]

    async def make(contributions: list[RoundContribution]) -> tuple[int, Tensors]:
        async with peers.fresh() as (making, registry):
            request = AggregationRequest("key", "r", version, contributions, "fedadam")
            made = (await making.make_version(request)).version
            # What the coordinator keeps in memory is what the registry has.
            assert from_safetensors(await registry.document(made))[0].keys() == BASE.keys()
            np.testing.assert_array_equal(
                from_safetensors(await registry.document(made))[0]["w"], (await read(models, made))["w"]
            )
            return made, await read(models, made, "/state")

    with monkeypatch.context() as patched:

        async def lost(*_given: Any) -> None:
            raise InvalidError("the connection was lost")

        patched.setattr(ModelRegistryClient, "put_state", lost)
        with pytest.raises(AggregationError):
            await make(first)
    made, state = await make(second)
    assert made == version + 2  # the one without a state is of no use
    again, kept = await make(third)
    assert again == made
    np.testing.assert_array_equal(kept["m/w"], state["m/w"])


async def test_what_cannot_be_verified(peers: Peers, models: httpx.AsyncClient) -> None:
    version = await upload(models, BASE)
    async with peers.fresh() as (aggregation, registry):
        verification = Verification(registry, peers.updates, aggregation, no_round)
        with pytest.raises(ConflictError, match=f"version {version} .* has no lineage, as it was uploaded"):
            await verification.verify(version)
        contributions = [await peers.store(slot, near(BASE)) for slot in range(2)]
        made = await aggregation.make_version(AggregationRequest("k", "r", version, contributions))
        await peers.updates.remove([contributions[1].digest])
        with pytest.raises(ConflictError, match=r"1 of its 2 updates were removed.*COORDINATOR_KEEP_UPDATES"):
            await verification.verify(made.version)
        lineage = {"round": "r", "parent": version, "strategy": {"name": "fedavg"}}
        other = await models.post("/models", json={"model": {"w": [1.0]}, "lineage": lineage})
        with pytest.raises(ConflictError, match="its lineage lacks updates"):
            await verification.verify(other.json()["version"])
        long = {**lineage, "updates_digest": "d" * 64}
        other = await models.post("/models", json={"model": {"w": [1.0]}, "lineage": long})
        with pytest.raises(ConflictError, match=r"listed in the database .* no round r"):
            await verification.verify(other.json()["version"])


async def test_a_version_that_is_not_what_its_updates_make(peers: Peers, models: httpx.AsyncClient) -> None:
    version = await upload(models, BASE)
    async with peers.fresh() as (aggregation, registry):
        contributions = [await peers.store(slot, near(BASE)) for slot in range(2)]
        made = await aggregation.make_version(AggregationRequest("k", "r", version, contributions))
        lineage = (await models.get(f"/models/{made.version}/info")).json()["lineage"]
        forged = await models.post(
            "/models",
            content=to_safetensors(near(BASE), {"lineage": json.dumps(lineage)}),
            headers={"content-type": SAFETENSORS},
        )
        result = await Verification(registry, peers.updates, aggregation, no_round).verify(
            forged.json()["version"]
        )
        assert not result.verified
        assert result.digest != result.recomputed


async def test_what_the_aggregator_refuses_names_update_and_tensor(
    peers: Peers, models: httpx.AsyncClient
) -> None:
    version = await upload(models, BASE)
    async with peers.fresh() as (aggregation, _registry):
        contributions = [await peers.store(0, {**near(BASE), "w": np.zeros(3)})]
        with pytest.raises(AggregationError, match=r"update 1 of 'p-0': .*'w'.*\[3\]"):
            await aggregation.make_version(AggregationRequest("k", "r", version, contributions))


@pytest.mark.parametrize("long", [False, True], ids=["whole lineage", "long lineage"])
@pytest.mark.parametrize("keep", ["true", "false"])
async def test_verification_over_http(
    peers: Peers,
    models: httpx.AsyncClient,
    tmp_path: Path,
    keep: str,
    long: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A round as users have it, whose updates are kept or not, and fit into the lineage or not."""
    if long:
        monkeypatch.setattr(aggregation_requests, "MAX_LINEAGE_BYTES", 500)
    registry, aggregator = peers.urls.values()
    env = environment(tmp_path / "state", registry, AGGREGATOR_URL=aggregator, COORDINATOR_KEEP_UPDATES=keep)
    async with coordinating(env) as http:
        await configure(http)
        for sender in PARTICIPANTS:
            assert (await http.post("/update", json=update(sender))).status_code == 200
        version = (await ended(http))["model_version"]
        # They are removed after the round has ended.
        await eventually(lambda: keep == "true" or not kept_updates(tmp_path / "state"))
        answer = await http.post(f"/models/{version}/verify")
        if keep == "true":
            assert answer.status_code == 200, answer.text
            assert answer.json()["verified"] is True
            assert answer.json()["updates"] == 3
            assert answer.json()["on_record"] is True
            lineage = (await models.get(f"/models/{version}/info")).json()["lineage"]
            assert ("updates" in lineage, "updates_digest" in lineage) == (not long, long)
        else:
            assert answer.status_code == 409, answer.text
            assert "COORDINATOR_KEEP_UPDATES" in answer.json()["error"]
        assert (await http.post("/models/0/verify")).status_code == 409
        assert (await http.post("/models/77/verify")).status_code == 404


async def test_a_lineage_that_lies(peers: Peers, models: httpx.AsyncClient, tmp_path: Path) -> None:
    """Each of these models is what its lineage says that it is made of, and not what the round made."""
    registry, aggregator = peers.urls.values()
    env = environment(
        tmp_path / "state", registry, AGGREGATOR_URL=aggregator, COORDINATOR_KEEP_UPDATES="true"
    )
    async with coordinating(env) as http:
        await configure(http)
        for sender in PARTICIPANTS:
            assert (await http.post("/update", json=update(sender))).status_code == 200
        version = (await ended(http))["model_version"]
        true = (await models.get(f"/models/{version}/info")).json()["lineage"]
        updates = true["updates"]
        model = (await models.get(f"/models/{version}", headers={"accept": "application/json"})).json()
        for lie, named in (
            ({}, ": version$"),
            ({"updates": updates[:1]}, "version, updates"),
            ({"updates": [{**updates[0], "num_samples": 10**6}, *updates[1:]]}, "version, updates"),
            ({"strategy": {"name": "fedmedian"}}, "version, strategy"),
            ({"parent": version}, "version, parent"),
            ({"state": version}, "version, state"),
        ):
            stored = await models.post("/models", json={"model": model, "lineage": {**true, **lie}})
            assert stored.status_code == 201, stored.text
            answer = await http.post(f"/models/{stored.json()['version']}/verify")
            assert answer.status_code == 409, answer.text
            assert re.search(
                f"differs from what the coordinator has on record.*{named}", answer.json()["error"]
            )
        assert (await http.post(f"/models/{version}/verify")).json()["verified"] is True


@pytest.mark.parametrize("field", ["slot", "steps", "base", "kind", "metrics"])
async def test_a_lineage_is_checked_where_it_enters(models: httpx.AsyncClient, field: str) -> None:
    used = {"proplet_id": "p-0", "digest": "d" * 64, "num_samples": 1, field: "../../elsewhere"}
    answer = await models.post("/models", json={"model": {"w": [1.0]}, "lineage": {"updates": [used]}})
    assert answer.status_code == 400, answer.text
    assert f"updates.0.{field}" in answer.json()["error"]


def test_what_an_update_must_have() -> None:
    base = specs_of({**BASE, "bn.scale": np.ones(2, np.float16)})
    assert update_specs("fedavg", base) == base
    assert update_specs({"program": "mine:v1"}, base) == base
    personal = update_specs({"name": "fedavg", "personal": ["bn.*"]}, base)
    assert list(personal) == ["w", "n", "b"]
    control = update_specs("scaffold", base)
    assert control == {
        **base,
        **{f"@control/{name}": base[name] for name in ("w", "b", "bn.scale")},
    }


def test_what_a_strategy_needs_is_checked_when_an_update_comes() -> None:
    one = RoundContribution("p-7", 0, "d" * 64, 3)
    check_contribution("fedavg", one)
    check_contribution({"program": "mine:v1"}, one)
    with pytest.raises(InvalidError, match=r"p-7.*steps"):
        check_contribution("fednova", one)
    with pytest.raises(InvalidError, match="not known"):
        check_contribution("fednovaa", one)
