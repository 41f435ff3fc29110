"""``propeller try``: one run of a program on files of this machine, in the sandbox as a proplet runs it, or natively."""

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from propeller.cli.trial import Asked, Trial, read
from propeller.process.run import StartError
from propeller.wasm.job import Job, Limits, Outcome, ProgramError
from propeller.wasm.link import LinkError
from propeller.wasm.sandbox import Sandbox


def run_try(program: Path, asked: Asked, limits: Limits) -> int:
    """Run a ``.wasm`` in the sandbox or a ``.py`` as plain Python; print what it gives back and what it took.

    Returns:
        The exit code: 1 if the program failed, for the reason printed.

    Raises:
        StartError: A file is missing or is not what it should be.
    """
    if not program.is_file():
        raise StartError(f"{program}: there is no such file")
    trial = Trial(program, asked)
    if trial.taken:
        _say(f"From experiment.toml: {', '.join(trial.taken)}")
    outcome = (
        _natively(program, trial)
        if program.suffix == ".py"
        else asyncio.run(_sandboxed(program, trial, limits.lowered(trial.limits)))
    )
    error = outcome.error or trial.fault(outcome.stdout, outcome.out_files)
    sys.stdout.write(outcome.stdout.decode(errors="replace"))
    sys.stdout.flush()
    for name, content in outcome.out_files.items():
        _say(f"/out/{name}: {len(content)} bytes")
    if outcome.metrics:
        _say(_took(outcome.metrics))
    if error is not None:
        _say(f"error: {error}")
    return 0 if error is None else 1


async def _sandboxed(program: Path, trial: Trial, limits: Limits) -> Outcome:
    wasm = read(program)
    digest = f"sha256:{hashlib.sha256(wasm).hexdigest()}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "propeller" / "sandbox"
    try:
        async with Sandbox(cache) as sandbox:
            with Console(stderr=True).status(f"Compiling {program} (once) …"):
                await sandbox.add(digest, wasm, limits)
            job = Job("try", digest, env=trial.env, files=trial.files, limits=limits)
            return await sandbox.run(job, on_stderr=_say)
    except (ProgramError, LinkError) as error:
        raise StartError(f"{program}: {error}") from None


def _natively(script: Path, trial: Trial) -> Outcome:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "in").mkdir()
        (root / "out").mkdir()
        for name, content in trial.files.items():
            (root / "in" / name).write_bytes(content)
        command = [sys.executable, "-P", "-m", "propeller.program.native", str(script), place]
        ended = subprocess.run(  # noqa: S603 - the user's own
            command, env={**os.environ, **trial.env}, stdout=subprocess.PIPE, check=False
        )
        written = {
            file.name: file.read_bytes() for file in sorted((root / "out").iterdir()) if file.is_file()
        }
    code = ended.returncode
    return Outcome(
        None if code == 0 else f"the script ended with {code}", stdout=ended.stdout, out_files=written
    )


def _took(metrics: Mapping[str, float]) -> str:
    known = (
        ("total_ms", "{:.0f} ms", 1),
        ("cpu_ms", "{:.0f} ms of CPU", 1),
        ("memory_peak_bytes", "{:.0f} MB of memory", 1e-6),
        ("tensor_steps", "{:.0f} tensor operations", 1),
    )
    return "took " + ", ".join(
        text.format(metrics[name] * unit) for name, text, unit in known if name in metrics
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)
