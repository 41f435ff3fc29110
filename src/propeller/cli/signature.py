"""``propeller signature …``: keys that sign programs, and signatures in cosign's format."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from propeller.cli.options import for_registry

if TYPE_CHECKING:
    from propeller.cli.registry_access import RegistryAccess

commands = typer.Typer(name="signature", help="Sign programs, and verify who has.", no_args_is_help=True)

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REF", help="The program: registry/name:tag or name@sha256:….")
]


@commands.command(name="make-key")
def make_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Writes NAME.key and NAME.pub.")],
) -> None:
    """Make a key that signs, as 'cosign generate-key-pair' does. Its password is COSIGN_PASSWORD, or asked for."""
    from propeller.cli.artifacts import key_password
    from propeller.errors import StartError
    from propeller.oci.signing import SigningKey

    private, public = Path(f"{name}.key"), Path(f"{name}.pub")
    for file in (private, public):
        if file.exists():
            raise StartError(f"{file} is there already: choose another name")
    password = key_password(private, twice=True)
    try:
        SigningKey.make().write(private, public, password)
    except OSError as error:
        raise StartError(f"{private}: {error.strerror}") from None
    print(
        f"{private} signs: keep it to yourself.\n{public} verifies: give it to proxies (PROXY_SIGNERS) and devices (signers)."
    )


@commands.command()
@for_registry
def add(
    reference: ReferenceArgument,
    key: Annotated[Path, typer.Option(metavar="KEY", help="The private key.")],
    *,
    access: "RegistryAccess",
) -> None:
    """Sign a program that is in a registry, as 'cosign sign --key' does."""
    from propeller.cli.artifacts import run_sign

    run_sign(reference, key, access)


@commands.command()
@for_registry
def verify(
    reference: ReferenceArgument,
    key: Annotated[
        list[Path],
        typer.Option(metavar="PUB", help="A public key, one of which must have signed; repeatable."),
    ],
    *,
    access: "RegistryAccess",
) -> None:
    """Verify who has signed a program, and show what it may do."""
    from propeller.cli.artifacts import run_verify

    run_verify(reference, key, access)
