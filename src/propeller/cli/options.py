"""Options that several commands have."""

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from propeller.cli.connection import Target
    from propeller.cli.registry_access import RegistryAccess

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
_REGISTRY_OPTIONS = {
    "username": (UsernameOption, None),
    "password_stdin": (PasswordOption, False),
    "plain_http": (PlainHttpOption, False),
    "state": (RegistryStateOption, DEFAULT_STATE),
    "url": (RegistryUrlOption, None),
}


def for_stack(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which stack it is about; it gets them as its argument ``target``, a ``Target``."""

    def target(*, state: Path, url: list[str] | None, user: str | None, ca: Path | None) -> "Target":
        from propeller.cli.connection import Target

        return Target(state, tuple(url or ()), user, ca)

    return _with_options(command, "target", _STACK_OPTIONS, target)


def for_registry(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how it reaches a registry; it gets them as its argument ``access``, a ``RegistryAccess``."""

    def access(
        *, username: str | None, password_stdin: bool, plain_http: bool, state: Path, url: str | None
    ) -> "RegistryAccess":
        from propeller.cli.connection import Target
        from propeller.cli.registry_access import RegistryAccess

        target = Target(state, (url,) if url else ())
        return RegistryAccess(target, username, password_stdin=password_stdin, plain_http=plain_http)

    return _with_options(command, "access", _REGISTRY_OPTIONS, access)


def _with_options(
    command: Callable[..., None],
    argument: str,
    options: Mapping[str, tuple[Any, Any]],
    make: Callable[..., Any],
) -> Callable[..., None]:
    """A command with further options, name → annotation and default: it gets what ``make`` makes of their values as one argument."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        values = {name: given.pop(name) for name in options}
        command(**given, **{argument: make(**values)})

    signature = inspect.signature(command)
    own = [one for name, one in signature.parameters.items() if name != argument]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]
    # What typer reads: as if the command had written them itself.
    vars(run)["__signature__"] = signature.replace(
        parameters=[*(one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own), *added]
    )
    run.__annotations__ = {one.name: one.annotation for one in [*own, *added]}
    return run
