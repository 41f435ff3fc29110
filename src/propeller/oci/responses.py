"""Reading what registries and token servers answer: small bodies, and the error that a refusal stands for."""

import json

import httpx

from propeller.oci.errors import (
    ArtifactNotFoundError,
    ArtifactTooLargeError,
    OciError,
    RegistryError,
    RegistryLoginError,
    RegistryRefusedError,
)

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
"""The largest manifest, token or error body that is read (the limit that registries have)."""

_TEMPORARY = frozenset({429, 500, 502, 503, 504})

_EXACT = "the repository name must match exactly what was pushed (case-sensitive)"


async def read_document(response: httpx.Response, what: str) -> bytes:
    """The whole of a small body; ``what`` names it in errors.

    Raises:
        ArtifactTooLargeError: it is not small.
    """
    data = bytearray()
    async for piece in response.aiter_bytes():
        data += piece
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ArtifactTooLargeError(
                f"{what}: the answer is over {MAX_DOCUMENT_BYTES} bytes", "this is not a registry"
            )
    return bytes(data)


async def error_of(response: httpx.Response, what: str, host: str, login_help: str) -> OciError:
    """The error for an answer that is not a success.

    Args:
        response: the answer, whose body was not read yet.
        what: the reference or URL that was asked for.
        host: the registry.
        login_help: how to give a login for it.
    """
    status, said = response.status_code, await _read_reason(response)
    match status:
        case 401:
            return RegistryLoginError(f"{what}: {host} answered 401 Unauthorized{said}", login_help)
        case 403:
            return RegistryRefusedError(
                f"{what}: {host} answered 403 Forbidden{said}", f"{login_help}; {_EXACT}"
            )
        case 404:
            return ArtifactNotFoundError(
                f"{what}: {host} answered 404 Not Found{said}",
                "use exactly the name and tag you pushed (names are case-sensitive), "
                f"or push it first with `propeller push FILE {what}`",
            )
        case 413:
            return ArtifactTooLargeError(
                f"{what}: {host} answered 413 Too Large{said}", "raise the registry's limit"
            )
        case 429:
            return RegistryError(
                f"{what}: {host} answered 429 Too Many Requests{said}", "wait, or log in", temporary=True
            )
        case _:
            return RegistryError(
                f"{what}: {host} answered {status}{said}",
                "see the registry's own log",
                temporary=status in _TEMPORARY,
            )


async def insufficient_scope(response: httpx.Response, what: str, host: str, login_help: str) -> OciError:
    """The error for a 401 that says ``insufficient_scope``: there was a token, but it does not allow this."""
    said = await _read_reason(response)
    return RegistryRefusedError(
        f"{what}: {host} answered 401: no permission for this repository{said}", f"{login_help}; {_EXACT}"
    )


async def _read_reason(response: httpx.Response) -> str:
    """The message of an error body in the distribution specification's form, in parentheses; empty without one."""
    if response.request.method == "HEAD":
        return ""
    try:
        document = json.loads(await read_document(response, "error"))
        first = document["errors"][0]
        reason = str(first.get("message") or first.get("code"))[:300]
    except (
        ArtifactTooLargeError,
        httpx.HTTPError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        return ""
    return f" ({reason})" if reason else ""
