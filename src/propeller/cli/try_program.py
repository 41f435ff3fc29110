"""``propeller try``: one run of a program on files of this machine, in the sandbox as a proplet runs it, or natively."""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from propeller.cli.experiment import ExperimentFile
from propeller.digests import digest_of
from propeller.fl.tensors import (
    TensorError,
    Tensors,
    check_shapes,
    from_json,
    from_safetensors,
    shapes_of,
    to_json,
    to_safetensors,
)
from propeller.process import parent_death
from propeller.process.run import StartError
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import MAX_ENV_BYTES
from propeller.proplet.updates import TENSORS_FILE, parse_program_output
from propeller.protocol.wire import MalformedMessageError, decode_object
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun, RunOutcome
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.template_client import SandboxError

PROPLET_ID = "try"
_EXPERIMENT_FILE = "experiment.toml"


@dataclass(frozen=True)
class TrialInputs:
    """What the command line says; None: as the experiment file beside the program has it."""

    model: Path | None
    data: Path | None
    hyperparams: Mapping[str, Any] | None
    mode: str


class Trial:
    """A task on files of this machine.

    Attributes:
        env: the environment that its program is given.
        files: the files that it is given, by name.
        limits: those of the experiment file, if there is one.
        from_experiment: what that file gave, for a person.
    """

    def __init__(self, program: Path, inputs: TrialInputs) -> None:
        """Read what is needed.

        Raises:
            StartError: A file is missing or is not what it should be; the text names it.
        """
        self._mode = inputs.mode
        experiment_file = program.parent / _EXPERIMENT_FILE
        experiment = ExperimentFile.load(experiment_file) if experiment_file.is_file() else None
        self.from_experiment: list[str] = []
        self.limits = None if experiment is None else experiment.limits
        hyperparams = inputs.hyperparams
        if hyperparams is None and experiment is not None:
            hyperparams = experiment.hyperparams
            self.from_experiment.append(f"hyperparams {json.dumps(hyperparams)}")
        self._model = self._read_model(inputs.model, experiment, experiment_file)
        dataset = self._read_dataset(inputs.data, experiment, experiment_file)
        texts = {
            "model.json": json.dumps(to_json(self._model)),
            "dataset.json": json.dumps(dataset),
            "hyperparams.json": json.dumps(hyperparams or {}),
        }
        self.files = {name: text.encode() for name, text in texts.items()}
        self.files["model.safetensors"] = to_safetensors(self._model)
        self.env = {
            "ROUND_ID": "r-try",
            "PROPLET_ID": PROPLET_ID,
            "MODEL_URI": "fl/models/global_model_v0",
            "HYPERPARAMS": texts["hyperparams.json"],
            "FL_MODE": inputs.mode,
        }
        for variable, name in (("MODEL_DATA", "model.json"), ("DATASET_DATA", "dataset.json")):
            if len(self.files[name]) < MAX_ENV_BYTES:
                self.env[variable] = texts[name]

    def refusal_reason(self, stdout: bytes, out_files: Mapping[str, bytes]) -> str | None:
        """Why a proplet or the coordinator would refuse what the program gave back; ``None`` if they would not."""
        if self._mode != "train":
            return None
        safetensors = out_files.get(TENSORS_FILE)
        try:
            parse_program_output(stdout, safetensors, self.env, PROPLET_ID)
            update = (
                from_json(decode_object(stdout)["update"])
                if safetensors is None
                else from_safetensors(safetensors)[0]
            )
            check_shapes(update, shapes_of(self._model))
        except TaskError as error:
            return str(error)
        except TensorError as error:
            return f"the update: {error}"
        return None

    def _read_model(
        self, file: Path | None, experiment: ExperimentFile | None, experiment_file: Path
    ) -> Tensors:
        found = None
        if file is None and experiment is not None:
            found = experiment.first_model(experiment_file.parent)
            self.from_experiment.append("model")
        if file is None and found is None:
            raise StartError(
                f"give a model to start from: --model FILE, or tensors in [model] of {experiment_file}"
            )
        try:
            if file is not None and file.suffix == ".safetensors":
                return from_safetensors(_read_file(file))[0]
            return from_json(decode_object(_read_file(file)) if file is not None else found or {})
        except (TensorError, MalformedMessageError) as error:
            raise StartError(f"{file or experiment_file}: model: {error}") from None

    def _read_dataset(
        self, file: Path | None, experiment: ExperimentFile | None, experiment_file: Path
    ) -> dict[str, Any]:
        if file is None and experiment is not None and experiment.data is not None:
            file = experiment_file.parent / experiment.data.files[0]
            self.from_experiment.append(f"data {experiment.data.files[0]}")
        if file is None:
            raise StartError(f"give a device's data: --data FILE, or files in [data] of {experiment_file}")
        try:
            document = json.loads(_read_file(file))
        except ValueError as error:
            raise StartError(f"{file}: not JSON: {error}") from None
        fields = document if isinstance(document, dict) else {"data": document}
        samples = fields.get("data")
        if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
            raise StartError(f'{file}: not a data set: {{"data": [{{"x": [0.1, 0.2], "y": 1}}, …]}}')
        if not samples:
            raise StartError(f"{file}: it has no samples")
        return {**fields, "data": samples, "size": len(samples)}


def run_try(program: Path, inputs: TrialInputs, limits: Limits) -> int:
    """Run a ``.wasm`` in the sandbox or a ``.py`` as plain Python; print what it gives back and what it took.

    Returns:
        The exit code: 1 if the program failed, for the reason printed.

    Raises:
        StartError: A file is missing or is not what it should be.
    """
    if not program.is_file():
        raise StartError(f"{program}: there is no such file")
    trial = Trial(program, inputs)
    if trial.from_experiment:
        _print_note(f"From experiment.toml: {', '.join(trial.from_experiment)}")
    outcome = (
        _run_natively(program, trial)
        if program.suffix == ".py"
        else asyncio.run(_run_sandboxed(program, trial, limits.lowered(trial.limits)))
    )
    error = outcome.error or trial.refusal_reason(outcome.stdout, outcome.out_files)
    sys.stdout.write(outcome.stdout.decode(errors="replace"))
    sys.stdout.flush()
    for name, content in outcome.out_files.items():
        _print_note(f"/out/{name}: {len(content)} bytes")
    if outcome.metrics:
        _print_note(_resources_used(outcome.metrics))
    if error is not None:
        _print_note(f"error: {error}")
    return 0 if error is None else 1


async def _run_sandboxed(program: Path, trial: Trial, limits: Limits) -> RunOutcome:
    wasm = _read_file(program)
    digest = digest_of(wasm)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "propeller" / "sandbox"
    try:
        async with Sandbox(cache) as sandbox:
            with Console(stderr=True).status(f"Compiling {program} (once) …"):
                await sandbox.add(digest, wasm, limits)
            run = ProgramRun("try", digest, env=trial.env, files=trial.files, limits=limits)
            return await sandbox.run(run, on_stderr=_print_note)
    except (ProgramError, SandboxError) as error:
        raise StartError(f"{program}: {error}") from None


def _run_natively(script: Path, trial: Trial) -> RunOutcome:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        (root / "out").mkdir()
        for name, content in trial.files.items():
            (root / "in" / name).write_bytes(content)
        run = [sys.executable, "-P", "-m", "propeller.program.native", str(script), folder]
        # A script may loop for ever: it must not outlive a command that is killed.
        command = [sys.executable, "-I", "-S", parent_death.__file__, str(os.getpid()), *run]
        done = subprocess.run(  # noqa: S603 - the user's own
            command, env={**os.environ, **trial.env}, stdout=subprocess.PIPE, check=False
        )
        written = {
            file.name: file.read_bytes() for file in sorted((root / "out").iterdir()) if file.is_file()
        }
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


def _print_note(line: str) -> None:
    print(line, file=sys.stderr)
