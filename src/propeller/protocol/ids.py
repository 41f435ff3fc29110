"""Identifiers: texts that are safe in a topic, a URL path and a file name."""

import re
from typing import Annotated

from pydantic import AfterValidator

from propeller.errors import InvalidError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

ID_RULE = "1 to 128 letters, digits, '.', '_' or '-', the first a letter or digit"


class InvalidIdError(InvalidError):
    """A text that is not safe in a topic, a path or a file name."""


def check_id(value: str) -> str:
    """The same text, if it can be part of a topic, a URL path and a file name without changing them.

    Raises:
        InvalidIdError: it is empty, too long, or has a special character (``/ + # ..`` and more).
    """
    if _ID.fullmatch(value) is None:
        raise InvalidIdError(f"{value[:80]!r} is not a valid id: use {ID_RULE}")
    return value


Id = Annotated[str, AfterValidator(check_id)]
"""A checked identifier: of a proplet, task, round, domain, channel, client, experiment."""
