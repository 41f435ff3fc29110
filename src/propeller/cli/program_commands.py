"""``propeller try`` and the other commands about a program: to begin, to build, to try and to push one."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propeller.cli.options import for_registry
from propeller.errors import StartError

if TYPE_CHECKING:
    from propeller.cli.registry_access import RegistryAccess


class TryMode(StrEnum):
    """What a program is asked to do in a trial."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    AGGREGATE = "aggregate"


@for_registry
def push(
    file: Annotated[Path, typer.Argument(help="A Wasm file.")],
    reference: Annotated[str, typer.Argument(metavar="REF", help="Destination: registry/name:tag.")],
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Sign it with this private key, as 'propeller signature add' does."),
    ] = None,
    prefetch: Annotated[
        bool,
        typer.Option("--prefetch", help="Then have every device fetch and compile it, and wait for that."),
    ] = False,
    *,
    access: "RegistryAccess",
) -> None:
    """Push a program to an OCI registry, as 'oras push REF FILE:application/wasm' does."""
    from propeller.cli.artifacts import run_push

    run_push(file, reference, access, key_file=sign, prefetch=prefetch)


@for_registry
def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="Source: registry/name:tag or name@sha256:….")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write (default: NAME.wasm).")
    ] = None,
    *,
    access: "RegistryAccess",
) -> None:
    """Pull a program from an OCI registry and check its digest."""
    from propeller.cli.artifacts import run_pull

    run_pull(reference, output, access)


def new(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="The folder to create.")],
    template: Annotated[
        str, typer.Option("--template", metavar="KIND", help="linear, mlp, cnn, text, tabular or native.")
    ] = "linear",
) -> None:
    """Create a project: a training program in Python, an experiment, and a little data."""
    from propeller.cli.project import run_new

    run_new(folder, template)


def build(
    script: Annotated[
        Path, typer.Argument(metavar="SCRIPT.py", help="A script with a function marked with @train.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: SCRIPT.wasm.")
    ] = None,
    standalone: Annotated[
        bool,
        typer.Option(
            "--standalone",
            help="One component with Python in it, of 20 MB, for what does not know the shared runtime.",
        ),
    ] = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="Standalone, and tensors in plain Python: slow, but runs on any WASI 0.2 runtime."
        ),
    ] = False,
) -> None:
    """Build a Python script into a Wasm program."""
    from propeller.cli.project import run_build

    run_build(script, output, standalone=standalone, host_tensors=not plain)


def try_program(
    program: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .wasm file, or a native program, run in the sandbox, or another .py file, run as plain Python.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A .safetensors, .npz, .json or .pt file, or a script with @initial_model; default: the experiment's.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="A device's data, as 'propeller join' takes it; default: the experiment's first.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Of a table in --data, the column with labels (default: y, label, target or class).",
        ),
    ] = None,
    hyperparams: Annotated[
        str | None, typer.Option(metavar="JSON", help="Those that are to differ from the experiment's.")
    ] = None,
    mode: Annotated[TryMode, typer.Option(help="What the program is asked to do.")] = TryMode.TRAIN,
    strategy: Annotated[
        str | None,
        typer.Option(metavar="NAME|JSON", help='As in an experiment: {"name": "fedprox", "mu": 0.1}.'),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="JSON", help='Hold data out: {"holdout": 0.2, "seed": 0}.')
    ] = None,
    updates: Annotated[
        list[Path] | None,
        typer.Option(
            "--update", metavar="FILE", help="To aggregate: what a trial of training printed; several times."
        ),
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option(
            "--device-state", metavar="DIR", help="Keep device state here, for the next run; default: none."
        ),
    ] = None,
    wall_time: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.01,
            max=604_800,
            help="Time limit, a week at most; default: 300 in the sandbox, none as plain Python.",
        ),
    ] = None,
) -> None:
    """Run a program once on this machine, as a proplet would, and print its update.

    Options left out are taken from experiment.toml beside the program. A strategy that is a program (--mode aggregate) gets the
    updates of --update, and --hyperparams as its parameters.
    """
    from propeller.cli.trial import TrialInputs
    from propeller.cli.try_program import run_try
    from propeller.wasm.program_run import Limits

    inputs = TrialInputs(
        model,
        data,
        None if hyperparams is None else _json_object("--hyperparams", hyperparams),
        mode.value,
        _json_object("--strategy", strategy) if strategy and strategy.lstrip().startswith("{") else strategy,
        None if split is None else _json_object("--split", split),
        kept,
        tuple(updates or ()),
        label,
    )
    code = run_try(program, inputs, None if wall_time is None else Limits(wall_time_s=wall_time))
    raise typer.Exit(code)


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StartError(f"{option}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise StartError(f"{option}: give a JSON object")
    return value
