"""Errors of the embedded registry, in the form of the distribution specification."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from propeller.oci.reference import is_digest, is_repository


class SpecError(Exception):
    """A refusal.

    Attributes:
        status: the HTTP status.
        code: one of the specification's codes, as ``BLOB_UNKNOWN``.
        message: for a person: what is wrong.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}
        super().__init__(message)

    def response(self) -> Response:
        """``{"errors":[{"code","message"}]}``."""
        body: dict[str, Any] = {"errors": [{"code": self.code, "message": self.message}]}
        return JSONResponse(body, self.status, self.headers)


def too_large(limit: int) -> SpecError:
    """413; the connection is closed, as the rest of the body is not read."""
    return SpecError(413, "SIZE_INVALID", f"the limit is {limit} bytes", {"Connection": "close"})


def name_of(request: Request) -> str:
    """The repository in a request's path.

    Raises:
        SpecError: it is not a repository name.
    """
    name = str(request.path_params["name"])
    if not is_repository(name):
        raise SpecError(
            400, "NAME_INVALID", f"{name[:200]!r} is not a repository name: lower-case parts and '/'"
        )
    return name


def check_digest(digest: str) -> str:
    """Give a digest back.

    Raises:
        SpecError: it is not one that this registry takes.
    """
    if not is_digest(digest):
        raise SpecError(400, "DIGEST_INVALID", f"{digest[:100]!r} is not sha256: and 64 hexadecimal digits")
    return digest
