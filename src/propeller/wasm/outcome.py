"""How a run ended, from what its process reported and what was seen of it from outside."""

import signal
import time
from dataclasses import replace
from pathlib import Path

from propeller.wasm import folder_contents
from propeller.wasm.folder_contents import OutputError
from propeller.wasm.last_words import tells_of_memory
from propeller.wasm.messages import BoundedFolder, TaskReport
from propeller.wasm.program_run import Limits, ProgramRun, RunOutcome
from propeller.wasm.template_client import ProcessEnd

STOPPED_ERROR = "stopped before completion"


def judge_outcome(
    run: ProgramRun,
    end: ProcessEnd,
    *,
    task_folder: Path,
    stdout: bytes,
    stopped: bool = False,
    exceeded: str | None = None,
) -> RunOutcome:
    """Say how a run ended.

    Args:
        run: What ran.
        end: The end of its process.
        task_folder: Has what the program saw as ``/out``, read here, after the end, and ``/state``, moved from here if it is kept.
        stdout: What it wrote, at most as much as is allowed.
        stopped: Whether someone asked to stop it.
        exceeded: The output limit that it went over.
    """
    killed, report = end.status < 0, end.report
    limit = exceeded or (end.reason if killed and end.reason != "killed" else None)
    for folder in [] if limit else bounded_folders(run, task_folder):
        limit = limit or folder_contents.exceeded_limit(
            folder.name, folder.folder, folder.max_bytes, folder.max_files
        )
    error: str | None
    if limit:
        error = run.limits.error(limit)
    elif stopped and killed:
        error = STOPPED_ERROR
    elif report is None:
        error, limit = _unreported_end(end, run.limits)
    else:
        error, limit = report.error, report.limit
    out_files: dict[str, bytes] = {}
    large_files: dict[str, Path] = {}
    if error is None:
        try:
            out_files, large_files = folder_contents.take_files(
                task_folder / "out", run.large_files, run.large_bytes
            )
            if run.state is not None and run.state.target is not None:
                _keep_state(task_folder / "state", run.state.target, given=run.state.source is not None)
        except OutputError as problem:
            error = str(problem)
    return RunOutcome(
        error=error,
        limit=limit,
        exit_code=report.exit_code if report else None,
        stdout=stdout,
        value=report.value if report else None,
        out_files=out_files,
        large_files=large_files,
    )


def name_memory(outcome: RunOutcome, limits: Limits, reason: str) -> RunOutcome:
    """The outcome of a program that says itself, in ``reason``, that it got no memory: the limit is named.

    A ``memory.grow`` that is refused tells only the program. If it asked for much at once, its memory is far from the limit, and
    nothing else tells why it failed.
    """
    if outcome.error is None or outcome.limit is not None or not tells_of_memory(reason):
        return outcome
    error = f"{limits.error('memory_bytes')} ({outcome.error})"
    return replace(outcome, error=error, limit="memory_bytes")


def bounded_folders(run: ProgramRun, task_folder: Path) -> tuple[BoundedFolder, ...]:
    """The folders that the program of a run may write to, with what may be in them."""
    limits = run.limits
    out = BoundedFolder("out", str(task_folder / "out"), limits.out_bytes, limits.out_files)
    if run.state is None:
        return (out,)
    return out, BoundedFolder("state", str(task_folder / "state"), limits.state_bytes, limits.state_files)


def _keep_state(state: Path, target: Path, *, given: bool) -> None:
    folder_contents.keep_files("state", state)
    if given or folder_contents.has_entries(state):
        state.rename(target)


def run_metrics(end: ProcessEnd, asked_at: float) -> dict[str, float]:
    """What a run took; ``asked_at`` is when it was asked for (``time.monotonic``, the same in every process)."""
    metrics = {
        "total_ms": (time.monotonic() - asked_at) * 1000,
        "cpu_ms": end.cpu_s * 1000,
        "memory_peak_bytes": float(end.memory_peak_bytes),
    }
    report = end.report
    if report is None:
        return metrics
    if report.entered_s is not None and report.run_s is not None:
        metrics["start_ms"] = (report.entered_s - asked_at) * 1000
        metrics["run_ms"] = report.run_s * 1000
    if report.tensor_steps is not None:
        metrics["tensor_steps"] = float(report.tensor_steps)
    if report.fuel is not None:
        metrics["fuel"] = float(report.fuel)
    return metrics


def exit_report(status: int) -> TaskReport | None:
    """What the built-in sandbox's process would have said, of one that ended with an exit status; None: by a signal."""
    if status < 0:
        return None
    return TaskReport(f"the program exited with code {status}" if status else None, exit_code=status)


def signal_name(number: int) -> str:
    """A signal's name, or its number where it has none, as most real-time signals."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _unreported_end(end: ProcessEnd, limits: Limits) -> tuple[str, str | None]:
    """The error of a process that ended without a report, and the limit behind it."""
    if end.status == -signal.SIGXCPU:
        return limits.error("wall_time_s"), "wall_time_s"
    if end.status == -signal.SIGABRT and end.memory_peak_bytes > limits.memory_bytes / 2:
        return limits.error("memory_bytes"), "memory_bytes"
    if end.status == -signal.SIGKILL:
        return "the task's process was killed from outside (is the device out of memory?)", None
    how = signal_name(-end.status) if end.status < 0 else f"status {end.status}"
    return f"the task's process ended by {how}", None
