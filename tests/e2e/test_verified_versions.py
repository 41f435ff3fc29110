"""Versions that are made again from the updates that were kept, on a whole stack: of rounds whose strategy is a program, and of merges."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from propeller.sdk import Experiment, Propeller
from support.page import read_page
from support.python_programs import SOURCES, built
from support.reader import Reader
from support.stack import Up, propeller, running_stack

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("verified") / "state"
    with running_stack(folder, env={"COORDINATOR_KEEP_UPDATES": "true"}) as running:
        yield running


def learn(up: Up, **fields: Any) -> list[int]:
    """The versions that an experiment makes."""
    program = f"{up.url('oci_registry').removeprefix('http://')}/fl-client-wasm:latest"
    with Propeller.from_state(up.folder) as fl:
        handle = fl.run(Experiment(program=program, **fields))
        handle.wait(timeout=200)
        return [one["model_version"] for one in handle.history() if one["kind"] == "train"]


def verify(up: Up, version: int) -> dict[str, Any]:
    """What the command says is what the coordinator answers; the lineage of the version."""
    said = propeller("model", "verify", str(version), "--state", str(up.folder))
    assert said.returncode == 0, said.stdout + said.stderr
    answer = httpx.post(f"{up.url('coordinator')}/models/{version}/verify", timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["verified"] is True
    info: dict[str, Any] = httpx.get(f"{up.url('model_registry')}/models/{version}/info").json()
    assert len(info["lineage"]["updates"]) == answer.json()["updates"]
    return info


def test_every_command_does_what_the_page_on_models_says(up: Up, tmp_path: Path) -> None:
    """docs/models.md; what it says to start runs already."""
    page = read_page(ROOT / "docs" / "models.md")
    assert page.left_out == []
    start, *commands = page.commands
    assert start.text == "COORDINATOR_KEEP_UPDATES=true propeller up"
    (tmp_path / ".propeller").symlink_to(up.folder)
    reader = Reader("docs/models.md", tmp_path, {})
    reader.up = up
    try:
        for command in commands:
            reader.follow(command)
    finally:
        reader.up = None  # it is not the reader's to end
        reader.close()


def test_a_strategy_of_ones_own(up: Up) -> None:
    reference = f"{up.url('oci_registry').removeprefix('http://')}/clipped-momentum:v1"
    pushed = propeller("push", str(built(SOURCES / "clipped_momentum.py")), reference)
    assert pushed.returncode == 0, pushed.stderr
    versions = learn(up, rounds=3, strategy={"program": reference, "clip": 5.0, "momentum": 0.5})
    info = verify(up, versions[-1])
    assert len(info["lineage"]["updates"]) == 3
    assert info["has_state"]
    assert "@sha256:" in info["lineage"]["strategy"]["program"]
    assert info["lineage"]["strategy"]["params"] == {"clip": 5.0, "momentum": 0.5}


def test_merges_of_updates_that_began_from_several_versions(up: Up) -> None:
    mode = {"kind": "async", "buffer": 2, "concurrency": 3}
    versions = learn(up, rounds=4, strategy="fedbuff", mode=mode)
    lineages = [verify(up, version)["lineage"] for version in versions]
    assert [len(one["updates"]) for one in lineages] == [2, 2, 2, 2]
    stale = [(one["parent"], update) for one in lineages for update in one["updates"] if update["staleness"]]
    assert stale
    assert all(update["base"] < parent for parent, update in stale)
