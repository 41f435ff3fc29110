"""How a run ended, from what its process reported and what was seen of it from outside."""

import signal
import time
from pathlib import Path
from typing import Any

from propeller.wasm import folder as folders
from propeller.wasm.job import Job, Limits, Outcome, over
from propeller.wasm.link import Ended
from propeller.wasm.report import figure

STOPPED = "stopped before completion"


def judge(
    job: Job,
    ended: Ended,
    report: dict[str, Any],
    *,
    out: Path,
    stdout: bytes,
    stopped: bool,
    exceeded: str | None,
) -> Outcome:
    """Say how a run ended.

    Args:
        job: What ran.
        ended: The end of its process.
        report: What the process said last; empty if it said nothing that can be read.
        out: What the guest sees as ``/out``; read here, after the end.
        stdout: What it wrote, at most as much as is allowed.
        stopped: Whether someone asked to stop it.
        exceeded: The output limit that it went over.
    """
    killed = ended.status < 0
    limit = exceeded or (ended.reason if killed and ended.reason != "killed" else None)
    limit = limit or folders.excess(str(out), job.limits.out_bytes, job.limits.out_files)
    error: str | None
    if limit:
        error = over(limit, getattr(job.limits, limit), "files" if limit == "out_files" else "")
    elif stopped and killed:
        error = STOPPED
    elif not report:
        error, limit = _died(ended, job.limits)
    else:
        error, limit = _text(report.get("error")), _text(report.get("limit"))
    files: dict[str, bytes] = {}
    if error is None:
        try:
            files = folders.collect(out)
        except folders.OutError as problem:
            error = str(problem)
    code = report.get("exit_code")
    return Outcome(
        error=error,
        limit=limit,
        exit_code=code if isinstance(code, int) else None,
        stdout=stdout,
        value=_text(report.get("value")),
        out_files=files,
    )


def measure(ended: Ended, report: dict[str, Any], begin: float) -> dict[str, float]:
    """What a run took; ``begin`` is when it was asked for (``time.monotonic``, the same in every process)."""
    now = time.monotonic()
    found = {
        "total_ms": (now - begin) * 1000,
        "cpu_ms": ended.cpu_s * 1000,
        "memory_peak_bytes": float(ended.memory_peak_bytes),
    }
    entered, run_s = figure(report, "entered"), figure(report, "run_s")
    if entered is not None and run_s is not None:
        found["start_ms"] = (entered - begin) * 1000
        found["run_ms"] = run_s * 1000
    for name in ("tensor_steps", "fuel"):
        if (value := figure(report, name)) is not None:
            found[name] = value
    return found


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _died(ended: Ended, limits: Limits) -> tuple[str, str | None]:
    """The error of a process that ended without a report."""
    if ended.status == -signal.SIGXCPU:
        return over("wall_time_s", limits.wall_time_s), "wall_time_s"
    if ended.status == -signal.SIGABRT and ended.memory_peak_bytes > limits.memory_bytes / 2:
        return over("memory_bytes", limits.memory_bytes), "memory_bytes"
    if ended.status == -signal.SIGKILL:
        return "the task's process was killed from outside (is the device out of memory?)", None
    end = signal.Signals(-ended.status).name if ended.status < 0 else f"status {ended.status}"
    return f"the task's process ended by {end}", None
