"""Options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_STATE = Path(".propeller")

StateOption = Annotated[
    Path, typer.Option("--state", metavar="DIR", help="The folder that holds the stack's state.")
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="HOST", help="A stack elsewhere, as http://fleet.example, instead of --state."
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
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
