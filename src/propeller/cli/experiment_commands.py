"""The commands ``propeller experiments``, ``propeller experiment …`` and ``propeller strategies``."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from propeller.cli.options import JsonOption, for_stack

if TYPE_CHECKING:
    from propeller.cli.connection import Target

commands = typer.Typer(
    name="experiment",
    help="Show, compare, follow, pause, resume and stop experiments.",
    no_args_is_help=True,
)

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The experiment's id, or its name: the newest of that name.")
]
IdsArgument = Annotated[list[str], typer.Argument(metavar="ID…", help="The experiments' ids or names.")]


@for_stack
def experiments(
    only: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only those that are running, completed …")
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this name.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """List the newest experiments."""
    from propeller.cli.experiments import list_experiments

    list_experiments(target, only=only, name=name, limit=limit, as_json=as_json)


@for_stack
def strategies(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="One, with its parameters.")] = None,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """List the strategies that an experiment can name, or show one with its parameters."""
    from propeller.cli.strategies import show_strategies

    show_strategies(target, name, as_json=as_json)


@commands.command()
@for_stack
def show(
    experiment: IdArgument,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Show how an experiment stands, what was asked for, and the round that runs."""
    from propeller.cli.experiments import show_experiment

    show_experiment(target, experiment, as_json=as_json)


@commands.command()
@for_stack
def history(
    experiment: IdArgument,
    devices: Annotated[
        bool,
        typer.Option("--devices", help="A line for each device that took part in a round, with its metrics."),
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row a participant and round.")] = False,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Show every round of an experiment, with metrics and failures."""
    from propeller.cli.experiments import show_history

    if as_csv and as_json:
        raise typer.BadParameter("cannot be used with --json", param_hint="--csv")
    if devices and (as_csv or as_json):
        raise typer.BadParameter("CSV and JSON have every device anyway", param_hint="--devices")
    form: Literal["table", "csv", "json"] = "csv" if as_csv else "json" if as_json else "table"
    show_history(target, experiment, form=form, devices=devices)


@commands.command()
@for_stack
def compare(
    experiments: IdsArgument,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Only this metric.")] = None,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Show the metrics of several experiments side by side, round by round."""
    from propeller.cli.experiments import compare_experiments

    compare_experiments(target, experiments, metric=metric, as_json=as_json)


@commands.command()
@for_stack
def follow(
    experiment: IdArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
    *,
    target: "Target",
) -> None:
    """Show an experiment as it runs, from its beginning; Ctrl-C leaves it running."""
    from propeller.cli.experiments import follow_experiment

    follow_experiment(target, experiment, as_json=as_json)


@commands.command()
@for_stack
def pause(
    experiments: IdsArgument,
    *,
    target: "Target",
) -> None:
    """Let the round that runs end, and start no other."""
    from propeller.cli.experiments import steer_experiments

    steer_experiments(target, experiments, "pause")


@commands.command()
@for_stack
def resume(
    experiments: IdsArgument,
    *,
    target: "Target",
) -> None:
    """Go on with paused experiments."""
    from propeller.cli.experiments import steer_experiments

    steer_experiments(target, experiments, "resume")


@commands.command()
@for_stack
def stop(
    experiments: IdsArgument,
    *,
    target: "Target",
) -> None:
    """End experiments: the round that runs is cancelled, model versions stay."""
    from propeller.cli.experiments import steer_experiments

    steer_experiments(target, experiments, "stop")
