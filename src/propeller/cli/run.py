"""``propeller run``: the rounds of an experiment file, one after another, on a running stack."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from propeller.cli.experiment import ExperimentFile
from propeller.process.run import StartError
from propeller.sdk import Propeller, PropellerError, RoundResult


def run_experiment(file: Path, state: Path, *, image: str | None, rounds: int | None) -> None:
    """Hand out data, store the first model, run every round, and show what each gave.

    Args:
        file: the experiment.
        state: of the stack.
        image: in the place of the file's.
        rounds: in the place of the file's.

    Raises:
        StartError: a field is wrong, or a round failed; the text has the reason.
    """
    experiment = ExperimentFile.load(file)
    if rounds is not None:
        experiment.rounds = rounds
    if image is not None:
        experiment.image = image
    console = Console(highlight=False)
    try:
        with Propeller.from_state(state) as fl:
            _run(fl, experiment, file.parent, console)
    except PropellerError as error:
        raise StartError(str(error)) from None


def _run(fl: Propeller, experiment: ExperimentFile, folder: Path, console: Console) -> None:
    participants = experiment.participants or sorted(p["id"] for p in fl.proplets(alive=True))
    if not participants:
        raise StartError("no proplet is alive: see `propeller status`")
    datasets, model = experiment.datasets(folder), experiment.first_model(folder)
    if datasets and len(datasets) != len(participants):
        raise StartError(
            f"data.files has {len(datasets)} files for {len(participants)} participants; "
            "give one for each, or name the participants"
        )
    for proplet, dataset in zip(participants, datasets, strict=False):
        fl.put_dataset(proplet, dataset)
    version = experiment.model.version if model is None else fl.put_model(model)
    base = version if version is not None else fl.latest()
    console.print(
        f"{escape(experiment.image)}: {experiment.rounds} rounds on {len(participants)} proplets, from model v{base}",
        soft_wrap=True,
    )
    for number in range(1, experiment.rounds + 1):
        first = " (the program is fetched and compiled first)" if number == 1 else ""
        with console.status(f"round {number}: no updates yet{first} …") as waiting:
            result = fl.run_round(
                experiment.image,
                participants=participants,
                hyperparams=experiment.hyperparams,
                limits=experiment.limits,
                base_version=base,
                k_of_n=experiment.k_of_n,
                timeout_s=experiment.timeout_s,
                on_update=lambda got, wanted: waiting.update(f"round {number}: {got} of {wanted} updates …"),  # noqa: B023
            )
        base = result.model_version
        console.print(_line(number, result, len(participants)), soft_wrap=True)
    console.print(f"Model v{base} is at {fl.url('model_registry')}/models/{base}", soft_wrap=True)


def _line(number: int, result: RoundResult, participants: int) -> str:
    names: dict[str, Any] = dict.fromkeys(name for update in result.updates for name in update["metrics"])
    means = "  ".join(f"{name} {mean:.4f}" for name in names if (mean := result.mean(name)) is not None)
    return (
        f"  round {number:>2}  updates {len(result.updates)}/{participants}  {escape(means)}  "
        f"[dim]v{result.model_version}, {_duration(result.seconds)}, {result.round_id}[/]"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"
