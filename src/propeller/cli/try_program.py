"""``propeller try``: one run of a program on files of this machine, in the sandbox as a proplet runs it, or natively."""

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from propeller.cli.terminal import Terminal, print_note
from propeller.cli.trial import EXPERIMENT_FILE, Trial, TrialInputs, TrialState
from propeller.cli.try_aggregation import AGGREGATE, AggregationTrial
from propeller.digests import digest_of
from propeller.errors import StartError
from propeller.native.build import metadata_of, native_program
from propeller.native.interpreter import Interpreter, chosen_python
from propeller.native_program import is_native
from propeller.process import parent_death
from propeller.process.control_characters import escape_controls
from propeller.wasm.owners_limits import MEMORY_SETTING, owners_limits
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun, RunOutcome, StateFolder
from propeller.wasm.runtimes import runtimes_folder, user_cache
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.template_client import SandboxError

_MAX_VARIABLE_BYTES = 32 * 4096
"""``MAX_ARG_STRLEN``: execve(2)."""

_TOLD_AFTER_S = 10.0
"""Of a run that takes so long it is said that it runs, and what would end it."""


def run_try(program: Path, inputs: TrialInputs, limits: Limits | None = None) -> int:
    """Run a ``.wasm``, or a native program, in the sandbox or another ``.py`` as plain Python; print what it gives back and what it took.

    Args:
        program: the file.
        inputs: what it is given.
        limits: by default those of a task in the sandbox, and none of plain Python, which may sit in a debugger: of these the
            wall time alone counts there.

    Returns:
        The exit code: 1 if the program failed, for the reason printed.

    Raises:
        StartError: A file is missing or is not what it should be.
    """
    if not program.is_file():
        raise StartError(f"{program}: there is no such file")
    trial: Trial | AggregationTrial = (
        AggregationTrial(inputs.model, inputs.updates, inputs.hyperparams)
        if inputs.mode == AGGREGATE
        else Trial(program, inputs)
    )
    if trial.from_experiment:
        print_note(f"From experiment.toml: {', '.join(trial.from_experiment)}")
    cache = user_cache() / "sandbox"
    with TrialState(cache, inputs.state, changes=inputs.mode == "train") as state:
        outcome = (
            _run_natively(program, trial, None if limits is None else limits.wall_time_s, state.folder)
            if program.suffix == ".py" and not metadata_of(program).native
            else asyncio.run(
                _run_sandboxed(
                    program,
                    trial,
                    limits or Limits(),
                    cache,
                    state.folder,
                )
            )
        )
        error = outcome.error or trial.refusal_reason(outcome.stdout, outcome.out_files)
        if error is None:
            state.keep()
    said = outcome.stdout.decode(errors="replace")
    sys.stdout.write(escape_controls(said) if sys.stdout.isatty() else said)
    sys.stdout.flush()
    for name, content in outcome.out_files.items():
        print_note(f"/out/{name}: {len(content)} bytes")
    if outcome.metrics:
        print_note(_resources_used(outcome.metrics))
    if outcome.limit == "memory_bytes":
        print_note(
            f"{MEMORY_SETTING}=BYTES gives a task more memory: here as on the device, whose owner sets it"
        )
    if error is not None:
        print_note(f"error: {error}")
    return 0 if error is None else 1


def _passed(env: Mapping[str, str]) -> dict[str, str]:
    """Variables without those that Linux passes to no process, being too long: programs find what they hold in files, too."""
    return {
        name: value for name, value in env.items() if len(f"{name}={value}".encode()) < _MAX_VARIABLE_BYTES
    }


async def _run_sandboxed(
    program: Path, trial: Trial | AggregationTrial, limits: Limits, cache: Path, state: StateFolder
) -> RunOutcome:
    content = _content_of(program)
    digest = digest_of(content)
    native = _interpreter(cache) if is_native(content) else None
    limits = owners_limits(limits, native=native is not None).lowered(trial.limits)
    try:
        # One run: no template of native programs is worth its while.
        async with Sandbox(cache, runtimes=runtimes_folder(), native=native, native_memory=0) as sandbox:
            if native is not None:
                await sandbox.keep(digest, content, limits)
            else:
                with Terminal(stderr=True).status(f"Compiling {program} (once) …"):
                    await sandbox.add(digest, content, limits)
            run = ProgramRun("try", digest, env=trial.env, files=trial.files, limits=limits, state=state)
            told = asyncio.get_running_loop().call_later(
                _TOLD_AFTER_S,
                print_note,
                f"{program} has run for {_TOLD_AFTER_S:g} s. The limit wall_time_s (--wall-time, or limits in {EXPERIMENT_FILE}) "
                f"ends it after {limits.wall_time_s:g} s, Ctrl-C at once.",
            )
            try:
                return await sandbox.run(run, on_stderr=print_note)
            finally:
                told.cancel()
    except (ProgramError, SandboxError) as error:
        raise StartError(f"{program}: {error}") from None


def _content_of(program: Path) -> bytes:
    """A program's file, or what the script of a native one becomes."""
    if program.suffix != ".py":
        return _read_file(program)
    return native_program(program, metadata_of(program)).encode()


def _interpreter(cache: Path) -> Interpreter:
    return Interpreter.find(chosen_python(), threads=os.cpu_count() or 1, keep_out=[cache])


def _run_natively(
    script: Path, trial: Trial | AggregationTrial, wall_time_s: float | None, state: StateFolder
) -> RunOutcome:
    ends = (
        "As plain Python it has no limit of time (--wall-time sets one): Ctrl-C ends it."
        if wall_time_s is None
        else f"The limit wall_time_s (--wall-time) ends it after {wall_time_s:g} s, Ctrl-C at once."
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        (root / "out").mkdir()
        (root / "state").mkdir()
        if state.source is not None:
            shutil.copytree(state.source, root / "state", dirs_exist_ok=True)
        for name, content in trial.files.items():
            (root / "in" / name).write_bytes(content)
        run = [sys.executable, "-P", "-m", "propeller.program.native", str(script), folder]
        run += [str(_TOLD_AFTER_S), ends]
        # A script may loop for ever: it must not outlive a command that is killed.
        command = [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), *run]
        try:
            done = subprocess.run(  # noqa: S603 - the user's own
                command,
                env={**os.environ, **_passed(trial.env)},
                stdout=subprocess.PIPE,
                check=False,
                timeout=wall_time_s,
            )
        except subprocess.TimeoutExpired:
            return RunOutcome(f"wall_time_s: over the limit of {wall_time_s:g} s")
        written = {
            file.name: file.read_bytes() for file in sorted((root / "out").iterdir()) if file.is_file()
        }
        if done.returncode == 0 and state.target is not None:
            shutil.move(root / "state", state.target)
    code = done.returncode
    return RunOutcome(
        None if code == 0 else f"the script exited with {code}", stdout=done.stdout, out_files=written
    )


def _resources_used(metrics: Mapping[str, float]) -> str:
    known = (
        ("total_ms", "{:.0f} ms", 1),
        ("cpu_ms", "{:.0f} ms of CPU", 1),
        ("memory_peak_bytes", "{:.0f} MB of memory", 1e-6),
        ("tensor_steps", "{:.0f} tensor operations", 1),
    )
    return "took " + ", ".join(
        text.format(metrics[name] * unit) for name, text, unit in known if name in metrics
    )


def _read_file(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StartError(f"{file}: {error.strerror}") from None
