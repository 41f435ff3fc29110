"""Errors of the distribution specification, and the checks of what stands in every path."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from propeller.digests import is_digest
from propeller.oci.reference import is_repository


class DistributionError(Exception):
    """A refusal, in the form that clients of registries read.

    Attributes:
        status: the HTTP status.
        code: one of the specification's codes, as ``BLOB_UNKNOWN``.
        message: what is wrong, for a person.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}
        super().__init__(message)

    def response(self) -> Response:
        """``{"errors":[{"code","message"}]}``."""
        body: dict[str, Any] = {"errors": [{"code": self.code, "message": self.message}]}
        return JSONResponse(body, self.status, self.headers)


def too_large_error(limit: int) -> DistributionError:
    """413; the connection is closed, as the rest of the body is not read."""
    return DistributionError(413, "SIZE_INVALID", f"the limit is {limit} bytes", {"Connection": "close"})


def repository_of(request: Request) -> str:
    """The repository in a request's path.

    Raises:
        DistributionError: it is not a repository name.
    """
    name = str(request.path_params["name"])
    if not is_repository(name):
        raise DistributionError(
            400, "NAME_INVALID", f"{name[:200]!r} is not a repository name: write lower-case parts and '/'"
        )
    return name


def check_digest(digest: str) -> str:
    """Return a digest.

    Raises:
        DistributionError: it is not a sha256 digest.
    """
    if not is_digest(digest):
        raise DistributionError(
            400, "DIGEST_INVALID", f"{digest[:100]!r} is not sha256: and 64 hexadecimal digits"
        )
    return digest
