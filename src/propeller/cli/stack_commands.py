"""``propeller up`` and the other commands about a stack: to start it, to join it, to look after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from propeller.cli.options import (
    DEFAULT_STATE,
    JsonOption,
    StateOption,
    for_stack,
)

if TYPE_CHECKING:
    from propeller.cli.connection import Target


NativePythonOption = Annotated[
    Path | None,
    typer.Option(
        "--native-python",
        metavar="PYTHON",
        help="Run native programs of the stack's registry with this interpreter and its libraries.",
    ),
]


def demo(
    rounds: Annotated[int, typer.Option(min=1, max=200, help="How many federated rounds to run.")] = 10,
    state: StateOption = Path(".propeller/demo"),
) -> None:
    """Train a classifier across three hospitals that do not share their records, and compare."""
    from propeller.cli.demo import run_demo

    raise typer.Exit(run_demo(state, rounds))


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


@for_stack
def login(*, target: "Target") -> None:
    """Log in to a stack elsewhere (--url and --user); commands that name no stack are then about it."""
    from propeller.cli.login import log_in

    log_in(target)


def logout() -> None:
    """End the login of 'propeller login'."""
    from propeller.cli.login import log_out

    log_out()


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


@for_stack
def status(as_json: JsonOption = False, *, target: "Target") -> None:
    """Show services, proplets, rounds and model versions of a running stack."""
    from propeller.cli.status import show_status

    raise typer.Exit(show_status(target, as_json=as_json))


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


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An archive of 'propeller backup'.")],
    state: StateOption = DEFAULT_STATE,
) -> None:
    """Make a state folder of a backup, for 'propeller up'."""
    from propeller.stack.backup import restore as restore_backup

    count = restore_backup(file, state)
    print(f"Restored {count} files to {state}. Start the stack: propeller up --state {state}")


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
