"""``propeller round …``: rounds that are of no experiment of many rounds."""

from typing import TYPE_CHECKING, Annotated

import typer

from propeller.cli.options import for_stack

if TYPE_CHECKING:
    from propeller.cli.connection import Target

commands = typer.Typer(
    name="round",
    help="Cancel and retry rounds by themselves; those of an experiment follow that.",
    no_args_is_help=True,
)

IdsArgument = Annotated[list[str], typer.Argument(metavar="ID…", help="The rounds' ids.")]


@commands.command()
@for_stack
def cancel(rounds: IdsArgument, *, target: "Target") -> None:
    """End open rounds: their tasks are stopped, and the updates that came are kept for a while."""
    with target.connect() as fl:
        for one in rounds:
            fl.cancel_round(one)
            print(f"{one} is cancelled")


@commands.command()
@for_stack
def retry(rounds: IdsArgument, *, target: "Target") -> None:
    """Aggregate the updates of failed or cancelled rounds after all."""
    with target.connect() as fl:
        for one in rounds:
            fl.retry_round(one)
            print(f"{one} is aggregated again")
