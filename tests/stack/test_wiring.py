"""The environment of a stack's proplets."""

from pathlib import Path

import pytest

from propeller.proplet.settings import Settings
from propeller.stack.environment import Wiring
from propeller.stack.state import State

PORTS = {"broker": 1883, "model-registry": 1, "data-store": 2, "coordinator": 3}


def test_proplets_share_programs_and_take_the_limits_that_are_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROPLET_TASK_WALL_TIME", "7")
    monkeypatch.setenv("PROPLET_MAX_TASKS", "3")
    monkeypatch.setenv("PROPLET_CLIENT_ID", "another")
    state = State(tmp_path)
    state.hold()
    secrets = state.secrets("admin", "a-long-password")
    secrets.domain_id, secrets.channel_id = "d", "c"
    secrets.clients = {name: {"id": f"id-{name}", "key": "k"} for name in ("proplet-1", "proplet-2")}
    wiring, found = Wiring(state, PORTS, secrets), list[Settings]()
    for name in secrets.clients:
        with monkeypatch.context() as environment:
            for variable, value in wiring.of_proplet(name).items():
                environment.setenv(variable, value)
            found.append(Settings.load())
    state.release()
    assert [one.client_id for one in found] == ["id-proplet-1", "id-proplet-2"]
    assert [(one.limits.wall_time_s, one.max_tasks) for one in found] == [(7.0, 3), (7.0, 3)]
    assert found[0].cache == found[1].cache
    assert found[0].folder != found[1].folder
