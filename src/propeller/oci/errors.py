"""What can go wrong with a registry: each error says the cause and what to do about it."""


class OciError(Exception):
    """An artifact could not be had or stored.

    Attributes:
        cause: what happened, with the reference or host it happened to.
        remedy: what a person can do.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        self.cause, self.remedy = cause, remedy
        super().__init__(f"{cause}; {remedy}" if remedy else cause)


class InvalidReferenceError(OciError, ValueError):
    """A text is not an artifact reference."""


class NotFoundError(OciError):
    """404: the repository, tag or digest is not there."""


class UnauthorizedError(OciError):
    """401: the registry wants credentials, or refused those that were given."""


class ForbiddenError(OciError):
    """403: the credentials are good, but not for this."""


class UnreachableError(OciError):
    """There was no connection to the registry, or it broke."""


class RegistryTimeoutError(OciError):
    """The registry took a connection and then said nothing."""


class DigestMismatchError(OciError):
    """The bytes are not those that the digest or size names."""


class TooLargeError(OciError):
    """The artifact, or a document about it, is over the limit."""


class UnsupportedArtifactError(OciError):
    """The artifact is there, but it is not one Wasm program."""


class RegistryError(OciError):
    """Any other answer of a registry.

    Attributes:
        status: its HTTP status.
    """

    def __init__(self, cause: str, remedy: str, status: int) -> None:
        super().__init__(cause, remedy)
        self.status = status


LOGIN_HELP = (
    "log in with `docker login {host}` (GHCR: your user name in lower case, and a token with read:packages, "
    "write:packages to push)"
)
"""How to give a login, unless whoever uses the client says it better; ``{registry}`` is ``{host}`` with its scheme."""

_EXACT = "the repository name must match exactly what was pushed (case-sensitive)"


def from_status(status: int, what: str, host: str, detail: str, login_help: str) -> OciError:
    """The error for an HTTP status that is not a success.

    Args:
        status: the status.
        what: the reference or URL that was asked for.
        host: the registry.
        detail: what the body of the answer says, if it says anything.
        login_help: how to give a login for it.
    """
    said = f" ({detail})" if detail else ""
    match status:
        case 401:
            return UnauthorizedError(f"{what}: {host} answered 401 Unauthorized{said}", login_help)
        case 403:
            return ForbiddenError(f"{what}: {host} answered 403 Forbidden{said}", f"{login_help}; {_EXACT}")
        case 404:
            return NotFoundError(
                f"{what}: {host} answered 404 Not Found{said}",
                "use exactly the name and tag you pushed (names are case-sensitive), "
                f"or push it first with `propeller push FILE {what}`",
            )
        case 413:
            return TooLargeError(f"{what}: {host} answered 413 Too Large{said}", "raise the registry's limit")
        case 429:
            return RegistryError(
                f"{what}: {host} answered 429 Too Many Requests{said}", "wait, or log in", status
            )
        case _:
            return RegistryError(
                f"{what}: {host} answered {status}{said}", "see the registry's own log", status
            )


def no_permission(what: str, host: str, detail: str, login_help: str) -> OciError:
    """The error for a 401 with ``insufficient_scope``: there was a token, but it does not allow this."""
    said = f" ({detail})" if detail else ""
    return ForbiddenError(
        f"{what}: {host} answered 401: no permission for this repository{said}",
        f"{login_help}; {_EXACT}",
    )
