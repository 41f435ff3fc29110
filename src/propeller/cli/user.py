"""``propeller user …``: the people who may use a stack, and as what."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from propeller.cli.options import JsonOption, for_stack
from propeller.errors import StartError

if TYPE_CHECKING:
    from propeller.cli.connection import Target

commands = typer.Typer(
    name="user", help="List, add, change and disable users; change your own password.", no_args_is_help=True
)

NEW_PASSWORD_VARIABLE = "PROPELLER_NEW_PASSWORD"  # noqa: S105 - its name
NO_ROLE = "none"

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]
RoleOption = Annotated[
    str,
    typer.Option(
        metavar="ROLE",
        help="viewer: sees all; operator: also runs experiments and adds devices; admin: also makes clients.",
    ),
]


@commands.command(name="list")
@for_stack
def list_users(as_json: JsonOption = False, *, target: "Target") -> None:
    """List the users with their roles."""
    from propeller.cli.tables import Column, print_rows
    from propeller.cli.terminal import Terminal

    with target.connect() as fl:
        found = fl.users.list()
    if as_json:
        print(json.dumps(found))
        return
    columns = (Column("user"), Column("role"), Column("status"), Column("id", spare=1))
    rows = [(one["username"], one["role"] or "", one["status"], one["id"]) for one in found]
    print_rows(Terminal(), columns, rows)


@commands.command()
@for_stack
def add(name: NameArgument, role: RoleOption = "viewer", *, target: "Target") -> None:
    """Add a user. The password is PROPELLER_NEW_PASSWORD, or asked for."""
    from propeller.cli.connection import read_password

    password = read_password(name, NEW_PASSWORD_VARIABLE, twice=True)
    with target.connect() as fl:
        fl.users.add(name, password, role)
    print(f"{name} is {role}. They log in with: propeller … --url HOST --user {name}")


@commands.command()
@for_stack
def role(
    name: NameArgument,
    role: Annotated[str, typer.Argument(metavar="ROLE", help="viewer, operator, admin or none.")],
    *,
    target: "Target",
) -> None:
    """Give a user another role, or none any more."""
    with target.connect() as fl:
        fl.users.set_role(name, None if role == NO_ROLE else role)
    print(f"{name} is {'no member any more' if role == NO_ROLE else role}.")


@commands.command()
@for_stack
def disable(name: NameArgument, *, target: "Target") -> None:
    """Let a user in no more; their logins end at once."""
    with target.connect() as fl:
        fl.users.enable(name, enabled=False)
    print(f"{name} is disabled.")


@commands.command()
@for_stack
def enable(name: NameArgument, *, target: "Target") -> None:
    """Let a disabled user in again."""
    with target.connect() as fl:
        fl.users.enable(name)
    print(f"{name} is enabled.")


@commands.command()
@for_stack
def password(*, target: "Target") -> None:
    """Change your own password. The new one is PROPELLER_NEW_PASSWORD, or asked for."""
    from propeller.cli.connection import read_password

    if target.user is None:
        raise StartError(
            "whose password? Give --url and --user; that of a stack's first user is IDENTITY_ADMIN_PASSWORD"
        )
    with target.connect() as fl:
        new = read_password(f"{target.user}, the new one", NEW_PASSWORD_VARIABLE, twice=True)
        fl.users.change_password(new)
    print(f"{target.user} has a new password, and logs in anew with it.")
