"""The commands; each is a few lines that call what does the work, imported when it is asked for."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propeller import __version__
from propeller.cli import audit, certs, device, experiment_commands, model, round_commands, signature, user
from propeller.cli.options import (
    DEFAULT_STATE,
    JsonOption,
    PasswordOption,
    PlainHttpOption,
    RegistryStateOption,
    RegistryUrlOption,
    StateOption,
    UsernameOption,
    for_stack,
)
from propeller.errors import StartError

if TYPE_CHECKING:
    from propeller.cli.connection import Target


class TryMode(StrEnum):
    """What a program is asked to do in a trial."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    AGGREGATE = "aggregate"


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


NativePythonOption = Annotated[
    Path | None,
    typer.Option(
        "--native-python",
        metavar="PYTHON",
        help="Run native programs of the stack's registry with this interpreter and its libraries.",
    ),
]


@app.command()
def demo(
    rounds: Annotated[int, typer.Option(min=1, max=200, help="How many federated rounds to run.")] = 10,
    state: StateOption = Path(".propeller/demo"),
) -> None:
    """Train a classifier across three hospitals that do not share their records, and compare."""
    from propeller.cli.demo import run_demo

    raise typer.Exit(run_demo(state, rounds))


@app.command()
def up(
    state: StateOption = DEFAULT_STATE,
    ports: Annotated[
        str, typer.Option(help="'guide' for the guide's ports, 'auto' for free ones.")
    ] = "guide",
    proplets: Annotated[int, typer.Option(min=0, max=200, help="How many proplets to run.")] = 3,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="TAG=NAME,…",
            help="A tag of some proplets, as hospital=proplet-1,proplet-2; repeatable.",
        ),
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    open_access: Annotated[
        bool,
        typer.Option("--open", help="Let every user of this machine use the services, without credentials."),
    ] = False,
    host: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|ADDRESS",
            help="Be reached over the network by this name, with TLS; without it the stack is for this machine.",
        ),
    ] = None,
    native_python: NativePythonOption = None,
) -> None:
    """Run every service and some proplets on this machine until Ctrl-C."""
    from propeller.cli.up import run_up, tags_by_device

    if ports not in {"guide", "auto"}:
        raise typer.BadParameter("must be 'guide' or 'auto'", param_hint="--ports")
    if log_level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter("must be debug, info, warning or error", param_hint="--log-level")
    try:
        by_device = tags_by_device(tags or (), proplets)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--tag") from None
    raise typer.Exit(
        run_up(
            state,
            auto_ports=ports == "auto",
            proplets=proplets,
            log_level=log_level,
            tags=by_device,
            open_access=open_access,
            host=host,
            native_python=native_python,
        )
    )


@app.command()
def serve(
    service: Annotated[str, typer.Argument(help="The service's name; an unknown name lists all.")],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow listening beyond loopback without authentication.")
    ] = False,
    log_file: Annotated[
        Path | None, typer.Option(help="Append the log here instead of standard error.")
    ] = None,
) -> None:
    """Run one service, configured by its environment variables (docs/reference.md)."""
    from propeller.stack.serve import serve as serve_service

    raise typer.Exit(serve_service(service, log_file=log_file, insecure=insecure))


@app.command()
@for_stack
def login(*, target: "Target") -> None:
    """Log in to a stack elsewhere (--url and --user); commands that name no stack are then about it."""
    from propeller.cli.login import log_in

    log_in(target)


@app.command()
def logout() -> None:
    """End the login of 'propeller login'."""
    from propeller.cli.login import log_out

    log_out()


@app.command()
def join(
    token: Annotated[
        str | None,
        typer.Argument(
            metavar="TOKEN",
            help="Of 'propeller device add'; leave it out to go on as a device that has joined.",
        ),
    ] = None,
    state: Annotated[
        Path, typer.Option("--state", metavar="DIR", help="The folder that keeps the device's identity.")
    ] = Path(".propeller-device"),
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Its own data, which stays on it: CSV, JSON, npz, safetensors, Parquet, or a folder of these.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN", help="Of a table, the column with labels (default: y, label, target or class)."
        ),
    ] = None,
    native_python: NativePythonOption = None,
) -> None:
    """Make this machine a device of a stack elsewhere, and run it until Ctrl-C."""
    from propeller.cli.join import run_join

    run_join(token, state, data, label, native_python)


@app.command()
def provision(
    action: Annotated[
        str | None, typer.Argument(metavar="clear", help="'clear': empty the variables instead.")
    ] = None,
    env_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The .env file (default: deploy/.env where deploy/ is, else .env)."
        ),
    ] = None,
    rotate: Annotated[bool, typer.Option("--rotate", help="Give every client a new key.")] = False,
    identity_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Address of identity (default: http://localhost:9002).")
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option("--state", metavar="DIR", help="Use the identity and keys of this running stack."),
    ] = None,
    compat: Annotated[
        list[str] | None,
        typer.Option(
            "--compat", metavar="NAME", help="This proplet is one of absmach/propeller; may be repeated."
        ),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for identity.")] = 30.0,
) -> None:
    """Create the guide's domain, channel and clients, and write their ids and keys to an .env file."""
    from propeller.cli.provision import run_clear, run_provision
    from propeller.stack.env_file import GUIDE_PROPLETS, default_env_file

    if unknown := sorted({*(compat or ())} - {*GUIDE_PROPLETS}):
        raise typer.BadParameter(
            f"{unknown[0]!r} is not one of {', '.join(GUIDE_PROPLETS)}", param_hint="--compat"
        )
    if action not in {None, "clear"}:
        raise typer.BadParameter("must be 'clear' or left out", param_hint="clear")
    if state and (identity_url or rotate):
        raise typer.BadParameter(
            "cannot be used with --identity-url or --rotate: a running stack manages its own keys",
            param_hint="--state",
        )
    if action and (rotate or state or identity_url or compat):
        raise typer.BadParameter("cannot be used with options other than --env-file", param_hint="clear")
    path = env_file or default_env_file()
    if action:
        run_clear(path)
    else:
        run_provision(path, identity_url, state, rotate=rotate, wait_s=wait, compat=compat or ())


@app.command()
def push(
    file: Annotated[Path, typer.Argument(help="A Wasm file.")],
    reference: Annotated[str, typer.Argument(metavar="REF", help="Destination: registry/name:tag.")],
    username: UsernameOption = None,
    password_stdin: PasswordOption = False,
    plain_http: PlainHttpOption = False,
    state: RegistryStateOption = DEFAULT_STATE,
    url: RegistryUrlOption = None,
    sign: Annotated[
        Path | None,
        typer.Option(metavar="KEY", help="Sign it with this private key, as 'propeller signature add' does."),
    ] = None,
    prefetch: Annotated[
        bool,
        typer.Option("--prefetch", help="Then have every device fetch and compile it, and wait for that."),
    ] = False,
) -> None:
    """Push a program to an OCI registry, as 'oras push REF FILE:application/wasm' does."""
    from propeller.cli.artifacts import run_push
    from propeller.cli.connection import Target

    run_push(
        file,
        reference,
        username=username,
        password_stdin=password_stdin,
        plain_http=plain_http,
        target=Target(state, (url,) if url else ()),
        key_file=sign,
        prefetch=prefetch,
    )


@app.command()
def pull(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="Source: registry/name:tag or name@sha256:….")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write (default: NAME.wasm).")
    ] = None,
    username: UsernameOption = None,
    password_stdin: PasswordOption = False,
    plain_http: PlainHttpOption = False,
    state: RegistryStateOption = DEFAULT_STATE,
    url: RegistryUrlOption = None,
) -> None:
    """Pull a program from an OCI registry and check its digest."""
    from propeller.cli.artifacts import run_pull
    from propeller.cli.connection import Target

    run_pull(
        reference,
        output,
        username=username,
        password_stdin=password_stdin,
        plain_http=plain_http,
        target=Target(state, (url,) if url else ()),
    )


@app.command()
@for_stack
def status(as_json: JsonOption = False, *, target: "Target") -> None:
    """Show services, proplets, rounds and model versions of a running stack."""
    from propeller.cli.status import show_status

    raise typer.Exit(show_status(target, as_json=as_json))


@app.command()
def backup(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="The archive (default: propeller-DATE-TIME.tar.zst)."),
    ] = None,
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Save a stack's state; the stack may run, and stands still for a moment."""
    from datetime import UTC, datetime

    from propeller.stack.backup import back_up

    saved = back_up(state, file or Path(f"propeller-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.zst"))
    stood = (
        "" if saved.stopped_s is None else f"; the services stood still for {saved.stopped_s * 1000:.0f} ms"
    )
    print(f"Saved {saved.files} files, {saved.bytes / 1e6:.1f} MB, in {saved.file}{stood}")
    print("It has all keys and data of the stack: keep it where nobody else reads it.")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of 'propeller backup'.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Make a state folder of a backup, for 'propeller up'."""
    from propeller.stack.backup import restore as restore_backup

    count = restore_backup(file, state)
    print(f"Restored {count} files to {state}. Start the stack: propeller up --state {state}")


@app.command()
@for_stack
def logs(
    round_id: Annotated[
        str | None, typer.Option("--round", metavar="ID", help="Only lines of this round.")
    ] = None,
    service: Annotated[
        list[str] | None,
        typer.Option(
            "--service", metavar="NAME", help="Only this service (proplet: all of them); repeatable."
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines.")] = False,
    level: Annotated[
        str, typer.Option(metavar="LEVEL", help="Only lines of debug, info, warning or error, and above.")
    ] = "debug",
    last: Annotated[int | None, typer.Option("--last", min=1, help="Only so many, the newest.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the lines as they were written.")] = False,
    *,
    target: "Target",
) -> None:
    """Show the logs of a stack, merged by time; of one elsewhere what its services remember."""
    from propeller.cli.logs import Wanted, show_logs

    if level not in {"debug", "info", "warning", "error"}:
        raise typer.BadParameter("must be debug, info, warning or error", param_hint="--level")
    show_logs(target, service or [], Wanted(round_id, level, last), follow=follow, as_json=as_json)


@app.command()
@for_stack
def doctor(
    env_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Check the stack whose ids and keys are in this .env file."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="HOST", help="With --env-file: the host of that stack.")
    ] = "localhost",
    image: Annotated[
        str | None, typer.Option(metavar="REF", help="The program that the proxy must be able to fetch.")
    ] = None,
    participants: Annotated[
        str | None, typer.Option(metavar="ID,…", help="Check these participants.")
    ] = None,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Check a stack as the guide's troubleshooting does, and print a fix for each problem; of one elsewhere what can be seen of it."""
    from propeller.cli.doctor import run_doctor

    if env_file and (target.state != DEFAULT_STATE or target.urls):
        raise typer.BadParameter("cannot be used with --state or --url", param_hint="--env-file")
    if image and not env_file and target.is_remote:
        raise typer.BadParameter("is asked of the proxy, on the stack's machine", param_hint="--image")
    raise typer.Exit(
        run_doctor(target, env_file, host, image=image, participants=participants, as_json=as_json)
    )


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(metavar="NAME", help="The folder to create.")],
    template: Annotated[
        str, typer.Option("--template", metavar="KIND", help="linear, mlp, cnn, text, tabular or native.")
    ] = "linear",
) -> None:
    """Create a project: a training program in Python, an experiment, and a little data."""
    from propeller.cli.project import run_new

    run_new(folder, template)


@app.command()
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


@app.command("try")
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
    from propeller.cli.try_program import TrialInputs, run_try
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


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StartError(f"{option}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise StartError(f"{option}: give a JSON object")
    return value
