"""``propeller device …``: the devices of a stack, and the tokens by which they join."""

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from propeller.cli.options import JsonOption, for_stack

if TYPE_CHECKING:
    from propeller.cli.connection import Target

commands = typer.Typer(
    name="device",
    help="Add devices, which then join; list, rename, tag and remove them.",
    no_args_is_help=True,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The device's name, or its id.")]


@commands.command()
@for_stack
def add(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What the device is called, in experiments too.")
    ],
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="A tag, by which experiments choose it; repeatable."),
    ] = None,
    lifetime: Annotated[
        str, typer.Option(metavar="TIME", help="How long the token is good: 30m, 1h, 48h; 720h at most.")
    ] = "1h",
    as_json: JsonOption = False,
    *,
    target: "Target",
) -> None:
    """Add a device, and print the token by which it joins: good once, and for a time."""
    from propeller.cli.terminal import Terminal, escape
    from propeller.process.settings import parse_duration

    try:
        lifetime_s = parse_duration(lifetime)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--lifetime") from None
    with target.connect() as fl:
        added = fl.devices.add(name, tags=tags or (), lifetime_s=lifetime_s)
    if as_json:
        print(json.dumps(added))
        return
    until = f"{datetime.fromisoformat(added['expires_at']).astimezone():%Y-%m-%d %H:%M %Z}"
    said = Terminal(stderr=True, soft_wrap=True)
    said.print(
        f"{escape(name)} is added. On it, until {until} and once: propeller join TOKEN, which is this word:"
    )
    sys.stderr.flush()
    print(added["token"])


@commands.command(name="list")
@for_stack
def list_devices(as_json: JsonOption = False, *, target: "Target") -> None:
    """List the devices: which have joined, which are there, and whose token waits to be used."""
    from propeller.cli.tables import Column, print_rows
    from propeller.cli.terminal import Terminal

    with target.connect() as fl:
        found = fl.devices.list()
    if as_json:
        print(json.dumps(found))
        return
    columns = (Column("device"), Column("state"), Column("tags", spare=2), Column("id", spare=1))
    rows = [(one["name"], _state(one), ", ".join(one["tags"]), one["id"]) for one in found]
    print_rows(Terminal(), columns, rows)


def _state(device: dict[str, str]) -> str:
    if device["state"] == "joined":
        return "alive" if device["alive"] else "away"
    return device["state"]


@commands.command()
@for_stack
def remove(name: NameArgument, *, target: "Target") -> None:
    """Take a device's key away and disconnect it; its name may be used again."""
    with target.connect() as fl:
        fl.devices.remove(name)
    print(f"{name} is removed: its key is good for nothing any more.")


@commands.command()
@for_stack
def rename(
    name: NameArgument,
    new_name: Annotated[str, typer.Argument(metavar="NEW", help="Its new name.")],
    *,
    target: "Target",
) -> None:
    """Give a device another name."""
    with target.connect() as fl:
        fl.devices.rename(name, new_name)
    print(f"{name} is {new_name} from now on.")


@commands.command()
@for_stack
def tag(
    name: NameArgument,
    tags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TAG]…", help="All that it has from now on; none, and it has none."),
    ] = None,
    *,
    target: "Target",
) -> None:
    """Give a device other tags: nobody else has these, unless they are given them too."""
    with target.connect() as fl:
        tagged = fl.devices.tag(name, tags or ())
    print(f"{tagged['name']} has {', '.join(tagged['tags']) or 'no tags'} from now on.")
