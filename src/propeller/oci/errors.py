"""What can go wrong with a registry: each error says the cause and what to do about it."""

from propeller.errors import (
    InvalidError,
    NotFoundError,
    PropellerError,
    RefusedError,
    StartError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    UnprocessableError,
)


class OciError(PropellerError):
    """An artifact could not be pulled or pushed.

    Attributes:
        cause: what happened, with the reference or host it happened to.
        remedy: what a person can do.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause}; {remedy}" if remedy else cause)


class InvalidReferenceError(OciError, InvalidError):
    """A text is not an artifact reference."""


class ArtifactNotFoundError(OciError, NotFoundError):
    """The registry has no such repository, tag or digest."""


class RegistryLoginError(OciError, UnauthenticatedError):
    """The registry wants credentials, or does not know those that were sent."""


class RegistryRefusedError(OciError, RefusedError):
    """The registry knows the credentials, and they do not allow this."""


class RegistryNotAllowedError(OciError, RefusedError):
    """The service does not fetch from this registry."""


class DamagedLayoutError(StartError):
    """The index of a layout folder cannot be read; the text names the file and the remedy."""


class NotSignedError(OciError, RefusedError):
    """The artifact is not signed by anyone whose signatures are believed."""


class RegistryUnreachableError(OciError, UnavailableError):
    """There was no connection to the registry, or it broke."""


class RegistryTimeoutError(OciError, UnavailableError):
    """The registry took a connection and then sent nothing."""


class DigestMismatchError(OciError, InvalidError):
    """The bytes are not those that the digest or size names."""


class ArtifactTooLargeError(OciError, TooLargeError):
    """The artifact, or a document about it, is over the limit."""


class UnsupportedArtifactError(OciError, UnprocessableError):
    """The artifact is there, but it is not one Wasm program."""


class RegistryError(OciError, UnavailableError):
    """Any other answer of a registry or token server that is not a success.

    Attributes:
        temporary: whether it says that it is busy or has a fault.
    """

    def __init__(self, cause: str, remedy: str, *, temporary: bool) -> None:
        super().__init__(cause, remedy)
        self.temporary = temporary


LOGIN_HELP = (
    "log in with `docker login {host}` (GHCR: your user name in lower case, and a token with read:packages, "
    "write:packages to push)"
)
"""How to give a login, unless whoever uses the client has a text of its own; ``{registry}`` is ``{host}`` with its scheme."""
