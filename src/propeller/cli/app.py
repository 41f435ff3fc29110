"""The commands; each is a few lines that call what does the work, imported when it is asked for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from propeller import __version__
from propeller.cli import (
    audit,
    certs,
    device,
    experiment_commands,
    model,
    program_commands,
    round_commands,
    signature,
    stack_commands,
    user,
)
from propeller.cli.options import (
    JsonOption,
    for_stack,
)

if TYPE_CHECKING:
    from propeller.cli.connection import Target


app = typer.Typer(
    name="propeller",
    help="Federated learning on fleets of edge devices: Wasm programs, OCI delivery, MQTT.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"propeller {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Federated learning on fleets of edge devices: Wasm programs, OCI delivery, MQTT."""


# In the order in which --help shows them.
for _command in (
    stack_commands.demo,
    stack_commands.up,
    stack_commands.serve,
    stack_commands.login,
    stack_commands.logout,
    stack_commands.join,
    stack_commands.provision,
    program_commands.push,
    program_commands.pull,
    stack_commands.status,
    stack_commands.backup,
    stack_commands.restore,
    stack_commands.logs,
    stack_commands.doctor,
    program_commands.new,
    program_commands.build,
):
    app.command()(_command)
app.command("try")(program_commands.try_program)


@app.command()
@for_stack
def run(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Instead of the file's: lr=0.1, strategy.name=fedadam; repeatable.",
        ),
    ] = None,
    image: Annotated[
        str | None, typer.Option(metavar="REF", help="The program, instead of the file's.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many rounds, instead of the file's.")] = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Submit it and return.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as a line of JSON.")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict",
            help="Exit with 1 also if a device failed, or a round got fewer updates than asked for.",
        ),
    ] = False,
    prefetch: Annotated[
        bool,
        typer.Option("--prefetch", help="Before, have every device fetch and compile the program."),
    ] = False,
    *,
    target: "Target",
) -> None:
    """Run an experiment and show how it goes; Ctrl-C leaves it running."""
    from propeller.cli.run import run_experiment

    run_experiment(
        experiment,
        target,
        changes=changes or [],
        image=image,
        rounds=rounds,
        detach=detach,
        as_json=as_json,
        strict=strict,
        prefetch=prefetch,
    )


@app.command()
@for_stack
def statistics(
    columns: Annotated[
        list[str] | None,
        typer.Argument(metavar="COLUMN…", help="Columns of numbers: age, or x[3] for a place in lists."),
    ] = None,
    hitters: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="A column of texts or integers: its frequent values; repeatable."
        ),
    ] = None,
    bins: Annotated[int, typer.Option(min=0, max=100_000, help="Parts of the histogram; 0: none.")] = 32,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="COLUMN=LOW:HIGH",
            help="The histogram's range, else from min to max; repeatable.",
        ),
    ] = None,
    no_extremes: Annotated[
        bool,
        typer.Option(
            "--no-extremes", help="Do not ask for min and max, which are numbers of one record each."
        ),
    ] = False,
    min_devices: Annotated[int, typer.Option(min=1, help="Of fewer devices nothing is published.")] = 3,
    of: Annotated[
        str | None, typer.Option(metavar="ID", help="Show what this experiment has asked, instead of asking.")
    ] = None,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Ask all devices for statistics of their data: counts, means, histograms, frequent values."""
    from propeller.cli.statistics import Asked, show_statistics

    asked = Asked(columns or (), hitters or (), bins, not no_extremes, ranges or (), min_devices)
    show_statistics(target, asked, of, as_json=as_json)


@app.command()
def simulate(
    experiment: Annotated[Path, typer.Argument(metavar="EXPERIMENT.toml", help="The experiment file.")],
    clients: Annotated[int | None, typer.Option(min=1, help="How many clients there are.")] = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="What they hold: digits, mnist-5k, or a file or folder."),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="KIND|JSON", help='How it is divided: iid, \'{"kind": "dirichlet", "alpha": 0.1}\'.'
        ),
    ] = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|JSON",
            help='What they do: a trace in CSV, or \'{"seconds": 10, "drop_out": 0.1}\'.',
        ),
    ] = None,
    first_version: Annotated[
        int | None, typer.Option(min=0, help="The number of the model to start from.")
    ] = None,
    program: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|REF", help="The program, a .wasm, .py or reference, instead of the file's."
        ),
    ] = None,
    strategy_program: Annotated[
        str | None,
        typer.Option(metavar="FILE|REF", help="Likewise of a strategy that is a program."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Instead of the file's: lr=0.1; repeatable."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that run clients.")] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="The head of a Ray cluster, on whose nodes clients run."),
    ] = None,
    native_python: Annotated[
        Path | None,
        typer.Option(
            "--native-python",
            metavar="PYTHON",
            help="Run a native program with this interpreter and its libraries.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Write history, models and a plot here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the history as JSON.")] = False,
    labels: Annotated[
        bool, typer.Option("--labels", help="Only show how many samples of each class each client has.")
    ] = False,
) -> None:
    """Run an experiment with a virtual fleet on this machine: the same program, strategies and rounds."""
    from propeller.cli.simulate import Options, run_simulation

    given = Options(
        clients,
        data,
        partition,
        devices,
        first_version,
        program,
        strategy_program,
        workers,
        ray,
        native_python,
        out,
        as_json,
        labels,
    )
    run_simulation(experiment, given, changes or [])


app.command()(experiment_commands.experiments)
app.command()(experiment_commands.strategies)


app.add_typer(experiment_commands.commands)
app.add_typer(round_commands.commands)
app.add_typer(model.commands)
app.add_typer(user.commands)
app.add_typer(device.commands)
app.add_typer(certs.commands)
app.add_typer(audit.commands)
app.add_typer(signature.commands)
