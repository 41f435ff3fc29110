"""``propeller audit …``: who changed what at the services of a stack."""

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from propeller.cli.options import JsonOption, for_stack
from propeller.errors import NotFoundError, RefusedError, StartError
from propeller.process.control_characters import escape_controls

if TYPE_CHECKING:
    from pathlib import Path

    from propeller.cli.connection import Target
    from propeller.process.audit import Head
    from propeller.sdk import Propeller

commands = typer.Typer(
    name="audit", help="Show and verify the audit logs of a stack: who changed what.", no_args_is_help=True
)

ServiceOption = Annotated[
    list[str] | None,
    typer.Option("--service", metavar="NAME", help="Only this service; repeatable."),
]

_PAGE = 10_000


@commands.command()
@for_stack
def show(
    service: ServiceOption = None,
    last: Annotated[int, typer.Option("--last", min=1, help="How many entries, the newest.")] = 50,
    who: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Only of callers whose kind, name, id or role has this in it."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all entries as they were written, a line each.")
    ] = False,
    *,
    target: "Target",
) -> None:
    """Show who did what, from where, with what result; the newest entries of all services, by time."""
    entries: list[tuple[str, bytes]] = []
    for lines in _logs(target, service).values():
        if isinstance(lines, str):
            print(lines, file=sys.stderr)
            continue
        for line in lines:
            entry = json.loads(line)
            if who is None or who in " ".join(map(str, entry.get("who", {}).values())):
                entries.append((str(entry.get("time", "")), line))
    entries.sort()
    if as_json:
        for _time, line in entries:
            sys.stdout.write(escape_controls(line.decode()))
        return
    from propeller.cli.tables import Column, print_rows
    from propeller.cli.terminal import Terminal

    columns = (
        Column("time"), Column("service"), Column("who"), Column("from"), Column("action"), Column("status"),
        Column("about", spare=1),
    )  # fmt: skip
    rows = [_row(json.loads(line)) for _time, line in entries[-last:]]
    print_rows(Terminal(), columns, rows)


@commands.command()
@for_stack
def verify(
    service: ServiceOption = None,
    head: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SERVICE=NUMBER:HASH",
            help="An entry that was noted earlier, as this command prints it: it must be there; repeatable.",
        ),
    ] = None,
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Verify that no entry was changed, removed or added; print the newest entry of each service, to be noted elsewhere."""
    from propeller.process.audit import DamagedError
    from propeller.process.audit import verify as verify_lines

    noted = _noted(head or ())
    told: list[dict[str, Any]] = []
    logs = _logs(target, service)
    for name in noted.keys() - logs.keys():
        raise StartError(f"--head: there is no audit log of {name}; there are {', '.join(logs) or 'none'}")
    for name, lines in logs.items():
        entries, found, error = 0, None, lines if isinstance(lines, str) else None
        if not isinstance(lines, str):
            entries = len(lines)
            try:
                found = f"{name}={verify_lines(iter(lines), noted.get(name, ()), name)}"
            except DamagedError as damage:
                error = str(damage)
        told.append({"service": name, "entries": entries, "head": found, "error": error})
    if as_json:
        print(json.dumps(told))
    else:
        for one in told:
            print(one["error"] or f"{one['entries']} entries, none changed  {one['head']}")
    if any(one["error"] for one in told):
        raise typer.Exit(1)


def _logs(target: "Target", services: list[str] | None) -> dict[str, list[bytes] | str]:
    """The lines of each service's log, or why they cannot be read: from the state folder, where a stack need not run, or over HTTP."""
    from propeller.stack.state_folder import StateFolder

    if target.is_remote:
        with target.connect() as fl:
            return dict(_fetch(fl, services))
    state = StateFolder(target.state)
    folder = state.audit_log("x").parent.parent
    names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    if not names:
        raise StartError(f"{target.state} has no audit logs: no stack has run there")
    for name in services or ():
        if name not in names:
            raise StartError(f"--service: there is no audit log of {name!r}; there are {', '.join(names)}")
    return {name: _read(state.audit_log(name)) for name in services or names}


def _read(file: "Path") -> list[bytes] | str:
    from propeller.process.audit import DamagedError, read_log

    try:
        return read_log(file)
    except DamagedError as error:
        return str(error)


def _fetch(fl: "Propeller", services: list[str] | None) -> dict[str, list[bytes]]:
    from propeller.sdk.addresses import PORTS

    found: dict[str, list[bytes]] = {}
    for name in [one.replace("-", "_") for one in services or ()] or PORTS:
        try:
            found[name.replace("_", "-")] = list(_all_lines(fl, name))
        except (NotFoundError, RefusedError) as error:
            if services:
                raise
            print(f"{name}: {error}", file=sys.stderr)
    return found


def _all_lines(fl: "Propeller", service: str) -> Iterator[bytes]:
    after = 0
    while lines := fl.audit_lines(service, after=after, limit=_PAGE):
        yield from lines
        after = json.loads(lines[-1])["seq"]


def _noted(given: list[str] | tuple[()]) -> "dict[str, list[Head]]":
    from propeller.process.audit import Head

    noted: dict[str, list[Head]] = {}
    for one in given:
        name, _, entry = one.partition("=")
        number, _, digest = entry.partition(":")
        if not name or not (number.isascii() and number.isdigit()) or len(digest) != 64:
            raise typer.BadParameter(f"{one!r} is not SERVICE=NUMBER:HASH", param_hint="--head")
        noted.setdefault(name, []).append(Head(int(number), digest))
    return noted


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    who = entry.get("who", {})
    return (
        f"{str(entry.get('time', ''))[:19]}Z",
        str(entry.get("service", "")),
        " ".join(filter(None, (who.get("role"), who.get("name") or who.get("id") or who.get("kind")))),
        entry.get("from", ""),
        str(entry.get("action", "")),
        str(entry.get("status", "")),
        ", ".join(f"{name} {value}" for name, value in entry.get("about", {}).items()),
    )
