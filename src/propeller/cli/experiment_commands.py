"""The commands ``propeller experiments`` and ``propeller experiment …``."""

from typing import Annotated, Literal

import typer

from propeller.cli.options import DEFAULT_STATE, JsonOption, StateOption, UrlOption, UserOption

commands = typer.Typer(
    name="experiment",
    help="Show, compare, follow, pause, resume and stop experiments.",
    no_args_is_help=True,
)

IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The experiment's id, or its name: the newest of that name.")
]
IdsArgument = Annotated[list[str], typer.Argument(metavar="ID…", help="The experiments' ids or names.")]


def experiments(
    only: Annotated[
        str | None, typer.Option(metavar="STATE", help="Only those that are running, completed …")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """List the newest experiments."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import list_experiments

    list_experiments(Target(state, url, user), only=only, limit=limit, as_json=as_json)


@commands.command()
def show(
    experiment: IdArgument,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """Show how an experiment stands, what was asked for, and the round that runs."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import show_experiment

    show_experiment(Target(state, url, user), experiment, as_json=as_json)


@commands.command()
def history(
    experiment: IdArgument,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, a row a participant and round.")] = False,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """Show every round of an experiment, with metrics and failures."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import show_history

    if as_csv and as_json:
        raise typer.BadParameter("cannot be used with --json", param_hint="--csv")
    form: Literal["table", "csv", "json"] = "csv" if as_csv else "json" if as_json else "table"
    show_history(Target(state, url, user), experiment, form=form)


@commands.command()
def compare(
    experiments: IdsArgument,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Only this metric.")] = None,
    as_json: JsonOption = False,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """Show the metrics of several experiments side by side, round by round."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import compare_experiments

    compare_experiments(Target(state, url, user), experiments, metric=metric, as_json=as_json)


@commands.command()
def follow(
    experiment: IdArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """Show an experiment as it runs, from its beginning; Ctrl-C leaves it running."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import follow_experiment

    follow_experiment(Target(state, url, user), experiment, as_json=as_json)


@commands.command()
def pause(
    experiments: IdsArgument,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """Let the round that runs end, and start no other."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import steer_experiments

    steer_experiments(Target(state, url, user), experiments, "pause")


@commands.command()
def resume(
    experiments: IdsArgument,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """Go on with paused experiments."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import steer_experiments

    steer_experiments(Target(state, url, user), experiments, "resume")


@commands.command()
def stop(
    experiments: IdsArgument,
    state: StateOption = DEFAULT_STATE,
    url: UrlOption = None,
    user: UserOption = None,
) -> None:
    """End experiments: the round that runs is cancelled, model versions stay."""
    from propeller.cli.connection import Target
    from propeller.cli.experiments import steer_experiments

    steer_experiments(Target(state, url, user), experiments, "stop")
