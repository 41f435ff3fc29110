"""The commands of someone who writes programs: new, build, try and run."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from propeller.process.run import StartError

DEFAULT_STATE = Path(".propeller")


def add_to(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(new)
    app.command()(build)
    app.command("try")(try_program)
    app.command()(run)


def new(folder: Annotated[Path, typer.Argument(metavar="NAME", help="The folder to make.")]) -> None:
    """Make a project: a training program in Python, an experiment, and a little data."""
    from propeller.cli.new import run_new

    run_new(folder)


def build(
    script: Annotated[
        Path, typer.Argument(metavar="SCRIPT.py", help="Marks a function with @train of propeller.program.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: SCRIPT.wasm.")
    ] = None,
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Tensors in plain Python: slow, and it runs on any WASI 0.2 runtime."),
    ] = False,
) -> None:
    """Build a Python script into a Wasm program."""
    from propeller.cli.build import run_build

    run_build(script, output, host_tensors=not plain)


def try_program(
    program: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .wasm, run in the sandbox, or a .py, run as it is.")
    ],
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON or safetensors; default: the experiment's.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON; default: the experiment's first file.")
    ] = None,
    hyperparams: Annotated[
        str | None, typer.Option(metavar="JSON", help="Default: the experiment's.")
    ] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Evaluate instead of training.")] = False,
    wall_time: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.01, help="The limit of its time.")
    ] = 300,
) -> None:
    """Run a program once on this machine, as a proplet would, and print its update.

    What is not given is taken from experiment.toml beside the program.
    """
    from propeller.cli.trial import Asked
    from propeller.cli.try_ import run_try
    from propeller.wasm.job import Limits

    asked = Asked(
        model,
        data,
        None if hyperparams is None else _object("--hyperparams", hyperparams),
        "evaluate" if evaluate else "train",
    )
    code = run_try(program, asked, Limits(wall_time_s=wall_time))
    raise typer.Exit(code)


def run(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="What to run.")],
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="The folder that holds the stack's state.")
    ] = DEFAULT_STATE,
    image: Annotated[
        str | None, typer.Option(metavar="REF", help="The program, in the place of the file's.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="How many rounds, in the place of the file's.")
    ] = None,
) -> None:
    """Run the federated rounds of an experiment file on a running stack."""
    from propeller.cli.run import run_experiment

    run_experiment(experiment, state, image=image, rounds=rounds)


def _object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StartError(f"{option}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise StartError(f"{option}: give a JSON object")
    return value
