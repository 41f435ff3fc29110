"""The commands ``propeller model …``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from propeller.cli.options import JsonOption, for_stack

if TYPE_CHECKING:
    from propeller.cli.connection import Target

commands = typer.Typer(
    name="model",
    help="Show, compare, name, verify, export and import model versions.",
    no_args_is_help=True,
)

VersionArgument = Annotated[
    str,
    typer.Argument(
        metavar="VERSION",
        help="A number, 'latest', or an alias, as production or EXPERIMENT/best with an id or a name.",
    ),
]


@commands.command("list")
@for_stack
def list_models(
    experiment: Annotated[
        str | None,
        typer.Option(metavar="ID", help="Only those of this experiment, or of the newest of this name."),
    ] = None,
    strategy: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only those made by this strategy.")
    ] = None,
    alias: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only the one that this alias stands for.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many.")] = 20,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """List the newest model versions."""
    from propeller.cli.models import show_list

    show_list(target, experiment=experiment, strategy=strategy, alias=alias, limit=limit, as_json=as_json)


@commands.command()
@for_stack
def show(
    version: VersionArgument,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Show where a version comes from, and its tensors."""
    from propeller.cli.models import show_model

    show_model(target, version, as_json=as_json)


@commands.command()
@for_stack
def diff(
    first: VersionArgument,
    second: VersionArgument,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Show how the second version differs from the first, tensor by tensor."""
    from propeller.cli.models import show_diff

    show_diff(target, first, second, as_json=as_json)


@commands.command()
@for_stack
def export(
    version: VersionArgument,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.safetensors, FILE.npz or FILE.json.")],
    *,
    target: "Target",
) -> None:
    """Write a version to a file, in the encoding of the file's name."""
    from propeller.cli.models import export_model

    export_model(target, version, file)


@commands.command("import")
@for_stack
def import_model(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="FILE.safetensors, FILE.npz or FILE.json.")],
    version: Annotated[
        int | None, typer.Option(metavar="NUMBER", min=0, help="Its number; default: the next one.")
    ] = None,
    lineage: Annotated[
        str | None,
        typer.Option(
            metavar="JSON",
            help="Where it comes from, or a file of it; default: what a .safetensors says itself.",
        ),
    ] = None,
    *,
    target: "Target",
) -> None:
    """Store a file as a version."""
    from propeller.cli.models import load_model, read_lineage

    load_model(target, file, version=version, lineage=None if lineage is None else read_lineage(lineage))


@commands.command()
@for_stack
def alias(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="NAME or EXPERIMENT/NAME; all are listed without it.")
    ] = None,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="The version that it stands for from now on.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Forget the alias.")] = False,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Give a version a name, forget a name, or list the names."""
    from propeller.cli.models import change_alias, show_aliases

    if name is None and not delete:
        show_aliases(target, as_json=as_json)
        return
    if name is None:
        raise typer.BadParameter("needs the NAME of an alias", param_hint="--delete")
    if delete == (version is not None):
        raise typer.BadParameter("give NAME VERSION, or --delete NAME", param_hint="VERSION")
    change_alias(target, name, version)


@commands.command()
@for_stack
def verify(
    version: VersionArgument,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Compute a version again from the kept updates of its round, and compare it bit for bit."""
    from propeller.cli.models import verify_model

    raise typer.Exit(verify_model(target, version, as_json=as_json))
