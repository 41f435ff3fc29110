"""An experiment whose strategy is a program, on a whole stack: it learns, and its versions can be made again from the kept updates."""

from pathlib import Path

import httpx
import pytest

from propeller.sdk import Experiment, Propeller
from support.python_programs import SOURCES, built
from support.stack import propeller, running_stack

pytestmark = pytest.mark.timeout(300)


def test_an_experiment_with_a_strategy_of_ones_own(tmp_path: Path) -> None:
    with running_stack(tmp_path / "state", env={"COORDINATOR_KEEP_UPDATES": "true"}) as up:
        registry = up.url("oci_registry").removeprefix("http://")
        program = built(SOURCES / "clipped_momentum.py")
        pushed = propeller("push", str(program), f"{registry}/clipped-momentum:v1")
        assert pushed.returncode == 0, pushed.stderr
        with Propeller.from_state(up.folder) as fl:
            strategy = {"program": f"{registry}/clipped-momentum:v1", "clip": 5.0, "momentum": 0.5}
            result = fl.run(
                Experiment(program=f"{registry}/fl-client-wasm:latest", rounds=3, strategy=strategy)
            ).wait(timeout=200)
        with httpx.Client(base_url=up.url("coordinator"), timeout=60) as http:
            verified = http.post(f"/models/{result.model_version}/verify")
        assert verified.status_code == 200, verified.text
        assert verified.json()["verified"] is True
        assert verified.json()["updates"] == 3
        info = httpx.get(f"{up.url('model_registry')}/models/{result.model_version}/info").json()
        assert info["has_state"]
        assert "@sha256:" in info["lineage"]["strategy"]["program"]
        assert info["lineage"]["strategy"]["params"] == {"clip": 5.0, "momentum": 0.5}
