"""Several documents in one body: ``multipart/mixed`` (RFC 2046, section 5.1), so that who wants all of them asks once."""

from collections.abc import Mapping

from propeller.protocol.wire import MalformedMessageError

MULTIPART = "multipart/mixed"

_END_OF_HEAD = b"\r\n\r\n"


def pack(documents: Mapping[str, bytes], boundary: str) -> bytes:
    """The body.

    Args:
        documents: by their media types.
        boundary: up to 70 letters and digits that are in none of them: a digest of what they say, or a random number.
    """
    parts = (
        f"\r\n--{boundary}\r\nContent-Type: {media_type}\r\n\r\n".encode() + content
        for media_type, content in documents.items()
    )
    return b"".join((*parts, f"\r\n--{boundary}--\r\n".encode()))


def packed_type(boundary: str) -> str:
    """The ``Content-Type`` of a body with this boundary."""
    return f"{MULTIPART}; boundary={boundary}"


def unpack(content_type: str, body: bytes) -> dict[str, bytes]:
    """The documents of a body that ``pack`` made, by their media types.

    Raises:
        MalformedMessageError: it is no such body, or not all of it.
    """
    boundary = content_type.partition("boundary=")[2].encode()
    first, *parts = body.split(b"\r\n--" + boundary) if boundary else [body]
    if first or not parts or parts.pop() != b"--\r\n":
        raise MalformedMessageError(f"no whole {MULTIPART} as {content_type[:80]!r} says")
    documents = {}
    for part in parts:
        head, separator, content = part.partition(_END_OF_HEAD)
        name, _, media_type = head.strip().partition(b":")
        if not separator or name.lower() != b"content-type":
            raise MalformedMessageError(f"a part of {MULTIPART} says not what it is")
        documents[media_type.strip().decode("latin-1").lower()] = content
    return documents
