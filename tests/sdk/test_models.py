"""Model versions from Python, in both forms of the client, with and without authentication."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from propeller.errors import ConflictError, InvalidError, NotFoundError, PropellerError
from propeller.fl.tensors import from_safetensors, to_safetensors
from propeller.sdk import AsyncPropeller, Propeller
from support.fake_stack import FakeStack
from support.model_registry import serving_registry

LARGE: dict[str, Any] = {"w": np.arange(500_000, dtype=np.float64), "b": np.zeros((2, 3), np.float32)}


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    async with serving_registry(tmp_path / "models") as running:
        yield running


async def test_a_model_goes_through_files(url: str, tmp_path: Path) -> None:
    source, target = tmp_path / "model.safetensors", tmp_path / "again.safetensors"
    source.write_bytes(to_safetensors(LARGE, {"note": "kept"}))
    async with AsyncPropeller(model_registry=url) as fl:
        version = await fl.models.load(source)
        assert await fl.models.load(source, version=version) == version
        assert await fl.models.set_alias("digits-1/best", version) == version
        assert await fl.models.export("digits-1/best", target) == version
        assert target.read_bytes() == source.read_bytes()
        info = await fl.models.info("digits-1/best")
        assert info["aliases"] == ["digits-1/best"]
        assert await fl.models.aliases() == {"digits-1/best": version}
        other = await fl.put_model({**LARGE, "b": np.ones((2, 3), np.float32)})
        found = await fl.models.diff(version, other)
        assert found["tensors"]["b"]["l2"] == pytest.approx(6**0.5)
        assert [one["version"] for one in await fl.models.list(limit=1)] == [other]
        assert [one["version"] for one in await fl.models.list(alias="digits-1/best")] == [version]
        await fl.models.delete_alias("digits-1/best")
        with pytest.raises(NotFoundError, match="no alias 'digits-1/best'"):
            await fl.models.export("digits-1/best", target)
        assert target.read_bytes() == source.read_bytes()
        with pytest.raises(ConflictError):
            await fl.models.load(source, version=other)


async def test_a_model_is_stored_with_its_lineage_and_number(url: str, tmp_path: Path) -> None:
    lineage = {"experiment": "at-home", "metrics": {"loss": np.float64(0.5)}, "note": "by hand"}
    (tmp_path / "m.safetensors").write_bytes(to_safetensors(LARGE, {"note": "kept"}))
    np.savez(tmp_path / "m.npz", w=LARGE["w"])
    (tmp_path / "m.json").write_text('{"w": [1.5]}')
    async with AsyncPropeller(model_registry=url) as fl:
        assert await fl.put_model({"w": np.ones(2)}, version=7, lineage=lineage) == 7
        versions = [7] + [
            await fl.models.load(tmp_path / f"m.{suffix}", version=number, lineage=lineage)
            for number, suffix in ((10, "safetensors"), (11, "npz"), (12, "json"))
        ]
        assert versions == [7, 10, 11, 12]
        for version in versions:
            assert (await fl.models.info(version))["lineage"] == {**lineage, "metrics": {"loss": 0.5}}
        await fl.models.export(10, tmp_path / "again.safetensors")
        tensors, metadata = from_safetensors((tmp_path / "again.safetensors").read_bytes())
        assert metadata["note"] == "kept"
        np.testing.assert_array_equal(tensors["w"], LARGE["w"])
        for wrong in ({"number": 0}, {"metrics": {"loss": "low"}}):
            with pytest.raises(InvalidError, match=rf"lineage: {next(iter(wrong))}"):
                await fl.models.load(tmp_path / "m.safetensors", lineage=wrong)


async def test_an_alias_by_the_name_of_experiments(url: str, tmp_path: Path) -> None:
    with FakeStack().running() as stack:
        for number in (1, 2):
            spec = {"id": f"mine-{number}", "name": "mine", "program": "p", "strategy": "fedavg", "rounds": 1}
            stack.specs[f"mine-{number}"] = spec
        async with AsyncPropeller(model_registry=url, coordinator=stack.url) as fl:
            lineage = {"lineage": json.dumps({"experiment": "mine-2"})}
            (tmp_path / "model.safetensors").write_bytes(to_safetensors({"w": np.ones(2)}, lineage))
            old, new = (
                await fl.put_model({"w": np.zeros(2)}),
                await fl.models.load(tmp_path / "model.safetensors"),
            )
            await fl.models.set_alias("mine-1/best", old)
            await fl.models.set_alias("mine-2/best", new)
            await fl.models.set_alias("production", old)
            assert (await fl.model("mine/best"))["w"].tolist() == [1, 1]  # of the newest
            assert (await fl.model("mine-1/best"))["w"].tolist() == [0, 0]
            assert (await fl.model("production"))["w"].tolist() == [0, 0]
            assert (await fl.models.info("mine/best"))["version"] == new
            assert await fl.models.export("mine/best", tmp_path / "new.npz") == new
            found = await fl.models.diff("mine-1/best", "mine/best")
            assert (found["from"], found["to"]) == (old, new)
            assert [one["version"] for one in await fl.models.list(experiment="mine")] == [new]
            assert await fl.models.list(experiment="mine-1", strategy="sum") == []
            with pytest.raises(NotFoundError, match="there is no experiment nobodys"):
                await fl.models.list(experiment="nobodys")
            with pytest.raises(NotFoundError, match="no alias 'mine-2/latest'"):
                await fl.model("mine/latest")
            with pytest.raises(
                NotFoundError, match=r"^there is no alias 'nobodys/best'; .*'propeller model alias' lists"
            ):
                await fl.model("nobodys/best")
            await fl.models.set_alias("mine/best", old)  # what is written counts first
            assert (await fl.models.info("mine/best"))["version"] == old


async def test_the_blocking_form(url: str, tmp_path: Path) -> None:
    source, target = tmp_path / "model.npz", tmp_path / "new" / "model.safetensors"
    np.savez(source, w=LARGE["w"])

    def use() -> None:
        with Propeller(model_registry=url) as fl:
            version = fl.models.load(source)
            assert fl.models.export(version, target) == version
            assert repr(fl.models) == f"<Models of {url}>"
            assert fl.models.info("latest")["version"] == version
            np.testing.assert_array_equal(fl.models.arrays()["w"], fl.model("latest")["w"])

    await asyncio.to_thread(use)
    np.testing.assert_array_equal(from_safetensors(target.read_bytes())[0]["w"], LARGE["w"])


async def test_what_cannot_be_is_an_error_that_says_so(url: str, tmp_path: Path) -> None:
    async with AsyncPropeller(model_registry=url) as fl:
        for name in ("model.pt", "model"):
            with pytest.raises(InvalidError, match="must end in"):
                await fl.models.load(tmp_path / name)
        with pytest.raises(PropellerError, match="No such file"):
            await fl.models.load(tmp_path / "model.npz")
        (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(InvalidError, match="not safetensors"):
            await fl.models.load(tmp_path / "model.safetensors")
        (tmp_path / "file").write_bytes(b"")
        await fl.put_model({"w": np.ones(1)})
        with pytest.raises(PropellerError, match="cannot be written"):
            await fl.models.export("latest", tmp_path / "file" / "model.npz")
