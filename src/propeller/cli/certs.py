"""``propeller certs …``: a small certificate authority, for services that are reached over a network."""

import json
from pathlib import Path
from typing import Annotated

import typer

from propeller.cli.options import JsonOption

commands = typer.Typer(
    name="certs", help="Make and show certificates of a stack's own authority.", no_args_is_help=True
)

FolderOption = Annotated[
    Path, typer.Option("--folder", metavar="DIR", help="The folder of the authority and its certificates.")
]
DEFAULT_FOLDER = Path(".propeller/certs")


@commands.command()
def make(
    hosts: Annotated[
        list[str],
        typer.Argument(metavar="HOST…", help="Names and addresses that clients connect to."),
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="What the files are called: NAME.pem and NAME-key.pem.")
    ] = "server",
    folder: FolderOption = DEFAULT_FOLDER,
) -> None:
    """Make an authority if there is none, and a certificate of it for a server, unless a good one is there."""
    from propeller.process.certificates import Authority

    if not name.replace("-", "").replace("_", "").isalnum() or name == "ca" or name.endswith("-key"):
        raise typer.BadParameter(
            "letters, digits, - and _; not 'ca', nor '-key' at its end", param_hint="--name"
        )
    authority = Authority(folder)
    authority.ensure()
    cert, key = authority.ensure_server(name, hosts)
    print(
        f"A server shows  PROPELLER_TLS_CERT={cert}\n"
        f"                PROPELLER_TLS_KEY={key}  (the broker: BROKER_TLS_CERT, BROKER_TLS_KEY)\n"
        f"Clients believe PROPELLER_CA_CERT={authority.file}\n"
        "ca-key.pem signs for all of them: keep it to yourself."
    )


@commands.command()
def show(folder: FolderOption = DEFAULT_FOLDER, as_json: JsonOption = False) -> None:
    """Show the certificates in a folder: for whom, until when, and their fingerprints."""
    from propeller.cli.tables import Column, print_rows
    from propeller.cli.terminal import Terminal
    from propeller.errors import StartError
    from propeller.process.certificates import read_certificate
    from propeller.process.tls import WARN_DAYS

    files = [file for file in sorted(folder.glob("*.pem")) if not file.name.endswith("-key.pem")]
    if not files:
        raise StartError(f"{folder} has no certificates: make them with 'propeller certs make HOST'")
    found = [read_certificate(file) for file in files]
    if as_json:
        told = [
            {
                "file": str(one.file),
                "subject": one.subject,
                "issuer": one.issuer,
                "hosts": one.hosts,
                "not_after": one.not_after.isoformat(),
                "sha256": one.fingerprint,
            }
            for one in found
        ]
        print(json.dumps(told))
        return
    columns = (Column("file"), Column("for"), Column("until"), Column("days"), Column("sha256", spare=1))
    rows = [
        (
            one.file.name,
            ", ".join(one.hosts) or one.subject,
            f"{one.not_after:%Y-%m-%d}",
            str(one.days_left()),
            one.fingerprint,
        )
        for one in found
    ]
    console = Terminal()
    print_rows(console, columns, rows)
    for one in found:
        if one.days_left() < WARN_DAYS:
            console.print(f"[yellow]{one.file} {one.explain_end()}; make another one.[/]")
