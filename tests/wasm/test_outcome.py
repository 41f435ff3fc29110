"""How a run ended, from what was seen of its process."""

import signal
from pathlib import Path

import pytest

from propeller.wasm.outcome import judge_outcome
from propeller.wasm.program_run import MIB, Limits, ProgramRun, RunOutcome
from propeller.wasm.template_client import ProcessEnd

RUN = ProgramRun("a", "sha256:0", limits=Limits(wall_time_s=2, memory_bytes=64 * MIB))


def judged(folder: Path, status: int, *, reason: str | None = None, memory: int = 0) -> RunOutcome:
    """The outcome of a process that ended without a report."""
    return judge_outcome(RUN, ProcessEnd(status, reason, 0.0, memory, None), task_folder=folder, stdout=b"")


@pytest.mark.parametrize(
    ("status", "memory", "error", "limit"),
    [
        (0, 0, "the task's process ended by status 0", None),
        (3, 0, "the task's process ended by status 3", None),
        (-signal.SIGSEGV, 0, "the task's process ended by SIGSEGV", None),
        (-40, 0, "the task's process ended by signal 40", None),  # one without a name
        (-signal.SIGXCPU, 0, "wall_time_s: over the limit of 2 s", "wall_time_s"),
        (-signal.SIGABRT, 40 * MIB, "memory_bytes: over the limit of 67108864 bytes", "memory_bytes"),
        (-signal.SIGABRT, MIB, "the task's process ended by SIGABRT", None),
    ],
)
def test_an_end_without_a_report_has_an_error(
    tmp_path: Path, status: int, memory: int, error: str, limit: str | None
) -> None:
    outcome = judged(tmp_path, status, memory=memory)
    assert (outcome.error, outcome.limit) == (error, limit)


def test_what_the_template_saw_goes_before_all_else(tmp_path: Path) -> None:
    outcome = judged(tmp_path, -signal.SIGKILL, reason="wall_time_s")
    assert (outcome.error, outcome.limit) == ("wall_time_s: over the limit of 2 s", "wall_time_s")
