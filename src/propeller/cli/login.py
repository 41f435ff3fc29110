"""``propeller login`` and ``propeller logout``: a stack elsewhere, used without its address and a password each time."""

from propeller.cli.connection import Target
from propeller.cli.terminal import Terminal, escape
from propeller.errors import PropellerError, StartError
from propeller.sdk import Propeller


def log_in(target: Target) -> None:
    """Log in to a stack elsewhere, and keep the login.

    Raises:
        PropellerError: it was not said where and who, or identity refuses.
    """
    if not target.is_named:
        raise StartError(
            "--url: name the stack, as https://fleet.example; one on this machine needs no login"
        )
    if target.user is None:
        raise StartError("--user: name the user; 'propeller user add' makes one")
    with target.connect(anew=True) as fl:
        fl.keep_login()
        where, registry = fl.url("identity"), fl.registry
    Terminal().print(
        f"Logged in at {escape(where)} as {escape(target.user)}. Commands without --url are about that stack, where none "
        "is in .propeller here. To end it: propeller logout",
        soft_wrap=True,
    )
    if not registry:
        Terminal(stderr=True).print(
            "note: no address of its registry is known, so no program can be pushed there: log in again with "
            "--url oci_registry=URL beside the others for that",
            soft_wrap=True,
        )


def log_out() -> None:
    """End the login that is kept, here and at identity.

    Raises:
        StartError: there is none.
    """
    with Propeller.from_login() as fl:
        where = fl.url("identity")
        try:
            fl.end_login()
        except PropellerError as error:
            Terminal(stderr=True).print(
                f"The login is kept no more; identity did not hear of it ({escape(str(error))}), and ends it by itself",
                soft_wrap=True,
            )
    Terminal().print(f"Logged out at {escape(where)}", soft_wrap=True)
