"""``propeller try``: one run of a program on files of this machine, in the sandbox as a proplet runs it, or natively."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from propeller.cli.experiment_file import ExperimentFile, read_dataset, read_model
from propeller.cli.terminal import Terminal
from propeller.cli.try_aggregation import AGGREGATE, AggregationTrial
from propeller.digests import digest_of
from propeller.errors import InvalidError, StartError
from propeller.fl.strategies import Contribution, Strategy, read_strategy
from propeller.fl.tensors import (
    TensorError,
    Tensors,
    check_ranges,
    from_json,
    from_safetensors,
    specs_of,
    to_json,
    to_safetensors,
)
from propeller.native.build import metadata_of, native_program
from propeller.native.interpreter import Interpreter, chosen_python
from propeller.native_program import is_native
from propeller.process import parent_death
from propeller.process.control_characters import escape_controls, escape_line
from propeller.proplet.errors import TaskError
from propeller.proplet.inputs import split_dataset
from propeller.proplet.updates import parse_program_output
from propeller.protocol.evaluations import EVALUATE
from propeller.protocol.models import LARGE_BYTES
from propeller.protocol.wire import MalformedMessageError, decode_trusted
from propeller.wasm.owners_limits import MEMORY_SETTING, owners_limits
from propeller.wasm.program_run import Limits, ProgramError, ProgramRun, RunOutcome, StateFolder
from propeller.wasm.runtimes import runtimes_folder, user_cache
from propeller.wasm.sandbox import Sandbox
from propeller.wasm.task_inputs import MAX_ENV_BYTES, TENSORS_FILE
from propeller.wasm.template_client import SandboxError

PROPLET_ID = "try"

_MAX_VARIABLE_BYTES = 32 * 4096
"""``MAX_ARG_STRLEN``: execve(2)."""

_EXPERIMENT_FILE = "experiment.toml"

_TOLD_AFTER_S = 10.0
"""Of a run that takes so long it is said that it runs, and what would end it."""

_MARKER, _KEPT = ".propeller-try", "state"
"""In the folder of a trial's device state: a file by which it is known as one, and the state."""


@dataclass(frozen=True)
class TrialInputs:
    """What the command line says; None: as the experiment file beside the program has it.

    ``hyperparams`` are those that differ from the file's. ``strategy`` is a name or an object with parameters, ``split`` a ``data.split``, ``state`` a folder in which device state is kept
    from run to run; without it there is none before and after the run. ``updates`` are for an aggregation. ``label`` is the column with
    labels where ``data`` is a table.
    """

    model: Path | None
    data: Path | None
    hyperparams: Mapping[str, Any] | None
    mode: str
    strategy: Any = None
    split: Mapping[str, Any] | None = None
    state: Path | None = None
    updates: tuple[Path, ...] = ()
    label: str | None = None


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
        hyperparams = dict(inputs.hyperparams or {})
        if experiment is not None:
            kept = {name: one for name, one in experiment.hyperparams.items() if name not in hyperparams}
            hyperparams = {**experiment.hyperparams, **hyperparams}
            if kept:
                self.from_experiment.append(f"hyperparams {json.dumps(kept)}")
        self._model = self._read_model(inputs.model, experiment, experiment_file, hyperparams)
        self._strategy = self._find_strategy(inputs.strategy, experiment)
        dataset = json.dumps(self._read_dataset(inputs.data, inputs.label, experiment, experiment_file))
        split, named = inputs.split, "--split"
        if split is None and experiment is not None and experiment.split is not None:
            split, named = experiment.split, f"{experiment_file}: data.split"
            self.from_experiment.append(f"data.split {json.dumps(split)}")
        if split is not None:
            dataset = _part_of(dataset, split, inputs.mode, named)
        document = to_safetensors(self._model)
        texts = {
            **({"model.json": json.dumps(to_json(self._model))} if len(document) <= LARGE_BYTES else {}),
            "dataset.json": dataset,
            "hyperparams.json": json.dumps(hyperparams),
        }
        self.files = {name: text.encode() for name, text in texts.items()}
        self.files["model.safetensors"] = document
        self.env = {
            "ROUND_ID": "r-try",
            "PROPLET_ID": PROPLET_ID,
            "MODEL_URI": "fl/models/global_model_v0",
            "HYPERPARAMS": texts["hyperparams.json"],
            "FL_MODE": inputs.mode,
            "EXPERIMENT_ID": "try",
            "FL_ROUND": "1",
            "FL_SEED": "0",
        }
        if told := self._strategy.for_devices({}):
            self.env["FL_STRATEGY"] = json.dumps(told)
        if experiment is not None and experiment.spec.update.kind != "weights":
            self.env["FL_UPDATE"] = json.dumps({"kind": experiment.spec.update.kind})
        for variable, name in (("MODEL_DATA", "model.json"), ("DATASET_DATA", "dataset.json")):
            if name in texts and len(texts[name]) < MAX_ENV_BYTES:
                self.env[variable] = texts[name]

    def refusal_reason(self, stdout: bytes, out_files: Mapping[str, bytes]) -> str | None:
        """Why a proplet or the coordinator would refuse what the program gave back; ``None`` if they would not."""
        safetensors = out_files.get(TENSORS_FILE)
        try:
            header = parse_program_output(stdout, safetensors, self.env, PROPLET_ID).header
            for name, kind in (header.metrics_left_out or {}).items():
                _print_note(f"note: metrics: {name!r} is {kind}: left out; a metric is one finite number")
            if self._mode == "train":
                self._strategy.check(
                    Contribution(0, PROPLET_ID, header.num_samples, header.steps, header.metrics)
                )
                base = specs_of(self._model)
                update = (
                    from_json(decode_trusted(stdout)["update"], base)
                    if safetensors is None
                    else from_safetensors(safetensors)[0]
                )
                self._strategy.check_update(self._model, update)
                if header.kind == "weights":
                    check_ranges(update, {name: spec for name, spec in base.items() if name in update})
        except TensorError as error:
            return f"the update: {error}"
        except (TaskError, InvalidError) as error:
            return str(error)
        return None

    def _find_strategy(self, given: Any, experiment: ExperimentFile | None) -> Strategy:
        where = "--strategy"
        if given is None and experiment is not None and experiment.spec.strategy.program is None:
            given, where = experiment.spec.strategy.to_json(), _EXPERIMENT_FILE
            if given != {"name": "fedavg"}:
                self.from_experiment.append(f"strategy {json.dumps(given)}")
        try:
            return read_strategy("fedavg" if given is None else given)
        except InvalidError as error:
            raise StartError(f"{where}: {error}") from None

    def _read_model(
        self,
        file: Path | None,
        experiment: ExperimentFile | None,
        experiment_file: Path,
        hyperparams: Mapping[str, Any],
    ) -> Tensors:
        found: dict[str, Any] | None = None
        if file is None and experiment is not None:
            found = experiment.tensors
            file = None if experiment.model_file is None else experiment.folder / experiment.model_file
            self.from_experiment.append("model")
        if file is None and found is None:
            raise StartError(
                f"give a model to start from: --model FILE, or tensors in [model] of {experiment_file}"
            )
        if file is not None:
            found = read_model(file, hyperparams)
        try:
            return _as_tensors(found or {})
        except TensorError as error:
            raise StartError(f"{file or experiment_file}: model: {error}") from None

    def _read_dataset(
        self,
        file: Path | None,
        label: str | None,
        experiment: ExperimentFile | None,
        experiment_file: Path,
    ) -> dict[str, Any]:
        if file is not None:
            return read_dataset(file, label, "--data", "--label")
        if label is not None:
            raise StartError("--label: names a column of --data FILE: give that, too")
        if experiment is None or (first := experiment.first_data_file) is None:
            raise StartError(f"give a device's data: --data FILE, or files in [data] of {experiment_file}")
        self.from_experiment.append(f"data {first}")
        return experiment.read_dataset(first)


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
        _print_note(f"From experiment.toml: {', '.join(trial.from_experiment)}")
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
        _print_note(f"/out/{name}: {len(content)} bytes")
    if outcome.metrics:
        _print_note(_resources_used(outcome.metrics))
    if outcome.limit == "memory_bytes":
        _print_note(
            f"{MEMORY_SETTING}=BYTES gives a task more memory: here as on the device, whose owner sets it"
        )
    if error is not None:
        _print_note(f"error: {error}")
    return 0 if error is None else 1


def _passed(env: Mapping[str, str]) -> dict[str, str]:
    """Variables without those that Linux passes to no process, being too long: programs find what they hold in files, too."""
    return {
        name: value for name, value in env.items() if len(f"{name}={value}".encode()) < _MAX_VARIABLE_BYTES
    }


def _as_tensors(model: Mapping[str, Any]) -> Tensors:
    """Arrays as they are, numbers and lists as JSON has them."""
    lists = {name: value for name, value in model.items() if not hasattr(value, "__array__")}
    return {
        **(from_json(lists) if lists else {}),
        **{name: value for name, value in model.items() if name not in lists},
    }


class TrialState:
    """Device state of one run. Use with ``with``; ``keep`` takes what the run left for the next one.

    It is in a folder that a trial made, known by a file in it: it is replaced as a whole, which would be bad for any other.
    """

    def __init__(self, cache: Path, kept: Path | None, *, changes: bool) -> None:
        """Args: cache: has the sandbox's folder; kept: the user's folder; changes: whether the run may change it.

        Raises:
            StartError: the folder is none, or holds something else.
        """
        if kept is not None and kept.exists():
            _check_is_of_trials(kept)
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._kept = kept
        self._temporary = tempfile.TemporaryDirectory(dir=cache, prefix="try-")
        left = Path(self._temporary.name) / "left"
        source = None if kept is None else kept / _KEPT
        self.folder = StateFolder(source if source and source.is_dir() else None, left if changes else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def keep(self) -> None:
        """Keep what the run left, if the user gave a folder for it and the run left something."""
        left = self.folder.target
        if self._kept is None or left is None or not left.exists():
            return
        self._kept.mkdir(parents=True, exist_ok=True)
        (self._kept / _MARKER).write_text("Device state of `propeller try`, replaced by each run.\n")
        new, old, place = (self._kept / name for name in (f"{_KEPT}.new", f"{_KEPT}.old", _KEPT))
        for folder in (new, old):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(left, new)
        if place.exists():
            place.rename(old)
        new.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def _check_is_of_trials(folder: Path) -> None:
    if not folder.is_dir():
        raise StartError(f"--device-state {folder}: it is not a folder")
    if any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise StartError(
            f"--device-state {folder}: it holds something else than the device state of trials; give an empty folder or a new one"
        )


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
                _print_note,
                f"{program} has run for {_TOLD_AFTER_S:g} s. The limit wall_time_s (--wall-time, or limits in {_EXPERIMENT_FILE}) "
                f"ends it after {limits.wall_time_s:g} s, Ctrl-C at once.",
            )
            try:
                return await sandbox.run(run, on_stderr=_print_note)
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


def _part_of(dataset: str, split: Mapping[str, Any], mode: str, named: str) -> str:
    """What a device would give its program of a dataset that is split; ``named`` is what errors call the split."""
    try:
        content, samples = split_dataset(dataset.encode(), json.dumps(split), evaluates=mode == EVALUATE)
    except (ValueError, MalformedMessageError) as error:
        raise StartError(f"{named}: {error}") from None
    _print_note(f"{samples} samples {'are held out' if mode == EVALUATE else 'to train on'}")
    return content.decode()


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
    print(escape_line(line), file=sys.stderr)
