"""The table of what runs, at a terminal of 80 columns."""

import io
from datetime import UTC, datetime
from typing import cast

from rich.console import Console
from rich.text import Text

from propeller.cli.connection import Target
from propeller.cli.follow import Progress, _table, summary_lines
from propeller.cli.tables import format_number
from propeller.sdk import Event, ExperimentResult, Propeller


def shown(progress: Progress) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    console.print(_table(progress))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_a_round_is_one_line_however_many_metrics_it_has() -> None:
    progress = Progress(20, {})
    where = {"round_id": "exp.1", "number": 1, "attempt": 1, "kind": "train"}
    started = {**where, "participants": ["id-1", "id-2"], "k_of_n": 2, "base_version": 0}
    progress.take(Event("1", "round_started", started))
    metrics = {"loss": 0.7, "accuracy": 0.5, "loss_before": 0.9, "personal_loss": 0.4}
    progress.take(Event("2", "update", {**where, "proplet_id": "id-1", "num_samples": 3, "metrics": metrics}))
    head, line, foot = shown(progress)
    assert head.split() == ["updates", "failed", "running", "deadline", "in", "so", "far"]
    assert line.startswith("  round  1  1/2")
    assert "loss 0.7000  accuracy 0.5000" in line
    assert line.endswith("…")
    assert foot == "  0 of 20 rounds · Ctrl-C leaves it running"


def test_between_rounds_it_says_what_is_waited_for() -> None:
    progress = Progress(20, {})
    assert shown(progress)[0] == "  queued"
    progress.take(Event("1", "waiting", {"reason": "2 of 3 devices are alive"}))
    assert shown(progress)[0] == "  waiting: 2 of 3 devices are alive"


def test_waves_and_the_merges_of_their_updates_are_told_apart_from_evaluations() -> None:
    progress = Progress(2, {})
    begun, ended = (datetime(2026, 1, 1, 12, 0, second, tzinfo=UTC) for second in (0, 10))
    wave = {"round_id": "exp.w1", "number": 1, "attempt": 1, "kind": "wave"}
    progress.take(
        Event("1", "round_started", {**wave, "participants": ["a", "b"], "base_version": 3, "at": str(begun)})
    )
    progress.take(
        Event("2", "update", {**wave, "proplet_id": "a", "num_samples": 1, "metrics": {"loss": 0.5}})
    )
    merge = {"round_id": "exp.1", "number": 1, "attempt": 1, "kind": "train"}
    progress.take(Event("3", "round_started", {**merge, "participants": ["a"], "base_version": 3}))
    end = {
        **merge,
        "state": "completed",
        "version": 4,
        "updates": 1,
        "metrics": {"loss": 0.5},
        "seconds": 0.05,
        "at": str(ended),
    }
    [line] = progress.take(Event("4", "round_ended", end))
    assert line.startswith("  round  1  updates 1/1  loss 0.5000  ")
    assert progress.time_left(ended) == 10  # of the one that is left, as long as the first and its wave
    [line] = progress.take(Event("5", "round_ended", {**wave, "state": "completed", "updates": 1}))
    assert line.startswith("   wave  1  updates 1/2  loss 0.5000  [dim]v3, ")


def test_why_devices_fail_is_said_once() -> None:
    progress = Progress(2, {"a": "proplet-1", "b": "proplet-2"})
    mistake = "the program exited with code 1: train.py:3: KeyError: 'nope'"
    lines: list[str] = []
    for attempt, reasons in enumerate([(mistake, mistake), (mistake, mistake), (mistake, "lost")], 1):
        where = {"round_id": f"exp.1.{attempt}", "number": 1, "attempt": attempt, "kind": "train"}
        lines += progress.take(Event("1", "round_started", {**where, "participants": ["a", "b"]}))
        for device, why in zip("ab", reasons, strict=True):
            lines += progress.take(Event("2", "failure", {**where, "proplet_id": device, "reason": why}))
        more = "" if len(set(reasons)) == 1 else " (and 1 more reason)"
        reason = f"no update can come any more: 2 of 2 participants failed: {mistake}{more}"
        lines += progress.take(Event("3", "round_ended", {**where, "state": "failed", "reason": reason}))
    assert [Text.from_markup(line).plain for line in lines] == [
        f"  ✗ round  1: proplet-1 failed: {mistake}",
        "  ✗ round  1: proplet-2 failed: the same as proplet-1",
        "  round  1  failed: no update can come any more: 2 of 2 participants failed",
        "  round  1 try 2  failed: no update can come any more: 2 of 2 participants failed, as before",
        "  ✗ round  1 try 3: proplet-2 failed: lost",
        "  round  1 try 3  failed: no update can come any more: 2 of 2 participants failed (and 1 more reason)",
    ]


def test_numbers_of_a_training_that_diverges_stay_readable() -> None:
    assert [format_number(value) for value in (0.12345, -1234567.0, 5.79e65)] == [
        "0.1235",
        "-1234567.0000",
        "5.7900e+65",
    ]


def test_without_a_completed_round_the_model_is_called_what_it_is() -> None:
    """Nothing was trained: the model is the first one."""
    result = ExperimentResult(
        id="mine-1", state="failed", reason="", rounds=0, asked=5, model_version=7, best=None, seconds=1.0
    )
    said = list(summary_lines(cast("Propeller", None), result, cast("Target", None)))
    assert said == ["No round was completed: model v7 is the one it began with"]
