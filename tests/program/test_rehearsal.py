"""The training that a build does before a program's own code is loaded."""

from pathlib import Path
from typing import Any

import pytest

from propeller.program import command, registry
from propeller.program.rehearsal import rehearse
from propeller.tensors import session


def test_leaves_nothing() -> None:
    """Functions and the session are afterwards as they were, and no file is written."""
    registry.reset()
    before = session.current()
    rehearse()
    assert session.current() is before
    with pytest.raises(LookupError):
        registry.registered("train")


def test_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does what tasks do: both kinds, to the end."""
    documents: list[dict[str, Any]] = []
    do_task = command.do_task

    def watched(root: Path, environment: dict[str, str]) -> dict[str, Any]:
        documents.append(do_task(root, environment))
        return documents[-1]

    monkeypatch.setattr(command, "do_task", watched)
    rehearse()
    trained, evaluated = documents[0], documents[1]
    assert trained["num_samples"] == evaluated["num_samples"] == 6
    assert trained["steps"] == 2
    assert {"loss", "accuracy", "loss_before"} == set(trained["metrics"])
    assert evaluated["metrics"]["loss"] == pytest.approx(trained["metrics"]["loss_before"])
    assert len(documents) >= 4
