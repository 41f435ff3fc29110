"""A backup of a stack in the middle of an experiment: whoever restores it gets the model that would have been."""

from pathlib import Path

import pytest

from propeller.sdk import Propeller
from propeller.stack.backup import back_up
from support.stack import end, propeller, running_stack, start_up

pytestmark = pytest.mark.timeout(240)

ROUNDS = 20


def test_a_restored_experiment_ends_with_the_same_model(tmp_path: Path) -> None:
    archive, experiment = tmp_path / "b.tar.zst", tmp_path / "experiment.toml"
    with running_stack(tmp_path / "state") as up:
        image = up.stack["images"]["fl-client-wasm"]
        experiment.write_text(f'program = "{image}"\nname = "saved"\nrounds = {ROUNDS}\n')
        propeller("run", "--detach", str(experiment), "--state", str(up.folder))
        with Propeller.from_state(up.folder) as fl:
            handle = fl.experiment("saved")
            while fl.versions()[-1] < 3:
                pass
            saved = back_up(up.folder, archive)
            assert saved.stopped_s is not None
            assert fl.versions()[-1] < ROUNDS
            assert handle.wait().state == "completed"
            expected = fl.models.info(ROUNDS)["digest"]
            assert [proplet["alive"] for proplet in fl.proplets()] == [True] * 3
            said = propeller("backup", str(tmp_path / "later.tar.zst"), "--state", str(up.folder))
            assert "the services stood still for" in said.stdout, said.stderr
    restored = propeller("restore", str(archive), "--state", str(tmp_path / "new"))
    assert "Restored" in restored.stdout, restored.stderr
    again = start_up(tmp_path / "new", "--ports", "auto")
    try:
        again.wait_ready()
        with Propeller.from_state(again.folder) as fl:
            handle = fl.experiment("saved")
            assert handle.wait().state == "completed"
            assert fl.models.info(ROUNDS)["digest"] == expected
        assert propeller("audit", "verify", "--state", str(again.folder)).returncode == 0
    finally:
        end(again)
