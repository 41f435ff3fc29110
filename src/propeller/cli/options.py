"""Options that several commands have."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_STATE = Path(".propeller")

StateOption = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="The folder that holds the stack's state.")
]
UrlOption = Annotated[
    list[str] | None,
    typer.Option(
        "--url",
        metavar="HOST|SERVICE=URL",
        help="A stack elsewhere instead of --state: its host, as http://fleet.example, or each service, as "
        "manager=https://fleet.example:7443; repeatable. Default: PROPELLER_URL, if it is set.",
    ),
]
UserOption = Annotated[
    str | None,
    typer.Option(
        "--user",
        metavar="NAME",
        help="With --url: the user; the password is PROPELLER_PASSWORD, or asked for.",
    ),
]
CaOption = Annotated[
    Path | None,
    typer.Option(
        "--ca",
        metavar="FILE",
        help="With --url: the certificate of the stack's own authority, ca.pem of 'propeller up --host'. Default: "
        "PROPELLER_CA_CERT, if it is set.",
    ),
]
UsernameOption = Annotated[
    str | None, typer.Option("--username", "-u", help="User name (default: the login that Docker stores).")
]
PasswordOption = Annotated[
    bool, typer.Option("--password-stdin", help="Read the password from standard input.")
]
PlainHttpOption = Annotated[bool, typer.Option("--plain-http", help="Use HTTP; on loopback always.")]
RegistryStateOption = Annotated[
    Path,
    typer.Option(
        "--state", metavar="DIR", help="The stack whose registry a reference without a registry is in."
    ),
]
RegistryUrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="HOST", help="The same, of a stack elsewhere. Default: PROPELLER_URL."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_STACK_OPTIONS = {
    "state": (StateOption, DEFAULT_STATE),
    "url": (UrlOption, None),
    "user": (UserOption, None),
    "ca": (CaOption, None),
}


def for_stack(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which stack it is about; it gets them as its argument ``target``, a ``Target``."""

    @functools.wraps(command)
    def run(*, state: Path, url: list[str] | None, user: str | None, ca: Path | None, **given: Any) -> None:
        from propeller.cli.connection import Target

        command(target=Target(state, tuple(url or ()), user, ca), **given)

    signature = inspect.signature(command)
    own = [one for name, one in signature.parameters.items() if name != "target"]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _STACK_OPTIONS.items()
    ]
    # What typer reads: as if the command had written them itself.
    vars(run)["__signature__"] = signature.replace(
        parameters=[*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *options]
    )
    run.__annotations__ = {one.name: one.annotation for one in [*own, *options]}
    return run
