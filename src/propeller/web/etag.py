"""Conditional requests: whether the caller has what would be sent."""


def matches(header: str, etag: str) -> bool:
    """Whether an ``If-None-Match`` header names a tag (RFC 9110, section 13.1.2).

    Args:
        header: ``*``, or a list of tags, which are compared weakly; empty if there is none.
        etag: the strong tag of what would be sent, in its quotes.
    """
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags
